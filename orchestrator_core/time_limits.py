"""Time limits of requests and of calls, without a timer of the event loop for each.

Such a timer costs several microseconds: it is made, sorted in, cancelled and swept out. One limit is the same for all
that it is for, so they run out in the order in which they began, and one timer for the first of them is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import TypeVar

from attrs import frozen

T = TypeVar("T")

__all__ = ["NO_DEADLINE", "NoDeadline", "TimeLimit", "Timer", "within", "within_own"]

IN_ORDER_SECONDS = 0.001
"""How much of its time may be gone already from what still stands in line: by as much it can run out late."""


class Timer:
    """The time of one task, or of a call within it. ``passed`` is true when it ran out before the end."""

    __slots__ = ("_handle", "_loop", "_task", "_until", "passed")

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self.passed = False
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self._until = loop.time() + seconds
        self._handle: asyncio.TimerHandle | None = None

    def remaining(self) -> float:
        """Return how many seconds are left; 0 or less when it has passed."""
        return self._until - self._loop.time()

    def caused(self) -> bool:
        """Return whether the cancellation that was caught is this timer's and nobody else's. Ask once."""
        return self.passed and self._task is not None and self._task.uncancel() == 0

    def shorten(self, seconds: float) -> None:
        """Have it run out so many seconds from now, if it would later. Not for one that stands in a limit's line."""
        until = self._loop.time() + seconds
        if until < self._until:
            self.stop()
            self._until = until
            self._handle = self._loop.call_at(until, self.run_out)

    def stop(self) -> None:
        """Have it not run out, unless a limit's line does that."""
        if self._handle is not None:
            self._handle.cancel()

    def run_out(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()


class NoDeadline:
    """The deadline of a run that is not being executed."""

    __slots__ = ()
    passed = False

    def remaining(self) -> float:
        return inf


NO_DEADLINE = NoDeadline()


class TimeLimit:
    """So many seconds for each that begins, until it ends. When they are over, its task is cancelled.

    Who began asks the timer whether it caused a cancellation, and ends it in any case, as :func:`within` does.
    """

    __slots__ = ("_alone", "_handle", "_loop", "_timers", "is_cut", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.is_cut = False
        self._timers: dict[Timer, None] = {}
        self._alone: set[Timer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._handle: asyncio.TimerHandle | None = None

    def begin(self, spent_seconds: float = 0.0) -> Timer:
        """Return the timer of the task that asks, of whose time so much is gone already."""
        loop = asyncio.get_running_loop()
        timer = Timer(loop, self.seconds - spent_seconds)
        if spent_seconds > IN_ORDER_SECONDS:
            timer._handle = loop.call_at(timer._until, timer.run_out)
            self._alone.add(timer)
            return timer
        if loop is not self._loop:
            self._loop, self._handle = loop, None
            self._timers.clear()
        self._timers[timer] = None
        if self._handle is None:
            self._handle = loop.call_at(timer._until, self._look)
        return timer

    def end(self, timer: Timer) -> None:
        self._timers.pop(timer, None)
        if timer._handle is not None:
            timer.stop()
            self._alone.discard(timer)

    def cut(self) -> None:
        """End the time of all who have begun, for good: ``is_cut`` tells them why."""
        self.is_cut = True
        for timer in (*self._timers, *self._alone):
            timer.run_out()

    def _look(self) -> None:
        assert self._loop is not None
        now = self._loop.time()
        self._handle = None
        while self._timers:
            first = next(iter(self._timers))
            if first._until > now:
                self._handle = self._loop.call_at(first._until, self._look)
                return
            del self._timers[first]
            first.run_out()


@frozen
class _OwnTime:
    """The time of one piece of work, which stands in no line."""

    seconds: float

    def begin(self, spent_seconds: float = 0.0) -> Timer:
        timer = Timer(asyncio.get_running_loop(), inf)
        timer.shorten(self.seconds - spent_seconds)
        return timer

    def end(self, timer: Timer) -> None:
        timer.stop()


async def within(
    limit: TimeLimit | _OwnTime | None, work: Callable[[Timer | None], Awaitable[T]], spent_seconds: float = 0.0
) -> T:
    """Return what the work returns, which is told of its timer; raise ``TimeoutError`` when that runs out."""
    if limit is None:
        return await work(None)
    timer = limit.begin(spent_seconds)
    try:
        return await work(timer)
    except asyncio.CancelledError:
        if timer.caused():
            raise TimeoutError from None
        raise
    finally:
        limit.end(timer)


def within_own(seconds: float, work: Callable[[Timer | None], Awaitable[T]]) -> Awaitable[T]:
    """Return the same with a timer that is this work's alone, which can shorten it. ``seconds`` can be ``inf``."""
    return within(_OwnTime(seconds), work)
