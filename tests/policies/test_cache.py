"""Results that are kept: which, for how long, and what is given when their time is up."""

from __future__ import annotations

import asyncio
from typing import Any

import attrs
import pytest

from orchestrator_core.errors import EntityNotFound, Refused, SourceError, SourceUnavailable
from orchestrator_core.plugin_api import Degraded, Duration
from orchestrator_core.policies.notes import StepNote
from orchestrator_core.policies.options import BreakerOptions, CacheOptions, ConcurrencyOptions
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.state import SourceState
from tests.policies.lab import LABEL, Backend, Clock, Run, RunFixture, future, guard, guard_at_once, outcome, turns

TTL = Duration(10)


def caching(**options: Any) -> Policies:
    return Policies(cache=CacheOptions(ttl=TTL, **options))


def counts(state: SourceState) -> dict[str, int]:
    """Return those of the counts that are not 0."""
    return {name: count for name, count in state.describe()["cache"].items() if count}


def test_a_result_is_kept_for_its_time_and_no_longer(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("one", "two")
        call, requests = guard(backend, caching(), state), Run()
        assert await call(requests, 0, "x") == "one"
        assert requests.notes == {}
        clock.now += 9.9
        assert await call(requests, 0, "x") == "one"
        assert requests.notes == {0: StepNote(attempts=0, cached="hit", cached_calls=1)}
        clock.now += 0.1
        assert await call(Run(), 0, "x") == "two"
        assert counts(state) == {"entries": 1, "hits": 1, "misses": 2}
        assert backend.calls == [("x",), ("x",)]

    run(main())


def test_results_are_told_apart_by_all_parameters_or_by_those_that_are_named(run: RunFixture) -> None:
    async def main() -> None:
        for key, expected in [(None, 4), ("b", 2), (("b", "a"), 4), (("a",), 2)]:
            backend = Backend("x")
            call = guard(backend, caching(key=key), names=("a", "b"))
            for values in [(1, 1), (1, 2), (2, 1), (2, 2), (1, 1)]:
                await call(Run(), 0, *values)
            assert len(backend.calls) == expected, key
        backend = Backend("x")
        computed = Policies(cache=CacheOptions(ttl=TTL, key="$request.tenant"), cache_key=lambda values: values[0] % 2)
        call = guard(backend, computed)
        for value in range(6):
            await call(Run(), 0, value)
        assert backend.calls == [(0,), (1,)]

    run(main())


def test_results_that_are_large_are_fewer(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand of a megabyte would end the process."""
    monkeypatch.setattr("orchestrator_core.policies.cache.LEAST_BYTES", 2**20)
    texts = [f"{number}".ljust(128 * 2**10) for number in range(12)]

    async def main() -> None:
        backend, state = Backend(*texts, texts[0], "x" * 2**21, "small"), SourceState(LABEL)
        call = guard(backend, caching(max_entries=50), state)
        for value in [*range(12), 11, 5, 0]:
            await call(Run(), 0, value)
        assert counts(state) == {"entries": 7, "hits": 2, "misses": 13}
        for value in [100, 100, 101]:  # one that is larger than that is kept alone
            await call(Run(), 0, value)
        assert counts(state) == {"entries": 1, "hits": 3, "misses": 15}
        (cache,) = state._caches.values()
        assert cache.bytes < 100

    run(main())


def test_a_cache_for_more_results_takes_more_memory(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_core.policies.cache.LEAST_BYTES", 0)

    async def main() -> None:
        for most, kept in ((10, 1), (20, 2), (100, 3)):
            backend, state = Backend("x" * 2**17), SourceState(LABEL)
            call = guard(backend, caching(max_entries=most), state)
            for value in range(3):
                await call(Run(), 0, value)
            assert counts(state) == {"entries": kept, "misses": 3}

    run(main())


def test_parameters_that_cannot_be_told_apart_are_not_kept(run: RunFixture) -> None:
    async def main() -> None:
        backend, state = Backend("x"), SourceState(LABEL)
        call = guard(backend, caching(), state)
        for _ in range(2):
            assert await call(Run(), 0, [float("nan")]) == "x"
        assert len(backend.calls) == 2
        assert counts(state) == {}

    run(main())


def test_steps_that_call_the_same_share_results_and_others_do_not(run: RunFixture) -> None:
    async def main() -> None:
        backend, state = Backend("x"), SourceState(LABEL)
        calls = [guard(backend, caching(), state), guard(backend, caching(), state)]
        other = guard(backend, caching(max_entries=7), state)
        for call in [*calls, other]:
            await call(Run(), 0, 1)
        assert len(backend.calls) == 2

    run(main())


def test_the_results_that_were_used_longest_ago_go_first(run: RunFixture) -> None:
    async def main() -> None:
        backend, state = Backend("x"), SourceState(LABEL)
        call = guard(backend, caching(max_entries=2), state)
        for value in [1, 2, 1, 3, 1, 2]:
            await call(Run(), 0, value)
        assert backend.calls == [(1,), (2,), (3,), (2,)]
        assert counts(state) == {"entries": 2, "hits": 2, "misses": 4}

    run(main())


@pytest.mark.parametrize(
    "end", [Degraded("lesser"), SourceError("down"), EntityNotFound("no 7")], ids=lambda end: type(end).__name__
)
def test_what_is_lesser_or_failed_is_not_kept(run: RunFixture, end: Any) -> None:
    async def main() -> None:
        backend, state = Backend(end), SourceState(LABEL)
        call = guard(backend, caching(), state)
        for _ in range(2):
            got = await outcome(call(Run(), 0, "x"))
            assert got == (end if isinstance(end, Degraded) else (type(end).__name__, str(end)))
        assert len(backend.calls) == 2
        assert counts(state) == {"misses": 2}

    run(main())


def test_concurrent_calls_are_one(run: RunFixture) -> None:
    async def main() -> None:
        answer, state = future(), SourceState(LABEL)
        backend, requests = Backend(answer), [Run() for _ in range(3)]
        call = guard(backend, caching(), state)
        tasks = [asyncio.create_task(call(request, 0, "x")) for request in requests]
        await turns()
        answer.set_result("one")
        assert [await task for task in tasks] == ["one"] * 3
        assert [request.notes for request in requests] == [
            {},
            *[{0: StepNote(attempts=0, cached="shared", cached_calls=1)}] * 2,
        ]
        assert counts(state) == {"entries": 1, "misses": 1, "shared": 2}

    run(main())


def test_a_failure_of_a_call_that_is_shared_is_one_attempt(run: RunFixture) -> None:
    async def main() -> None:
        answer, runs = future(), [Run() for _ in range(4)]
        backend = Backend(answer)
        call = guard(backend, caching())
        asked = [asyncio.create_task(call(each, 0, "x")) for each in runs]
        await turns()
        asked[3].cancel()
        answer.set_exception(SourceUnavailable("down"))
        assert [await outcome(one) for one in asked[:3]] == [("SourceUnavailable", "down")] * 3
        assert [each.note(0).attempts for each in runs] == [1, 0, 0, 0]
        assert len(backend.calls) == 1

    run(main())


def test_who_waits_for_the_call_of_a_request_that_goes_away_makes_it(run: RunFixture) -> None:
    async def main() -> None:
        first, second = future(), future()
        backend, state = Backend(first, second), SourceState(LABEL)
        call = guard(backend, caching(), state)
        tasks = [asyncio.create_task(call(Run(), 0, "x")) for _ in range(3)]
        await turns()
        tasks[0].cancel()
        await turns()
        second.set_result("two")
        assert [await outcome(task) for task in tasks] == [("CancelledError", ""), "two", "two"]
        assert (len(backend.calls), backend.running) == (2, 0)

    run(main())


@pytest.mark.parametrize("at_once", [False, True])
def test_who_has_too_little_time_for_a_call_leaves_it_to_those_who_wait_for_it(run: RunFixture, at_once: bool) -> None:
    async def main() -> None:
        options = ConcurrencyOptions(max=1, queue=9)
        policies = attrs.evolve(caching(), concurrency=options)
        first, state = future(), SourceState(LABEL)
        backend = Backend(first, ["fine"])
        call = guard_at_once(backend, policies, state) if at_once else guard(backend, policies, state)
        running = asyncio.create_task(call(Run(), 0, [("a",)] if at_once else "a"))
        await turns()
        state.limiter(options).took(1.0)
        late, soon, later = Run(left=0.5), Run(left=9), Run(left=9)
        asked = [asyncio.create_task(call(each, 0, [("b",)] if at_once else "b")) for each in (late, soon, later)]
        await turns()
        first.set_result(["fine"])
        await running
        assert (await outcome(asked[0]))[0] == "TooLittleTime"
        assert [await one for one in asked[1:]] == [["fine"], ["fine"]]
        assert [each.note(0).attempts for each in (late, soon, later)] == [0, 0, 1]
        assert len(backend.calls) == 2

    run(main())


def test_a_stale_result_is_given_while_one_call_fetches_another(run: RunFixture) -> None:
    async def main() -> None:
        clock, answer = Clock(), future()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", answer, "newest")
        call, requests = guard(backend, caching(stale_while_revalidate=Duration(5)), state), Run()
        await call(Run(), 0, "x")
        clock.now += 12
        assert [await call(requests, 0, "x") for _ in range(3)] == ["old"] * 3
        assert requests.notes == {0: StepNote(attempts=0, cached="stale", cached_calls=3)}
        await turns()
        assert [await call(requests, 0, "x"), len(backend.calls)] == ["old", 2]
        answer.set_result("new")
        await turns()
        assert await call(Run(), 0, "x") == "new"
        clock.now += 15
        assert await call(Run(), 0, "x") == "newest"
        assert counts(state) == {"entries": 1, "hits": 1, "misses": 3, "stale": 4}
        await state.close()

    run(main())


def test_a_refresh_that_fails_is_counted_and_the_old_result_stays(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", SourceError("down"))
        call = guard(backend, caching(stale_while_revalidate=Duration(5)), state)
        await call(Run(), 0, "x")
        clock.now += 12
        for _ in range(2):
            assert await call(Run(), 0, "x") == "old"
            await turns()
        assert counts(state) == {"entries": 1, "misses": 3, "stale": 2, "errors": 2}

    run(main())


def test_a_refresh_that_hangs_has_the_time_of_a_request_and_is_a_failure_of_the_source(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", future(), "new")
        cache = CacheOptions(ttl=TTL, stale_while_revalidate=Duration(60))
        call = guard(backend, Policies(circuit_breaker=BreakerOptions(failures=2), cache=cache), state)
        await call(Run(), 0, "x")
        clock.now += 11
        assert await call(Run(left=0.05), 0, "x") == "old"
        await asyncio.wait(state._tasks)
        assert (counts(state)["errors"], state.describe()["circuit_breaker"]["failures"]) == (1, 1)
        assert await call(Run(left=9), 0, "x") == "old"
        await asyncio.wait(state._tasks)
        assert await call(Run(), 0, "x") == "new"

    run(main())


def test_closing_ends_what_is_being_fetched(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", future())
        call = guard(backend, caching(stale_while_revalidate=Duration(5)), state)
        await call(Run(), 0, "x")
        clock.now += 12
        await call(Run(), 0, "x")
        await turns()
        assert backend.running == 1
        await state.close()
        assert backend.running == 0
        assert await call(Run(), 0, "x") == "old"
        assert len(backend.calls) == 2

    run(main())


@pytest.mark.parametrize(
    ("error", "given"),
    [
        (SourceError("down"), "old"),
        (SourceUnavailable("no connection"), "old"),
        (Refused("the model is loading"), "old"),
        (EntityNotFound("no 7"), ("EntityNotFound", "no 7")),
        (KeyError("defect"), ("KeyError", "'defect'")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_stale_result_is_given_when_the_source_fails(run: RunFixture, error: Exception, given: Any) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", error)
        call, requests = guard(backend, caching(stale_if_error=Duration(60)), state), Run()
        await call(Run(), 0, "x")
        clock.now += 69
        assert await outcome(call(requests, 0, "x")) == given
        if given == "old":
            assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=1)}
        clock.now += 1
        assert await outcome(call(Run(), 0, "x")) == (type(error).__name__, str(error))

    run(main())


def test_a_stale_result_is_given_when_the_step_takes_too_long_or_the_breaker_is_open(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", future())
        policies = Policies(
            step_timeout=0.01,
            circuit_breaker=BreakerOptions(failures=1),
            cache=CacheOptions(ttl=TTL, stale_if_error=Duration(60)),
        )
        call = guard(backend, policies, state)
        await call(Run(), 0, "x")
        clock.now += 11
        assert await call(Run(), 0, "x") == "old"
        requests = Run()
        assert await call(requests, 0, "x") == "old"
        assert requests.notes == {0: StepNote(attempts=0, cached="stale", cached_calls=1, breaker="open")}
        assert (len(backend.calls), backend.running) == (2, 0)

    run(main())


async def deadline_passes(requests: Run, task: asyncio.Task[Any], after: float = 10.0) -> Any:
    """End a request as the engine does when its time is up, unless it has ended before; return the outcome.

    That can be later than the request has been told, on a machine that is busy.
    """
    done, _ = await asyncio.wait([task], timeout=after)
    if not done:
        requests.passed = True
        task.cancel()
    return await outcome(task)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_stale_result_is_given_before_the_deadline_of_the_request(run: RunFixture, timeout: float | None) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", future(), future())
        policies = Policies(
            step_timeout=timeout,
            circuit_breaker=BreakerOptions(failures=1),
            cache=CacheOptions(ttl=TTL, stale_if_error=Duration(60)),
        )
        call = guard(backend, policies, state)
        await call(Run(), 0, "x")
        clock.now += 11
        requests = Run(left=0.2)
        assert await deadline_passes(requests, asyncio.create_task(call(requests, 0, "x"))) == "old"
        assert not requests.passed
        assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=1)}
        assert (counts(state)["stale"], backend.running) == (1, 0)
        assert state.describe()["circuit_breaker"]["opened"] == 1
        clock.now += 5
        nothing_kept = Run(left=0.2)
        task = asyncio.create_task(call(nothing_kept, 0, "y"))
        assert (await deadline_passes(nothing_kept, task, 0.3))[0] == "CancelledError"
        assert (nothing_kept.passed, backend.running) == (True, 0)

    run(main())


def test_who_waits_for_another_s_call_has_the_stale_result_in_time_too(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend("old", future(), future())
        call = guard(backend, caching(stale_if_error=Duration(60)), state)
        await call(Run(), 0, "x")
        clock.now += 11
        late, soon = Run(left=1.5), Run(left=0.1)
        tasks = {requests: asyncio.create_task(call(requests, 0, "x")) for requests in (late, soon)}
        assert await deadline_passes(soon, tasks[soon]) == "old"
        assert (soon.passed, soon.note(0).attempts, tasks[late].done()) == (False, 0, False)
        assert await deadline_passes(late, tasks[late]) == "old"
        assert (len(backend.calls), backend.running) == (2, 0)

    run(main())


def test_the_items_of_a_step_are_one_note(run: RunFixture) -> None:
    async def main() -> None:
        call, requests = guard(Backend("x"), caching(), each=True), Run()
        for value in [1, 2, 1, 1]:
            await call(requests, 0, value)
        assert requests.notes == {0: StepNote(attempts=1, cached="hit", cached_calls=2, uncalled=2)}

    run(main())


# --- one call for all items ------------------------------------------------------------------------------------------


class Rows:
    """A source that answers all items, and fails as told."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []
        self.failing: BaseException | None = None
        self.answers: dict[Any, Any] = {}

    async def __call__(self, rows: Any) -> list[Any]:
        self.asked.append([row[0] for row in rows])
        if self.failing is not None:
            raise self.failing
        return [self.answers.get(row[0], f"got {row[0]}") for row in rows]


def test_only_the_items_that_are_not_there_are_asked_for(run: RunFixture) -> None:
    async def main() -> None:
        rows, state, requests = Rows(), SourceState(LABEL), Run()
        call = guard_at_once(rows, caching(), state)
        assert await call(Run(), 0, [(1,), (2,)]) == ["got 1", "got 2"]
        assert await call(requests, 0, [(3,), (1,), (3,), (2,), (1.0,)]) == [
            "got 3",
            "got 1",
            "got 3",
            "got 2",
            "got 1.0",
        ]
        assert rows.asked == [[1, 2], [3, 1.0]]
        assert requests.notes == {0: StepNote(attempts=1, cached="hit", cached_calls=2)}
        cached = Run()
        assert await call(cached, 0, [(1,), (2,)]) == ["got 1", "got 2"]
        assert cached.notes == {0: StepNote(attempts=0, cached="hit", cached_calls=2)}
        assert len(rows.asked) == 2
        assert counts(state) == {"entries": 4, "hits": 4, "misses": 4}

    run(main())


def test_an_item_that_failed_is_not_kept(run: RunFixture) -> None:
    async def main() -> None:
        rows = Rows()
        gone = EntityNotFound("no 2")
        rows.answers = {2: gone, 3: Degraded("lesser")}
        call = guard_at_once(rows, caching())
        for _ in range(2):
            assert await call(Run(), 0, [(1,), (2,), (3,)]) == ["got 1", gone, Degraded("lesser")]
        assert rows.asked == [[1, 2, 3], [2, 3]]

    run(main())


def test_when_the_source_fails_items_that_are_there_stay(run: RunFixture) -> None:
    async def main() -> None:
        clock, rows, down = Clock(), Rows(), SourceError("down")
        state = SourceState(LABEL, clock=clock)
        call = guard_at_once(rows, caching(stale_if_error=Duration(60)), state)
        await call(Run(), 0, [(1,)])
        clock.now += 11
        await call(Run(), 0, [(2,)])
        rows.failing = down
        requests = Run()
        assert await call(requests, 0, [(1,), (2,), (3,)]) == ["got 1", "got 2", down]
        assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=2)}
        assert await outcome(call(Run(), 0, [(4,), (5,)])) == ("SourceError", "down")
        assert await outcome(guard_at_once(rows, caching(), state)(Run(), 0, [(2,)])) == ("SourceError", "down")

    run(main())


