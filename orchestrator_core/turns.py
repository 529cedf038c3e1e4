"""Keeping the event loop's turns short where runs go on together after what they have waited for.

Answers of a partner arrive together, and each run goes on as soon as it is woken: where that takes CPU, one turn of the
loop takes as long as all of them, and whoever is to be refused, or asks for the service's health, waits for its end.
So a run asks before a step that follows another. When the turn has been long enough it rests, and those that rest go
on in the order in which they came, as many in one turn as it has time for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from time import perf_counter
from typing import Any, Protocol

ALWAYS, NEVER = -inf, inf

LONG_SECONDS = 0.004
"""How long a turn may be before the next run rests."""

AIM_SECONDS = 0.002
"""How long a turn is to be in which runs go on that have rested."""


class Resting(Protocol):
    """What rests, as a future: ``done`` when it has been given up meanwhile."""

    def done(self) -> bool: ...
    def set_result(self, result: None, /) -> None: ...


class Turns:
    """The turns of one event loop. A run of which ``until`` has passed on the clock is to :meth:`rest`.

    ``soon`` calls a function in the loop's next turn. Nobody rests until :meth:`keep_short` is called.
    """

    __slots__ = ("_at_once", "_now", "_resting", "_short", "_soon", "_woken", "_woken_at", "until")

    def __init__(self, soon: Callable[[Callable[[], None]], Any], now: Callable[[], float] = perf_counter) -> None:
        self.until = NEVER
        self._soon = soon
        self._now = now
        self._resting: deque[tuple[float, Resting]] = deque()
        self._short = False
        self._at_once = 1
        self._woken = 0
        self._woken_at = 0.0

    def keep_short(self, now: float) -> None:
        """Have runs rest when this turn, which begins now, is long. To be called in each."""
        self._short = True
        self._begin(now)

    def leave(self, now: float) -> None:
        """Have no more runs rest; those that do go on as they would have."""
        self._short = False
        self._begin(now)

    def rested(self, now: float) -> float:
        """Return for how many seconds the first of those that rest has done so; 0 if nobody does."""
        return now - self._resting[0][0] if self._resting else 0.0

    async def rest(self) -> float:
        """Leave the loop to others; return the time on the clock at which it is the run's turn."""
        come: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.enter(come)
        await come
        return self._now()

    def enter(self, one: Resting) -> None:
        """Let one rest, behind those who do."""
        if not self._resting:
            self._woken = 0
            self._soon(self._turn)
        self._resting.append((self._now(), one))
        self.until = ALWAYS  # nobody goes on before those

    def _turn(self) -> None:
        now, resting, count = self._now(), self._resting, 0
        if self._woken:
            self._learn(now - self._woken_at)
        while resting and count < self._at_once:
            _, one = resting.popleft()
            if not one.done():
                one.set_result(None)
                count += 1
        self._woken, self._woken_at = count, now
        if resting:
            self._soon(self._turn)
        else:
            self._begin(now)

    def _learn(self, seconds: float) -> None:
        """Learn from how long a turn was in which some went on."""
        if seconds > AIM_SECONDS:
            self._at_once = max(1, self._at_once // 2)
        elif seconds < AIM_SECONDS / 2 and self._woken == self._at_once:
            self._at_once *= 2

    def _begin(self, now: float) -> None:
        if not self._resting:
            self.until = now + LONG_SECONDS if self._short else NEVER


def _nobody_calls(call: Callable[[], None]) -> None:
    raise AssertionError("nobody rests where turns may be long")


NO_TURNS = Turns(_nobody_calls)
"""The turns of a loop that nobody keeps short."""

__all__ = ["NO_TURNS", "Resting", "Turns"]
