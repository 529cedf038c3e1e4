"""How long a stop may wait for what is under way, and the second signal that cuts it short."""

from __future__ import annotations

import asyncio
from contextlib import suppress


class Grace:
    """Time that begins to run with the first question for it. :meth:`hurry` ends it."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends: float | None = None
        self._hurried = asyncio.Event()

    @property
    def left(self) -> float:
        """Return how many seconds are left, 0 when there are none."""
        now = asyncio.get_running_loop().time()
        if self._ends is None:
            self._ends = now + self.seconds
        return 0.0 if self._hurried.is_set() else max(0.0, self._ends - now)

    def hurry(self) -> None:
        """End the time."""
        self._hurried.set()

    async def pause(self, seconds: float) -> None:
        """Wait, at most until the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(min(seconds, self.left)):
                await self._hurried.wait()
