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

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from orchestrator_core.codegen.chains import Chain, Chains
from orchestrator_core.codegen.generated import Generated
from orchestrator_core.codegen.names import identifier, variables
from orchestrator_core.each import ForEach
from orchestrator_core.expressions import (
    ArrayNode,
    Literal,
    LogicalNode,
    Node,
    ObjectNode,
    ReferenceNode,
    emit,
    emit_condition,
    reference_text,
    references,
    unparse,
)
from orchestrator_core.plan import ITEM_ROOTS, Plan, PlannedStep

CACHE_KEY = "cache key"
"""The name of the value that follows a call's parameters where its step says what tells cached results apart."""


def generate(plan: Plan, generation: str = "", guarded: Collection[str] = ()) -> Generated:
    """Write the module of a plan. ``guarded`` are the steps whose calls are given the run and the step's number."""
    return _Writer(plan, f"<plan {plan.id}{f' {generation}' if generation else ''}>", guarded).write()


class _Writer:
    def __init__(self, plan: Plan, filename: str, guarded: Collection[str]) -> None:
        self.plan = plan
        self.guarded_calls = guarded
        self.filename = filename
        self.lines: list[str] = []
        self.depth = 0
        self.constants: dict[str, Any] = {}
        self.chains = Chains(plan.steps)
        self.index = {step.name: index for index, step in enumerate(plan.steps)}
        self.variables = variables([step.name for step in plan.steps])
        self.roots = {"request": "request", "execution": "run", "item": "item", "index": "index", **self.variables}

    def write(self) -> Generated:
        name = identifier(f"{self.plan.domain}__{self.plan.name}")
        self.line(_comment(f"{self.plan.id}: {self.plan.config.description}"))
        for step in self.plan.steps:
            self.exact_params(step)
        self.exact_response()
        self.blank(2)
        self.line(f"async def {name}(request, run):")
        with_branches = bool(self.chains.branches)
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
        self.line("except BaseException as error:")
        self.depth += 1
        self.line("if ends_task(error):")
        self.line("    raise")
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
        arguments = [f"{variable}_{identifier(name)}_{index}" for index, (name, _) in enumerate(passed)]
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
                shared = f"{variable}_{identifier(name)}_{index}"
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
        arguments.append(f"at_most={_at_most(step)}")
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

    def concurrent(self) -> None:
        main, branches = self.chains.main, self.chains.branches
        for name in (step.name for step in self.plan.steps if step.name in self.chains.awaited):
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

    def branch(self, chain: Chain) -> None:
        self.blank()
        self.line(f"async def {self.variables[chain.steps[0].name]}_branch():")
        self.depth += 1
        self.line(f"nonlocal {', '.join(self.variables[step.name] for step in chain.steps)}")
        self.chain(chain, self.chains.done_when_started(chain))
        self.depth -= 1

    def chain(self, chain: Chain, done: set[str]) -> None:
        for step in chain.steps:
            for name in sorted(step.waits_for - done, key=self.index.__getitem__):
                self.wait_for(name, chain, done)
            self.step(step)
            done.add(step.name)
            if step.name in self.chains.awaited:
                ready = f"{self.variables[step.name]}_ready"
                self.line(f"if not {ready}.done():")
                self.line(f"    {ready}.set_result(None)")
            self.start_after(step.name)

    def start_after(self, name: str | None) -> None:
        for chain in self.chains.branches:
            if chain.after == name:
                variable = self.variables[chain.steps[0].name]
                self.line(f"{variable}_task = branches.start({variable}_branch())")

    def wait_for(self, name: str, waiter: Chain, done: set[str]) -> None:
        if name in done:
            return
        if self.chains.by_task(name, waiter):
            self.line(f"await {self.variables[self.chains.of[name].steps[0].name]}_task")
        else:
            self.line(f"await {self.variables[name]}_ready")
        done.add(name)
        done |= self.plan.steps[self.index[name]].waits_for
        chain = self.chains.of[name]
        for step in chain.steps:
            done.add(step.name)
            if step.name == name:
                break


def _tuple(sources: Sequence[str]) -> str:
    return f"({', '.join(sources)}{',' if len(sources) == 1 else ''})"


def _at_most(step: PlannedStep) -> int:
    """Return how many items are under way at once: no more than have a place, lest they fill the queue behind it."""
    places = step.policies.concurrency.options
    return step.config.max_concurrency if places is None else min(step.config.max_concurrency, places.max)


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


def _comment(text: str) -> str:
    """Return a text on one line, so that what a file says cannot become code."""
    return "# " + " ".join(text.split()).rstrip(": ")


__all__ = ["CACHE_KEY", "generate"]
