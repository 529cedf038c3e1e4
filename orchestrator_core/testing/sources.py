"""What every source must stand, as a test class that a plugin's tests subclass.

The tests are ordinary methods whose names start with ``test_``; pytest's ``tmp_path`` is the only fixture they ask
for. A subclass sets class attributes, or sets them on ``self`` in an autouse fixture where they need something that
is made first, such as a database.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

from orchestrator_core.plugin_api import (
    Identified,
    Inspects,
    InvalidParam,
    ModelKind,
    OperationFacts,
    OrchestratorError,
    Preparable,
    PreparesMany,
    ReadyCheck,
    Source,
    SourceKind,
)
from orchestrator_core.testing.leaks import leaves_nothing
from orchestrator_core.testing.opening import open_source, structured, structured_operations
from orchestrator_core.testing.outcomes import (
    ANY_RESULT,
    CONCURRENT_CALLS,
    LOOP_STEPS_BEFORE_CANCEL,
    Call,
    Outcome,
    cancel_after,
    check,
    check_documented,
    check_equal_when_read_twice,
    check_json,
    outcome,
    same,
)
from orchestrator_core.testing.running import run


class SourceConformance:
    """What every source must stand. Subclass it and say what there is to call::

        class TestGreeting(SourceConformance):
            kind = GREETING
            options = {"greeting": "hello"}
            calls = [
                Call("greet", {"name": "Ada"}, {"text": "hello Ada"}),
                Call("greet", {"name": ""}, error=EntityNotFound, message="greet: there is nobody to greet"),
            ]

    ``options`` and ``operations`` are what stands in YAML. ``models`` are the model kinds that the source opens through
    its context. Where a part must be made first, set it on ``self``::

        @pytest.fixture(autouse=True)
        def database(self, tmp_path):
            self.options = {"connection_string": make_database(tmp_path / "customers.db")}
    """

    kind: SourceKind[Any]
    options: Mapping[str, Any] = {}
    operations: Mapping[str, Any] = {}
    calls: Sequence[Call] = ()
    models: Sequence[ModelKind[Any]] = ()
    leaves_within_seconds: ClassVar[float] = 5.0

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[Source]:
        """Open the source; ``folder`` is its configuration folder."""
        async with open_source(self.kind, self.options, self.operations, folder=folder, models=self.models) as source:
            yield source

    @property
    def repeatable(self) -> list[Call]:
        return [call for call in self.calls if call.repeatable]

    # --- options -----------------------------------------------------------------------------------------------------

    def test_every_option_says_what_it_is_for(self) -> None:
        check_documented(self.kind.options, self.kind.operation)

    def test_there_are_calls_to_try_and_one_of_them_succeeds(self) -> None:
        check(any(call.error is None for call in self.repeatable), "set `calls`: one that returns a result, at least")

    def test_the_same_options_are_equal_so_that_a_reload_keeps_the_source(self) -> None:
        check_equal_when_read_twice(self.kind.options, self.options)
        for name, operation in self.operations.items():
            if self.kind.operation is not None and isinstance(operation, Mapping):
                check_equal_when_read_twice(self.kind.operation, operation)
            check(structured_operations(self.kind, self.operations).get(name) is not None, f"no operation {name}")

    # --- life cycle --------------------------------------------------------------------------------------------------

    def test_opening_and_closing_leaves_no_task_thread_or_file_descriptor(self, tmp_path: Path) -> None:
        async def open_call_close() -> None:
            async with self.opened(tmp_path) as source:
                for call in self.repeatable:
                    await fetch(source, call)

        async def main() -> None:
            await open_call_close()  # what is made once in a process and kept is made here
            what, patience = f"opening and closing {self.kind.name} twice", self.leaves_within_seconds
            async with leaves_nothing(what, within_seconds=patience):
                await open_call_close()
                await open_call_close()

        run(main())

    def test_a_second_one_works_beside_the_first_as_a_reload_needs(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as first:
                async with self.opened(tmp_path) as second:
                    for call in self.repeatable:
                        check_same_outcome(
                            call, await fetch(first, call), await fetch(second, call), "on a second source"
                        )
                for call in self.repeatable:
                    check_expected(call, await fetch(first, call))

        run(main())

    def test_an_open_source_says_that_it_is_ready(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                if isinstance(source, ReadyCheck):
                    await source.check_ready()

        run(main())

    def test_its_identity_does_not_change_with_calls(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                if isinstance(source, Identified):
                    before = source.identity()
                    for call in self.repeatable:
                        await fetch(source, call)
                    check(source.identity() == before, f"the identity was {before} and is {source.identity()}")

        run(main())

    # --- calls -------------------------------------------------------------------------------------------------------

    def test_each_call_gives_what_is_expected(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call in self.calls:
                    check_expected(call, await fetch(source, call))

        run(main())

    def test_concurrent_calls_give_what_calls_one_by_one_give(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                alone = [await fetch(source, call) for call in self.repeatable]
                rounds = -(-CONCURRENT_CALLS // max(1, len(alone)))
                calls = self.repeatable * rounds
                together = await asyncio.gather(*(fetch(source, call) for call in calls))
                for call, expected, got in zip(calls, alone * rounds, together, strict=True):
                    check_same_outcome(call, expected, got, f"among {len(calls)} concurrent calls")

        run(main())

    def test_a_prepared_call_means_the_same_as_fetch(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                if not isinstance(source, Preparable):
                    return
                for call in self.repeatable:
                    fetched = await fetch(source, call)
                    for names in (list(call.params), list(call.params)[::-1]):
                        prepared = source.prepare(call.operation, names)
                        for _ in range(2):
                            got = await outcome(prepared, *(call.params[name] for name in names))
                            check_same_outcome(call, fetched, got, f"prepared with the parameters {names}")

        run(main())

    def test_a_call_for_many_items_gives_what_calls_one_by_one_give(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                if not isinstance(source, PreparesMany):
                    return
                alike: dict[tuple[str, tuple[str, ...]], list[Call]] = {}
                for call in self.repeatable:
                    alike.setdefault((call.operation, tuple(call.params)), []).append(call)
                for (operation, names), calls in alike.items():
                    await check_many(source, operation, names, calls)

        run(main())

    def test_results_are_plain_json(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call in self.repeatable:
                    check_json((await fetch(source, call)).result, str(call))

        run(main())

    def test_calls_do_not_change_their_params(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call in self.repeatable:
                    params = copy.deepcopy(dict(call.params))
                    await outcome(source.fetch, call.operation, params)
                    check(params == call.params, f"{call} changed its params to {params!r}")

        run(main())

    def test_a_cancelled_call_leaves_the_source_usable(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call in self.repeatable:
                    expected = await fetch(source, call)
                    for steps in LOOP_STEPS_BEFORE_CANCEL:
                        await cancel_after(steps, str(call), source.fetch, call.operation, call.params)
                    got = await asyncio.wait_for(fetch(source, call), 10)
                    check_same_outcome(call, expected, got, "after calls that were cancelled")

        run(main())

    # --- what it says of its operations ------------------------------------------------------------------------------

    def test_an_operation_that_is_not_there_is_refused_by_name(self, tmp_path: Path) -> None:
        """The plan refuses it before; a source says so too, as an error of the contract and not as a ``KeyError``."""
        if self.kind.operation is None or self.kind.undeclared_operations:
            return

        async def main() -> None:
            async with self.opened(tmp_path) as source:
                got = await outcome(source.fetch, "no_such_operation", {})
                check("no_such_operation" in got.message, f"an unknown operation gave {got}; it must raise, naming it")

        run(main())

    def test_a_parameter_that_is_not_taken_or_that_is_missing_is_refused_by_name(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call, facts in await self.known(source):
                    if facts.optional is not None:
                        given = {**call.params, "no_such_param": 1}
                        await check_refused(source, call.operation, given, "no_such_param")
                    for name in facts.required:
                        given = {key: value for key, value in call.params.items() if key != name}
                        await check_refused(source, call.operation, given, name)

        run(main())

    def test_what_it_knows_of_its_operations_is_true_of_the_calls(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                for call, facts in await self.known(source):
                    taken = None if facts.optional is None else {*facts.required, *facts.optional}
                    unknown = set() if taken is None else call.params.keys() - taken
                    check(not unknown, f"{call} passes {sorted(unknown)}, which its facts do not name: {facts}")
                    result = (await fetch(source, call)).result
                    if facts.fields is not None and result is not None:
                        is_list = isinstance(result, list | tuple)
                        check(facts.many == is_list, f"the facts say many={facts.many}, but {call} gave {result!r}")
                        for item in result if facts.many else [result]:
                            true = isinstance(item, Mapping) and set(item) == set(facts.fields)
                            check(true, f"the facts promise the fields {list(facts.fields)}, but {call} gave {item!r}")

        run(main())

    def test_what_it_says_before_it_opens_agrees_with_what_it_finds_out(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as source:
                if not isinstance(source, Inspects):
                    return
                inspection = await source.inspect()
                check(not inspection.findings, f"the backend finds fault with these operations: {inspection.findings}")
                for operation, before in self.static_facts().items():
                    after = inspection.facts.get(operation)
                    if after is None:
                        continue
                    agree = (
                        before.required == after.required
                        and (before.optional is None or before.optional == after.optional)
                        and (before.fields is None or (before.fields, before.many) == (after.fields, after.many))
                        and all(after.inputs.get(name) == keys for name, keys in before.inputs.items())
                    )
                    check(agree, f"{operation}: `facts` says {before} and `inspect` {after}")

        run(main())

    def static_facts(self) -> Mapping[str, OperationFacts]:
        """Return what the kind tells before it is opened."""
        if self.kind.facts is None:
            return {}
        operations = structured_operations(self.kind, self.operations)
        return self.kind.facts(structured(self.kind.options, self.options), operations)

    async def known(self, source: Source) -> list[tuple[Call, OperationFacts]]:
        """Return the calls that succeed with all that is known of their operations."""
        facts = dict(self.static_facts())
        if isinstance(source, Inspects):
            facts.update((await source.inspect()).facts)
        return [(call, facts[call.operation]) for call in self.repeatable if not call.error and call.operation in facts]


def fetch(source: Source, call: Call) -> Any:
    return outcome(source.fetch, call.operation, call.params)


async def check_many(source: Source, operation: str, names: Sequence[str], calls: Sequence[Call]) -> None:
    """Hold what ``prepare_many`` returns, if it does, against the same calls one by one."""
    assert isinstance(source, PreparesMany)
    alone = {id(call): await fetch(source, call) for call in calls}
    try:
        many = source.prepare_many(operation, names)
    except OrchestratorError as error:
        refused = Outcome(None, type(error), str(error))
        for call in calls:
            check_same_outcome(call, alone[id(call)], refused, "prepared for many items")
        return
    if many is None:
        return
    for items in ([], list(calls), [*calls[::-1], *calls]):
        got = await many([list(call.params.values()) for call in items])
        check(len(got) == len(items), f"{operation} gave {len(got)} answers for {len(items)} items")
        for call, answer in zip(items, got, strict=True):
            came = Outcome(answer)
            if isinstance(answer, OrchestratorError):
                came = Outcome(None, type(answer), str(answer))
            check_same_outcome(call, alone[id(call)], came, f"among {len(items)} items at once")


def check_same_outcome(call: Call, expected: Outcome, got: Outcome, when: str) -> None:
    check(expected.same(got), f"{call} gave {expected}; {when} it gave {got}")


def check_expected(call: Call, got: Outcome) -> None:
    if call.error is not None:
        expected = Outcome(None, call.error, call.message or got.message)
        check(expected.same(got), f"{call}: expected {expected}, got {got}")
        return
    check(got.error is None, f"{call} raised {got}")
    if call.result is not ANY_RESULT:
        check(same(call.result, got.result), f"{call}: expected {call.result!r}, got {got.result!r}")


async def check_refused(source: Source, operation: str, params: Mapping[str, Any], name: str) -> None:
    """A parameter is refused by ``fetch`` and, at load or at the call, by what ``prepare`` returns."""

    async def prepared(operation: str, params: Mapping[str, Any]) -> Any:
        assert isinstance(source, Preparable)
        return await source.prepare(operation, list(params))(*params.values())

    for way in (source.fetch, prepared) if isinstance(source, Preparable) else (source.fetch,):
        got = await outcome(way, operation, params)
        refused = got.error is InvalidParam and name in got.message
        check(refused, f"{operation} with {dict(params)!r} gave {got}; expected an InvalidParam that names '{name}'")
