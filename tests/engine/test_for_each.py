"""Steps with ``for_each``: each item ends as a step of its own would, whether called together or several at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from orchestrator_core.engine import execute
from orchestrator_core.errors import (
    ConfigError,
    DeadlineExceeded,
    EntityNotFound,
    ExpressionError,
    InvalidParam,
    InvalidRequest,
    MissingReference,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
)
from orchestrator_core.run import Run
from orchestrator_core.testing import run as run_coroutine
from orchestrator_core.time_limits import TimeLimit
from tests.engine.lab import Lab, planned, ran, request, step

RunFixture = Callable[..., Any]
ITEMS = "$request.body.items"


@define
class ManyLab(Lab):
    """A lab that does an operation for all items in one call; ``batches`` has the size of each."""

    batches: list[int] = field(factory=list)

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[..., Awaitable[Sequence[Any]]] | None:
        if operation.startswith("single"):
            return None

        async def many(items: Sequence[Sequence[Any]]) -> Sequence[Any]:
            self.batches.append(len(items))
            return [await self.outcome(operation, dict(zip(param_names, values, strict=True))) for values in items]

        return many

    async def outcome(self, operation: str, params: Mapping[str, Any]) -> Any:
        try:
            return await self.fetch(operation, params)
        except OrchestratorError as error:
            return error


LABS = pytest.mark.parametrize("make", [Lab, ManyLab])


async def counts_down(params: Mapping[str, Any]) -> Any:
    """End the later the smaller the number is, so that items end in another order than they start in."""
    for _ in range(20 - params["n"]):
        await asyncio.sleep(0)
    return params["n"] * 10


def fails_at(number: int, error: Exception) -> Any:
    async def behaviour(params: Mapping[str, Any]) -> Any:
        await asyncio.sleep(0)
        if params["n"] == number:
            raise error
        return params["n"]

    return behaviour


def one_step(operation: str = "score", **more: Any) -> dict[str, Any]:
    return step(operation, **{"for_each": ITEMS, "params": {"n": "$item"}, **more})


# --- results ------------------------------------------------------------------------------------------------------


@LABS
def test_results_come_in_the_order_of_the_items(make: Any, run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        async with planned(make({"score": counts_down}), one_step()) as ready:
            got = await ran(ready, request({"items": list(range(20))}))
            assert (got.result, got.error) == ([n * 10 for n in range(20)], None)
            assert (got.steps["score"].items, got.steps["score"].items_failed) == (20, 0)

    run_on_each_loop(main())


@pytest.mark.parametrize("name", ["each", "list", "call", "convert", "default", "transform", "each_list"])
def test_a_step_may_have_any_name(name: str, run: RunFixture) -> None:
    """The generated code has names of its own, such as ``each_list``: no step's variable may be one of them."""

    async def main() -> None:
        async with planned(Lab({name: counts_down}), one_step(name)) as ready:
            assert (await ran(ready, request({"items": [3, 1]}))).result == [30, 10]

    run(main())


@LABS
def test_params_know_the_item_its_number_and_everything_else(make: Any, run: RunFixture) -> None:
    params = {
        "field": "$item.a.b[0]",
        "odd": "$item['odd key'] ?? 'none'",
        "text": "{{ $index }} of {{ $request.body.items[-1].a.b[0] }}",
        "sum": "$item.a.b[0] + $limit.most + $index",
        "nested": {"deep": ["$item", "$index"]},
        "same": "$limit.most * 2",
        "constant": 7,
    }

    async def main() -> None:
        steps = [step("limit", params={"most": 100}), step("score", for_each=ITEMS, params=params)]
        async with planned(make(), *steps, primary_source="score") as ready:
            items = [{"a": {"b": [1]}, "odd key": True}, {"a": {"b": [5]}}]
            assert (await ran(ready, request({"items": items}))).result == [
                {
                    "field": items[index]["a"]["b"][0],  # type: ignore[index]
                    "odd": [True, "none"][index],
                    "text": f"{index} of 5",
                    "sum": [101, 106][index],
                    "nested": {"deep": [items[index], index]},
                    "same": 200,
                    "constant": 7,
                }
                for index in (0, 1)
            ]

    run(main())


