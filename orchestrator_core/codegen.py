"""A plan to the Python coroutine that a good engineer would have written for it.

The source is compiled once, kept with the plan and put into :mod:`linecache`, so that tracebacks show it and
``orchestrator plan … --format python`` prints what runs. How it is laid out:

- Each step is a ``try`` around its parameters and its call. Parameters are plain subscripts; only when one raises
  does the exact form run, which names the reference that found nothing.
- A chain of steps is a row of ``await``. Where steps can run at once, one line of them stays in the main coroutine and
  every other is a branch in a task: n steps that are ready together are n - 1 tasks and one ``await``.
- A call with policies around it, or of which something is to be noted, is :class:`Guarded`: it is also given the run
  and the step's number, and keeps the step's own timeout. Every other is awaited as it is.
- A step that follows another leaves the loop to others first where the loop's turn has become long: see
  :mod:`orchestrator_core.turns`.
- A step with ``for_each`` makes a list of each item's values, of which :mod:`orchestrator_core.each` makes the results.
"""

from __future__ import annotations

import asyncio
import keyword
import linecache
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from attrs import define, evolve, field, frozen

from orchestrator_core.each import AtOnce, ForEach
from orchestrator_core.errors import ExpressionError
from orchestrator_core.expressions import (
    MISSING,
    ArrayNode,
    Literal,
    LogicalNode,
    Node,
    ObjectNode,
    ReferenceNode,
    emit,
    emit_condition,
    namespace,
    reference_text,
    references,
    unparse,
)
from orchestrator_core.plan import ITEM_ROOTS, Plan, PlannedStep
from orchestrator_core.plugin_api import JSON
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.run import OK, SKIPPED, Branches, Request, Run, clock, located

Call = Callable[..., Awaitable[JSON]]
Coroutine = Callable[[Request, Run], Awaitable[JSON]]

_RESERVED = {
    *("request", "run", "steps", "started", "error", "branches", "clock", "MISSING", "OK", "SKIPPED", "LOOKUP"),
    *("Branches", "timeout", "future", "located", "BaseException", "Exception"),
    *(
        "call",
        "convert",
        "default",
        "each",
        "transform",
    ),  # a step `each` has `each_list`, as the plan has of a step `list`
}
_NOT_A_WORD = re.compile(r"\W", re.ASCII)
# The shapes of the names that are made from a step's variable; no variable of a step may have one of them.
_DERIVED_START = re.compile(r"_|(call|convert|default|each|transform)(_|\Z)|response")
_DERIVED_END = re.compile(r"_(params|condition|wanted|ready|task|branch|list|each|given|[0-9]+)\Z")

CACHE_KEY = "cache key"
"""The name of the value that follows a call's parameters where its step says what tells cached results apart."""

LOOKUP = (KeyError, TypeError, IndexError, ExpressionError)
"""What a plain subscript raises when a reference finds nothing, and an operator that cannot work on its operands."""


@frozen
class Generated:
    """The source of a plan's module and the name of the coroutine function in it."""

    name: str
    filename: str
    source: str = field(repr=False)
    constants: Mapping[str, Any] = field(repr=False, factory=dict)
    lines: list[str] = field(init=False, repr=False, eq=False)

    @lines.default
    def _lines(self) -> list[str]:
        return self.source.splitlines(keepends=True)

    def forget(self) -> None:
        """Take the source out of :mod:`linecache`, unless a later plan of the same name has its own there."""
        entry = linecache.cache.get(self.filename)
        if entry is not None and len(entry) == 4 and entry[2] is self.lines:
            del linecache.cache[self.filename]

    def compile(self, calls: Mapping[str, Call | AtOnce | Guarded]) -> Coroutine:
        """Return the coroutine function, bound to what each step calls."""
        each = {
            f"each_{step}": evolve(self.constants[f"each_{step}"], call=call)
            for step, call in calls.items()
            if f"each_{step}" in self.constants
        }
        scope: dict[str, Any] = {
            **namespace(),
            **self.constants,
            **{f"call_{step}": call.call if isinstance(call, Guarded) else call for step, call in calls.items()},
            **each,
            "Branches": Branches,
            "LOOKUP": LOOKUP,
            "MISSING": MISSING,
            "OK": OK,
            "SKIPPED": SKIPPED,
            "clock": clock,
            "future": _future,
            "located": located,
            "timeout": asyncio.timeout,
        }
        linecache.cache[self.filename] = (len(self.source), None, self.lines, self.filename)
        exec(compile(self.source, self.filename, "exec"), scope)  # the source is ours
        coroutine: Coroutine = scope[self.name]
        return coroutine


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