def test_stale_items_are_given_before_the_deadline_of_the_request_if_all_are_there(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        state, backend = SourceState(LABEL, clock=clock), Backend(["old 1", "old 2"], future(), future())
        call = guard_at_once(backend, caching(stale_if_error=Duration(60)), state)
        await call(Run(), 0, [(1,), (2,)])
        clock.now += 11
        requests = Run(left=0.2)
        task = asyncio.create_task(call(requests, 0, [(2,), (1,), (2,)]))
        assert await deadline_passes(requests, task) == ["old 2", "old 1", "old 2"]
        assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=3)}
        one_is_new = Run(left=0.2)
        task = asyncio.create_task(call(one_is_new, 0, [(1,), (3,)]))
        assert (await deadline_passes(one_is_new, task, 0.3))[0] == "CancelledError"

    run(main())


def test_who_asks_for_the_same_items_at_once_shares_one_call(run: RunFixture) -> None:
    async def main() -> None:
        answer, state = future(), SourceState(LABEL)
        backend = Backend(future(), answer)
        call = guard_at_once(backend, caching(), state)
        runs = [Run() for _ in range(4)]
        asked = [asyncio.create_task(call(each, 0, [(1,), (2,), (1,)])) for each in runs]
        await turns()
        asked[1].cancel()
        asked[0].cancel()  # the last one makes the call
        await turns()
        assert len(backend.calls) == 2
        answer.set_result(["one", "two"])
        assert [await outcome(one) for one in asked[2:]] == [["one", "two", "one"]] * 2
        assert [each.note(0) for each in runs[2:]] == [
            StepNote(attempts=0, cached="shared", cached_calls=3),
            StepNote(),
        ]
        assert len(backend.calls) == 2
        assert counts(state) == {"entries": 2, "misses": 4, "shared": 2}
        assert await call(Run(), 0, [(1,), (2,)]) == ["one", "two"]

    run(main())