@LABS
def test_no_items_are_no_calls(make: Any, run: RunFixture) -> None:
    async def main() -> None:
        lab = make()
        async with planned(lab, one_step(params={"n": "$request.body.absent"})) as ready:
            got = await ran(ready, request({"items": []}))
            assert (got.result, got.error, lab.events, got.steps["score"].items) == ([], None, [], 0)

    run(main())


def test_a_literal_list_can_have_expressions_in_it(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), one_step(for_each=[1, "$request.body.x", {"y": "$request.body.x"}])) as ready:
            assert (await ran(ready, request({"x": 2}))).result == [{"n": 1}, {"n": 2}, {"n": {"y": 2}}]

    run(main())


def test_params_without_the_item_are_evaluated_and_transformed_once(run: RunFixture) -> None:
    async def main() -> None:
        params = {"n": "$item", "shared": {"x": "$request.body.x"}, "own": {"x": "$item"}}
        transform = {"params": {name: [{"lab_rename": {"x": "z"}}, "lab_wrap"] for name in ("shared", "own")}}
        async with planned(Lab(), one_step(params=params, transform=transform)) as ready:
            result: Any = (await ran(ready, request({"items": [1, 2], "x": 5}))).result
            assert result == [{"n": n, "shared": [{"z": 5}], "own": [{"z": n}]} for n in (1, 2)]
            assert result[0]["shared"] is result[1]["shared"]

    run(main())


@LABS
def test_the_transform_is_of_each_item_s_result(make: Any, run: RunFixture) -> None:
    async def main() -> None:
        transform = [{"lab_rename": {"n": "m"}}, "lab_wrap"]
        async with planned(make(), one_step(transform=transform)) as ready:
            assert (await ran(ready, request({"items": [1, 2]}))).result == [[{"m": 1}], [{"m": 2}]]

    run(main())


def test_the_condition_is_of_the_step_as_a_whole(run: RunFixture) -> None:
    async def main() -> None:
        conditional = one_step(condition="$request.body.wanted")
        async with planned(Lab(), conditional, response_mapping="$score ?? 'skipped'") as ready:
            assert (await ran(ready, request({"items": [1], "wanted": True}))).result == [{"n": 1}]
            got = await ran(ready, request({"items": "no list", "wanted": False}))
            assert (got.result, got.statuses, got.steps["score"].items) == ("skipped", {"score": "skipped"}, None)

    run(main())


