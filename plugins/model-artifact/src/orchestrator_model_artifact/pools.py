"""Where predictions run when not on the event loop: bounded threads, bounded processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from threading import Thread, current_thread
from typing import Any, TypeAlias, TypeVar

from attrs import define

from orchestrator_core.plugin_api import JSON, Identity, ModelFacts, SourceError, SourceUnavailable
from orchestrator_model_artifact.features import Row
from orchestrator_model_artifact.loading import LoadedModel, Request, load
from orchestrator_model_artifact.worker import Worker, WorkerDied, start_worker

log = logging.getLogger(__name__)

T = TypeVar("T")
Loaded: TypeAlias = "tuple[ModelFacts, Identity, tuple[str, ...]]"
"""What a worker process tells of the model it has loaded: facts, identity, doubts."""

GIVEN_UP_SECONDS = 30.0
"""How long a call may go on that nobody waits for any more, before its process or thread is said to hang."""

CLOSE_SECONDS = 5.0
"""How long a model that is closed is waited for while it still computes. One that hangs would never be done."""


MOST_LEFT = 5
"""So many pools of one model may be left to themselves at a time: each has a thread, and keeps a copy of the model."""

_left: dict[str, list[list[Thread]]] = {}
"""The threads of such pools, by the model's name: nobody else knows of them, and they are the whole process's."""


class Threads:
    """A bounded thread pool. A call that is cancelled while it waits is never run; one that runs is run to its end."""

    def __init__(self, name: str, workers: int) -> None:
        self.name = name
        self.workers = workers
        self.started: list[Thread] = []
        self.closed = False
        self.executor = ThreadPoolExecutor(
            workers, thread_name_prefix=f"model-{name}", initializer=lambda: self.started.append(current_thread())
        )
        self._running: set[Future[Any]] = set()
        self._given_up: set[Future[Any]] = set()
        self._lost = asyncio.Event()

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        if self.closed:
            raise _closed()
        future = self.executor.submit(function, *args)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.closed and task is not None and not task.cancelling():
                raise _closed() from None
            if future.running():
                asyncio.get_running_loop().call_later(GIVEN_UP_SECONDS, self._look_at, future)
            raise

    def _look_at(self, future: Future[Any]) -> None:
        """Note that a thread hangs whose call has been given up, if it still is at that call."""
        if future.done() or self.closed:
            return
        self._given_up.add(future)
        hanging = sum(not each.done() for each in self._given_up)
        log.warning("%s: %d of %d threads hang in a prediction", self.name, hanging, self.workers)
        if hanging == self.workers:
            self._lost.set()

    async def lost(self) -> str:
        """Wait until all threads hang, and say so."""
        await self._lost.wait()
        return f"{self.workers} of {self.workers} threads hang in a prediction"

    async def idle(self) -> bool:
        """Wait for what still runs, but not for long. Return whether nothing does any more."""
        if running := [asyncio.wrap_future(future) for future in set(self._running)]:
            _, hanging = await asyncio.wait(running, timeout=CLOSE_SECONDS)
            return not hanging
        return True


@asynccontextmanager
async def thread_pool(name: str, workers: int) -> AsyncIterator[Threads]:
    """Open a pool whose threads start when they are needed, and are gone when it is closed, unless the model hangs.

    Raises :class:`SourceError` when it has hung too often.
    """
    left = [pool for pool in _left.pop(name, ()) if any(thread.is_alive() for thread in pool)]
    if left:
        _left[name] = left
    if len(left) >= MOST_LEFT:
        raise SourceError(f"it hangs in {len(left)} threads already that were left to themselves: restart the service")
    threads = Threads(name, workers)
    try:
        yield threads
    finally:
        threads.closed = True
        threads.executor.shutdown(wait=False, cancel_futures=True)
        if await asyncio.shield(threads.idle()):
            threads.executor.shutdown(wait=True)
        else:
            _left.setdefault(name, []).append(threads.started)
            log.warning("%s: a thread of the model still runs; it is left to itself", name)


def _closed() -> SourceError:
    return SourceError("the model was taken out of service during the call", transient=True)


@define
class _Slot:
    """The place of one worker process; empty after one that could not be replaced, until a call needs it."""

    worker: Worker | None = None

    async def fill(self, request: Request) -> None:
        """Start a process and load the model in it. Raises :class:`WorkerDied` or what the load raised."""
        worker = self.worker = await start_worker()
        try:
            await worker.call(load_in_worker, request)
        except BaseException:
            self.worker = None
            worker.kill()
            await asyncio.shield(worker.end())
            raise

    def kill(self) -> None:
        """End the process, which the call that is under way is then told."""
        if self.worker is not None:
            self.worker.kill()


class Processes:
    """A bounded pool of worker processes that each hold the model. One that dies is replaced at once."""

    def __init__(self, request: Request, slots: Sequence[_Slot], loaded: Loaded) -> None:
        self.facts, self.identity, self.doubts = loaded
        self._request = request
        self._idle: asyncio.LifoQueue[_Slot] = asyncio.LifoQueue()
        self._calls: set[asyncio.Task[list[JSON]]] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._closed = False
        for slot in slots:
            self._idle.put_nowait(slot)

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        """Score the rows in the next free process. Raises :class:`SourceUnavailable` when that process dies."""
        slot = await self._idle.get()
        while not self._closed and slot.worker is not None and slot.worker.has_ended:
            self._replace(slot)  # it had nothing to do, and has ended as for want of memory
            slot = await self._idle.get()
        if self._closed:
            self._idle.put_nowait(slot)  # for the next one that waits, who is told the same
            raise _closed()
        # The answer has to be read even when the caller has given up: a task of its own does.
        call = asyncio.create_task(self._score(slot, rows))
        self._calls.add(call)
        call.add_done_callback(self._finished)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            if not call.done():  # were it left to hang, its place would be lost
                late = asyncio.get_running_loop().call_later(GIVEN_UP_SECONDS, slot.kill)
                call.add_done_callback(lambda _: late.cancel())
            raise

    async def lost(self) -> str:
        """Wait for good: a process that hangs is replaced."""
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    async def idle(self) -> None:
        """Begin nothing more, and wait for what still runs, but not for long."""
        self._closed = True
        for task in self._replacing:
            task.cancel()
        if running := {*self._calls, *self._replacing}:
            await asyncio.wait(running, timeout=CLOSE_SECONDS)

    async def _score(self, slot: _Slot, rows: Sequence[Row]) -> list[JSON]:
        is_free = True
        try:
            try:
                if slot.worker is None:
                    await slot.fill(self._request)
            except WorkerDied as died:
                raise SourceUnavailable(f"{died}: the next call starts another") from died
            assert slot.worker is not None
            try:
                return await slot.worker.call(score_in_worker, rows)
            except WorkerDied as died:
                if self._closed:
                    raise _closed() from died
                is_free = False
                self._replace(slot)
                raise SourceUnavailable(f"{died}: another one is started") from died
        finally:
            if is_free:
                self._idle.put_nowait(slot)

    def _replace(self, slot: _Slot) -> None:
        slot.worker = None
        task = asyncio.create_task(self._replaced(slot))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replaced(self, slot: _Slot) -> None:
        try:
            await slot.fill(self._request)
        except Exception as error:  # the call that gets the empty place tries again, and is told
            log.warning("%s: a worker process that died cannot be replaced: %s", self._request.name, error)
        finally:
            self._idle.put_nowait(slot)

    def _finished(self, call: asyncio.Task[list[JSON]]) -> None:
        self._calls.discard(call)
        if not call.cancelled():
            call.exception()  # looked at, so that asyncio does not report one that nobody waits for any more


@asynccontextmanager
async def process_pool(request: Request, workers: int) -> AsyncIterator[Processes]:
    """Start the processes, load the model in each, and end them all."""
    slots = [_Slot() for _ in range(workers)]
    pool: Processes | None = None
    try:
        for slot in slots:
            slot.worker = await start_worker()
        answers = [slot.worker.call(load_in_worker, request) for slot in slots if slot.worker]
        loaded, *_ = await asyncio.gather(*answers)
        pool = Processes(request, slots, loaded)
        yield pool
    finally:
        await asyncio.shield(_end(pool, slots))


async def _end(pool: Processes | None, slots: Sequence[_Slot]) -> None:
    if pool is not None:
        await pool.idle()
    await asyncio.gather(*(slot.worker.end() for slot in slots if slot.worker))


# --- in the worker process -----------------------------------------------------------------------------------------

_loaded: list[LoadedModel] = []


def load_in_worker(request: Request) -> Loaded:
    """Load the model that this process is for."""
    _loaded[:] = [load(request)]
    return _loaded[0].facts, _loaded[0].identity, _loaded[0].doubts


def score_in_worker(rows: Sequence[Row]) -> list[JSON]:
    return _loaded[0].score(rows)
