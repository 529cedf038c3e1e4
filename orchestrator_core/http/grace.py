"""How long a stop may wait for what is under way, the second signal that cuts it short, and the end of the process."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import structlog

from orchestrator_core.logs import flush_log

log = structlog.get_logger("orchestrator")

LAST_SECONDS = 5.0
"""How long threads may take to end, when all else has."""


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


async def ending_the_process(serving: Coroutine[Any, Any, None]) -> None:
    """Serve, and end the process soon after that, though threads of it go on.

    Python waits for every thread, and one in which a library or a model hangs may never end.
    """
    await serving
    last = threading.Timer(LAST_SECONDS, _end)
    last.daemon = True
    last.start()


def _end() -> None:
    ours = (threading.main_thread(), threading.current_thread())
    names = [thread.name for thread in threading.enumerate() if thread not in ours and not thread.daemon]
    log.error("stopping, though threads do not end", threads=names)
    flush_log()
    os._exit(0)