def test_steps_before_and_after_and_one_over_another_s_results(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        steps = [
            step("orders", params={"list": ITEMS}),
            step("twice", for_each="$orders.list", params={"n": "$item * 2"}),
            step("again", for_each="$twice", params={"n": "$item.n + 1"}),
            step("total", params={"sum": "$again[0].n + $again[-1].n", "count": "{{ len($again) }}"}),
        ]
        async with planned(Lab(), *steps, primary_source="total") as ready:
            assert (await ran(ready, request({"items": [1, 2, 3]}))).result == {"sum": 10, "count": "3"}

    run_on_each_loop(main())


# --- concurrency --------------------------------------------------------------------------------------------------


@define
class Counter:
    """Counts how many calls are under way, by operation."""

    now: int = 0
    most: int = 0
    calls: int = 0

    async def __call__(self, params: Mapping[str, Any]) -> Any:
        self.calls += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            for _ in range(5):
                await asyncio.sleep(0)
        finally:
            self.now -= 1
        return params["n"]


@pytest.mark.parametrize(("limit", "expected"), [(1, 1), (3, 3), (None, 8), (100, 30)])
def test_at_most_max_concurrency_items_are_under_way(
    limit: int | None, expected: int, run_on_each_loop: RunFixture
) -> None:
    async def main() -> None:
        counter = Counter()
        more = {} if limit is None else {"max_concurrency": limit}
        async with planned(Lab({"score": counter}), one_step(**more)) as ready:
            assert (await ran(ready, request({"items": list(range(30))}))).result == list(range(30))
            assert (counter.most, counter.calls) == (expected, 30)

    run_on_each_loop(main())


def test_two_of_them_run_beside_each_other(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        left, right = Counter(), Counter()
        lab = Lab({"left": left, "right": right})
        steps = [one_step("left", max_concurrency=2), one_step("right", max_concurrency=3)]
        async with planned(lab, *steps) as ready:
            started = asyncio.ensure_future(ran(ready, request({"items": list(range(9))})))
            await lab.started(["left", "right"])
            assert (await started).result == {"left": list(range(9)), "right": list(range(9))}
            assert (left.most, right.most) == (2, 3)

    run_on_each_loop(main())


def test_calls_that_never_wait_leave_the_loop_to_others(run: RunFixture) -> None:
    async def returns_at_once(params: Mapping[str, Any]) -> Any:
        return params["n"]

    async def main() -> None:
        async with planned(Lab({"score": returns_at_once}), one_step()) as ready:
            turns = 0

            async def other() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            task = asyncio.ensure_future(other())
            await execute(ready, request({"items": list(range(2000))}), Run(ready, "x"))
            task.cancel()
            assert turns >= 20

    run(main())


async def tasks_of(lab: Lab, items: list[Any], **more: Any) -> int:
    async with planned(lab, one_step(**more)) as ready:
        loop, created = asyncio.get_running_loop(), 0

        def factory(loop: Any, coro: Any, **options: Any) -> Any:
            nonlocal created
            created += 1
            return asyncio.Task(coro, loop=loop, **options)

        loop.set_task_factory(factory)
        try:
            await ran(ready, request({"items": items}))
        finally:
            loop.set_task_factory(None)
        return created


def test_one_call_for_all_makes_no_task(run: RunFixture) -> None:
    lab = ManyLab()
    assert run(tasks_of(lab, list(range(50)))) == 0
    assert lab.batches == [50]


def test_several_calls_make_a_task_less_than_run_at_once(run: RunFixture) -> None:
    assert [run(tasks_of(Lab(), [1])), run(tasks_of(Lab(), [1, 2, 3])), run(tasks_of(Lab(), list(range(50))))] == [
        0,
        2,
        7,
    ]
    assert run(tasks_of(Lab(), [1, 2, 3], max_concurrency=1)) == 0


def test_a_source_may_take_only_some_operations_for_many(run: RunFixture) -> None:
    async def main() -> None:
        lab = ManyLab()
        async with planned(lab, one_step("single"), one_step("score")) as ready:
            assert (await ran(ready, request({"items": [1, 2]}))).result == {
                "single": [{"n": 1}, {"n": 2}],
                "score": [{"n": 1}, {"n": 2}],
            }
            assert lab.batches == [2]

    run(main())


def test_a_source_that_answers_for_another_number_of_items_has_failed(run: RunFixture) -> None:
    class Short(ManyLab):
        def prepare_many(self, operation: str, param_names: Sequence[str]) -> Any:
            async def many(items: Sequence[Any]) -> Sequence[Any]:
                return [1]

            return many

    async def main() -> None:
        async with planned(Short(), one_step()) as ready:
            error = (await ran(ready, request({"items": [1, 2]}))).error
            assert isinstance(error, SourceError)
            assert str(error) == "the source returned 1 results for 2 items"

    run(main())


# --- failures -----------------------------------------------------------------------------------------------------


@LABS
@pytest.mark.parametrize(
    ("raised", "kind", "message"),
    [
        (SourceError("it broke", transient=True), SourceError, "step 'score', item 2: it broke"),
        (EntityNotFound("nothing for n=2"), EntityNotFound, "step 'score', item 2: nothing for n=2"),
        (
            SourceUnavailable("full", retry_after_seconds=7),
            SourceUnavailable,
            "step 'score', item 2: full",
        ),
    ],
)
def test_a_failed_item_fails_the_request_and_is_named(
    make: Any, raised: OrchestratorError, kind: type[OrchestratorError], message: str, run: RunFixture
) -> None:
    async def main() -> None:
        async with planned(make({"score": fails_at(2, raised)}), one_step()) as ready:
            got = await ran(ready, request({"items": [0, 1, 2, 3]}))
            assert isinstance(got.error, kind)
            assert (str(got.error), got.error.status, got.run.failed_step) == (message, raised.status, "score")
            assert got.error.retry_after_seconds == raised.retry_after_seconds
            assert getattr(got.error, "transient", None) == getattr(raised, "transient", None)
            assert str(raised) not in (message, "")  # the error that was raised is left as it is
            record = got.steps["score"]
            assert (record.status, record.error, record.items) == ("failed", message, 4)

    run(main())


def test_a_failed_item_cancels_the_others_and_starts_no_more(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        waits = asyncio.Event()
        seen: list[int] = []
        cancelled: list[int] = []

        async def score(params: Mapping[str, Any]) -> Any:
            seen.append(params["n"])
            if params["n"] == 1:
                raise SourceError("one")
            try:
                await waits.wait()
            except asyncio.CancelledError:
                cancelled.append(params["n"])
                await asyncio.sleep(0)  # whatever a source does to end cleanly is waited for
                cancelled.append(-params["n"])
                raise

        async with planned(Lab({"score": score}), one_step(max_concurrency=4)) as ready:
            got = await ran(ready, request({"items": [2, 3, 4, 1, 5, 6, 7]}))
            assert str(got.error) == "step 'score', item 3: one"
            assert max(seen) < 5
            assert sorted(cancelled) == sorted([n for n in seen if n != 1] + [-n for n in seen if n != 1])

    run_on_each_loop(main())


@LABS
@pytest.mark.parametrize(("more", "instead"), [({"required": False}, None), ({"default": {"s": 0}}, {"s": 0})])
def test_a_failed_item_gets_the_default_and_the_answer_is_degraded(
    make: Any, more: dict[str, Any], instead: Any, run_on_each_loop: RunFixture
) -> None:
    async def main() -> None:
        lab = make({"score": fails_at(1, SourceError("it broke"))})
        mapping = {"scores": "$score", "degraded": "$execution.degraded"}
        async with planned(lab, one_step(**more), response_mapping=mapping) as ready:
            got = await ran(ready, request({"items": [0, 1, 2, 1]}))
            assert got.result == {"scores": [0, instead, 2, instead], "degraded": True}
            assert got.run.degraded_steps == ("score",)
            record = got.steps["score"]
            assert (record.status, record.items, record.items_failed) == ("default", 4, 2)
            assert record.error == "step 'score', item 1: it broke"
            fine = await ran(ready, request({"items": [0, 2]}))
            assert fine.result == {"scores": [0, 2], "degraded": False}
            assert fine.run.degraded_steps == ()

    run_on_each_loop(main())


def test_a_defect_in_an_item_is_a_defect_and_says_which(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"score": fails_at(1, ZeroDivisionError("oops"))}), one_step()) as ready:
            error = (await ran(ready, request({"items": [0, 1]}))).error
            assert isinstance(error, ZeroDivisionError)
            assert error.__notes__ == ["item 1 of the step 'score'"]

    run(main())


def test_defects_behind_a_default_are_logged_once_for_a_step(run: RunFixture) -> None:
    async def breaks(_: Any) -> Any:
        raise ZeroDivisionError("oops")

    async def main() -> None:
        async with planned(Lab({"score": breaks}), one_step(default=0)) as ready:
            with capture_logs() as logs:
                got = await ran(ready, request({"items": [1, 2, 3]}))
            assert (got.result, got.steps["score"].items_failed) == ([0, 0, 0], 3)
            assert [(entry["event"], entry["step"]) for entry in logs] == [("defect behind a default", "score")]

    run(main())


@LABS
def test_a_value_that_an_item_lacks_fails_before_anything_is_called(make: Any, run: RunFixture) -> None:
    async def main() -> None:
        lab = make()
        async with planned(lab, one_step(params={"n": "$item.n"})) as ready:
            got = await ran(ready, request({"items": [{"n": 1}, {"m": 1}]}))
            assert isinstance(got.error, InvalidRequest)
            assert str(got.error) == (
                "step 'score', item 1: $request.body.items[1].n is missing: "
                "$request.body.items[1] has no field 'n' (it has: m)"
            )
            assert got.error.errors == [{"pointer": "/body/items/1/n", "message": "is required"}]
            assert lab.events == []

    run(main())


def test_a_value_that_another_step_s_item_lacks_is_that_step_s_fault(run: RunFixture) -> None:
    async def main() -> None:
        steps = [
            step("orders", params={"list": ITEMS}),
            step("score", for_each="$orders.list", params={"n": "$item.n"}),
        ]
        async with planned(Lab(), *steps) as ready:
            got = await ran(ready, request({"items": [{"n": 1}, 5]}))
            assert isinstance(got.error, MissingReference)
            assert (got.error.status, got.run.failed_step) == (502, "orders")
            assert str(got.error) == ("step 'score', item 1: $orders.list[1].n is missing: $orders.list[1] is a number")
        computed = step("score", for_each="$orders.list + []", params={"n": "$item.n"})
        async with planned(Lab(), steps[0], computed) as ready:
            got = await ran(ready, request({"items": [{"n": 1}, 5]}))
            assert str(got.error) == "step 'score', item 1: $item.n is missing: $item is a number"
            assert got.run.failed_step == "score"

    run(main())


@LABS
def test_a_value_the_source_cannot_take_is_the_caller_s_to_mend(make: Any, run: RunFixture) -> None:
    behaviour = {"score": fails_at(7, InvalidParam("n", "n must be less than 7"))}

    async def main() -> None:
        async with planned(make(behaviour), one_step(params={"n": "$item.a.n", "k": 1})) as ready:
            got = await ran(ready, request({"items": [{"a": {"n": 1}}, {"a": {"n": 7}}]}))
            assert isinstance(got.error, InvalidRequest)
            assert str(got.error) == "step 'score', item 1: n must be less than 7"
            assert got.error.errors == [{"pointer": "/body/items/1/a/n", "message": "n must be less than 7"}]
        async with planned(make(behaviour), one_step(params={"n": "$item + 0"})) as ready:
            error = (await ran(ready, request({"items": [7]}))).error
            assert isinstance(error, InvalidRequest)
            assert error.errors == [{"pointer": "/body/items/0", "message": "n must be less than 7"}]
        steps = [step("orders", params={"list": ITEMS}), one_step(for_each="$orders.list")]
        async with planned(make(behaviour), *steps) as ready:
            error = (await ran(ready, request({"items": [7]}))).error
            assert isinstance(error, InvalidParam)
            assert (str(error), error.status) == ("step 'score', item 0: n must be less than 7", 502)
        async with planned(make(behaviour), one_step(for_each=[7])) as ready:
            assert isinstance((await ran(ready, request({}))).error, InvalidParam)

    run(main())


def test_an_expression_that_cannot_be_computed_is_the_item_s_failure(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), one_step(params={"n": "$item - 1"}, default="none")) as ready:
            assert (await ran(ready, request({"items": [1, "a", 3]}))).result == [{"n": 0}, "none", {"n": 2}]
        async with planned(Lab(), one_step(params={"n": "$item - 1"})) as ready:
            error = (await ran(ready, request({"items": [1, "a", 3]}))).error
            assert isinstance(error, InvalidRequest)
            assert str(error) == "step 'score', item 1: '-' takes two numbers, got a string and a number"
            assert error.errors == [
                {"pointer": "/body/items/1", "message": "'-' takes two numbers, got a string and a number"}
            ]

    run(main())


