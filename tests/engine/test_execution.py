"""Executing a plan: concurrency, deadlines, failures, defaults, skipped steps and what becomes the answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest

from orchestrator_core.config.secrets import Redactor
from orchestrator_core.engine import execute, failure_of
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
)
from orchestrator_core.run import Run
from tests.engine.lab import Lab, planned, ran, request, step

RunFixture = Callable[..., Any]


async def forever(_: Any) -> Any:
    await asyncio.Event().wait()


def fails(error: BaseException) -> Any:
    async def behaviour(_: Any) -> Any:
        await asyncio.sleep(0)
        raise error

    return behaviour


def returns(value: Any) -> Any:
    async def behaviour(_: Any) -> Any:
        return value

    return behaviour


def sleeps(seconds: float) -> Any:
    async def behaviour(params: Any) -> Any:
        await asyncio.sleep(seconds)
        return dict(params)

    return behaviour


# --- a call that asks for an exit ------------------------------------------------------------------------------------

EXITS = "the source is at fault: it calls sys.exit(3), which would end the service"


def test_a_source_without_policies_that_calls_sys_exit_fails_its_step_alone(run: RunFixture) -> None:
    """It would end the event loop, and with it the service, in whichever task it is called."""

    async def main() -> None:
        exits = fails(SystemExit(3))
        for steps in ([step("a")], [step("a"), step("b")], [step("b"), step("a")]):
            async with planned(Lab({"a": exits}), *steps) as ready:
                got = await ran(ready)
                assert (type(got.error), str(got.error)) == (SourceError, EXITS)
                assert (got.steps["a"].status, got.steps["a"].error, got.run.failed_step) == ("failed", EXITS, "a")
        async with planned(Lab({"a": exits}), step("a", default=1), step("b")) as ready:
            got = await ran(ready)
            assert got.result == {"a": 1, "b": {}}
            assert (got.statuses, got.run.degraded_steps) == ({"a": "default", "b": "ok"}, ("a",))
        items = step("a", for_each=[1, 2, 3], max_concurrency=2, params={"n": "$item"})
        async with planned(Lab({"a": exits}), items) as ready:
            got = await ran(ready)
            assert (type(got.error), str(got.error)) == (SourceError, f"step 'a', item 0: {EXITS}")
        async with planned(Lab({"a": exits}), {**items, "default": 0}) as ready:
            got = await ran(ready)
            assert (got.result, got.run.degraded_steps) == ([0, 0, 0], ("a",))

    run(main())


class Panic(BaseException):
    """As PyO3's ``PanicException``, which is no ``Exception``."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (Panic("index out of bounds"), "the source is at fault: Panic: index out of bounds"),
        (asyncio.CancelledError(), "the source broke its own call off"),
    ],
    ids=["a panic", "a cancellation"],
)
def test_a_source_without_policies_that_raises_no_exception_fails_its_step_alone(
    run: RunFixture, raised: BaseException, said: str
) -> None:
    """The client's connection was closed without an answer, and a step with a default failed the request."""

    async def main() -> None:
        for steps in ([step("a")], [step("a"), step("b")], [step("b"), step("a")]):
            async with planned(Lab({"a": fails(raised), "b": forever}), *steps) as ready:
                got = await ran(ready)
                assert (type(got.error), str(got.error), got.run.failed_step) == (SourceError, said, "a")
                assert (got.steps["a"].status, got.steps["a"].error) == ("failed", said)
        async with planned(Lab({"a": fails(raised)}), step("a", default=1), step("b")) as ready:
            got = await ran(ready)
            assert got.result == {"a": 1, "b": {}}
            assert (got.statuses, got.steps["a"].error) == ({"a": "default", "b": "ok"}, said)
        items = step("a", for_each=[1, 2, 3], max_concurrency=2, params={"n": "$item"}, default=0)
        async with planned(Lab({"a": fails(raised)}), items) as ready:
            got = await ran(ready)
            assert (got.result, got.run.degraded_steps) == ([0, 0, 0], ("a",))

    run(main())


# --- tasks --------------------------------------------------------------------------------------------------------


