"""Places and the queue for them: none is lost and nobody is passed over, whoever is cancelled and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from orchestrator_core.policies.concurrency import Limiter, QueueFull, TooLate
from orchestrator_core.policies.options import ConcurrencyOptions
from tests.policies.lab import RunFixture, turns


class Callers:
    """Calls that hold a place until they are told to end."""

    def __init__(self, places: int, queue: int) -> None:
        self.limiter = Limiter(ConcurrencyOptions(max=places, queue=queue))
        self.tasks: list[asyncio.Task[None]] = []
        self.ends: list[asyncio.Event] = []
        self.order: list[int] = []
        self.waited: list[int] = []
        self.running = 0

    def come(self) -> None:
        self.ends.append(asyncio.Event())
        self.tasks.append(asyncio.create_task(self._call(len(self.tasks))))

    async def _call(self, number: int) -> None:
        limiter = self.limiter
        if limiter.running < limiter.max:
            limiter.running += 1
        else:
            await limiter.wait()
            self.waited.append(number)
        self.order.append(number)
        self.running += 1
        try:
            await self.ends[number].wait()
        finally:
            self.running -= 1
            limiter.leave()


@pytest.mark.parametrize("places", [1, 2])
def test_no_place_is_lost_in_any_order_of_ends_and_cancellations(run: RunFixture, places: int) -> None:
    """Three calls and a late one; each of eight moves ends one, cancels one, or lets the loop go on."""
    moves: dict[str, Callable[[Callers], Any]] = {
        "end 0": lambda callers: callers.ends[0].set(),
        "cancel 0": lambda callers: callers.tasks[0].cancel(),
        "cancel 1": lambda callers: callers.tasks[1].cancel(),
        "cancel 2": lambda callers: callers.tasks[2].cancel(),
        "come": lambda callers: callers.come(),
        "go on": lambda callers: None,
    }

    async def main() -> None:
        for names in product(moves, repeat=4):
            callers = Callers(places, queue=10)
            for _ in range(3):
                callers.come()
            await turns(3)
            for name in names:
                moves[name](callers)
                if name == "go on":
                    await turns(1)
                assert callers.running <= places
            await turns(4)
            for end in callers.ends:
                end.set()
            await asyncio.wait(callers.tasks)
            limiter = callers.limiter
            assert (limiter.running, limiter.waiting, callers.running) == (0, 0, 0), names
            assert callers.waited == sorted(callers.waited), names
            done = [number for number, task in enumerate(callers.tasks) if not task.cancelled()]
            assert set(done) <= set(callers.order), names

    run(main())


def test_who_comes_when_the_queue_is_full_is_told_at_once(run: RunFixture) -> None:
    async def main() -> None:
        callers = Callers(places=1, queue=2)
        for _ in range(4):
            callers.come()
        await turns(3)
        assert callers.limiter.describe() == {"max": 1, "running": 1, "waiting": 2, "refused": 1}
        assert isinstance(callers.tasks[3].exception(), QueueFull)
        callers.tasks[1].cancel()
        await turns(3)
        callers.come()
        for end in callers.ends:
            end.set()
        await asyncio.wait(callers.tasks)
        assert callers.order == [0, 2, 4]
        assert callers.limiter.describe() == {"max": 1, "running": 0, "waiting": 0, "refused": 1}

    run(main())


def test_without_a_queue_nobody_waits(run: RunFixture) -> None:
    async def main() -> None:
        callers = Callers(places=1, queue=0)
        callers.come()
        callers.come()
        await turns(3)
        assert isinstance(callers.tasks[1].exception(), QueueFull)
        callers.ends[0].set()
        await callers.tasks[0]

    run(main())


def test_a_place_is_not_passed_to_who_has_too_little_time_left_for_a_call(run: RunFixture) -> None:
    async def main() -> None:
        limiter = Limiter(ConcurrencyOptions(max=1, queue=10))
        limiter.running = 1
        for seconds in (0.8, 1.2, 1.0):
            limiter.took(seconds)
        waiting = [asyncio.create_task(limiter.wait(lambda left=left: left)) for left in (0.5, 1.0, 2.0, 9.0)]
        await turns(3)
        waiting[1].cancel()
        limiter.leave()
        await turns(3)
        ends = [task.done() and (task.cancelled() or task.exception()) for task in waiting]
        assert [isinstance(ends[0], TooLate), *ends[1:]] == [True, True, None, False]
        assert limiter.describe() == {"max": 1, "running": 1, "waiting": 1, "refused": 1}
        limiter.leave()
        limiter.leave()
        await waiting[3]
        assert limiter.describe() == {"max": 1, "running": 0, "waiting": 0, "refused": 1}

    run(main())