@LABS
def test_a_shared_value_that_is_missing_fails_every_item(make: Any, run: RunFixture) -> None:
    async def main() -> None:
        params = {"n": "$item", "k": "$request.body.absent"}
        async with planned(make(), one_step(params=params, default=0)) as ready:
            got = await ran(ready, request({"items": [1, 2]}))
            assert (got.result, got.steps["score"].items_failed) == ([0, 0], 2)

    run(main())


@LABS
def test_the_whole_call_failing_fails_every_item(make: Any, run: RunFixture) -> None:
    class Down(ManyLab):
        def prepare_many(self, operation: str, param_names: Sequence[str]) -> Any:
            async def many(items: Sequence[Any]) -> Sequence[Any]:
                raise SourceError("it is down")

            return many

    async def main() -> None:
        async with planned(Down(), one_step(default=0)) as ready:
            got = await ran(ready, request({"items": [1, 2]}))
            assert (got.result, got.steps["score"].items_failed) == ([0, 0], 2)
            assert got.steps["score"].error == "it is down"
        async with planned(Down(), one_step()) as ready:
            got = await ran(ready, request({"items": [1, 2]}))
            assert (str(got.error), got.run.failed_step) == ("it is down", "score")

    run(main())


# --- what is not a list -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"), [(None, "null"), ("ab", "a string"), ({"a": 1}, "an object"), (5, "a number")]
)
def test_what_is_no_list_is_an_error_that_names_it(value: Any, kind: str, run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), one_step()) as ready:
            error = (await ran(ready, request({"items": value}))).error
            assert isinstance(error, InvalidRequest)
            assert str(error) == f"step 'score': for_each takes a list, but $request.body.items is {kind}"
            assert error.errors == [{"pointer": "/body/items", "message": "must be a list"}]
        steps = [step("orders", params={"list": ITEMS}), one_step(for_each="$orders.list")]
        async with planned(Lab(), *steps) as ready:
            got = await ran(ready, request({"items": value}))
            assert isinstance(got.error, ExpressionError)
            assert str(got.error) == f"step 'score': for_each takes a list, but $orders.list is {kind}"
            assert (got.error.status, got.run.failed_step) == (502, "score")

    run(main())