async def tasks_created(lab: Lab, *steps: Any, **endpoint: Any) -> int:
    async with planned(lab, *steps, **endpoint) as ready:
        created = 0
        loop = asyncio.get_running_loop()

        def factory(loop: Any, coro: Any, **more: Any) -> Any:
            nonlocal created
            created += 1
            return asyncio.Task(coro, loop=loop, **more)

        loop.set_task_factory(factory)
        try:
            got = await ran(ready)
        finally:
            loop.set_task_factory(None)
        assert got.error is None, got.error
        return created


def test_a_chain_creates_no_task(run_on_each_loop: RunFixture) -> None:
    chain = [step("a"), step("b", params={"x": "$a"}), step("c", depends_on=["b"]), step("d", params={"x": "$c"})]
    assert run_on_each_loop(tasks_created(Lab(), *chain)) == 0


def test_steps_in_a_row_by_way_of_several_references_create_no_task(run: RunFixture) -> None:
    row = [step("a"), step("b", params={"x": "$a"}), step("c", params={"x": "$a", "y": "$b"})]
    assert run(tasks_created(Lab(), *row)) == 0


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_n_steps_that_are_ready_together_create_n_minus_1_tasks(run_on_each_loop: RunFixture, count: int) -> None:
    steps = [step(f"s{number}") for number in range(count)]
    assert run_on_each_loop(tasks_created(Lab(), *steps)) == count - 1


def test_two_steps_and_one_that_needs_both_create_one_task(run: RunFixture) -> None:
    steps = [step("a"), step("b"), step("model", params={"a": "$a", "b": "$b"})]
    assert run(tasks_created(Lab(), *steps)) == 1


# --- concurrency --------------------------------------------------------------------------------------------------


def test_two_slow_steps_and_a_model_that_needs_both_take_one_slow_step(run_on_each_loop: RunFixture) -> None:
    lab = Lab({"a": sleeps(0.2), "b": sleeps(0.2), "model": sleeps(0.05)})
    steps = [step("a"), step("b"), step("model", params={"a": "$a", "b": "$b"})]

    async def main() -> None:
        async with planned(lab, *steps) as ready:
            started = time.perf_counter()
            got = await ran(ready)
            took = time.perf_counter() - started
        assert got.statuses == {"a": "ok", "b": "ok", "model": "ok"}
        assert 0.245 <= took < 0.4  # one after the other they take 0.45
        assert got.steps["model"].start_seconds >= 0.195
        assert 0 <= got.run.engine_seconds() < 0.15

    run_on_each_loop(main())


def test_a_slow_step_does_not_hold_up_what_does_not_need_it(run: RunFixture) -> None:
    """No tiers: ``second`` needs ``first`` alone and starts while ``slow`` still runs."""
    reached = asyncio.Event()

    async def slow(_: Any) -> Any:
        await reached.wait()
        return {}

    async def second(_: Any) -> Any:
        reached.set()
        return {}

    lab = Lab({"slow": slow, "second": second})

    async def main() -> None:
        steps = [step("slow"), step("first"), step("second", depends_on=["first"]), step("last", depends_on=["slow"])]
        async with planned(lab, *steps, timeout=5) as ready:
            got = await ran(ready)
        assert got.error is None

    run(main())


# --- failures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [("breaks", "waits", "also"), ("waits", "breaks", "also"), ("also", "waits", "breaks")]
)
def test_a_required_step_that_fails_cancels_the_rest_at_once(run_on_each_loop: RunFixture, order: Any) -> None:
    lab = Lab({"breaks": fails(SourceError("no connection")), "waits": forever, "also": forever})

    async def main() -> None:
        async with planned(lab, *map(step, order), step("later", depends_on=["waits"])) as ready:
            got = await ran(ready)
        assert isinstance(got.error, SourceError)
        assert str(got.error) == "no connection"
        assert got.run.failed_step == "breaks"
        assert got.statuses == {"breaks": "failed", "waits": "cancelled", "also": "cancelled", "later": "cancelled"}
        assert got.steps["breaks"].error == "no connection"
        assert (got.steps["waits"].attempts, got.steps["later"].attempts) == (1, 0)
        assert not lab.running

    run_on_each_loop(main())


