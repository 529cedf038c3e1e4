"""All policies at once, with calls that end in every way and are given up at any moment: nothing is left behind."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from orchestrator_core.errors import EntityNotFound, NotBegun, OrchestratorError, Refused, SourceError
from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.options import BreakerOptions, CacheOptions, ConcurrencyOptions, RetryOptions
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.state import SourceState
from orchestrator_core.time_limits import TimeLimit, Timer
from tests.policies.lab import LABEL, Run, RunFixture, guard, guard_at_once


class Source:
    """Answers, fails or hangs, as the dice say; ``most`` is how many calls there were at once."""

    def __init__(self, dice: Random) -> None:
        self.dice = dice
        self.running = self.most = 0

    async def __call__(self, *values: Any) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.dice.choice([0, 0, 0.002, 60]))
        finally:
            self.running -= 1
        ends = [None, None, SourceError("down", transient=True), EntityNotFound("no 7"), Refused("not now"), NotBegun()]
        if (error := self.dice.choice(ends)) is not None:
            raise error
        return values

    async def many(self, rows: Any) -> Any:
        await self(rows)
        return [self.dice.choice([row, SourceError("down", transient=True)]) for row in rows]


class Request(Run):
    """A run with a deadline that passes by itself."""

    def __init__(self, timer: Timer, id: str) -> None:
        super().__init__(id=id)
        self.timer = timer

    @property
    def deadline(self) -> Any:
        return self.timer


@pytest.mark.parametrize("seed", range(12))
def test_whatever_ends_calls_nothing_is_left_of_them(run: RunFixture, seed: int) -> None:
    dice = Random(seed)
    policies = Policies(
        timeout=dice.choice([None, 0.01]),
        step_timeout=dice.choice([None, 0.02]),
        retry=RetryOptions(backoff=Duration(0.001)),
        circuit_breaker=BreakerOptions(failures=2, reset=Duration(0.005)),
        concurrency=ConcurrencyOptions(max=2, queue=dice.choice([0, 50])),
        cache=CacheOptions(
            ttl=Duration(0.005),
            stale_while_revalidate=Duration(dice.choice([0, 0.01])),
            stale_if_error=Duration(dice.choice([0, 0.02])),
            max_entries=3,
        ),
    )

    async def main() -> None:
        state, source, limit = SourceState(LABEL), Source(dice), TimeLimit(0.03)
        call, call_many = guard(source, policies, state, each=True), guard_at_once(source.many, policies, state)

        async def request(number: int) -> None:
            timer = limit.begin()
            try:
                requests = Request(timer, str(number // 3))
                for _ in range(3):
                    with suppress(OrchestratorError, TimeoutError):
                        await call(requests, 0, dice.randint(0, 4))
                        await call_many(requests, 1, [(dice.randint(0, 4),) for _ in range(3)])
            except asyncio.CancelledError:
                if not timer.caused():
                    raise
            finally:
                limit.end(timer)

        tasks = []
        for number in range(40):
            tasks.append(asyncio.create_task(request(number)))
            if dice.random() < 0.3:
                asyncio.get_running_loop().call_later(dice.random() * 0.02, tasks[-1].cancel)
                await asyncio.sleep(0.001)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [task for task in tasks if not task.cancelled() and task.exception()] == []
        await state.close()
        assert (source.running, source.most <= 2) == (0, True)
        assert policies.circuit_breaker is not None
        assert state.breaker(policies.circuit_breaker).state != "half_open"
        told = state.describe()["concurrency"]
        assert (told["running"], told["waiting"]) == (0, 0)
        assert [len(cache._flights) + len(cache._refreshing) for cache in state._caches.values()] == [0]

    run(main())
