"""The policies around a call, together: what each does, in which order they stand, and what the run is told."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import pytest

from orchestrator_core.blame import describe
from orchestrator_core.errors import (
    EntityNotFound,
    InvalidParam,
    OrchestratorError,
    Refused,
    SourceError,
    SourceUnavailable,
)
from orchestrator_core.models import Batcher, BatchOptions
from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.guard import make_guard, make_guard_at_once
from orchestrator_core.policies.notes import MOST_FAILED_ATTEMPTS, StepNote
from orchestrator_core.policies.options import BreakerOptions, ConcurrencyOptions, RetryOptions
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.state import SourceState
from tests.policies.lab import LABEL, Backend, Clock, Run, RunFixture, future, guard, guard_at_once, outcome, turns

RETRY = RetryOptions(attempts=3, backoff=Duration(0.001))
BREAKER = BreakerOptions(failures=3, window=Duration(10), reset=Duration(5))
DEFAULTS = Policies(retry=RETRY, circuit_breaker=BREAKER)


def transient(message: str = "down") -> SourceError:
    return SourceError(message, transient=True)


def paid_for(state: SourceState, calls: int = 100) -> SourceState:
    """Let the source have had calls enough for some retries."""
    state.budget().calls += calls
    return state


def failures_of(run: Run, index: int = 0) -> list[str]:
    """Return what was noted of the attempts that failed: their messages, the first first."""
    return [message for _, _, message in run.notes[index].failed or ()]


def test_without_policies_the_call_itself_is_bound() -> None:
    backend, state = Backend(1), SourceState(LABEL)
    off = Policies()
    kwargs: Any = {"label": LABEL, "operation": "get", "names": ("id",), "idempotent": True}
    assert make_guard(backend, off, state, **kwargs) is backend
    assert make_guard_at_once(backend, off, state, **kwargs) is backend
    only_retry = Policies(retry=RETRY)
    assert make_guard(backend, only_retry, state, **{**kwargs, "idempotent": False}) is backend
    assert make_guard(backend, Policies(retry=RetryOptions(attempts=1)), state, **kwargs) is backend
    assert state.describe() == {}


def test_a_call_that_succeeds_is_counted_and_notes_nothing(run: RunFixture) -> None:
    async def main() -> None:
        state, backend, requests = SourceState(LABEL), Backend({"a": 1}), Run()
        call = guard(backend, DEFAULTS, state)
        assert [await call(requests, 0, "x") for _ in range(3)] == [{"a": 1}] * 3
        assert requests.notes == {}
        assert backend.calls == [("x",)] * 3
        assert state.describe() == {
            "circuit_breaker": {
                "state": "closed",
                "failures": 0,
                "opened": 0,
                "refused": 0,
                "retry_after_seconds": 0.0,
            },
            "retry": {"calls": 3, "retries": 0, "refused_by_budget": 0},
        }

    run(main())


# --- trying again ----------------------------------------------------------------------------------------------------


def test_a_transient_failure_is_tried_again_up_to_the_attempts(run: RunFixture) -> None:
    async def main() -> None:
        for script, expected, attempts in [
            ([transient(), transient(), "ok"], "ok", 3),
            ([transient("one"), transient("two"), transient("three")], ("SourceError", "three"), 3),
            ([transient(), SourceError("for good")], ("SourceError", "for good"), 2),
            ([transient(), EntityNotFound("no 7")], ("EntityNotFound", "no 7"), 2),
        ]:
            backend, requests, state = Backend(*script), Run(), paid_for(SourceState(LABEL))
            call = guard(backend, Policies(retry=RETRY), state)
            assert await outcome(call(requests, 4, "x")) == expected
            assert (len(backend.calls), requests.notes) == (attempts, {4: StepNote(attempts=attempts)})
            failed = [str(error) for error in script if isinstance(error, Exception)]
            assert failures_of(requests, 4) == failed
            assert state.describe()["retry"] == {"calls": 101, "retries": attempts - 1, "refused_by_budget": 0}

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        SourceError("bad answer"),
        SourceUnavailable("no connection was free"),
        Refused("the model is loading"),
        EntityNotFound("no 7"),
        InvalidParam("id", "is no number"),
        KeyError("a defect"),
        TimeoutError("its own"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_not_transient_is_not_tried_again(run: RunFixture, error: Exception) -> None:
    async def main() -> None:
        backend, requests = Backend(error), Run()
        with pytest.raises(type(error)) as caught:
            await guard(backend, DEFAULTS, paid_for(SourceState(LABEL)))(requests, 0, "x")
        assert caught.value is error
        assert (len(backend.calls), requests.notes) == (1, {0: StepNote()})
        assert failures_of(requests) == [describe(error)]

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        SourceError("busy", transient=True, retry_after_seconds=0.05),
        SourceUnavailable("busy", transient=True, retry_after_seconds=0.05),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_source_that_says_when_to_come_again_is_not_called_before(run: RunFixture, error: OrchestratorError) -> None:
    async def main() -> None:
        for longest, left, attempts in [(0.05, 9, 2), (0.04, 9, 1), (0.05, 0.04, 1)]:
            at: list[float] = []

            async def call(*values: Any, at: list[float] = at) -> Any:
                at.append(perf_counter())
                if len(at) == 1:
                    raise error
                return "fine"

            retry = RetryOptions(backoff=Duration(0.001), max_backoff=Duration(longest))
            result = await outcome(guard(call, Policies(retry=retry))(Run(left=left), 0, "x"))
            assert (result, len(at)) == ("fine" if attempts == 2 else (type(error).__name__, "busy"), attempts)
            assert at[-1] - at[0] >= 0.049 or attempts == 1

    run(main())


def test_what_may_have_had_its_effect_is_tried_again_only_when_told_to(run: RunFixture) -> None:
    async def main() -> None:
        for retry, attempts in [(RETRY, 1), (RetryOptions(backoff=Duration(0.001), non_idempotent=True), 3)]:
            backend = Backend(transient())
            policies = Policies(retry=retry, circuit_breaker=BREAKER)
            call = guard(backend, policies, paid_for(SourceState(LABEL)), idempotent=False)
            assert await outcome(call(Run(), 0, "x")) == ("SourceError", "down")
            assert len(backend.calls) == attempts

    run(main())


@pytest.mark.parametrize("policies", [DEFAULTS, Policies(retry=RETRY)], ids=["with a breaker", "without"])
def test_each_attempt_that_failed_is_noted_with_its_time(run: RunFixture, policies: Policies) -> None:
    async def main() -> None:
        started, clock, backend = perf_counter(), Clock(), Backend(transient("one"), transient("two"), "ok")

        async def slow(*values: Any) -> Any:
            clock.now += 0.25
            return await backend(*values)

        requests, state = Run(), paid_for(SourceState(LABEL, clock=clock))
        assert await guard(slow, policies, state)(requests, 0, "x") == "ok"
        (first, second) = requests.notes[0].failed or ()
        assert (first[1:], second[2]) == ((0.25, "one"), "two")
        assert started - 0.25 < first[0] < first[0] + first[1] <= second[0] <= second[0] + second[1] <= perf_counter()

    run(main())


def test_an_attempt_that_is_cancelled_has_failed_too(run: RunFixture) -> None:
    async def main() -> None:
        for policies in (DEFAULTS, Policies(retry=RETRY), Policies(circuit_breaker=BREAKER)):
            requests, backend = Run(), Backend(future())
            call = asyncio.ensure_future(guard(backend, policies)(requests, 0, "x"))
            await turns()
            call.cancel()
            assert (await outcome(call))[0] == "CancelledError"
            assert failures_of(requests) == ["cancelled before it ended"]

    run(main())


def test_a_cancellation_of_the_source_s_own_is_a_failure_of_it(run: RunFixture) -> None:
    """A connection that its pool gives up, a task of its own that was cancelled: nobody has cancelled the request."""

    async def main() -> None:
        for policies, attempts in [(Policies(circuit_breaker=BREAKER), 1), (Policies(retry=RETRY), 3), (DEFAULTS, 3)]:
            state, requests = paid_for(SourceState(LABEL)), Run()
            ended = await outcome(guard(Backend(asyncio.CancelledError()), policies, state)(requests, 0, "x"))
            assert ended == ("SourceError", "the source broke its own call off")
            assert failures_of(requests) == ["the source broke its own call off"] * attempts

    run(main())


def test_a_source_that_calls_sys_exit_has_failed(run: RunFixture) -> None:
    """It would end the event loop, and with it the service."""

    async def main() -> None:
        state, requests = paid_for(SourceState(LABEL)), Run()
        ended = await outcome(guard(Backend(SystemExit(3)), DEFAULTS, state)(requests, 0, "x"))
        said = "the source is at fault: it calls sys.exit(3), which would end the service"
        assert ended == ("SourceError", said)
        assert failures_of(requests) == [said]

    run(main())


def test_a_source_that_panics_has_failed(run: RunFixture) -> None:
    """As a library that is written in Rust does: what it raises is no ``Exception``."""

    class Panic(BaseException):
        pass

    async def main() -> None:
        state, requests = paid_for(SourceState(LABEL)), Run()
        ended = await outcome(guard(Backend(Panic("out of bounds")), DEFAULTS, state)(requests, 0, "x"))
        assert ended == ("SourceError", "the source is at fault: Panic: out of bounds")
        assert failures_of(requests) == ["the source is at fault: Panic: out of bounds"]

    run(main())


def test_a_cancellation_of_the_source_s_own_opens_the_breaker_again(run: RunFixture) -> None:
    async def main() -> None:
        backend = Backend(SourceUnavailable("down"))
        call, state, _ = broken(backend)
        backend.script = [asyncio.CancelledError()]
        assert await outcome(call(Run(), 0, "x")) == ("SourceError", "the source broke its own call off")
        told = state.describe()["circuit_breaker"]
        assert (told["state"], told["opened"]) == ("open", 2)

    run(main())


def test_the_failures_of_many_items_are_noted_up_to_a_limit(run: RunFixture) -> None:
    async def main() -> None:
        requests, backend = Run(), Backend(*(SourceError(str(number)) for number in range(MOST_FAILED_ATTEMPTS + 7)))
        call = guard(backend, Policies(circuit_breaker=BREAKER), each=True)
        for _ in range(MOST_FAILED_ATTEMPTS + 7):
            await outcome(call(requests, 0, "x"))
        assert failures_of(requests) == [str(number) for number in range(MOST_FAILED_ATTEMPTS)]
        assert requests.notes == {0: StepNote(more_failed=7)}

    run(main())


def test_no_attempt_is_begun_that_the_deadline_leaves_no_time_for(run: RunFixture) -> None:
    async def main() -> None:
        slow = RetryOptions(attempts=3, backoff=Duration(30), max_backoff=Duration(30))
        backend, state = Backend(transient()), paid_for(SourceState(LABEL))
        call = guard(backend, Policies(retry=slow), state)
        assert await outcome(call(Run(left=0.0), 0, "x")) == ("SourceError", "down")
        timed = guard(backend, Policies(retry=slow, step_timeout=1e-9), state)
        assert (await outcome(timed(Run(), 0, "x")))[0] in ("SourceError", "TimeoutError")
        assert len(backend.calls) == 2
        assert state.describe()["retry"]["refused_by_budget"] == 0

    run(main())


def test_a_source_that_always_fails_bears_a_fifth_more_attempts(run: RunFixture) -> None:
    async def main() -> None:
        backend, state = Backend(transient()), SourceState(LABEL)
        call = guard(backend, Policies(retry=RETRY), state)
        for _ in range(100):
            assert await outcome(call(Run(), 0, "x")) == ("SourceError", "down")
        assert len(backend.calls) == 120
        told = state.describe()["retry"]
        assert (told["calls"], told["retries"]) == (100, 20)

    run(main())


def test_calls_that_an_open_breaker_refuses_earn_no_further_attempts(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend(transient())
        call = guard(
            backend, Policies(retry=RETRY, circuit_breaker=BreakerOptions(failures=1, reset=Duration(5))), state
        )
        for _ in range(101):
            await outcome(call(Run(), 0, "x"))
        assert state.describe()["retry"] == {"calls": 1, "retries": 0, "refused_by_budget": 0}
        clock.now += 5
        backend.script = ["well again"]
        assert await call(Run(), 0, "x") == "well again"
        assert (len(backend.calls), state.describe()["retry"]["calls"]) == (2, 2)

    run(main())


class InBatches:
    """A model behind a batcher, guarded row by row; ``fails`` is how many calls do, ``calls`` each one's rows."""

    def __init__(self, fails: int, retry: RetryOptions = RETRY) -> None:
        self.calls: list[int] = []
        self.state = SourceState(LABEL)
        self._fails = fails
        batcher = Batcher(self, BatchOptions(max_size=16), self.state.called)
        self._call = guard(batcher.predict_one, Policies(retry=retry), self.state, batched=True)

    async def predict(self, rows: Sequence[Any]) -> Sequence[Any]:
        self.calls.append(len(rows))
        if len(self.calls) <= self._fails:
            raise transient()
        return rows

    async def ask(self, *runs: Run) -> list[Any]:
        asked = (outcome(self._call(run, 0, {"x": row})) for row, run in enumerate(runs))
        return list(await asyncio.gather(*asked))