def test_a_step_that_cleans_up_slowly_is_waited_for(run_on_each_loop: RunFixture) -> None:
    cleaned = []

    async def cleans_up(_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)
            cleaned.append(True)

    lab = Lab({"breaks": fails(SourceError("no")), "cleans": cleans_up})

    async def main() -> None:
        async with planned(lab, step("cleans"), step("breaks")) as ready:
            got = await ran(ready)
        assert str(got.error) == "no"
        assert cleaned == [True]

    run_on_each_loop(main())


def test_two_steps_that_fail_at_the_same_moment_give_one_of_their_errors_and_leave_nothing(
    run_on_each_loop: RunFixture,
) -> None:
    lab = Lab(
        {"a": fails(SourceError("a broke")), "b": fails(SourceError("b broke")), "c": fails(SourceError("c broke"))}
    )

    async def main() -> None:
        async with planned(lab, step("a"), step("b"), step("c"), step("d", params={"x": ["$a", "$b", "$c"]})) as ready:
            for _ in range(20):
                got = await ran(ready)
                assert str(got.error) in {"a broke", "b broke", "c broke"}
                await asyncio.sleep(0)  # a cancellation left over would strike here

    run_on_each_loop(main())


def test_the_error_and_the_step_that_is_blamed_belong_together_when_several_steps_fail_in_one_moment(
    run_on_each_loop: RunFixture,
) -> None:
    async def fails_in_this_order(*names: str) -> None:
        turns = {name: asyncio.get_running_loop().create_future() for name in names}

        def behaviour_of(name: str) -> Any:
            async def behaviour(_: Any) -> Any:
                await turns[name]
                raise SourceError(f"{name} broke")

            return behaviour

        lab = Lab({name: behaviour_of(name) for name in names})
        async with planned(lab, step("a"), step("b"), step("c"), step("d", params={"x": ["$a", "$b", "$c"]})) as ready:
            running = asyncio.create_task(ran(ready))
            await lab.started(names)
            for turn in turns.values():  # all of them in one turn of the loop
                turn.set_result(None)
            got = await running
        assert (str(got.error), got.run.failed_step) == (f"{names[0]} broke", names[0])

    async def main() -> None:
        for names in permutations("abc"):
            await fails_in_this_order(*names)

    run_on_each_loop(main())


def test_a_defect_of_a_source_is_raised_as_it_is(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"a": fails(ZeroDivisionError("division by zero"))}), step("a"), step("b")) as ready:
            got = await ran(ready)
        assert isinstance(got.error, ZeroDivisionError)
        assert got.steps["a"].error == "ZeroDivisionError: division by zero"

    run(main())


@pytest.mark.parametrize("policies", [None, {}], ids=["without policies", "with their defaults"])
@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["b", "a"]])
def test_a_source_that_cancels_its_own_call_has_failed(
    run_on_each_loop: RunFixture, names: list[str], policies: Any
) -> None:
    """The request is answered: its client has not gone away."""

    async def main() -> None:
        lab = Lab({"a": fails(asyncio.CancelledError())})
        async with planned(lab, *map(step, names), policies=policies) as ready:
            got = await ran(ready)
        assert type(got.error) is SourceError
        assert (str(got.error), got.run.failed_step) == ("the source broke its own call off", "a")
        assert not lab.running

    run_on_each_loop(main())


# --- default, required, degraded ----------------------------------------------------------------------------------


def test_a_step_with_a_default_that_fails_gives_the_default_and_degrades(run: RunFixture) -> None:
    lab = Lab({"score": fails(SourceError("partner is down"))})

    async def main() -> None:
        steps = [step("score", default={"value": 500}), step("after", params={"x": "$score.value + 1"})]
        async with planned(lab, *steps, response_mapping={"x": "$after.x", "degraded": "$execution.degraded"}) as ready:
            got = await ran(ready)
        assert got.result == {"x": 501, "degraded": True}
        assert got.run.degraded_steps == ("score",)
        assert got.run.status() == "degraded"
        assert got.statuses == {"score": "default", "after": "ok"}
        assert got.steps["score"].error == "partner is down"

    run(main())


@pytest.mark.parametrize("default", [None, False, 0, "", [], {"a": [1, {"b": None}]}, "$$money"])
def test_a_default_is_any_constant(run: RunFixture, default: Any) -> None:
    async def main() -> None:
        async with planned(Lab({"a": fails(SourceError("x"))}), step("a", default=default)) as ready:
            got = await ran(ready)
        assert got.error is None
        assert got.result == ("$money" if default == "$$money" else default)

    run(main())


