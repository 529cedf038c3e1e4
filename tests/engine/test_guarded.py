"""Calls that know the run and the step they are of: what they are given, and what they note is in the record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator_core.documents import execution_json, execution_of
from orchestrator_core.each import AtOnce
from orchestrator_core.errors import SourceError
from orchestrator_core.http.answers import server_timing
from orchestrator_core.plugin_api import JSON
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.run import Run
from orchestrator_core.snapshot import ReadyPlan
from orchestrator_core.time_limits import NO_DEADLINE
from tests.engine.lab import Lab, planned, ran, request, step

RunFixture = Callable[..., Any]


def rebound(ready: ReadyPlan, **calls: Any) -> ReadyPlan:
    bound = ReadyPlan(ready.plan, ready.generation, calls)
    bound.generated.forget()  # it belongs to no snapshot, which would see to that
    return bound


async def plain(*values: JSON) -> JSON:
    return list(values)


def test_a_guarded_call_is_given_the_run_and_the_step_and_a_plain_one_its_values_alone(run: RunFixture) -> None:
    async def main() -> None:
        seen: list[Any] = []

        async def call(run: Run, index: int, *values: JSON) -> JSON:
            seen.append((run, index, values, run.deadline.passed))
            return "guarded"

        steps = [step("a", params={"x": "$request.body.x"}, timeout=5), step("b", params={"y": "$a"}, timeout=5)]
        async with planned(Lab(), *steps) as ready:
            bound = rebound(ready, a=plain, b=Guarded(call))
            got = await ran(bound, request({"x": 1}))
        assert got.result == {"a": [1], "b": "guarded"}
        assert seen == [(got.run, 1, ([1],), False)]
        assert got.run.deadline is NO_DEADLINE
        source = bound.generated.source
        assert "async with timeout(5.0):\n            a = await call_a(a_x_0)" in source
        assert "\n        b = await call_b(run, 1, b_y_0)" in source  # the guard keeps the timeout

    run(main())


def test_nothing_is_noted_of_a_run_in_which_nothing_is_out_of_the_ordinary(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), step("a")) as ready:
            got = await ran(ready)
        assert got.run.notes is None
        (record,) = got.run.record().steps
        assert (record.attempts, record.cache, record.breaker, record.waited_seconds) == (1, "", "", 0.0)
        assert set(execution_json(got.run.record())["steps"][0]) == {
            *("name", "status", "start_ms", "duration_ms", "attempts", "error"),
        }

    run(main())


def test_what_a_call_notes_is_in_the_record_and_its_document(run: RunFixture) -> None:
    async def main() -> None:
        async def cached(run: Run, index: int) -> JSON:
            note = run.note(index)
            note.attempts, note.cached = 0, "stale"
            return 1

        async def tried(run: Run, index: int) -> JSON:
            run.note(index).attempts += 2
            run.note(index).waited_seconds = 0.25
            run.note(index).breaker = "half_open"
            run.note(index).attempt_failed(0.125, SourceError("x" * 600))
            run.note(index).more_failed = 9
            return 2

        async with planned(Lab(), step("cached"), step("tried", depends_on=["cached"])) as ready:
            got = await ran(rebound(ready, cached=Guarded(cached), tried=Guarded(tried)))
        assert got.result == {"cached": 1, "tried": 2}
        assert got.statuses == {"cached": "cached", "tried": "ok"}
        record = got.steps["cached"]
        assert (record.attempts, record.cache, record.breaker, record.waited_seconds) == (0, "stale", "", 0.0)
        record = got.steps["tried"]
        assert (record.attempts, record.cache, record.breaker, record.waited_seconds) == (3, "", "half_open", 0.25)
        document = execution_json(got.run.record())
        assert document["steps"][0]["cache"] == "stale"
        assert (document["steps"][1]["breaker"], document["steps"][1]["waited_ms"]) == ("half_open", 250.0)
        there_and_back = execution_of(document).steps
        (attempt,) = record.failed_attempts
        assert (attempt.duration_seconds, attempt.error) == (0.125, "x" * 499 + "…")
        assert document["steps"][1]["failed_attempts"] == [
            {"start_ms": round(attempt.start_seconds * 1000, 3), "duration_ms": 125.0, "error": attempt.error}
        ]
        assert (record.failed_attempts_left_out, document["steps"][1]["failed_attempts_left_out"]) == (9, 9)
        assert execution_json(execution_of(document)) == document
        assert [(at.cache, at.breaker, at.waited_seconds) for at in there_and_back] == [
            ("stale", "", 0.0),
            ("", "half_open", 0.25),
        ]
        described = [metric.partition(";desc=")[2] for metric in server_timing(got.run).split(", ")]
        assert described == ["cached", "", ""]

    run(main())


def test_each_item_is_a_guarded_call_and_a_step_is_cached_when_all_of_its_items_are(run: RunFixture) -> None:
    async def main() -> None:
        async def call(run: Run, index: int, number: int) -> JSON:
            if number != 2 or run.id == "all":
                run.note(index).cached = "hit"
                run.note(index).cached_calls += 1
            return number * 10

        one = step("a", for_each=[1, 2, 3], params={"x": "$item"})
        async with planned(Lab(), one) as ready:
            bound = rebound(ready, a=Guarded(call))
            some = await ran(bound)
            assert (some.result, some.statuses, some.steps["a"].cache) == ([10, 20, 30], {"a": "ok"}, "hit")
            everything = Run(bound, "all")
            assert await bound.run(request(), everything) == [10, 20, 30]
            assert everything.record().steps[0].status == "cached"

    run(main())


def test_a_call_for_all_items_at_once_is_given_the_run_and_the_step_too(run: RunFixture) -> None:
    async def main() -> None:
        async def call(run: Run, index: int, items: Sequence[Sequence[JSON]]) -> Sequence[JSON]:
            run.note(index).attempts += 1
            return [[index, *values] for values in items]

        one = step("a", for_each=[1, 2], params={"x": "$item"})
        async with planned(Lab(), one) as ready:
            got = await ran(rebound(ready, a=AtOnce(Guarded(call))))
        assert (got.result, got.steps["a"].attempts) == ([[0, 1], [0, 2]], 2)

    run(main())


def test_a_call_that_is_cancelled_learns_whether_time_is_up(run: RunFixture) -> None:
    async def main() -> None:
        seen: list[bool] = []

        async def call(run: Run, index: int) -> JSON:
            try:
                return await asyncio.Event().wait()
            except asyncio.CancelledError:
                seen.append(run.deadline.passed)
                raise

        async with planned(Lab(), step("a"), timeout="30ms") as ready:
            bound = rebound(ready, a=Guarded(call))
            got = await ran(bound)
            assert str(got.error) == "the request took longer than its 0.03 s in step 'a'"
            asked = asyncio.create_task(ran(bound))
            await asyncio.sleep(0)
            asked.cancel()
            await asyncio.wait([asked])
        assert seen == [True, False]

    run(main())
