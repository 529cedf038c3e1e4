"""A time limit for a part of a task, as lean as the request's own deadline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

__all__ = ["Timer", "within"]


class Timer:
    """Cancels the task that made it after so many seconds, unless it is stopped before.

    ::

        timer = Timer(seconds)
        try:
            ...
        except asyncio.CancelledError:
            if timer.caused():
                raise TimeoutError from None
            raise
        finally:
            timer.stop()
    """

    __slots__ = ("_before", "_handle", "_loop", "_task", "_until", "passed")

    def __init__(self, seconds: float) -> None:
        self.passed = False
        self._loop = loop = asyncio.get_running_loop()
        self._task = task = asyncio.current_task(loop)
        assert task is not None
        self._before = task.cancelling()
        self._until = loop.time() + seconds
        self._handle = loop.call_at(self._until, self._pass)

    def _pass(self) -> None:
        self.passed = True
        if self._task is not None:
            self._task.cancel()

    def remaining(self) -> float:
        return self._until - self._loop.time()

    def stop(self) -> None:
        self._handle.cancel()

    def caused(self) -> bool:
        """Return whether the cancellation that was caught is this timer's and nobody else's. Ask once."""
        return self.passed and self._task is not None and self._task.uncancel() <= self._before


async def within(seconds: float | None, work: Callable[[Timer | None], Awaitable[T]]) -> T:
    """Return what the work returns, which is told of its timer; raise ``TimeoutError`` when that runs out."""
    if seconds is None:
        return await work(None)
    timer = Timer(seconds)
    try:
        return await work(timer)
    except asyncio.CancelledError:
        if timer.caused():
            raise TimeoutError from None
        raise
    finally:
        timer.stop()