def test_a_step_that_is_not_required_gives_null_when_it_fails(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab({"a": fails(SourceError("x"))}),
            step("a", required=False),
            response_mapping={"caught": "$a.deep.down ?? 'none'", "whole": "$a ?? null"},
        ) as ready:
            got = await ran(ready)
        assert got.result == {"caught": "none", "whole": None}
        assert got.run.degraded

    run(main())


def test_a_missing_reference_of_an_optional_step_is_its_failure(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab(), step("a", params={"x": "$request.body.absent"}, default={"x": 0}), response_mapping="$a.x"
        ) as ready:
            got = await ran(ready)
        assert (got.error, got.result) == (None, 0)
        assert got.steps["a"].error == "$request.body.absent is missing: the request has no body"

    run(main())


@pytest.mark.parametrize("optional", [True, False])
@pytest.mark.parametrize("policies", [None, {"retry": {"attempts": 2}}])
@pytest.mark.parametrize(
    "more",
    [
        {"params": {"x": "$request.body.nothing"}},
        {"params": {"x": "$request.body.text - 1"}},
        {"condition": "$request.body.nothing > 1"},
        {"for_each": "$request.body.nothing", "params": {"x": "$item"}},
        {"for_each": "$request.body.text", "params": {"x": "$item"}},
        {"for_each": [1, 2], "params": {"x": "$item.nothing"}},
    ],
)
def test_a_source_that_was_not_called_has_no_attempts(
    run: RunFixture, more: dict[str, Any], policies: dict[str, Any] | None, optional: bool
) -> None:
    async def main() -> None:
        lab = Lab()
        default = {"default": 0} if optional else {}
        async with planned(lab, step("a", **more, **default), policies=policies) as ready:
            got = await ran(ready, request({"text": "text"}))
        assert (lab.events, got.statuses["a"]) == ([], "default" if optional else "failed")
        assert got.steps["a"].attempts == 0

    run(main())


def test_an_answer_without_failures_is_not_degraded(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab(), step("a", default=1, params={"x": 1}), response_mapping=["$execution.degraded", "$execution.id"]
        ) as ready:
            got = await ran(ready)
        assert got.result == [False, "x"]
        assert got.run.degraded_steps == ()

    run(main())


# --- conditions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "runs"),
    [(True, True), (False, False), (None, False), (0, True), ("", True), ([], True), ("no", True)],
)
def test_a_condition_skips_for_false_and_null_only(run: RunFixture, flag: Any, runs: bool) -> None:
    async def main() -> None:
        async with planned(
            Lab(), step("a", condition="$request.body.flag", params={"x": 1}), response_mapping="$a.x ?? 'skipped'"
        ) as ready:
            got = await ran(ready, request({"flag": flag}))
        assert got.result == (1 if runs else "skipped")
        assert got.statuses == {"a": "ok" if runs else "skipped"}
        assert got.steps["a"].attempts == (1 if runs else 0)
        assert not got.run.degraded

    run(main())


def test_a_skipped_step_counts_as_missing_and_not_as_null(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab({"null": returns(None)}),
            step("null"),
            step("skipped", condition=False),
            response_mapping={"null": "$null", "skipped": "$skipped ?? 'fell back'", "both": "$skipped ?? $null"},
        ) as ready:
            got = await ran(ready)
        assert got.result == {"null": None, "skipped": "fell back", "both": None}

    run(main())


def test_a_step_that_depends_on_a_skipped_one_runs(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab(), step("a", condition=False), step("b", depends_on=["a"], params={"x": "$a ?? 1"})
        ) as ready:
            got = await ran(ready)
        assert got.statuses == {"a": "skipped", "b": "ok"}
        assert got.result == {"a": None, "b": {"x": 1}}

    run(main())


def test_a_condition_that_refers_to_nothing_fails_its_step(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), step("a", condition="$request.body.flag")) as ready:
            got = await ran(ready)
        assert isinstance(got.error, InvalidRequest)
        assert str(got.error) == "$request.body.flag is missing: the request has no body"
        assert got.statuses == {"a": "failed"}

    run(main())


