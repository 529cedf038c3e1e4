"""How many calls of a source are under way at once; the others wait for their turn, in order, and not too many."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Any

from orchestrator_core.policies.options import ConcurrencyOptions

__all__ = ["Limiter", "QueueFull"]


class QueueFull(Exception):
    """There are as many that wait as may."""


class Limiter:
    """Places for so many calls, and a queue.

    Who wants a place takes it (``running += 1``) while ``running < max``, else awaits :meth:`wait`; who has one gives
    it back by :meth:`leave`. A place that is given back while somebody waits is passed on: ``running`` stays, so
    nobody who comes later gets in between.
    """

    __slots__ = ("__weakref__", "_waiters", "max", "queue", "refused", "running")

    def __init__(self, options: ConcurrencyOptions) -> None:
        self.max = options.max
        self.queue = options.queue
        self.running = 0
        self.refused = 0
        self._waiters: OrderedDict[asyncio.Future[None], None] = OrderedDict()

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def wait(self) -> None:
        """Return when this call has its place. Raise :class:`QueueFull` at once when too many wait."""
        if len(self._waiters) >= self.queue:
            self.refused += 1
            raise QueueFull
        turn = asyncio.get_running_loop().create_future()
        self._waiters[turn] = None
        try:
            await turn
        except BaseException:
            self._waiters.pop(turn, None)
            if turn.done() and not turn.cancelled():  # it was passed the place, and will not use it
                self.leave()
            raise

    def leave(self) -> None:
        """Give a place back."""
        while self._waiters:
            turn, _ = self._waiters.popitem(last=False)
            if not turn.done():  # else it is cancelled, and its task has not heard of it yet
                turn.set_result(None)
                return
        self.running -= 1

    def describe(self) -> dict[str, Any]:
        return {"max": self.max, "running": self.running, "waiting": self.waiting, "refused": self.refused}