def test_a_failed_call_for_items_that_is_shared_is_one_attempt(run: RunFixture) -> None:
    async def main() -> None:
        answer, runs = future(), [Run(), Run()]
        backend = Backend(answer)
        call = guard_at_once(backend, caching())
        asked = [asyncio.create_task(call(each, 0, [(1,), (2,)])) for each in runs]
        await turns()
        answer.set_exception(SourceUnavailable("down"))
        assert [await outcome(one) for one in asked] == [("SourceUnavailable", "down")] * 2
        assert [each.note(0).attempts for each in runs] == [1, 0]

    run(main())


def test_a_wrong_number_of_answers_is_the_sources_failure(run: RunFixture) -> None:
    async def main() -> None:
        call = guard_at_once(Backend(["one"]), caching())
        assert await outcome(call(Run(), 0, [(1,), (2,)])) == (
            "SourceError",
            "the source returned 1 results for 2 items",
        )

    run(main())


def test_stale_items_are_given_while_one_call_fetches_them_all(run: RunFixture) -> None:
    async def main() -> None:
        clock, rows = Clock(), Rows()
        state = SourceState(LABEL, clock=clock)
        call = guard_at_once(rows, caching(stale_while_revalidate=Duration(5)), state)
        await call(Run(), 0, [(1,), (2,)])
        clock.now += 12
        rows.answers = {1: "new 1", 2: "new 2"}
        requests = Run()
        assert await call(requests, 0, [(1,), (2,)]) == ["got 1", "got 2"]
        assert requests.notes == {0: StepNote(attempts=0, cached="stale", cached_calls=2)}
        await turns()
        assert await call(Run(), 0, [(1,), (2,)]) == ["new 1", "new 2"]
        assert rows.asked == [[1, 2], [1, 2]]
        clock.now += 12
        assert await call(Run(), 0, [(1,), (3,)]) == ["new 1", "got 3"]
        assert rows.asked[2:] == [[1, 3]]  # something has to be asked for, so the stale one is too

    run(main())
