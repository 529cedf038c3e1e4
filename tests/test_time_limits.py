from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator_core.time_limits import TimeLimit, Timer, within


class Loop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while it waits, and then at once. It counts the timers it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.timers = 0

    def time(self) -> float:
        return self.now

    def call_at(self, *arguments: Any, **more: Any) -> asyncio.TimerHandle:
        self.timers += 1
        return super().call_at(*arguments, **more)

    def _run_once(self) -> None:
        here: Any = self
        if not here._ready:
            self.now = max(self.now, min(timer.when() for timer in here._scheduled if not timer.cancelled()))
        super()._run_once()  # type: ignore[misc]


def run(work: Any) -> Any:
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(work)


async def nap(limit: TimeLimit, spent_seconds: float = 0.0) -> float:
    """Wait for the limit to end the nap, and return how long that was."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    timer = limit.begin(spent_seconds)
    try:
        await asyncio.sleep(10)
    except asyncio.CancelledError:
        assert timer.caused(), "somebody else cancelled it"
    finally:
        limit.end(timer)
    return loop.time() - began


def test_one_timer_of_the_loop_is_enough_for_all_that_end_in_time() -> None:
    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        limit = TimeLimit(60)
        for _ in range(100):
            limit.end(limit.begin())
        assert loop.timers == 1

    run(main())


def test_each_runs_out_at_its_own_time_in_whatever_order_they_began() -> None:
    async def main() -> None:
        limit = TimeLimit(0.3)
        first = asyncio.create_task(nap(limit))
        await asyncio.sleep(0.1)
        late, soon = asyncio.create_task(nap(limit)), asyncio.create_task(nap(limit, 0.25))
        assert [await task for task in (first, late, soon)] == pytest.approx([0.3, 0.3, 0.05])

    run(main())


@pytest.mark.parametrize("spent_seconds", [0.0, 0.0009], ids=["first", "late"])
def test_in_line_one_runs_out_a_moment_late_at_most(spent_seconds: float) -> None:
    async def main() -> None:
        limit = TimeLimit(0.3)
        first = asyncio.create_task(nap(limit))
        await asyncio.sleep(0)
        assert 0.3 - spent_seconds <= await nap(limit, spent_seconds) <= 0.3
        await first

    run(main())


def test_what_began_too_late_runs_out_at_once() -> None:
    async def main() -> None:
        assert await nap(TimeLimit(1), 5) == 0

    run(main())


@pytest.mark.parametrize("spent_seconds", [0.0, 0.5], ids=["in line", "on its own"])
def test_a_timer_that_was_ended_cancels_nobody(spent_seconds: float) -> None:
    async def main() -> None:
        limit = TimeLimit(0.52)
        timer = limit.begin(spent_seconds)
        assert timer.remaining() == pytest.approx(0.52 - spent_seconds)
        limit.end(timer)
        await asyncio.sleep(1)
        assert not timer.passed

    run(main())


def test_who_is_cancelled_by_somebody_else_is_told_so() -> None:
    async def main() -> None:
        limit, timers = TimeLimit(60), []

        async def work(timer: Timer | None) -> None:
            timers.append(timer)
            await asyncio.sleep(60)

        task = asyncio.create_task(within(limit, work))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [timer.passed for timer in timers] == [False]

    run(main())


def test_a_limit_can_serve_one_loop_after_the_other() -> None:
    limit = TimeLimit(0.05)
    for _ in range(2):
        assert run(nap(limit)) == pytest.approx(0.05)


def test_a_limit_that_is_cut_ends_the_time_of_all_who_have_begun() -> None:
    async def main() -> None:
        limit = TimeLimit(60)
        naps = [asyncio.create_task(nap(limit, spent)) for spent in (0.0, 0.0, 0.5)]
        limit.end(limit.begin(0.5))  # one that has ended hears nothing
        await asyncio.sleep(0)
        limit.cut()
        assert [await task for task in naps] == [0, 0, 0]
        assert limit.is_cut

    run(main())
