"""Places: how many threads or connections may be in use at a time."""

from __future__ import annotations

import asyncio

from orchestrator_core.plugin_api import SourceUnavailable

__all__ = ["Places"]


class Places(asyncio.Semaphore):
    """``size`` places for ``what``, such as threads; who waits longer than ``wait_seconds`` for one is answered 503."""

    def __init__(self, name: str, what: str, size: int, wait_seconds: float) -> None:
        super().__init__(size)
        self.size = size
        self._name = name
        self._what = what
        self._wait_seconds = wait_seconds

    async def take(self) -> None:
        if not self.locked():
            await self.acquire()
            return
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self.acquire()
        except TimeoutError:
            raise SourceUnavailable(
                f"feast '{self._name}': all {self.size} {self._what} are in use, and none came free within"
                f" {self._wait_seconds:g} s",
                busy=True,
            ) from None

    def refuse_if_busy(self) -> None:
        """Raise :class:`SourceUnavailable` if all are taken: for who only asks whether all is well."""
        if self.locked():
            raise SourceUnavailable(f"feast '{self._name}': all {self.size} {self._what} are in use", busy=True)