def generate(plan: Plan, generation: str = "", guarded: Collection[str] = ()) -> Generated:
    """Write the module of a plan. ``guarded`` are the steps whose calls are given the run and the step's number."""
    return _Writer(plan, f"<plan {plan.id}{f' {generation}' if generation else ''}>", guarded).write()


# --- which steps run one after the other -----------------------------------------------------------------------------


@define
class _Chain:
    """Steps that run in a row. The first chain is the main line; every other is started after ``after``, or at once."""

    steps: list[PlannedStep]
    after: str | None = None


def _chains(steps: Sequence[PlannedStep]) -> list[_Chain]:
    """Divide the steps into chains: each step goes on a chain whose last step it waits for, if there is one.

    Of the steps that wait for nothing, those that surely leave the process come first: their requests are on the way
    while others are answered on the spot, such as a read of SQLite on the event loop.
    """
    chains: list[_Chain] = []
    position = {step.name: index for index, step in enumerate(steps)}
    for step in sorted(
        steps, key=lambda step: (bool(step.waits_for), not step.waits_for and step.spec.kind.in_process)
    ):
        on = next((chain for chain in chains if chain.steps[-1].name in step.waits_for), None)
        if on:
            on.steps.append(step)
        else:
            after = max(step.waits_for, key=position.__getitem__) if step.waits_for else None
            chains.append(_Chain([step], after))
    return chains


