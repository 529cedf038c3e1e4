"""A plan as a tree for people, as a Mermaid flowchart and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from orchestrator_core.cli.findings import counted
from orchestrator_core.cli.policies import POLICY_WIDTH, cache_in_words, policies_in_words, seconds
from orchestrator_core.documents import policies_json
from orchestrator_core.expressions import Node, ObjectNode, references, unparse
from orchestrator_core.plan import AnswerCache, Plan, PlannedStep

REQUEST = "request"


def before(plan: Plan) -> Mapping[str, frozenset[str]]:
    """Return for each step all that end before it starts, through whatever is between."""
    found: dict[str, frozenset[str]] = {}
    for step in plan.steps:
        found[step.name] = step.waits_for.union(*(found[name] for name in step.waits_for))
    return found


def waits(plan: Plan) -> Mapping[str, tuple[str, ...]]:
    """Return for each step those it waits for directly: without the ones that another of them waits for."""
    earlier = before(plan)
    order = [step.name for step in plan.steps]
    return {
        step.name: tuple(
            name
            for name in order
            if name in step.waits_for and not any(name in earlier[other] for other in step.waits_for)
        )
        for step in plan.steps
    }


def beside(plan: Plan) -> Mapping[str, tuple[str, ...]]:
    """Return for each step those that may be under way at the same time."""
    earlier = before(plan)
    order = [step.name for step in plan.steps]
    return {
        name: tuple(
            other for other in order if other != name and other not in earlier[name] and name not in earlier[other]
        )
        for name in order
    }


def route(plan: Plan) -> str:
    path = f"/orchestrator/{plan.domain}/{plan.name}"
    rest = f"[{plan.path}]" if plan.path and plan.bare else plan.path
    return f"{' '.join(plan.config.methods)} {path}{rest}"


def answer_parts(plan: Plan) -> list[str]:
    """Return the steps whose results the answer is made of."""
    if plan.response is not None:
        used = {reference.root for reference in references(plan.response)}
    else:
        used = {plan.answers_with} if plan.answers_with else {step.name for step in plan.steps}
    return [step.name for step in plan.steps if step.name in used]


def _asks_request(step: PlannedStep) -> bool:
    nodes = [node for _, node in step.params] + [node for node in (step.condition, step.for_each) if node is not None]
    return any(reference.root == REQUEST for node in nodes for reference in references(node))


def _listed(names: tuple[str, ...] | list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _transformers(entries: Sequence[Any]) -> list[str]:
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def _marks(step: PlannedStep) -> list[str]:
    """Return what is out of the ordinary about a step, in words."""
    marks = []
    if step.for_each is not None:
        marks.append(f"for each of {unparse(step.for_each)}")
    if step.optional:
        what = "it" if step.for_each is None else "an item"
        marks.append(f"optional: {json.dumps(step.default, ensure_ascii=False)} when {what} fails")
    if step.config.timeout is not None:
        marks.append(f"within {seconds(step.config.timeout)}")
    transforms = step.config.transforms
    for param, entries in transforms.params.items():
        marks.append(f"{param} transformed by {_listed(_transformers(entries))}")
    if transforms.result:
        marks.append(f"transformed by {_listed(_transformers(transforms.result))}")
    return marks


# --- text -------------------------------------------------------------------------------------------------------------


def as_text(plan: Plan, folder: Path) -> str:
    return "\n".join(_text(plan, folder))


def _text(plan: Plan, folder: Path) -> Iterator[str]:
    description = f": {plan.config.description}" if plan.config.description else ""
    yield click.style(plan.id, bold=True) + description
    yield f"{route(plan)}, within {seconds(plan.config.timeout)}"
    width = max((len(step.name) for step in plan.steps), default=0)
    yield ""
    for after, steps in _groups(plan).items():
        yield click.style(_heading(plan, after, steps), fg="blue")
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            yield from _step(step, width, "└─ " if last else "├─ ", "   " if last else "│  ", folder)
    yield click.style("answer", fg="blue")
    yield from _answer(plan, folder)


def _groups(plan: Plan) -> dict[tuple[str, ...], list[PlannedStep]]:
    groups: dict[tuple[str, ...], list[PlannedStep]] = {}
    direct = waits(plan)
    for step in plan.steps:
        groups.setdefault(direct[step.name], []).append(step)
    return groups


def _heading(plan: Plan, after: tuple[str, ...], steps: list[PlannedStep]) -> str:
    text = f"after {_listed(after)}" if after else "at the start"
    if len(steps) > 1:
        text += f", {counted(len(steps), 'step')} at once"
    members = {step.name for step in steps}
    others = [name for name in beside(plan)[steps[0].name] if name not in members]
    return f"{text}, beside {_listed(others)}" if after and others else text


def _step(step: PlannedStep, width: int, branch: str, stem: str, folder: Path) -> Iterator[str]:
    name = click.style(step.name.ljust(width), bold=True)
    call = f"{step.spec.label} {step.operation}".rstrip()
    marks = "".join(f", {mark}" for mark in _marks(step))
    yield f"{branch}{name}  {call}{marks}"
    indent = f"{stem}{' ' * width}    "
    if step.condition is not None:
        yield f"{indent}only if {unparse(step.condition)}"
    for parameter, node in step.params:
        yield from _assignment(parameter, node, indent)
    key = unparse(step.cache_key) if step.cache_key is not None else ""
    for name, said in policies_in_words(step.policies, folder, key):
        yield indent + click.style(f"{name:<{POLICY_WIDTH}}  {said}", dim=True)


def _assignment(name: str, node: Node, indent: str) -> Iterator[str]:
    if isinstance(node, ObjectNode) and node.fields:
        yield f"{indent}{name}:"
        for key, value in node.fields:
            yield from _assignment(key, value, f"{indent}  ")
    else:
        yield f"{indent}{name} = {unparse(node)}"


def _answer(plan: Plan, folder: Path) -> Iterator[str]:
    if isinstance(plan.response, ObjectNode):
        for name, node in plan.response.fields:
            yield from _assignment(name, node, "   ")
    elif plan.response is not None:
        yield f"   {unparse(plan.response)}"
    elif plan.answers_with:
        yield f"   the result of {plan.answers_with}"
    else:
        yield "   an object of the steps' results by name"
    if plan.config.transform:
        yield f"   transformed by {_listed(_transformers(plan.config.transform))}"
    if plan.cache is not None:
        problem = plan.located.problem("", "", "cache", at_key=True)
        by = f"by {unparse(plan.cache.key)}" if plan.cache.key is not None else _whole_request(plan.cache)
        what = cache_in_words(plan.cache.options, by)
        yield "   " + click.style(f"cache  {what}: {(folder / problem.file).as_posix()}:{problem.line}", dim=True)


def _whole_request(cache: AnswerCache) -> str:
    headers = f" and {_listed([f'the header {name}' for name in cache.headers])}" if cache.headers else ""
    return f"by path and query parameters, body{headers}"


# --- Mermaid ----------------------------------------------------------------------------------------------------------


def as_mermaid(plan: Plan) -> str:
    """Return a flowchart. A solid arrow carries a value; a step with a dashed border may fail or be skipped."""
    ids = {step.name: f"s{index}" for index, step in enumerate(plan.steps)}
    lines = ["flowchart TD", f'    request(["{_label(route(plan))}"])']
    for step in plan.steps:
        text = [step.name, f"{step.spec.label} {step.operation}".rstrip(), *_marks(step)]
        opening, closing = "[", "]"
        if step.condition is not None:
            text.append(f"only if {unparse(step.condition)}")
            opening, closing = "{{", "}}"
        lines.append(f'    {ids[step.name]}{opening}"{"<br/>".join(map(_label, text))}"{closing}')
    lines.append('    answer(["answer"])')
    direct = waits(plan)
    for step in plan.steps:
        if _asks_request(step) or not direct[step.name]:
            lines.append(f"    request --> {ids[step.name]}")
        lines += [f"    {ids[name]} --> {ids[step.name]}" for name in direct[step.name]]
    parts = answer_parts(plan)
    lines += [f"    {ids[name]} --> answer" for name in parts] or ["    request --> answer"]
    unsure = [ids[step.name] for step in plan.steps if step.optional or step.condition is not None]
    if unsure:
        lines += ["    classDef unsure stroke-dasharray: 5 5", f"    class {','.join(unsure)} unsure"]
    return "\n".join(lines)


def _label(text: str) -> str:
    """Escape a text for a quoted Mermaid label, which takes entity codes such as ``#quot;``."""
    for char, code in (("#", "#35;"), ("&", "#amp;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;"), ("\n", " ")):
        text = text.replace(char, code)
    return text