# --- deadlines and cancellation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["b", "a", "c"]])
def test_the_endpoint_s_deadline_ends_everything(run_on_each_loop: RunFixture, names: list[str]) -> None:
    lab = Lab({"a": forever, "b": sleeps(0), "c": forever})

    async def main() -> None:
        async with planned(lab, *map(step, names), timeout="50ms") as ready:
            started = time.perf_counter()
            got = await ran(ready)
            took = time.perf_counter() - started
        slow = [name for name in names if name != "b"]
        assert isinstance(got.error, DeadlineExceeded)
        waiting = ", ".join(f"'{name}'" for name in slow)
        assert str(got.error) == f"the request took longer than its 0.05 s in step {waiting}"
        assert got.run.failed_step == slow[0]
        assert 0.045 <= took < 0.5
        assert got.statuses == {name: "ok" if name == "b" else "cancelled" for name in names}

    run_on_each_loop(main())


def test_a_step_s_own_smaller_timeout_is_its_failure(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"a": forever}), step("a", timeout="20ms"), step("b"), timeout=5) as ready:
            got = await ran(ready)
        assert isinstance(got.error, DeadlineExceeded)
        assert str(got.error) == "step 'a' took longer than its timeout"
        assert got.statuses == {"a": "failed", "b": "ok"}
        assert got.steps["a"].duration_seconds >= 0.018

    run_on_each_loop(main())


def test_a_step_that_times_out_can_have_a_default(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"a": forever}), step("a", timeout="20ms", default=7), timeout=5) as ready:
            got = await ran(ready)
        assert (got.result, got.statuses) == (7, {"a": "default"})
        assert got.steps["a"].error == "step 'a' took longer than its timeout"

    run(main())


def test_the_deadline_wins_over_a_step_s_larger_timeout_and_its_default(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"a": forever}), step("a", timeout=5, default=7), timeout="30ms") as ready:
            got = await ran(ready)
        assert str(got.error) == "the request took longer than its 0.03 s in step 'a'"

    run(main())


@pytest.mark.parametrize("names", [["a"], ["a", "b"], ["b", "a"]])
def test_a_cancelled_request_is_cancelled_in_all_its_steps(run_on_each_loop: RunFixture, names: list[str]) -> None:
    lab = Lab({"a": forever, "b": forever})

    async def main() -> None:
        async with planned(lab, *map(step, names)) as ready:
            run = Run(ready, "x")
            task = asyncio.create_task(execute(ready, request(), run))
            await lab.started(names)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not lab.running
            assert sorted(run.unfinished()) == sorted(names)

    run_on_each_loop(main())


def test_a_request_cancelled_again_and_again_leaves_nothing_running(run_on_each_loop: RunFixture) -> None:
    async def stubborn(_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)

    lab = Lab({"a": stubborn, "b": stubborn, "c": stubborn})

    async def main() -> None:
        async with planned(lab, step("a"), step("b"), step("c")) as ready:
            task = asyncio.create_task(execute(ready, request(), Run(ready, "x")))
            await lab.started("abc")
            for _ in range(4):
                task.cancel()
                await asyncio.sleep(0)
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not lab.running

    run_on_each_loop(main())


def test_a_deadline_that_passes_while_a_failure_cleans_up_is_one_error_and_leaves_no_cancellation(
    run_on_each_loop: RunFixture,
) -> None:
    async def cleans_up(_: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.06)

    lab = Lab({"cleans": cleans_up, "breaks": fails(SourceError("broke"))})

    async def main() -> None:
        async with planned(lab, step("cleans"), step("breaks"), timeout="30ms") as ready:
            got = await ran(ready)
        assert isinstance(got.error, SourceError | DeadlineExceeded)
        await asyncio.sleep(0)

    run_on_each_loop(main())


# --- errors that are the caller's, and those that are a step's ----------------------------------------------------