class _Writer:
    def __init__(self, plan: Plan, filename: str, guarded: Collection[str]) -> None:
        self.plan = plan
        self.guarded_calls = guarded
        self.filename = filename
        self.lines: list[str] = []
        self.depth = 0
        self.constants: dict[str, Any] = {}
        self.chains = _chains(plan.steps)
        self.chain_of = {step.name: chain for chain in self.chains for step in chain.steps}
        self.index = {step.name: index for index, step in enumerate(plan.steps)}
        self.variables = _variables([step.name for step in plan.steps])
        self.roots = {"request": "request", "execution": "run", "item": "item", "index": "index", **self.variables}
        self.awaited = self.cross_waits()

    def write(self) -> Generated:
        name = _identifier(f"{self.plan.domain}__{self.plan.name}")
        self.line(_comment(f"{self.plan.id}: {self.plan.config.description}"))
        for step in self.plan.steps:
            self.exact_params(step)
        self.exact_response()
        self.blank(2)
        self.line(f"async def {name}(request, run):")
        with_branches = len(self.chains) > 1
        self.depth += 1
        if self.plan.steps:
            self.line("steps = run.steps")
        if with_branches:
            self.concurrent()
        else:
            for step in self.plan.steps:
                self.step(step)
            self.response()
        self.depth -= 1
        return Generated(name, self.filename, "\n".join(self.lines) + "\n", self.constants)

    # --- lines -----------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def blank(self, count: int = 1) -> None:
        self.lines.extend([""] * count)

    # --- expressions -------------------------------------------------------------------------------------------------

    def source(self, node: Node) -> str:
        return emit(node, self.roots, exact=False)

    def needs(self, nodes: Sequence[Node]) -> list[str]:
        """Return the variables of the steps that the expressions refer to, as they are passed to an exact form."""
        names = {reference.root for node in nodes for reference in references(node)}
        return [variable for root, variable in self.variables.items() if root in names]

    def passed(self, step: PlannedStep) -> list[tuple[str, Node]]:
        """Return what the call is given: the parameters and, behind them, what tells its result apart in a cache."""
        key = step.cache_key if step.name in self.guarded_calls else None
        return [*step.params, *([] if key is None else [(CACHE_KEY, key)])]

    def exact_params(self, step: PlannedStep) -> None:
        nodes = [node for _, node in self.passed(step)]
        if step.for_each is not None:
            self.exact_items(step, step.for_each)
        elif any(not isinstance(node, Literal) for node in nodes):
            values = ", ".join(emit(node, self.roots, exact=True) for node in nodes)
            self.exact(f"{self.variables[step.name]}_params", nodes, f"return ({values},)")
        if step.condition is not None and not isinstance(step.condition, Literal):
            condition = emit_condition(step.condition, self.roots, exact=True)
            self.exact(f"{self.variables[step.name]}_condition", [step.condition], f"return {condition}")

    def exact_items(self, step: PlannedStep, for_each: Node) -> None:
        variable, nodes = self.variables[step.name], [node for _, node in self.passed(step)]
        if not isinstance(for_each, Literal):
            exact = emit(for_each, self.roots, exact=True)
            self.exact(f"{variable}_list", [for_each], f"return {exact}")
        values = [emit(node, self.roots, exact=True) for node in nodes]
        self.exact(f"{variable}_params", nodes, f"return {_tuple(self.converted(step, values))}", ITEM_ROOTS)

    def converted(self, step: PlannedStep, values: Sequence[str]) -> list[str]:
        """Return the sources of a step's values, with the transformers that its parameters pass through."""
        converted = list(values)
        for index, (name, _) in enumerate(step.params):
            if name in step.conversions:
                self.constants[f"convert_{index}_{step.name}"] = step.conversions[name]
                converted[index] = f"convert_{index}_{step.name}({values[index]})"
        return converted

    def exact_response(self) -> None:
        node = self.plan.response
        if node is not None and not isinstance(node, Literal):
            self.exact("response_exactly", [node], f"return {self.located(node, 'response_mapping')}")

    def located(self, node: Node, place: str) -> str:
        """Return the exact form of the answer, in which errors say which of its fields they are about."""
        match node:
            case ObjectNode(fields=fields):
                each = [f"{name!r}: {self.located(value, f'{place}.{name}')}" for name, value in fields]
                return f"{{{', '.join(each)}}}"
            case ArrayNode(items=items):
                return f"[{', '.join(self.located(item, f'{place}[{index}]') for index, item in enumerate(items))}]"
        exact = emit(node, self.roots, exact=True)
        if isinstance(node, Literal | ReferenceNode):
            return exact
        roots = tuple(sorted({reference.root for reference in references(node)}))
        return f"located({place!r}, {unparse(node)!r}, {roots!r}, lambda: {exact})"

    def exact(self, name: str, nodes: Sequence[Node], body: str, more: Sequence[str] = ()) -> None:
        self.blank(2)
        self.line(f"def {name}({', '.join(['request', 'run', *more, *self.needs(nodes)])}):")
        self.depth += 1
        self.line(body)
        self.depth -= 1

    def exact_call(self, name: str, nodes: Sequence[Node]) -> str:
        return f"{name}({', '.join(['request', 'run', *self.needs(nodes)])})"

    # --- a step ------------------------------------------------------------------------------------------------------

    def step(self, step: PlannedStep) -> None:
        index, variable = self.index[step.name], self.variables[step.name]
        self.blank()
        each = f", for each of {unparse(step.for_each)}" if step.for_each is not None else ""
        self.line(_comment(f"{step.name}: {step.spec.label} {step.operation}".rstrip() + each))
        if step.waits_for:
            self.line("started = clock()")
            self.line("if started > run.turns.until:")
            self.line("    started = await run.turns.rest()")
            self.line(f"steps[{index}] = started")
        else:
            self.line(f"steps[{index}] = started = clock()")
        self.line("try:")
        self.depth += 1
        if step.condition is None:
            self.call(step)
        else:
            self.conditional(step, variable, index)
        self.depth -= 1
        self.line("except Exception as error:")
        self.depth += 1
        if step.optional:
            default = f"default_{variable}"
            self.constants[default] = step.default if step.for_each is None else []
            self.line(f"{variable} = run.fallback({index}, started, error, {default})")
        else:
            self.line(f"raise run.failed({index}, started, error)")
        self.depth -= 1
        if step.condition is None and not step.optional:
            self.line(self.ended(step))
        elif step.condition is None:
            self.line("else:")
            self.line(f"    {self.ended(step)}")

    def ended(self, step: PlannedStep) -> str:
        index = self.index[step.name]
        if step.for_each is not None and step.optional:
            return f"steps[{index}] = run.ended_with_items({index}, started)"
        return f"steps[{index}] = (OK, started, clock(), '')"

    def conditional(self, step: PlannedStep, variable: str, index: int) -> None:
        assert step.condition is not None
        condition = emit_condition(step.condition, self.roots, exact=False)
        if isinstance(step.condition, Literal):
            self.line(f"if {condition}:")
        else:
            exact = self.exact_call(f"{variable}_condition", [step.condition])
            self.guarded([(f"{variable}_wanted", condition)], f"{variable}_wanted = {exact}")
            self.line(f"if {variable}_wanted:")
        self.depth += 1
        self.call(step)
        self.line(self.ended(step))
        self.depth -= 1
        self.line("else:")
        self.line(f"    {variable} = MISSING")
        self.line(f"    steps[{index}] = (SKIPPED, started, clock(), '')")

    def guarded(self, assignments: Sequence[tuple[str, str]], otherwise: str) -> None:
        self.line("try:")
        for name, source in assignments:
            self.line(f"    {name} = {source}")
        self.line("except LOOKUP:")
        self.line(f"    {otherwise}")

    def call(self, step: PlannedStep) -> None:
        if step.for_each is not None:
            self.call_for_each(step, step.for_each)
            return
        variable = self.variables[step.name]
        passed = self.passed(step)
        arguments = [f"{variable}_{_identifier(name)}_{index}" for index, (name, _) in enumerate(passed)]
        nodes = [node for _, node in passed]
        if all(isinstance(node, Literal) for node in nodes):
            arguments = [self.source(node) for node in nodes]
        else:
            exact = self.exact_call(f"{variable}_params", nodes)
            assignments = [(name, self.source(node)) for name, node in zip(arguments, nodes, strict=True)]
            self.guarded(assignments, f"({', '.join(arguments)},) = {exact}")
        is_guarded = step.name in self.guarded_calls
        head = ["run", str(self.index[step.name])] if is_guarded else []
        call = f"await call_{step.name}({', '.join([*head, *self.converted(step, arguments)])})"
        facts = step.spec.facts.get(step.operation)
        if facts is not None and facts.degrades:
            call = f"run.settle({self.index[step.name]}, {call})"
        call = self.transformed(step, call)
        if step.config.timeout is not None and not is_guarded:
            self.line(f"async with timeout({float(step.config.timeout)!r}):")
            self.line(f"    {variable} = {call}")
        else:
            self.line(f"{variable} = {call}")

    def transformed(self, step: PlannedStep, result: str) -> str:
        for number, transform in enumerate(step.transforms):
            self.constants[f"transform_{step.name}_{number}"] = transform
            result = f"transform_{step.name}_{number}({result})"
        return result

    def call_for_each(self, step: PlannedStep, for_each: Node) -> None:
        variable, each = self.variables[step.name], f"each_{step.name}"
        items, given, nodes = f"{variable}_each", f"{variable}_given", [node for _, node in self.passed(step)]
        self.constants[each] = _for_each(step, for_each, self.index[step.name])
        if isinstance(for_each, Literal):
            self.line(f"{items} = {self.source(for_each)}")
        else:
            exact_list = self.exact_call(f"{variable}_list", [for_each])
            self.guarded([(items, self.source(for_each))], f"{items} = {exact_list}")
        self.line(f"{each}.check(run, {items})")
        self.line("try:")
        self.depth += 1
        values = self.converted(step, [self.source(node) for node in nodes])
        for index, (name, node) in enumerate(self.passed(step)):
            if not _of_item(node) and (name in step.conversions or not isinstance(node, Literal)):
                shared = f"{variable}_{_identifier(name)}_{index}"
                self.line(f"{shared} = {values[index]}")
                values[index] = shared
        numbered = any(reference.root == "index" for node in nodes for reference in references(node))
        over = f"index, item in enumerate({items})" if numbered else f"item in {items}"
        self.line(f"{given} = [{_tuple(values)} for {over}]")
        self.depth -= 1
        arguments = [f"{variable}_params", "request", "run", items, *self.needs(nodes)]
        self.line("except Exception:")
        self.line(f"    {given} = {each}.values({', '.join(arguments)})")
        finish = self.transformed(step, "result")
        arguments = ["run", given, *([f"lambda result: {finish}"] if step.transforms else [])]
        arguments.append(f"at_most={step.config.max_concurrency}")
        if step.config.timeout is not None:
            arguments.append(f"within={float(step.config.timeout)!r}")
        self.line(f"{variable} = await {each}.results({', '.join(arguments)})")

    # --- the answer --------------------------------------------------------------------------------------------------

    def response(self) -> None:
        self.blank()
        for name, source, otherwise in self.answer():
            if otherwise is None:
                self.line(f"{name} = {source}")
            else:
                self.guarded([(name, source)], f"{name} = {otherwise}")
        result = "response"
        for number, transform in enumerate(self.plan.transforms):
            self.constants[f"answer_transform_{number}"] = transform
            result = f"answer_transform_{number}({result})"
        self.line(f"return {result}")

    def answer(self) -> Iterator[tuple[str, str, str | None]]:
        node = self.plan.response
        if node is not None:
            literal = isinstance(node, Literal)
            exact = None if literal else self.exact_call("response_exactly", [node])
            yield "response", self.source(node), exact
        elif name := self.plan.answers_with:
            yield "response", self.or_null(name), None
        else:
            fields = ", ".join(f"{step.name!r}: {self.or_null(step.name)}" for step in self.declared())
            yield "response", f"{{{fields}}}", None

    def declared(self) -> list[PlannedStep]:
        """Return the steps as they are written in the file."""
        return sorted(self.plan.steps, key=lambda step: step.located.path[-1])

    def or_null(self, name: str) -> str:
        variable = self.variables[name]
        step = self.plan.steps[self.index[name]]
        return variable if step.condition is None else f"None if {variable} is MISSING else {variable}"

    # --- concurrency -------------------------------------------------------------------------------------------------

    def cross_waits(self) -> set[str]:
        """Return the steps that another chain waits for and that need a future for it."""
        awaited = set()
        for chain in self.chains:
            for step in chain.steps:
                for name in step.waits_for:
                    if self.chain_of[name] is not chain and not self.by_task(name, chain):
                        awaited.add(name)
        main = self.chains[0] if self.chains else None
        for chain in self.chains[1:]:
            tail = chain.steps[-1].name
            if main is not None and not self.by_task(tail, main):
                awaited.add(tail)
        return awaited

    def by_task(self, name: str, waiter: _Chain) -> bool:
        """Return whether the waiting chain started the task that ends with the step, and so can await that."""
        chain = self.chain_of[name]
        started_by = self.chain_of[chain.after] if chain.after else self.chains[0]
        return chain.steps[-1].name == name and started_by is waiter

    def concurrent(self) -> None:
        main = self.chains[0]
        branches = self.chains[1:]
        for name in (step.name for step in self.plan.steps if step.name in self.awaited):
            self.line(f"{self.variables[name]}_ready = future()")
        shared = [self.variables[step.name] for chain in branches for step in chain.steps]
        self.line(f"{' = '.join(shared)} = MISSING")
        for chain in branches:
            self.branch(chain)
        self.blank()
        self.line("branches = Branches()")
        self.line("try:")
        self.depth += 1
        done: set[str] = set()
        self.start_after(None)
        self.chain(main, done)
        self.blank()
        for chain in branches:
            self.wait_for(chain.steps[-1].name, main, done)
        self.depth -= 1
        self.line("except BaseException as error:")
        self.line("    raise await branches.end(error)")
        self.response()

    def branch(self, chain: _Chain) -> None:
        self.blank()
        self.line(f"async def {self.variables[chain.steps[0].name]}_branch():")
        self.depth += 1
        self.line(f"nonlocal {', '.join(self.variables[step.name] for step in chain.steps)}")
        self.chain(chain, self.done_when_started(chain))
        self.depth -= 1

    def done_when_started(self, chain: _Chain) -> set[str]:
        """Return the steps that have ended for certain when a chain starts."""
        if chain.after is None:
            return set()
        done, pending = set(), [chain.after]
        while pending:
            name = pending.pop()
            if name not in done:
                done.add(name)
                before = self.chain_of[name]
                position = [step.name for step in before.steps].index(name)
                pending += self.plan.steps[self.index[name]].waits_for
                pending += [before.steps[position - 1].name] if position else [before.after] if before.after else []
        return done

    def chain(self, chain: _Chain, done: set[str]) -> None:
        for step in chain.steps:
            for name in sorted(step.waits_for - done, key=self.index.__getitem__):
                self.wait_for(name, chain, done)
            self.step(step)
            done.add(step.name)
            if step.name in self.awaited:
                ready = f"{self.variables[step.name]}_ready"
                self.line(f"if not {ready}.done():")
                self.line(f"    {ready}.set_result(None)")
            self.start_after(step.name)

    def start_after(self, name: str | None) -> None:
        for chain in self.chains[1:]:
            if chain.after == name:
                variable = self.variables[chain.steps[0].name]
                self.line(f"{variable}_task = branches.start({variable}_branch())")

    def wait_for(self, name: str, waiter: _Chain, done: set[str]) -> None:
        if name in done:
            return
        if self.by_task(name, waiter):
            self.line(f"await {self.variables[self.chain_of[name].steps[0].name]}_task")
        else:
            self.line(f"await {self.variables[name]}_ready")
        done.add(name)
        done |= self.plan.steps[self.index[name]].waits_for
        chain = self.chain_of[name]
        for step in chain.steps:
            done.add(step.name)
            if step.name == name:
                break