def test_the_rows_of_a_batch_that_fails_for_a_while_are_one_batch_again(run: RunFixture) -> None:
    async def main() -> None:
        model = InBatches(fails=1)
        assert await model.ask(*(Run() for _ in range(16))) == [{"x": row} for row in range(16)]
        assert model.calls == [16, 16]
        told = model.state.describe()["retry"]
        assert (told["calls"], told["retries"], told["refused_by_budget"]) == (1, 1, 0)

    run(main())


def test_a_row_without_time_for_the_pause_is_left_out_of_the_batch_s_further_attempt(run: RunFixture) -> None:
    async def main() -> None:
        model = InBatches(fails=1)
        assert await model.ask(Run(left=0.0), Run(), Run()) == [("SourceError", "down"), {"x": 1}, {"x": 2}]
        assert model.calls == [3, 2]

    run(main())


def test_a_model_that_always_fails_bears_a_fifth_more_calls_however_many_rows_they_have(run: RunFixture) -> None:
    async def main() -> None:
        model = InBatches(fails=1000, retry=RetryOptions(attempts=3, backoff=Duration(0.0001)))
        for _ in range(50):
            assert set(await model.ask(*(Run() for _ in range(16)))) == {("SourceError", "down")}
        assert model.calls == [16] * 60
        told = model.state.describe()["retry"]
        assert (told["calls"], told["retries"]) == (50, 10)

    run(main())