@pytest.mark.parametrize(
    ("params", "body", "error", "status", "message", "blamed"),
    [
        (
            {"x": "$request.body.x"},
            {"y": 1},
            InvalidRequest,
            422,
            "$request.body.x is missing: $request.body has no field 'x' (it has: y)",
            "",
        ),
        (
            {"x": "$first.nothing"},
            {},
            MissingReference,
            502,
            "$first.nothing is missing: $first has no field 'nothing' (it has: a)",
            "first",
        ),
        (
            {"x": "$first.a - 'text'"},
            {},
            ExpressionError,
            502,
            "'-' takes two numbers, got a number and a string",
            "second",
        ),
    ],
)
def test_a_value_that_is_missing_or_unfit_names_who_is_to_blame(
    run: RunFixture, params: Any, body: Any, error: type[OrchestratorError], status: int, message: str, blamed: str
) -> None:
    async def main() -> None:
        async with planned(Lab({"first": returns({"a": 1})}), step("first"), step("second", params=params)) as ready:
            got = await ran(ready, request(body))
        assert isinstance(got.error, error)
        assert got.error.status == status
        assert str(got.error) == message
        assert got.run.failed_step == blamed

    run(main())


@pytest.mark.parametrize(
    ("mapping", "status", "detail", "blamed"),
    [
        (
            {"half": "$first.word / 2"},
            502,
            "step 'first': response_mapping.half: '/' takes two numbers, got a string and a number, in $first.word / 2",
            "first",
        ),
        (
            {"a": [1, {"b": "$first.a + $second.word"}]},
            502,
            (
                "response_mapping.a[1].b: '+' takes two numbers, two strings or two lists, got a number and a string, "
                "in $first.a + $second.word"
            ),
            "",
        ),
        (
            "$request.body.x * 2",
            422,
            "response_mapping: '*' takes two numbers, got a string and a number, in $request.body.x * 2",
            "",
        ),
        ({"text": "{{ round('a') }}"}, 502, "response_mapping.text: round takes a number, got a string, in", ""),
    ],
)
def test_an_answer_that_cannot_be_computed_names_the_field_and_who_is_to_blame(
    run: RunFixture, mapping: Any, status: int, detail: str, blamed: str
) -> None:
    async def main() -> None:
        lab = Lab({"first": returns({"a": 1, "word": "x"}), "second": returns({"word": "y"})})
        async with planned(lab, step("first"), step("second"), response_mapping=mapping) as ready:
            got = await ran(ready, request({"x": "x"}))
        failure = failure_of(got.error, got.run, Redactor())
        assert failure.status == status
        assert failure.detail.startswith(detail)
        assert failure.step == blamed

    run(main())


@pytest.mark.parametrize(
    ("value", "status", "error", "message"),
    [
        ("$request.body.id", 422, InvalidRequest, "step 'second': id must be a number"),
        ("$first.a", 502, InvalidParam, "id must be a number"),
        ("{{ $request.body.id }}-{{ $first.a }}", 502, InvalidParam, "id must be a number"),
    ],
)
def test_an_unfit_parameter_is_the_caller_s_only_when_it_came_from_the_request(
    run: RunFixture, value: str, status: int, error: type[OrchestratorError], message: str
) -> None:
    lab = Lab({"first": returns({"a": "x"}), "second": fails(InvalidParam("id", "id must be a number"))})

    async def main() -> None:
        async with planned(lab, step("first"), step("second", params={"id": value})) as ready:
            got = await ran(ready, request({"id": "x"}))
        assert isinstance(got.error, error)
        assert got.error.status == status
        assert str(got.error) == message

    run(main())


@pytest.mark.parametrize(
    ("value", "pointer"),
    [
        ("$request.body.ids[0]", "/body/ids/0"),
        ("$request.query_params.customer", "/query_params/customer"),
        ("$request.body['a/b~c']", "/body/a~1b~0c"),
        ("$request.id", "/id"),
        ("{{ $request.id }}", "/key"),
    ],
)
def test_the_pointer_of_an_unfit_parameter_leads_to_its_value_in_the_request(
    run: RunFixture, value: str, pointer: str
) -> None:
    lab = Lab({"a": fails(InvalidParam("key", "key must be a number"))})

    async def main() -> None:
        body = {"ids": ["x"], "a/b~c": "x", "id": "x"}
        async with planned(lab, step("a", params={"key": value})) as ready:
            got = await ran(ready, request(body, customer="x"))
        assert isinstance(got.error, InvalidRequest)
        assert got.error.errors == [{"pointer": pointer, "message": "key must be a number"}]

    run(main())


