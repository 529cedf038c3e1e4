"""Ending a worker that answers nothing any more: its event loop is held up, or its process is stopped.

It keeps its place's socket, and so its share of the connections, which nobody would ever answer. Killed, it is started
again, and those who wait in the socket's queue are answered by its successor.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

import structlog

from orchestrator_core.workers.process import Worker, WorkerGone, WorkerSilent

__all__ = ["end_when_silent"]

log = structlog.get_logger("orchestrator.workers")

ASK_EVERY_SECONDS = 2.0


async def end_when_silent(worker: Worker, longest_silence: Callable[[], float | None]) -> None:
    """Ask a worker that serves whether it is there, for as long as it serves; kill it when it is silent for too long.

    It is asked twice for half of that: a machine that stood still makes one question look old, and not the next one.
    """
    silences = 0
    while worker.state == "serving":
        seconds = longest_silence()
        pause = ASK_EVERY_SECONDS if seconds is None else min(ASK_EVERY_SECONDS, seconds / 4)
        try:
            await worker.ping(ASK_EVERY_SECONDS if seconds is None else seconds / 2)
            silences = 0
        except WorkerSilent:
            if seconds is not None:
                silences += 1
                pause = 0.0
        except WorkerGone:
            silences = 0  # it ends, and others see to that
        if silences == 2 and seconds is not None and worker.state == "serving":
            worker.killed_for = f"no answer for {seconds:g} s"
            log.error("worker is silent and is killed", worker=worker.slot, pid=worker.pid, seconds=seconds)
            worker.signal(signal.SIGKILL)
            return
        await asyncio.sleep(pause)