# --- the breaker -----------------------------------------------------------------------------------------------------


def test_an_open_breaker_refuses_until_a_probe_is_answered(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend(SourceUnavailable("down"))
        call = guard(backend, DEFAULTS, state)
        for _ in range(3):
            assert await outcome(call(Run(), 0, "x")) == ("SourceUnavailable", "down")
        clock.now += 2
        requests = Run()
        with pytest.raises(Refused) as refused:
            await call(requests, 0, "x")
        assert str(refused.value) == (
            "database.default has failed repeatedly and is left alone: its circuit breaker is open"
        )
        assert refused.value.retry_after_seconds == 3.0
        assert requests.notes == {0: StepNote(attempts=0, breaker="open")}
        assert len(backend.calls) == 3
        clock.now += 3
        answer = future()
        backend.script = [answer]
        probing = Run()
        probe = asyncio.create_task(call(probing, 0, "x"))
        await turns()
        assert state.describe()["circuit_breaker"]["state"] == "half_open"
        assert (await outcome(call(Run(), 0, "x")))[0] == "NotLetThrough"
        answer.set_result("well again")
        assert await probe == "well again"
        assert probing.notes == {0: StepNote(breaker="half_open")}
        assert state.describe()["circuit_breaker"] == {
            "state": "closed",
            "failures": 0,
            "opened": 1,
            "refused": 2,
            "retry_after_seconds": 0.0,
        }
        assert len(backend.calls) == 4

    run(main())


@pytest.mark.parametrize(
    ("end", "state_then", "retry_after"),
    [
        (transient(), "open", 5.0),
        (SourceUnavailable("no connection"), "open", 5.0),
        (EntityNotFound("no 7"), "closed", 0.0),
        (SourceError("bad answer"), "closed", 0.0),
        (InvalidParam("id", "is no number"), "open", 0.0),
        (Refused("the model is loading"), "open", 0.0),
        (KeyError("a defect"), "open", 0.0),
        ("cancelled", "open", 5.0),
        ("deadline", "open", 5.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_how_a_probe_ends(run: RunFixture, end: Any, state_then: str, retry_after: float) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend(SourceUnavailable("down"))
        call = guard(backend, Policies(retry=RETRY, circuit_breaker=BreakerOptions(failures=1)), state)
        await outcome(call(Run(), 0, "x"))
        clock.now += 5
        opened = 1 + (end == "deadline" or isinstance(end, SourceUnavailable) or getattr(end, "transient", False))
        opened -= isinstance(end, Refused)
        if isinstance(end, str):
            backend.script = [future()]
            requests = Run()
            probe = asyncio.create_task(call(requests, 0, "x"))
            await turns()
            requests.passed = end == "deadline"
            probe.cancel()
            assert (await outcome(probe))[0] == "CancelledError"
        else:
            backend.script = [end]
            with pytest.raises(type(end)):
                await call(Run(), 0, "x")
        told = state.describe()["circuit_breaker"]
        assert (told["state"], told["opened"], told["retry_after_seconds"]) == (state_then, opened, retry_after)
        assert (len(backend.calls), backend.running) == (2, 0)  # a probe is one attempt

    run(main())


def broken(backend: Backend, *, each: bool = False, **policies: Any) -> tuple[Callable[..., Any], SourceState, Clock]:
    """Return a call whose breaker lets a probe through now."""
    clock = Clock()
    state = SourceState(LABEL, clock=clock)
    options = BreakerOptions(failures=1, reset=Duration(5))
    call = guard(backend, Policies(circuit_breaker=options, **policies), state, each=each)
    breaker = state.breaker(options)
    breaker.failed(breaker.era)
    clock.now += 5
    return call, state, clock


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("fine", ["fine"] * 4),
        (EntityNotFound("no 7"), [("EntityNotFound", "no 7"), "fine", "fine", "fine"]),
        (SourceError("down", transient=True), [("SourceError", "down"), *["NotLetThrough"] * 3]),
        (KeyError("a defect"), [("KeyError", "'a defect'"), "fine", "fine", "fine"]),
    ],
    ids=["answered", "not there", "failed", "never got there"],
)
def test_the_calls_of_one_execution_wait_for_its_probe(run: RunFixture, end: Any, expected: list[Any]) -> None:
    async def main() -> None:
        answer = future()
        backend = Backend(answer, "fine")
        call, state, _ = broken(backend, each=True)
        requests = Run(id="1")
        calls = [asyncio.create_task(outcome(call(requests, 0, item))) for item in range(4)]
        await turns()
        assert (len(backend.calls), state.describe()["circuit_breaker"]["state"]) == (1, "half_open")
        assert (await outcome(call(Run(id="2"), 0, "x")))[0] == "NotLetThrough"
        assert (await outcome(call(Run(), 0, "x")))[0] == "NotLetThrough"
        if isinstance(end, Exception):
            answer.set_exception(end)
        else:
            answer.set_result(end)
        results = await asyncio.gather(*calls)
        named = [result[0] if result[0] == "NotLetThrough" else result for result in results]
        refused = named.count("NotLetThrough")
        assert (named, len(backend.calls)) == (expected, 4 - refused)
        assert state.describe()["circuit_breaker"]["refused"] == 2 + refused

    run(main())


def test_the_calls_of_its_execution_wait_in_the_queue_while_it_probes(run: RunFixture) -> None:
    async def main() -> None:
        answer = future()
        backend = Backend(answer, "fine")
        call, _, _ = broken(backend, each=True, concurrency=ConcurrencyOptions(max=1, queue=9))
        requests = Run(id="1")
        calls = [asyncio.create_task(call(requests, 0, item)) for item in range(3)]
        await turns()
        assert (await outcome(call(Run(id="2"), 0, "x")))[0] == "NotLetThrough"
        answer.set_result("fine")
        assert await asyncio.gather(*calls) == ["fine"] * 3

    run(main())


def test_who_is_cancelled_while_it_waits_for_the_probe_has_called_nothing(run: RunFixture) -> None:
    async def main() -> None:
        backend = Backend(future(), "fine")
        call, state, _ = broken(backend)
        requests = Run(id="1")
        probe, other = [asyncio.create_task(call(requests, index, "x")) for index in range(2)]
        await turns()
        for task in (other, probe):
            requests.passed = task is probe
            task.cancel()
            assert (await outcome(task))[0] == "CancelledError"
        assert (requests.note(0).attempts, requests.note(1).attempts) == (1, 0)
        assert requests.note(1).waited_seconds > 0
        assert (len(backend.calls), state.describe()["circuit_breaker"]["opened"]) == (1, 2)

    run(main())


def test_a_probe_is_answered_though_its_request_has_failed_meanwhile(run: RunFixture) -> None:
    async def main() -> None:
        answer = future()
        backend = Backend(answer)
        call, state, _ = broken(backend)
        probe = asyncio.create_task(call(Run(), 0, "x"))
        await turns()
        probe.cancel()
        await turns()
        assert (probe.done(), backend.running) == (False, 1)
        answer.set_result("well again")
        assert (await outcome(probe))[0] == "CancelledError"
        assert (state.describe()["circuit_breaker"]["state"], backend.running) == ("closed", 0)

    run(main())


@pytest.mark.parametrize("how", ["cancelled again", "no time left"])
def test_a_probe_whose_request_has_failed_ends_with_its_time(run: RunFixture, how: str) -> None:
    async def main() -> None:
        backend = Backend(future())
        call, state, _ = broken(backend)
        probe = asyncio.create_task(call(Run(left=0.01 if how == "no time left" else 9), 0, "x"))
        await turns()
        probe.cancel()
        if how == "cancelled again":
            await turns()
            probe.cancel()
        assert (await outcome(probe))[0] == "CancelledError"
        assert (state.describe()["circuit_breaker"]["state"], backend.running) == ("open", 0)

    run(main())


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (transient(), True),
        (SourceError("half an answer", transient=True, answered=True), False),
        (SourceError("bad answer"), False),
        (SourceUnavailable("no connection"), True),
        (SourceUnavailable("all connections are in use", busy=True), False),
        (SourceUnavailable("answered 503 and asks to wait", transient=True, busy=True), True),
        (TimeoutError(), True),
        (EntityNotFound("no 7"), False),
        (InvalidParam("id", "is no number"), False),
        (Refused("the model is loading"), False),
        (KeyError("a defect"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_failures_open_the_breaker(run: RunFixture, error: Exception, opens: bool) -> None:
    async def main() -> None:
        state = SourceState(LABEL)
        call = guard(Backend(error), DEFAULTS, state)
        for _ in range(10):
            await outcome(call(Run(), 0, "x"))
        assert (state.describe()["circuit_breaker"]["state"] == "open") is opens

    run(main())


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_that_waited_in_vain_while_others_were_served_is_no_failure(run: RunFixture, begun: bool) -> None:
    """More calls than connections is no reason to leave a source alone that answers all it is asked."""

    async def waits(*values: Any) -> None:
        try:
            await future()
        except asyncio.CancelledError as error:
            vars(error)["begun"] = begun
            raise

    async def main() -> None:
        told = "did not answer" if begun else "had no connection free"
        for timeout in (0.001, None):
            state = SourceState(LABEL)
            call = guard(waits, Policies(timeout=timeout, circuit_breaker=BREAKER), state)
            for number in range(4):
                request = Run(id=str(number))
                task = asyncio.create_task(outcome(call(request, 0, "x")))
                if timeout is None:
                    await turns()
                    request.passed = True
                    task.cancel()
                    assert (await task)[0] in ("CancelledError", "NotLetThrough")
                elif number < 3:
                    assert await task == ("SourceTimeout", f"{LABEL} {told} within 0.001 s")
                else:
                    assert (await task)[0] == ("NotLetThrough" if begun else "SourceTimeout")
            assert state.describe()["circuit_breaker"]["state"] == ("open" if begun else "closed")

    run(main())


def test_a_probe_that_waited_in_vain_leaves_its_place_to_the_next(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        busy = SourceError("no connection was free", transient=True, busy=True)
        state, backend = SourceState(LABEL, clock=clock), Backend(transient(), busy, "well again")
        call = guard(backend, Policies(circuit_breaker=BreakerOptions(failures=1, reset=Duration(5))), state)
        assert await outcome(call(Run(), 0, "x")) == ("SourceError", "down")
        clock.now += 5
        assert await outcome(call(Run(), 0, "x")) == ("SourceError", "no connection was free")
        assert state.describe()["circuit_breaker"]["state"] == "open"
        assert await call(Run(), 0, "x") == "well again"

    run(main())


def test_the_calls_that_one_requests_deadline_cuts_off_are_one_failure(run: RunFixture) -> None:
    """A list that is too long for its time says little of the source, and must not take it from all others."""

    async def main() -> None:
        state = SourceState(LABEL)
        call = guard(Backend(*(future() for _ in range(24))), DEFAULTS, state, each=True)
        for number in range(3):
            request = Run(id=f"execution {number}")
            items = [asyncio.create_task(call(request, 0, item)) for item in range(8)]
            await turns()
            request.passed = True
            for item in items:
                item.cancel()
            await asyncio.gather(*items, return_exceptions=True)
            told = state.describe()["circuit_breaker"]
            assert (told["failures"], told["state"]) == (number + 1, "open" if number == 2 else "closed")

    run(main())


def test_clients_that_go_away_do_not_open_it_and_deadlines_that_pass_do(run: RunFixture) -> None:
    async def main() -> None:
        for passed in (False, True):
            state = SourceState(LABEL)
            call = guard(Backend(*(future() for _ in range(3))), DEFAULTS, state)
            requests = [Run() for _ in range(3)]
            tasks = [asyncio.create_task(call(request, 0, "x")) for request in requests]
            await turns()
            for request, task in zip(requests, tasks, strict=True):
                request.passed = passed
                task.cancel()
                assert (await outcome(task))[0] == "CancelledError"
            assert (state.describe()["circuit_breaker"]["state"] == "open") is passed

    run(main())


def test_the_failure_that_opens_the_breaker_is_the_last_attempt(run: RunFixture) -> None:
    async def main() -> None:
        state, backend = paid_for(SourceState(LABEL)), Backend(transient())
        policies = Policies(retry=RetryOptions(attempts=9, backoff=Duration(0.001)), circuit_breaker=BREAKER)
        assert await outcome(guard(backend, policies, state)(Run(), 0, "x")) == ("SourceError", "down")
        assert len(backend.calls) == 3
        told = state.describe()
        assert (told["circuit_breaker"]["state"], told["retry"]["retries"]) == ("open", 2)

    run(main())


def test_a_breaker_that_opens_during_a_pause_ends_the_attempts(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        monkeypatch.setattr("orchestrator_core.policies.attempts.pause_seconds", lambda *given: 0.01)
        state, backend = paid_for(SourceState(LABEL)), Backend(transient())
        task = asyncio.create_task(guard(backend, DEFAULTS, state)(Run(), 0, "x"))
        await turns()
        breaker = state.breaker(BREAKER)
        for _ in range(2):
            breaker.failed(breaker.era)
        assert await outcome(task) == ("SourceError", "down")
        assert len(backend.calls) == 1

    run(main())


# --- time ------------------------------------------------------------------------------------------------------------


def test_an_attempt_that_takes_too_long_is_a_transient_failure(run: RunFixture) -> None:
    async def main() -> None:
        hanging, requests = future(), Run()
        backend = Backend(hanging, "ok")
        state = paid_for(SourceState(LABEL))
        call = guard(backend, Policies(timeout=0.01, retry=RETRY, circuit_breaker=BREAKER), state)
        assert await call(requests, 0, "x") == "ok"
        assert (requests.notes, backend.running) == ({0: StepNote(attempts=2)}, 0)
        assert state.describe()["circuit_breaker"]["failures"] == 1
        alone = guard(Backend(future()), Policies(timeout=0.01))
        assert await outcome(alone(Run(), 0, "x")) == (
            "SourceTimeout",
            "database.default did not answer within 0.01 s",
        )
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(main())


def test_a_step_that_takes_too_long_has_timed_out_and_so_has_its_call(run: RunFixture) -> None:
    async def main() -> None:
        state, backend = SourceState(LABEL), Backend(future())
        policies = Policies(step_timeout=0.01, timeout=60, retry=RETRY, circuit_breaker=BreakerOptions(failures=1))
        assert (await outcome(guard(backend, policies, state)(Run(), 0, "x")))[0] == "TimeoutError"
        assert (len(backend.calls), backend.running) == (1, 0)
        assert state.describe()["circuit_breaker"]["state"] == "open"

    run(main())


def test_calls_within_one_limit_run_out_in_the_order_in_which_they_began(run: RunFixture) -> None:
    async def main() -> None:
        answers = [future() for _ in range(6)]
        call = guard(Backend(*answers), Policies(timeout=0.05))
        ended: list[tuple[int, str]] = []

        async def one(number: int) -> None:
            end = await outcome(call(Run(), 0, number))
            ended.append((number, end[0]))

        tasks = []
        for number in range(6):
            tasks.append(asyncio.create_task(one(number)))
            await turns(2)
        answers[0].set_result(("in time",))
        answers[3].set_result(("in time",))
        await asyncio.gather(*tasks)
        assert ended == [
            (0, "in time"),
            (3, "in time"),
            *((number, "SourceTimeout") for number in (1, 2, 4, 5)),
        ]
        assert await outcome(call(Run(), 0, "one more")) == ("CancelledError", "")  # the last future was cancelled

    run(main())


def test_who_is_cancelled_while_the_time_runs_is_cancelled(run: RunFixture) -> None:
    async def main() -> None:
        for policies in (Policies(timeout=60.0), Policies(step_timeout=60.0)):
            task = asyncio.create_task(guard(Backend(future()), policies)(Run(), 0, "x"))
            await turns()
            task.cancel()
            assert (await outcome(task))[0] == "CancelledError"

    run(main())


# --- the queue -------------------------------------------------------------------------------------------------------


def test_calls_beyond_the_places_wait_and_those_beyond_the_queue_are_refused(run: RunFixture) -> None:
    async def main() -> None:
        state, answers = SourceState(LABEL), [future() for _ in range(3)]
        backend = Backend(*answers)
        policies = Policies(retry=RETRY, circuit_breaker=BREAKER, concurrency=ConcurrencyOptions(max=1, queue=1))
        call = guard(backend, policies, state)
        requests = [Run() for _ in range(3)]
        tasks = [asyncio.create_task(call(request, 0, number)) for number, request in enumerate(requests)]
        await turns()
        assert backend.calls == [(0,)]
        assert state.describe()["concurrency"] == {"max": 1, "running": 1, "waiting": 1, "refused": 1}
        with pytest.raises(Refused) as refused:
            await tasks[2]
        assert str(refused.value) == "database.default has 1 calls under way and 1 waiting, and takes no more"
        assert refused.value.retry_after_seconds == 1.0
        answers[0].set_result("first")
        await turns()
        answers[1].set_result("second")
        assert [await task for task in tasks[:2]] == ["first", "second"]
        assert requests[0].notes == {}
        assert requests[1].notes[0].waited_seconds > 0
        assert (requests[1].notes[0].attempts, requests[2].notes[0].attempts) == (1, 0)
        assert state.describe()["concurrency"] == {"max": 1, "running": 0, "waiting": 0, "refused": 1}
        assert state.describe()["circuit_breaker"]["failures"] == 0

    run(main())


def test_a_call_whose_turn_comes_too_late_is_refused_and_the_next_is_made(run: RunFixture) -> None:
    async def main() -> None:
        state, first = SourceState(LABEL), future()
        backend = Backend(first, "fine")
        options = ConcurrencyOptions(max=1, queue=9)
        call = guard(backend, Policies(concurrency=options), state)
        running = asyncio.create_task(call(Run(), 0, "a"))
        await turns()
        state.limiter(options).took(1.0)
        late, soon = Run(left=0.5), Run(left=9)
        others = [asyncio.create_task(call(requests, 0, "b")) for requests in (late, soon)]
        await turns()
        first.set_result("fine")
        assert (await running, await others[1], soon.note(0).attempts) == ("fine", "fine", 1)
        assert await outcome(others[0]) == (
            "TooLittleTime",
            "database.default had a place for the call when there was too little time left for one",
        )
        assert (late.note(0).attempts, len(backend.calls)) == (0, 2)
        assert state.describe()["concurrency"] == {"max": 1, "running": 0, "waiting": 0, "refused": 1}

    run(main())


def test_nobody_waits_for_a_source_that_is_left_alone(run: RunFixture) -> None:
    async def main() -> None:
        state, hanging = SourceState(LABEL), future()
        backend = Backend(hanging, SourceUnavailable("down"))
        policies = Policies(circuit_breaker=BreakerOptions(failures=1), concurrency=ConcurrencyOptions(max=2, queue=9))
        call = guard(backend, policies, state)
        straggler = asyncio.create_task(call(Run(), 0, 0))
        await turns()
        assert await outcome(call(Run(), 0, 1)) == ("SourceUnavailable", "down")
        state.limiter(ConcurrencyOptions(max=2, queue=9)).running += 1
        assert (await outcome(call(Run(), 0, 2)))[0] == "NotLetThrough"
        assert state.describe()["concurrency"]["waiting"] == 0
        hanging.set_result("late")
        assert await straggler == "late"
        assert state.describe()["circuit_breaker"]["state"] == "open"

    run(main())


def test_the_time_in_the_queue_is_the_steps_and_no_failure_of_the_source(run: RunFixture) -> None:
    async def main() -> None:
        state, hanging = SourceState(LABEL), future()
        backend = Backend(hanging)
        policies = Policies(circuit_breaker=BreakerOptions(failures=1), concurrency=ConcurrencyOptions(max=1))
        holder = asyncio.create_task(guard(backend, policies, state)(Run(), 0, "x"))
        await turns()
        requests = Run()
        timed = guard(
            backend,
            Policies(step_timeout=0.01, circuit_breaker=policies.circuit_breaker, concurrency=policies.concurrency),
            state,
        )
        assert (await outcome(timed(requests, 0, "x")))[0] == "TimeoutError"
        assert requests.notes[0].attempts == 0
        assert requests.notes[0].waited_seconds > 0
        assert len(backend.calls) == 1
        assert state.describe()["circuit_breaker"]["state"] == "closed"
        hanging.set_result(1)
        assert await holder == 1

    run(main())


# --- one call for all items ------------------------------------------------------------------------------------------


def test_a_call_for_all_items_has_failed_when_all_items_have(run: RunFixture) -> None:
    async def main() -> None:
        down, missing, refused = transient("down"), EntityNotFound("no 2"), SourceUnavailable("no connection")
        for answers, failures, attempts in [
            ([1, missing], 0, 1),
            ([missing, missing], 0, 1),
            ([down, 2], 0, 1),
            ([down, missing], 0, 1),
            ([down, down], 1, 2),
            ([refused, refused], 1, 1),
            ([down, refused], 1, 1),
            ([down, SourceError("for good")], 0, 1),
            ([], 0, 1),
        ]:
            state, backend, requests = paid_for(SourceState(LABEL)), Backend(answers, answers), Run()
            policies = Policies(retry=RetryOptions(attempts=2, backoff=Duration(0.001)), circuit_breaker=BREAKER)
            call = guard_at_once(backend, policies, state)
            assert await call(requests, 0, [("1",), ("2",)]) == answers
            assert len(backend.calls) == attempts
            assert (state.describe()["circuit_breaker"]["failures"] > 0) is bool(failures)
            told = [f"all items failed: {answers[0]}"] * attempts if failures else []
            assert not told or failures_of(requests) == told

    run(main())


def test_what_fails_all_items_is_raised(run: RunFixture) -> None:
    async def main() -> None:
        call = guard_at_once(Backend(SourceUnavailable("down")), DEFAULTS)
        assert await outcome(call(Run(), 0, [("1",)])) == ("SourceUnavailable", "down")

    run(main())


# --- what is captured ------------------------------------------------------------------------------------------------


def test_each_call_is_captured_once_with_what_the_step_got(run: RunFixture) -> None:
    async def main() -> None:
        seen: list[Any] = []

        def capture(run: Run, index: int, values: Any) -> Callable[[Any, BaseException | None], None]:
            return lambda result, error: seen.append((index, tuple(values), result, error))

        gone, down = EntityNotFound("no 7"), SourceUnavailable("down")
        alone = guard(Backend("a", gone), Policies(capture=capture))
        await alone(Run(), 3, "x")
        await outcome(alone(Run(), 3, "y"))
        both = Policies(retry=RETRY, capture=capture)
        await guard(Backend(transient(), "b"), both, paid_for(SourceState(LABEL)))(Run(), 1, "x")
        await guard_at_once(Backend(["c", gone]), both)(Run(), 2, [("x",), ("y",)])
        await outcome(guard_at_once(Backend(down), both)(Run(), 2, [("x",), ("y",)]))
        assert seen == [
            (3, ("x",), "a", None),
            (3, ("y",), None, gone),
            (1, ("x",), "b", None),
            (2, ("x",), "c", None),
            (2, ("y",), None, gone),
            (2, ("x",), None, down),
            (2, ("y",), None, down),
        ]

    run(main())


# --- what is left behind ---------------------------------------------------------------------------------------------


def test_a_failure_keeps_nothing_alive(run: RunFixture) -> None:
    class Kept:
        pass

    async def main() -> None:
        found: list[weakref.ref[Kept]] = []

        async def failing(value: Kept) -> None:
            raise transient()

        call = guard(failing, DEFAULTS)

        async def once() -> None:
            value = Kept()
            found.append(weakref.ref(value))
            with pytest.raises(OrchestratorError):
                await call(Run(), 0, value)

        gc.disable()
        try:
            for _ in range(5):
                await once()
            assert [ref() for ref in found] == [None] * 5
        finally:
            gc.enable()

    run(main())


def test_steps_with_the_same_options_share_a_breaker_and_others_do_not() -> None:
    state = SourceState(LABEL)
    calls = [guard(Backend(1), DEFAULTS, state) for _ in range(2)]
    own = guard(Backend(1), Policies(circuit_breaker=BreakerOptions(failures=7)), state)
    assert state.breaker(BREAKER) is state.breaker(BreakerOptions(3, Duration(10), Duration(5)))
    state.breaker(BREAKER).failed(1)
    state.breaker(BreakerOptions(failures=7)).failed(1)
    assert state.describe()["circuit_breaker"]["failures"] == 2
    del own
    gc.collect()
    assert state.describe()["circuit_breaker"]["failures"] == 1
    del calls
    gc.collect()
    assert set(state.describe()) == {"retry"}


def test_a_pause_between_attempts_is_ended_with_the_request(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("orchestrator_core.policies.attempts.pause_seconds", lambda *given: 60.0)
        backend = Backend(transient())
        task = asyncio.create_task(guard(backend, DEFAULTS)(Run(), 0, "x"))
        await turns()
        task.cancel()
        assert (await outcome(task))[0] == "CancelledError"
        assert len(backend.calls) == 1

    run(main())
