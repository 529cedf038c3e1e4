"""A worker's process in reserve: it has loaded the plugins, which takes most of the time that a start takes."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from orchestrator_core.workers.process import Worker

log = structlog.get_logger("orchestrator.workers")


class Spare:
    """Keeps one such process. ``spawn`` makes it, in a task that ``run`` starts and gives a name."""

    def __init__(
        self, spawn: Callable[[], Awaitable[Worker]], run: Callable[[Coroutine[Any, Any, None], str], object]
    ) -> None:
        self.keeps = False
        self._spawn = spawn
        self._run = run
        self._worker: Worker | None = None

    def keep(self) -> None:
        """Have one from now on, until :meth:`drop`. To be called again after one was taken."""
        self.keeps = True
        if self._worker is None:
            self._run(self._make(), "spare worker")

    async def _make(self) -> None:
        try:
            worker = await self._spawn()
        except OSError as error:  # such as too many processes: a start does without it
            log.warning("no spare worker", error=str(error))
            return
        if self._worker is None and self.keeps:
            self._worker = worker
        else:
            await _end(worker)

    async def take(self) -> Worker | None:
        """Return it, to start with; None if there is none, or it has ended."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.process.returncode is not None:
            await worker.forget()
            return None
        return worker

    async def drop(self) -> None:
        """End it, and have none."""
        self.keeps = False
        if worker := await self.take():
            await _end(worker)


async def _end(worker: Worker) -> None:
    worker.signal(signal.SIGKILL)  # it has opened nothing
    await worker.ended()


__all__ = ["Spare"]