# --- JSON -------------------------------------------------------------------------------------------------------------


def as_json(plan: Plan) -> dict[str, Any]:
    """Return the plan with its steps in an order in which each comes after those it waits for."""
    direct, at_once = waits(plan), beside(plan)
    return {
        "domain": plan.domain,
        "endpoint": plan.name,
        "description": plan.config.description,
        "methods": list(plan.config.methods),
        "path": f"/orchestrator/{plan.domain}/{plan.name}{plan.path}",
        "path_params": list(plan.path_params),
        "timeout_seconds": plan.config.timeout,
        "steps": [
            {
                "name": step.name,
                "type": step.spec.kind.name,
                "source": step.spec.label,
                "operation": step.operation,
                "params": {name: unparse(node) for name, node in step.params},
                "condition": None if step.condition is None else unparse(step.condition),
                "for_each": None if step.for_each is None else unparse(step.for_each),
                "max_concurrency": None if step.for_each is None else step.config.max_concurrency,
                "optional": step.optional,
                "timeout_seconds": step.config.timeout,
                "policies": policies_json(step.policies),
                "waits_for": list(direct[step.name]),
                "beside": list(at_once[step.name]),
                "line": step.located.problem("", "").line,
                "file": step.located.document.name,
            }
            for step in plan.steps
        ],
        "answer": {
            "expression": None if plan.response is None else unparse(plan.response),
            "steps": answer_parts(plan),
        },
        "cache": None
        if plan.cache is None
        else {
            **attrs.asdict(plan.cache.options),
            "key": None if plan.cache.key is None else unparse(plan.cache.key),
            "headers": list(plan.cache.headers),
        },
    }
