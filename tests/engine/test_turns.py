"""Runs that go on together, and leave each other and the rest of the loop their turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from attrs import define, field

from orchestrator_core.errors import DeadlineExceeded
from orchestrator_core.turns import AIM_SECONDS, LONG_SECONDS, NO_TURNS, Turns
from tests.engine.lab import Lab, planned, ran, step

RunFixture = Callable[..., Any]
CHAIN = (step("a"), step("b", params={"x": "$a"}), step("c", params={"x": "$b"}))


@define
class Clock:
    """A clock that goes on when a test says so."""

    now: float = 1.0

    def __call__(self) -> float:
        return self.now


@define
class Crowd:
    """Runs that wake in the same turn of the loop and compute for some time each."""

    cost: float
    clock: Clock = field(factory=Clock)
    order: list[int] = field(factory=list)
    turns_took: list[float] = field(factory=list)

    async def go_on(self, number: int, turns: Turns) -> None:
        if self.clock() > turns.until:
            await turns.rest()
        self.clock.now += self.cost
        self.order.append(number)

    async def all_go_on(self, count: int, keep: bool) -> None:
        loop = asyncio.get_running_loop()
        turns = Turns(loop.call_soon, self.clock)
        if keep:
            turns.keep_short(self.clock())
        tasks = [loop.create_task(self.go_on(number, turns)) for number in range(count)]
        while not all(task.done() for task in tasks):
            before = self.clock()
            await asyncio.sleep(0)
            self.turns_took.append(self.clock() - before)


def test_runs_that_go_on_together_share_many_short_turns_in_their_order(run_on_each_loop: RunFixture) -> None:
    crowd = Crowd(cost=0.0015)
    run_on_each_loop(crowd.all_go_on(40, keep=True))
    assert crowd.order[:40] == list(range(40))
    assert max(crowd.turns_took) < LONG_SECONDS + AIM_SECONDS + 2 * crowd.cost


def test_short_ones_go_on_many_at_a_time(run: RunFixture) -> None:
    crowd = Crowd(cost=0.0001)
    run(crowd.all_go_on(1000, keep=True))
    assert crowd.order == list(range(1000))
    assert max(crowd.turns_took) < LONG_SECONDS + 2 * AIM_SECONDS
    assert len(crowd.turns_took) < 0.1 / AIM_SECONDS * 4


def test_nobody_rests_where_turns_may_be_long(run: RunFixture) -> None:
    crowd = Crowd(cost=0.0015)
    run(crowd.all_go_on(40, keep=False))
    assert max(crowd.turns_took) == pytest.approx(40 * crowd.cost)


def test_who_rests_goes_on_when_turns_may_be_long_again(run: RunFixture) -> None:
    async def main() -> None:
        clock = Clock()
        turns = Turns(asyncio.get_running_loop().call_soon, clock)
        turns.keep_short(clock())
        resting = [asyncio.create_task(turns.rest()) for _ in range(20)]
        await asyncio.sleep(0)
        clock.now += 1
        assert turns.rested(clock()) == 1
        turns.leave(clock())
        await asyncio.gather(*resting)
        assert turns.rested(clock()) == 0
        assert clock() < turns.until == NO_TURNS.until

    run(main())


def test_one_that_is_cancelled_while_it_rests_takes_no_turn(run: RunFixture) -> None:
    async def main() -> None:
        turns = Turns(asyncio.get_running_loop().call_soon)
        resting = [asyncio.create_task(turns.rest()) for _ in range(9)]
        await asyncio.sleep(0)
        for task in resting[::2]:
            task.cancel()
        ended = await asyncio.gather(*resting, return_exceptions=True)
        assert [isinstance(found, asyncio.CancelledError) for found in ended] == [True, False] * 4 + [True]

    run(main())


# --- in a plan ----------------------------------------------------------------------------------------------------


def test_a_step_that_follows_another_rests_and_the_first_does_not(run: RunFixture) -> None:
    async def main() -> None:
        calls: list[Callable[[], None]] = []
        lab, turns = Lab(), Turns(calls.append)
        turns.keep_short(-1.0)  # this turn began long ago
        async with planned(lab, *CHAIN) as ready:
            running = asyncio.create_task(ran(ready, turns=turns))
            for done in (["a"], ["a", "b"], ["a", "b", "c"]):
                for _ in range(5):
                    await asyncio.sleep(0)
                assert [name for what, name in lab.events if what == "end"] == done
                turns.keep_short(-1.0)
                while calls:
                    calls.pop()()
                turns.keep_short(-1.0)
            got = await running
        assert got.error is None
        assert set(got.statuses.values()) == {"ok"}
        times = [got.steps[name] for name in "abc"]
        for before, after in pairwise(times):
            assert after.start_seconds >= before.start_seconds + before.duration_seconds

    run(main())


def test_the_deadline_holds_for_one_that_rests_and_blames_no_step(run: RunFixture) -> None:
    async def main() -> None:
        turns = Turns([].append)
        turns.keep_short(-1.0)
        async with planned(Lab(), *CHAIN, timeout="50ms") as ready:
            got = await ran(ready, turns=turns)
        assert isinstance(got.error, DeadlineExceeded)
        assert "in step" not in str(got.error)
        assert got.statuses == {"a": "ok", "b": "cancelled", "c": "cancelled"}

    run(main())