def test_what_is_not_found_names_the_step(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab({"a": fails(EntityNotFound("no customer 42"))}), step("a")) as ready:
            got = await ran(ready)
        assert isinstance(got.error, EntityNotFound)
        assert got.run.failed_step == "a"

    run(main())


# --- the answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "endpoint", "answer"),
    [
        ([step("only", params={"x": 1})], {}, {"x": 1}),
        ([step("only", params={"x": 1})], {"response_mapping": None}, {"x": 1}),
        ([step("b", params={"x": 1}), step("a", params={"x": 2})], {}, {"b": {"x": 1}, "a": {"x": 2}}),
        ([step("b", params={"x": "$a.x"}), step("a", params={"x": 2})], {}, {"b": {"x": 2}, "a": {"x": 2}}),
        ([step("b", params={"x": 1}), step("a", params={"x": 2})], {"primary_source": "a"}, {"x": 2}),
        ([step("b", params={"x": 1}), step("a", condition=False)], {"primary_source": "a"}, None),
        ([step("b", params={"x": 1}), step("a", condition=False)], {}, {"b": {"x": 1}, "a": None}),
        ([step("a", params={"x": 1})], {"primary_source": "a", "response_mapping": {"y": "$a.x"}}, {"y": 1}),
        ([], {"response_mapping": {"text": "constant"}}, {"text": "constant"}),
        ([], {"response_mapping": False}, False),
        ([step("a", params={"x": 1})], {"transform": [{"lab_rename": {"x": "y"}}, "lab_wrap"]}, [{"y": 1}]),
        ([step("a", params={"x": 1}, transform=[{"lab_rename": {"x": "y"}}])], {"response_mapping": "$a.y"}, 1),
        ([step("a", params={"x": 1}, transform=["lab_wrap", "lab_wrap"])], {}, [[{"x": 1}]]),
    ],
)
def test_the_answer_is_the_mapping_the_primary_step_the_only_step_or_all_by_name(
    run: RunFixture, steps: list[Any], endpoint: Any, answer: Any
) -> None:
    async def main() -> None:
        async with planned(Lab(), *steps, **endpoint) as ready:
            got = await ran(ready)
        assert got.error is None, got.error
        assert got.result == answer
        if isinstance(answer, dict):
            assert list(got.result) == list(answer)

    run(main())


def test_a_transform_that_fails_fails_its_step(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(
            Lab({"a": returns([1])}), step("a", transform=[{"lab_rename": {"x": "y"}}], default="fell back")
        ) as ready:
            got = await ran(ready)
        assert got.result == "fell back"
        assert got.steps["a"].error == "AttributeError: 'list' object has no attribute 'items'"

    run(main())


def test_a_missing_field_in_the_answer_names_the_reference_and_the_step(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), step("a"), response_mapping={"deep": [{"x": "$a.y.z"}]}) as ready:
            got = await ran(ready)
        assert isinstance(got.error, MissingReference)
        assert str(got.error) == "$a.y.z is missing: $a has no field 'y' (it has: nothing)"

    run(main())


def test_an_answer_that_breaks_the_output_schema_is_the_services_fault(run: RunFixture) -> None:
    async def main() -> None:
        schema = {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x", "y"]}
        async with planned(Lab(), step("a", params={"x": 1}), output_schema=schema) as ready:
            got = await ran(ready)
        assert isinstance(got.error, SourceError)
        assert str(got.error).startswith("the answer does not fit the endpoint's output_schema: ")

    run(main())


def test_results_are_shared_and_not_changed_by_the_engine(run: RunFixture) -> None:
    shared = {"list": [1, 2], "deep": {"x": None}}

    async def main() -> None:
        async with planned(
            Lab({"a": returns(shared)}),
            step("a"),
            step("b", params={"copy": "$a"}),
            response_mapping={"a": "$a", "b": "$b"},
        ) as ready:
            got = await ran(ready)
        assert got.result["a"] is shared
        assert shared == {"list": [1, 2], "deep": {"x": None}}

    run(main())


def test_an_endpoint_without_anything_to_answer_is_refused(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab()):
            pass

    with pytest.raises(ConfigError) as caught:
        run(main())
    assert [problem.message for problem in caught.value.problems] == ["the endpoint has nothing to answer with"]
