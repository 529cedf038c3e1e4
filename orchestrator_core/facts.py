"""What sources know of their operations, held against the steps: parameters, fields, a model's features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from orchestrator_core.blame import describe
from orchestrator_core.catalog import facts_told, findings_told
from orchestrator_core.config.structure import Located
from orchestrator_core.config.yaml import DataPath
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.expressions import Literal, Node, ObjectNode, Reference, reference_text, references
from orchestrator_core.plan import Compiled, PlannedStep, place_of
from orchestrator_core.plugin_api import JSON, CallInspection, Finding, InspectsCalls, OperationFacts

Known = Callable[[PlannedStep], CallInspection]


def check_facts(endpoint: Compiled, known: Known) -> list[Problem]:
    """Hold an endpoint, also one without a plan, against what is known of the calls that its steps make."""
    steps = endpoint.steps
    problems: list[Problem] = []
    facts: dict[str, OperationFacts | None] = {}
    for step in steps:
        inspection = known(step)
        facts[step.name] = inspection.facts
        for finding in inspection.findings:
            place: dict[str, Any] = {"near": finding.near, "hint": finding.hint, "at_key": not finding.at}
            at = ("params", *finding.at) if step.config.params else ()
            problems.append(step.located.problem("ORC602", finding.message, *at, **place))
        if inspection.facts:
            problems += _check_params(step, inspection.facts)
            problems += _check_inputs(step, inspection.facts)
    by_name = {step.name: step for step in steps}
    for reference, located, path in _step_references(steps, endpoint.response, endpoint.located):
        problems += _check_field(reference, by_name[reference.root], facts[reference.root], located, path)
    return problems


def inspect_call(source: object, step: PlannedStep) -> CallInspection | None:
    """Return what an open source knows of the step's call, or None where its operation's facts hold."""
    if not isinstance(source, InspectsCalls):
        return None
    names = [name for name, _ in step.params]
    # A parameter with transforms of its own is another value by the time of the call.
    constants = {
        name: node.value for name, node in step.params if isinstance(node, Literal) and name not in step.conversions
    }
    try:
        looked = source.inspect_call(step.operation, names, constants)
        if looked is None:
            return None
        if not isinstance(looked, CallInspection):
            raise TypeError(f"inspect_call returned {type(looked).__name__}, expected CallInspection")
        if looked.facts is not None:
            facts_told({step.operation: looked.facts}, "inspect_call")
        findings_told(looked.findings, "inspect_call")
    except Exception as error:  # a defect of the plugin's: the rest of the configuration is told of all the same
        message = f"{step.spec.label} cannot tell what this call takes and returns: {describe(error)}"
        return CallInspection(None, (Finding(step.operation, message, hint=f"a defect of {step.spec.plugin}"),))
    return looked


def _check_params(step: PlannedStep, facts: OperationFacts) -> Iterator[Problem]:
    given = {name for name, _ in step.params}
    label = f"{step.spec.label} {step.operation}"
    unknown = set() if facts.optional is None else given - set(facts.required) - set(facts.optional)
    at: tuple[str, ...] = ("params",) if step.config.params else ()
    missing = set(facts.required) - given
    for name in sorted(unknown):
        hint = did_you_mean(name, missing or {*facts.required, *(facts.optional or ())})
        missing -= {word for word in missing if hint == f"did you mean '{word}'?"}
        message = f"{label} takes no parameter '{name}'"
        yield step.located.problem("ORC407", message, "params", name, at_key=True, hint=hint)
    for name in sorted(missing):
        message = f"{label} needs the parameter '{name}'"
        yield step.located.problem("ORC407", message, *at, at_key=True)


def _check_inputs(step: PlannedStep, facts: OperationFacts) -> Iterator[Problem]:
    label = f"{step.spec.label} {step.operation}"
    for param, node in step.params:
        wanted = facts.inputs.get(param)
        if wanted is None or param in step.conversions or not isinstance(node, ObjectNode | Literal):
            continue
        if isinstance(node, Literal) and not isinstance(node.value, dict):
            continue  # a list of rows, which is looked at when it is there
        given = [name for name, _ in node.fields] if isinstance(node, ObjectNode) else [*_keys(node.value)]
        missing = [name for name in wanted if name not in given]
        unknown = [name for name in given if name not in wanted]
        for name in unknown:
            message = f"{label} knows no '{name}' in {param}"
            hint = did_you_mean(name, missing or wanted)
            missing = [word for word in missing if hint != f"did you mean '{word}'?"]
            yield step.located.problem("ORC412", message, "params", param, name, at_key=True, hint=hint)
        for name in missing:
            message = f"{label} asks for '{name}' in {param}, which nobody fills"
            yield step.located.problem("ORC412", message, "params", param, at_key=True)


def _keys(value: JSON) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _step_references(
    steps: Sequence[PlannedStep], response: Node | None, endpoint: Located
) -> Iterator[tuple[Reference, Located, DataPath]]:
    names = {step.name for step in steps}
    for step in steps:
        parts: list[tuple[DataPath, Node]] = [(("params", name), node) for name, node in step.params]
        if step.condition is not None:
            parts.append((("condition",), step.condition))
        if step.for_each is not None:
            parts.append((("for_each",), step.for_each))
        for path, node in parts:
            for reference in references(node):
                if reference.root in names:
                    yield reference, step.located, (*path, *reference.where)
    if response is not None:
        for reference in references(response):
            if reference.root in names:
                yield reference, endpoint, ("response_mapping", *reference.where)


def _check_field(
    reference: Reference, step: PlannedStep, facts: OperationFacts | None, located: Located, path: DataPath
) -> Iterator[Problem]:
    """Report a field that the operation provably does not return. A transformed result proves nothing."""
    follow = reference.path
    if step.for_each is not None:
        if follow and isinstance(follow[0], str):
            message = f"the step '{step.name}' returns a list with a result for each item, and no field '{follow[0]}'"
            hint = f"{reference_text(step.name, (0, *follow))} is that of the first item"
            yield located.problem("ORC505", message, *path, hint=hint, **place_of(reference))
            return
        follow = follow[1:]
    if facts is None or facts.fields is None or step.transforms:
        return
    if facts.many:
        if not follow or not isinstance(follow[0], int):
            return
        follow = follow[1:]
    if follow and isinstance(follow[0], str) and follow[0] not in facts.fields:
        message = f"the step '{step.name}' returns no field '{follow[0]}'"
        hint = did_you_mean(follow[0], facts.fields)
        yield located.problem("ORC505", message, *path, hint=hint, **place_of(reference))