def test_null_is_an_empty_list_only_where_that_is_said(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), one_step(for_each=f"{ITEMS} ?? []")) as ready:
            assert (await ran(ready, request({"items": None}))).result == []
            assert (await ran(ready, request({}))).result == []
            assert (await ran(ready, request({"items": [1]}))).result == [{"n": 1}]
            error = (await ran(ready, request({"items": 1}))).error
            assert str(error) == "step 'score': for_each takes a list, but $request.body.items is a number"
        async with planned(Lab(), one_step()) as ready:
            error = (await ran(ready, request({}))).error
            assert isinstance(error, InvalidRequest)
            assert error.errors == [{"pointer": "/body/items", "message": "is required"}]

    run(main())


def test_an_optional_step_whose_list_is_not_there_has_no_results(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), one_step(default={"s": 0})) as ready:
            got = await ran(ready, request({"items": 5}))
            assert (got.result, got.run.degraded_steps, got.statuses) == ([], ("score",), {"score": "default"})

    run(main())


# --- time ---------------------------------------------------------------------------------------------------------


def waits_for(number: int) -> Any:
    async def behaviour(params: Mapping[str, Any]) -> Any:
        if params["n"] == number:
            await asyncio.Event().wait()
        return params["n"]

    return behaviour


def test_the_timeout_bounds_the_step_and_keeps_what_has_ended(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        lab = Lab({"score": waits_for(1)})
        async with planned(lab, one_step(timeout=0.05, default="late", max_concurrency=2)) as ready:
            started = time.perf_counter()
            got = await ran(ready, request({"items": [0, 1, 2, 1, 3]}))
            assert time.perf_counter() - started < 1
            assert got.result == [0, "late", 2, "late", "late"]
            record = got.steps["score"]
            assert (record.status, record.items, record.items_failed) == ("default", 5, 3)
            assert record.error == "step 'score' took longer than its timeout"
        async with planned(lab, one_step(timeout=0.05)) as ready:
            error = (await ran(ready, request({"items": [0, 1]}))).error
            assert isinstance(error, DeadlineExceeded)
            assert str(error) == "step 'score' took longer than its timeout"

    run_on_each_loop(main())


def test_all_runs_of_a_step_share_a_time_limit(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a timer of the loop, which would be there until the time is up."""
    made: list[float] = []

    class Counted(TimeLimit):
        def __init__(self, seconds: float) -> None:
            made.append(seconds)
            super().__init__(seconds)

    monkeypatch.setattr("orchestrator_core.each.TimeLimit", Counted)

    async def main() -> None:
        async with planned(Lab(), one_step(timeout=3600)) as ready:
            for _ in range(3):
                assert (await ran(ready, request({"items": [0, 1]}))).error is None

    run(main())
    assert made == [3600.0]


def test_a_call_for_all_that_takes_too_long_has_no_results(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(ManyLab({"score": waits_for(1)}), one_step(timeout=0.05, required=False)) as ready:
            got = await ran(ready, request({"items": [0, 1]}))
            assert (got.result, got.steps["score"].items_failed) == ([None, None], 2)

    run(main())


@LABS
def test_the_deadline_of_the_request_ends_all_items(make: Any, run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        lab = make({"score": waits_for(1), "other": waits_for(1)})
        steps = [one_step(default=0), one_step("other")]
        async with planned(lab, *steps, timeout=0.05) as ready:
            error = (await ran(ready, request({"items": [1, 1, 1]}))).error
            assert isinstance(error, DeadlineExceeded)
            assert not lab.running

    run_on_each_loop(main())


def test_a_failure_elsewhere_ends_all_items(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        lab = Lab({"score": waits_for(1), "breaks": fails_at(1, SourceError("broken"))})
        for steps in ([one_step(), step("breaks", params={"n": 1})], [step("breaks", params={"n": 1}), one_step()]):
            async with planned(lab, *steps) as ready:
                got = await ran(ready, request({"items": [1] * 20}))
                assert (str(got.error), got.run.failed_step) == ("broken", "breaks")
                assert got.statuses == {"score": "cancelled", "breaks": "failed"}
                assert not lab.running

    run_on_each_loop(main())


def test_a_client_that_leaves_ends_all_items(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        lab = Lab({"score": waits_for(1)})
        async with planned(lab, one_step(), one_step("other")) as ready:
            task = asyncio.ensure_future(execute(ready, request({"items": [1] * 20}), Run(ready, "x")))
            await asyncio.sleep(0.01)
            assert lab.running == {"score"}
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not lab.running

    run_on_each_loop(main())


# --- at load ------------------------------------------------------------------------------------------------------


def test_what_a_step_with_for_each_returns_is_checked_as_a_list(run: RunFixture) -> None:
    async def problems(mapping: Any, **more: Any) -> list[str]:
        try:
            async with planned(Lab(), one_step(**more), response_mapping=mapping):
                return []
        except ConfigError as error:
            return [f"{problem.code} {problem.message}; {problem.hint}" for problem in error.problems]

    async def main() -> None:
        assert await problems({"all": "$score", "first": "$score[0].n", "computed": "$score[len($score) - 1]"}) == []
        assert await problems("$score.n") == [
            (
                "ORC505 the step 'score' returns a list with a result for each item, and no field 'n'; "
                "$score[0].n is that of the first item"
            )
        ]
        assert await problems({"all": "$score", "first": "$score[0]"}, required=False) == []
        assert await problems("$score[0].n", required=False) == [
            (
                "ORC504 $score[0].n may be missing: the step 'score' is not required, and may fail for an item; "
                "give a fallback: $score[0].n ?? …"
            )
        ]
        assert await problems("$score[0].n", default={"n": 1}) == []
        assert await problems("$score[0].n", default={"m": 1}) == [
            (
                "ORC504 $score[0].n may be missing: the default of the step 'score' has no $score[0].n; "
                "give a fallback: $score[0].n ?? …"
            )
        ]

    run(main())


# --- the property -------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.integers(-3, 12), st.text(max_size=2), st.none(), st.lists(st.integers(), max_size=2), st.booleans()
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2)


async def judges(params: Mapping[str, Any]) -> Any:
    """Fail in each way that a source can, as the value says."""
    value = params["a"]
    for _ in range(value % 3 if type(value) is int else 0):
        await asyncio.sleep(0)
    if value == 10:
        raise EntityNotFound("nothing found for 10")
    if value == 11:
        raise SourceError("eleven")
    if not isinstance(value, int | str):
        raise InvalidParam("a", f"a must be a number or a string, got {value!r}")
    return {"was": value, **params}


@given(
    st.lists(st.one_of(OBJECTS, VALUES), max_size=12),
    st.sampled_from([{"required": False}, {"default": {"was": "default"}}]),
    st.integers(1, 4),
    st.sampled_from([Lab, ManyLab]),
    st.sampled_from(["$item.a", "$item.a ?? $item.b", "$item.a + 1", "$item.b > 1 ? $item.a : $index"]),
    st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_each_item_ends_as_a_step_without_for_each_would(
    items: list[Any], more: dict[str, Any], limit: int, make: Any, expression: str, shared: bool
) -> None:
    async def main() -> None:
        lab = make({"score": judges})
        extra = {"k": "$request.body.k"} if shared else {}
        transform = [{"lab_rename": {"was": "is"}}]
        params = {"a": expression, **extra}
        steps = one_step(params=params, max_concurrency=limit, transform=transform, **more)
        alone = {
            name: value.replace("$item", "$request.body.item").replace("$index", "$request.body.index")
            for name, value in params.items()
        }
        body = {"k": 5}
        async with (
            planned(lab, steps) as ready,
            planned(Lab({"score": judges}), step("score", params=alone, transform=transform, **more)) as plain,
        ):
            got = await ran(ready, request({**body, "items": items}))
            each = [
                await ran(plain, request({**body, "item": item, "index": index})) for index, item in enumerate(items)
            ]
            assert got.result == [one.result for one in each]
            failed = [one for one in each if one.statuses["score"] == "default"]
            record = got.steps["score"]
            assert (record.items, record.items_failed) == (len(items), len(failed))
            assert bool(got.run.degraded_steps) == bool(failed)

    run_coroutine(main())
