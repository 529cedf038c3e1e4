"""How many calls of a source are under way at once; the others wait for their turn, in order, and not too many."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from math import inf
from typing import Any

from orchestrator_core.policies.options import ConcurrencyOptions

__all__ = ["Limiter", "QueueFull", "TooLate"]

TIME_FOR_A_CALL = 1.5
"""How much more time than a call usually takes who is given a place after waiting must have left."""


class QueueFull(Exception):
    """There are as many that wait as may."""


class TooLate(Exception):
    """A place came when the time left is too short for a call."""


class Limiter:
    """Places for so many calls, and a queue.

    Who wants a place takes it (``running += 1``) while ``running < max``, else awaits :meth:`wait`; who has one gives
    it back by :meth:`leave`. A place that is given back while somebody waits is passed on: ``running`` stays, so
    nobody who comes later gets in between.

    It is not passed to who has too little time left to use it. When more calls come than there are places for, those
    at the front of the queue have waited longest: each would begin a call that its deadline ends, and none succeed. How
    long a call takes is known from those that succeeded: :meth:`took`.
    """

    __slots__ = ("__weakref__", "_usual_seconds", "_waiters", "max", "queue", "refused", "running")

    def __init__(self, options: ConcurrencyOptions) -> None:
        self.max = options.max
        self.queue = options.queue
        self.running = 0
        self.refused = 0
        self._usual_seconds = 0.0
        self._waiters: OrderedDict[asyncio.Future[bool], Callable[[], float]] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def wait(self, seconds_left: Callable[[], float] = lambda: inf) -> None:
        """Return when this call has its place. Raise :class:`QueueFull` at once when too many wait.

        ``seconds_left`` tells how much time the call has when its turn comes; where that is too little, it raises
        :class:`TooLate`.
        """
        if len(self._waiters) >= self.queue:
            self.refused += 1
            raise QueueFull
        turn = asyncio.get_running_loop().create_future()
        self._waiters[turn] = seconds_left
        try:
            has_a_place = await turn
        except BaseException:
            self._waiters.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.result():  # it was passed the place, and will not use it
                self.leave()
            raise
        if not has_a_place:
            raise TooLate

    def leave(self) -> None:
        """Give a place back."""
        while self._waiters:
            turn, seconds_left = self._waiters.popitem(last=False)
            if turn.done():  # it is cancelled, and its task has not heard of it yet
                continue
            in_time = seconds_left() >= TIME_FOR_A_CALL * self._usual_seconds
            self.refused += not in_time
            turn.set_result(in_time)
            if in_time:
                return
        self.running -= 1

    def took(self, seconds: float) -> None:
        """Note how long a call took that succeeded."""
        usual = self._usual_seconds
        self._usual_seconds = usual + (seconds - usual) * 0.1 if usual else seconds

    def describe(self) -> dict[str, Any]:
        return {"max": self.max, "running": self.running, "waiting": self.waiting, "refused": self.refused}
