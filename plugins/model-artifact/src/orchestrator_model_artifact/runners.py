"""Where predictions run: on the event loop, in threads, in processes, or where what they take asks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Protocol

from orchestrator_core.plugin_api import JSON, OrchestratorError
from orchestrator_model_artifact.cost import GIL_LIMIT_SECONDS, LOOP_LIMIT_SECONDS, Cost, gil_wait_seconds
from orchestrator_model_artifact.features import Row, Score
from orchestrator_model_artifact.loading import Request
from orchestrator_model_artifact.pools import Processes, Threads, process_pool
from orchestrator_model_artifact.worker import WorkerDied

log = logging.getLogger(__name__)

SLOW_CALLS = 20
"""So many calls that take longer than a thread may hold others up have the model looked at again."""
LOOK_SECONDS = 600.0
"""How long that may take: the model may hang in it."""


class Runner(Protocol):
    """Where predictions run."""

    async def run(self, rows: Sequence[Row]) -> list[JSON]: ...


class OnLoop:
    """On the event loop, whatever it costs."""

    def __init__(self, score: Score) -> None:
        self._score = score

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        return self._score(rows)


class InThreads:
    """In the thread pool."""

    def __init__(self, score: Score, threads: Threads) -> None:
        self._score = score
        self._threads = threads

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        return await self._threads.run(self._score, rows)


class Measured:
    """On the event loop while a call is expected to be quick, in the thread pool when it is not.

    A model that turns out to be slow is looked at again: when its threads keep others waiting it moves to processes.
    They are started beside it, and it answers as before until they are there.
    """

    def __init__(self, request: Request, score: Score, threads: Threads, cost: Cost, workers: int) -> None:
        self.cost = cost
        self.processes: Processes | None = None
        self._request = request
        self._score = score
        self._threads = threads
        self._workers = workers
        self._slow_calls = 0
        self._look_again_at = SLOW_CALLS
        self._last: Sequence[Row] = ()
        self._moving: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        if self.processes is not None:
            return await self.processes.run(rows)
        if self.cost.expected(len(rows)) > LOOP_LIMIT_SECONDS:
            results, seconds = await self._threads.run(self._timed, rows)
        else:
            results, seconds = self._timed(rows)
        self.cost.observe(len(rows), seconds)
        if seconds > GIL_LIMIT_SECONDS:
            self._note_slow(rows)
        return results

    def _timed(self, rows: Sequence[Row]) -> tuple[list[JSON], float]:
        before = perf_counter()
        results = self._score(rows)
        return results, perf_counter() - before

    def _note_slow(self, rows: Sequence[Row]) -> None:
        self._slow_calls += 1
        if self._slow_calls >= self._look_again_at and self._moving is None:
            self._look_again_at = (
                self._slow_calls * 10
            )  # a model that was found fit for threads is asked ever less often
            self._last = rows
            self._moving = asyncio.create_task(self._look_again())

    async def _look_again(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                wait = await self._threads.run(gil_wait_seconds, self._score, self._last)
            if wait > GIL_LIMIT_SECONDS:
                async with process_pool(self._request, self._workers) as self.processes:
                    log.info("%s: keeps threads waiting for %.1f ms: runs in processes", self._request.name, wait * 1e3)
                    await self._closing.wait()
        except (OrchestratorError, WorkerDied) as error:
            log.warning("%s: cannot move to processes, and stays in threads: %s", self._request.name, error)
        except Exception:  # the rows failed in the model, which is no reason to move
            log.debug("%s: not measured again", self._request.name, exc_info=True)
        finally:
            self._moving = None

    async def close(self) -> None:
        """End the processes, if there are any."""
        self._closing.set()
        moving = self._moving
        if moving is None:
            return
        if self.processes is None:  # they are about to start, or to be found unnecessary
            moving.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.shield(moving)


@asynccontextmanager
async def measured(
    request: Request, score: Score, threads: Threads, cost: Cost, workers: int
) -> AsyncIterator[Measured]:
    runner = Measured(request, score, threads, cost, workers)
    try:
        yield runner
    finally:
        await runner.close()
