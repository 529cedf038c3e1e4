"""One call for all who ask for the same at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeAlias

__all__ = ["Flights", "TimeIsUp"]


class TimeIsUp(asyncio.CancelledError):
    """The time of who makes a call is up. Those who wait for it have time of their own, and make it themselves."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Landed:
    __slots__ = ("result",)

    def __init__(self, result: Any) -> None:
        self.result = result


class _Failed:
    __slots__ = ("error", "traceback")

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.traceback = error.__traceback__


_YOURS = _Landed(None)
"""What the last of those who wait is told when the call's own task was cancelled: make the call yourself."""

_Waiting: TypeAlias = "list[asyncio.Future[_Landed | _Failed]]"


class Flights:
    """The calls under way, by key, and who waits for each.

    A call is made in the task of who asked first: there is no other task that could be left running. When that task is
    cancelled, which is its own request's affair, one of those who wait makes the call anew: who came last, and so has
    the most time left. Those who came first have little, if it was time that was up: each would begin a call that it
    cannot end, and a result that is asked for often would not be had again.
    """

    __slots__ = ("_flights",)

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(
        self, key: Hashable, call: Callable[[], Awaitable[Any]], wait_seconds: float | None = None
    ) -> tuple[Any, bool]:
        """Return the call's result, and whether it was somebody else's call; raise what that raised.

        Raises ``TimeoutError`` when somebody else's takes longer than ``wait_seconds``.
        """
        waiting = self._flights.get(key)
        if waiting is None:
            self._flights[key] = []
        else:
            async with asyncio.timeout(wait_seconds):
                told = await self._wait(key, waiting)
            if isinstance(told, _Failed):
                raise told.error.with_traceback(told.traceback)
            if told is not _YOURS:
                return told.result, True
        try:
            result = await call()
        except Exception as error:
            self._tell(key, _Failed(error))
            raise
        except BaseException:
            self._hand_over(key)
            raise
        self._tell(key, _Landed(result))
        return result, False

    async def _wait(self, key: Hashable, waiting: _Waiting) -> _Landed | _Failed:
        told: asyncio.Future[_Landed | _Failed] = asyncio.get_running_loop().create_future()
        waiting.append(told)
        try:
            return await told
        except BaseException:
            if told.done() and not told.cancelled() and told.result() is _YOURS:
                self._hand_over(key)
            raise

    def _hand_over(self, key: Hashable) -> None:
        waiting = self._flights[key]
        while waiting:
            told = waiting.pop()
            if not told.done():
                told.set_result(_YOURS)
                return
        del self._flights[key]

    def _tell(self, key: Hashable, told: _Landed | _Failed) -> None:
        for waiter in self._flights.pop(key):
            if not waiter.done():
                waiter.set_result(told)