def _tuple(sources: Sequence[str]) -> str:
    return f"({', '.join(sources)}{',' if len(sources) == 1 else ''})"


def _of_item(node: Node) -> bool:
    return any(reference.root in ITEM_ROOTS for reference in references(node))


def _for_each(step: PlannedStep, for_each: Node, index: int) -> ForEach:
    listed = for_each
    if isinstance(for_each, LogicalNode) and all(isinstance(node, Literal) for node in for_each.operands[1:]):
        listed = for_each.operands[0]  # $customer.orders ?? []
    reference = reference_text(listed.root, listed.path) if isinstance(listed, ReferenceNode) else ""
    return ForEach(
        index=index,
        name=step.name,
        optional=step.optional,
        default=step.default,
        list_text=reference or unparse(for_each),
        reference=reference,
        on_request_only={reference.root for reference in references(for_each)} == {"request"},
        paths={
            name: reference_text("", node.path)[1:] if isinstance(node, ReferenceNode) and node.root == "item" else ""
            for name, node in step.params
            if _of_item(node)
        },
    )


def _identifier(text: str) -> str:
    name = _NOT_A_WORD.sub("_", text)
    return f"_{name}" if name[:1].isdigit() else name


def _comment(text: str) -> str:
    """Return a text on one line, so that what a file says cannot become code."""
    return "# " + " ".join(text.split()).rstrip(": ")


def _variables(names: Sequence[str]) -> dict[str, str]:
    """Return a Python variable for each step: its own name wherever that is free."""
    taken = {*_RESERVED, *names}
    variables = {}
    for name in names:
        variable = name
        taken -= {name} - _RESERVED
        if _DERIVED_START.match(variable):
            variable = f"step_{variable.lstrip('_')}"
        while keyword.iskeyword(variable) or variable in taken or _DERIVED_END.search(variable):
            variable += "_"
        taken.add(variable)
        variables[name] = variable
    return variables


__all__ = ["Generated", "generate"]
