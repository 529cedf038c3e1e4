"""The way of executions to their store: a bounded queue and the one task that writes.

A request puts its run into the queue and goes on. The task takes what has gathered and has the store add it at once.
When the store takes nothing, it tries again with growing pauses; what it does not take within the retry window is
dropped, and counted. In durable mode the requests wait for the task, and all that wait share one transaction.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import islice
from time import time
from typing import TypeVar

import structlog
from attrs import define, field

from orchestrator_core.blame import why_unusable
from orchestrator_core.config.model import TrackingOptions
from orchestrator_core.errors import ConfigError, SourceUnavailable
from orchestrator_core.plugin_api import (
    AddsRuns,
    Execution,
    ExecutionStore,
    Generation,
    Page,
    Query,
    StorableRun,
    StoreContext,
)
from orchestrator_core.run import Run, clock
from orchestrator_core.stores import StoreSpec, check_opened, unusable_store
from orchestrator_core.tracking.counts import Counts

T = TypeVar("T")

log = structlog.get_logger("orchestrator.tracking")

BATCH = 1000
GATHER_SECONDS = 0.1
RECORDS_BETWEEN_PAUSES = 50
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 2.0
FLUSH_SECONDS = 2.0
"""How long a question waits for what is on its way to the store."""
OPEN_SECONDS = 10.0
"""How long the start waits for the store; then the service starts without it."""
LAST_SECONDS = 5.0
"""How long the end waits for the store to take what is left, at most."""
PRUNE_EVERY_SECONDS = 60.0
PRUNE_PAUSE_SECONDS = 0.05


@define(eq=False)
class Outage:
    """The store takes nothing, since a time on the clock."""

    since: float
    error: str
    dropped_before: int


@define(eq=False)
class _Flush:
    until: int
    done: asyncio.Future[None] = field(factory=lambda: asyncio.get_running_loop().create_future())


class Writer:
    """Takes finished runs and has the store add them. Everything but the store runs on the event loop."""

    def __init__(self, spec: StoreSpec, context: StoreContext, options: TrackingOptions) -> None:
        self.spec = spec
        self.use(options)
        self.counts = Counts()
        self.outage: Outage | None = None
        self.durable = context.durable
        self.attempted = asyncio.Event()
        self.unusable: ValueError | None = None
        self._context = context
        self._store: ExecutionStore | None = None
        self._add: Callable[[Sequence[StorableRun]], Awaitable[None]] = self._add_records
        self._queue: deque[Run] = deque()
        self._bytes = 0
        self._left = 0
        self._something = asyncio.Event()
        self._at_once = asyncio.Event()
        self._stopping = asyncio.Event()
        self._given_up = asyncio.Event()
        self._flushes: list[_Flush] = []
        self._commits: dict[str, asyncio.Future[str]] = {}
        self._generations: deque[Generation] = deque()
        self._serving: Generation | None = None
        self._told_generation = ""
        self._told_full = 0

    def use(self, options: TrackingOptions) -> None:
        """Go on with other options, which a reload can bring."""
        self.options = options
        self._most = options.queue
        self._plenty = min(BATCH, max(2, options.queue // 2))

    # --- what requests do ---------------------------------------------------------------------------------------

    def put(self, run: Run) -> bool:
        """Take a finished run. Return whether there was room; if not, it is dropped."""
        counts, queue = self.counts, self._queue
        # Those that the store is being given wait too.
        if counts.taken - self._left >= self._most or (run.taken is not None and not self._holds(run.taken.size)):
            counts.queue_full += 1
            return False
        counts.taken += 1
        queue.append(run)
        gathered = len(queue)
        if gathered == 1:
            self._something.set()
        elif gathered == self._plenty:
            self._at_once.set()
        return True

    def _holds(self, size: int) -> bool:
        """Return whether there is room for captured values, and take it."""
        if self._bytes + size > self.options.queue_size:
            return False
        self._bytes += size
        return True

    async def stored(self, run: Run) -> str:
        """Wait until a run that was put is stored, and return an empty text; or why it is not, or not in time."""
        commit: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._commits[run.id] = commit
        try:
            async with asyncio.timeout(self.options.commit_timeout):
                return await commit
        except TimeoutError:
            return self.outage.error if self.outage else "it takes too long"
        finally:
            self._commits.pop(run.id, None)

    @property
    def refuses(self) -> str:
        """Return why a durable request should not begin: the store fails, and others already wait for it."""
        if self.durable and self.outage is not None and self._left < self.counts.taken:
            return self.outage.error
        return ""

    def serve(self, generation: Generation) -> None:
        """Have the store keep a configuration that serves from now on, and know when the one before did last."""
        before = self._serving
        if before is not None and before.id != generation.id and before not in self._generations:
            self._generations.append(before)
        self._serving = generation
        self._generations.append(generation)
        self._something.set()

    # --- what is asked ------------------------------------------------------------------------------------------

    async def flush(self) -> str:
        """Wait until all that has been put is written or dropped. Return why that takes too long, or an empty text."""
        if self._left < self.counts.taken and self.outage is None:
            flush = _Flush(self.counts.taken)
            self._flushes.append(flush)
            self._at_once.set()
            done, _ = await asyncio.wait([flush.done], timeout=FLUSH_SECONDS)
            if not done and self.outage is None:
                return "the execution store takes too long"
        if self.outage is not None:
            return f"the execution store fails: {self.outage.error}"
        return "" if self._store is not None else "the execution store is not open"

    async def find(self, query: Query) -> tuple[Page | None, str]:
        return await self._ask(lambda store: store.find(query))

    async def get(self, execution_id: str) -> tuple[Execution | None, str]:
        return await self._ask(lambda store: store.get(execution_id))

    async def generation(self, generation_id: str) -> tuple[Generation | None, str]:
        for waiting in self._generations:
            if waiting.id == generation_id:
                return waiting, ""
        return await self._ask(lambda store: store.get_generation(generation_id))

    async def _ask(self, question: Callable[[ExecutionStore], Awaitable[T | None]]) -> tuple[T | None, str]:
        """Return what the store answers, and why it does not, or an empty text."""
        if self._store is None:
            return None, ""
        try:
            return await question(self._store), ""
        except Exception as error:  # whatever ails the store, what is in memory can be told
            if not isinstance(error, SourceUnavailable):
                log.exception("the execution store fails to answer", store=self.spec.kind.name)
            return None, f"the execution store fails: {_reason(error)}"

    # --- the task -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write until :meth:`stop` is called and all is written, or given up."""
        async with AsyncExitStack() as stack:
            keeping: asyncio.Task[None] | None = None
            try:
                while not (self._stopping.is_set() and not self._queue) and not self._given_up.is_set():
                    if self._store is None and not await self._open(stack):
                        continue
                    if keeping is None:
                        keeping = asyncio.create_task(self._keep_up(), name="prune executions")
                    await self._gather()
                    await self._note_generations()
                    if self._queue:
                        await self._write(self._next())
            except Exception:  # requests go on without: whoever reads the log must know
                log.exception("executions are no longer written")
            finally:
                if keeping is not None:
                    keeping.cancel()
                    await asyncio.wait([keeping])
                left = len(self._queue)
                self.counts.stopped += left
                self._settled([self._queue.popleft() for _ in range(left)], "the service stops")
                self._tell_full()

    def _next(self) -> list[Run]:
        """Take a batch from the queue."""
        queue = self._queue
        if len(queue) > BATCH:
            return [queue.popleft() for _ in range(BATCH)]
        batch = list(queue)
        queue.clear()
        return batch

    async def _open(self, stack: AsyncExitStack) -> bool:
        try:
            store = await stack.enter_async_context(self.spec.kind.open(self.spec.options, self._context))
            check_opened(store)
            self._store = store
            self._add = store.add_runs if isinstance(store, AddsRuns) else self._add_records
        except Exception as error:  # the service does without its store, whatever ails that
            if isinstance(error, ValueError) and not self.attempted.is_set():
                self.unusable = error
                self.give_up()
            else:
                self._failed(error)
                self._expire()
        else:
            self._works_again()
        self.attempted.set()
        if self._store is None:
            await self._pause(LONGEST_PAUSE_SECONDS / 4)
        return self._store is not None

    async def _gather(self) -> None:
        """Wait for runs; when nobody waits for them, a little longer, so that they go in larger batches."""
        if not self._queue and not self._stopping.is_set():
            await self._something.wait()
            self._something.clear()  # and not before: it may have come while something was written
        if not self.durable and not self._stopping.is_set() and len(self._queue) < self._plenty and not self._flushes:
            with suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._at_once.wait()
        self._at_once.clear()

    async def _write(self, batch: list[Run]) -> None:
        """Write a batch, however often it takes; what is to blame for a failure of its own goes alone.

        After a failure it goes in parts: a store that is nearly full, or too slow for all, takes some.
        """
        pause, size = FIRST_PAUSE_SECONDS, len(batch)
        while batch:
            part = batch[:size]
            try:
                await self._add(part)
            except SourceUnavailable as error:
                self._failed(error)
                size = max(1, len(part) // 2)
                batch = self._without_expired(batch)
                if self._given_up.is_set():
                    self.counts.stopped += len(batch)
                    self._settled(batch, str(error))
                    return
                await self._pause(pause)
                pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            except Exception as error:  # one of them cannot be stored: find out which
                if len(batch) > 1:
                    middle = len(part) // 2 or 1
                    await self._write(batch[:middle])
                    await self._write(batch[middle:])
                    return
                self.counts.refused += 1
                self._settled(batch, "the store refuses it")
                log.error("the store refuses an execution", execution_id=batch[0].id, error=why_unusable(error))
                return
            else:
                batch = batch[size:]
                pause, size = FIRST_PAUSE_SECONDS, size * 2
                if not batch:
                    self._works_again()
                self.counts.written += len(part)
                self._settled(part)

    async def _add_records(self, batch: Sequence[StorableRun]) -> None:
        assert self._store is not None, "a batch is written to a store that is open"
        executions: list[Execution] = []
        for start in range(0, len(batch), RECORDS_BETWEEN_PAUSES):
            executions += [run.record() for run in islice(batch, start, start + RECORDS_BETWEEN_PAUSES)]
            if start:
                await asyncio.sleep(0)  # requests go first
        await self._store.add(executions)

    async def _note_generations(self) -> None:
        while self._generations and self._store is not None:
            try:
                await self._store.add_generation(self._generations[0])
            except Exception as error:  # executions are written all the same
                generation, text = self._generations[0].id, why_unusable(error)
                if not isinstance(error, SourceUnavailable):
                    log.error("the store refuses a generation", generation=generation, error=text)
                    self._generations.popleft()
                elif self.outage is None and generation != self._told_generation:
                    log.warning("a generation is not stored; it is tried again", generation=generation, error=text)
                    self._told_generation = generation
                return
            self._generations.popleft()

    # --- outages ------------------------------------------------------------------------------------------------

    def _failed(self, error: Exception) -> None:
        text = _reason(error)
        if self.outage is None:
            self.outage = Outage(clock(), text, self.counts.dropped)
            log.error("the execution store fails; it is tried again", store=self.spec.kind.name, error=text)
        self.outage.error = text
        self._release_flushes()

    def _works_again(self) -> None:
        if self.outage is not None:
            seconds, dropped = clock() - self.outage.since, self.counts.dropped - self.outage.dropped_before
            log.warning("the execution store works again", seconds=round(seconds, 3), dropped=dropped)
            self.outage = None

    def _without_expired(self, batch: list[Run]) -> list[Run]:
        """Drop the runs that ended too long ago; return the others."""
        limit = clock() - self.options.retry_window
        expired = [run for run in batch if run.ended < limit]
        if expired:
            self.counts.store_failed += len(expired)
            self._settled(expired, "the store has failed for too long")
        return [run for run in batch if run.ended >= limit]

    def _expire(self) -> None:
        """Drop from the queue what has waited too long for a store that does not open."""
        limit = clock() - self.options.retry_window
        expired = []
        while self._queue and self._queue[0].ended < limit:
            expired.append(self._queue.popleft())
        self.counts.store_failed += len(expired)
        self._settled(expired, "the store has failed for too long")

    def _tell_full(self) -> None:
        """Say how many found the queue full since that was last said: the store need not fail for it."""
        dropped = self.counts.queue_full - self._told_full
        if dropped:
            log.warning("executions are dropped: they come faster than the store takes them", dropped=dropped)
            self._told_full += dropped

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(0.5, 1)):
                await self._given_up.wait()

    def _settled(self, batch: Sequence[Run], lost: str = "") -> None:
        """Let go of runs that are stored, or lost for a reason."""
        self._left += len(batch)
        if self._bytes:
            self._bytes -= sum(run.taken.size for run in batch if run.taken is not None)
        if self._commits:
            for run in batch:
                commit = self._commits.get(run.id)
                if commit is not None and not commit.done():
                    commit.set_result(lost)
        self._release_flushes()

    def _release_flushes(self) -> None:
        for flush in self._flushes:
            if (flush.until <= self._left or self.outage) and not flush.done.done():
                flush.done.set_result(None)
        self._flushes = [flush for flush in self._flushes if not flush.done.done()]

    # --- pruning ------------------------------------------------------------------------------------------------

    @property
    def _prunes(self) -> bool:
        return self.options.retention is not None or self.options.max_executions is not None

    async def _keep_up(self) -> None:
        """Delete what is too old, and say which configuration still serves, now and then."""
        while True:
            await self._prune()
            # Several processes share a store: they should not all come at once.
            await asyncio.sleep(PRUNE_EVERY_SECONDS * random.uniform(0.5, 1.5))
            self._tell_full()
            if self._serving is not None and self._serving not in self._generations:
                self._generations.append(self._serving)
            self._something.set()

    async def _prune(self) -> None:
        try:
            deleted = 1
            while self._store is not None and self._prunes and deleted:
                options = self.options  # a reload can change them
                before = None if options.retention is None else time() - options.retention
                deleted = await self._store.prune(before, options.max_executions)
                await asyncio.sleep(PRUNE_PAUSE_SECONDS)
        except SourceUnavailable as error:
            if self.outage is None:  # else that is told already
                name = self.spec.kind.name
                log.warning("old executions are not deleted; it is tried again", store=name, error=str(error))
        except Exception:  # executions are written all the same
            log.exception("old executions cannot be deleted")

    # --- the end ------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Have the task end once everything is written."""
        self._stopping.set()
        self._something.set()
        self._at_once.set()

    def give_up(self) -> None:
        """Have the task end now: after what the store is doing, without another attempt."""
        self._given_up.set()
        self.stop()


def _reason(error: Exception) -> str:
    return why_unusable(error) or type(error).__name__


@asynccontextmanager
async def writing(writer: Writer | None, grace_seconds: float) -> AsyncIterator[None]:
    """Run a writer until the block is left, and then until all is written, a few seconds or the grace at most.

    Raises :class:`ConfigError` when the store can never be used as it is.
    """
    if writer is None:
        yield
        return
    task = asyncio.create_task(writer.run(), name="write executions")
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(OPEN_SECONDS):
                await writer.attempted.wait()
        if writer.unusable is not None:
            raise ConfigError([unusable_store(writer.spec, writer.unusable)])
        yield
    finally:
        writer.stop()
        done, _ = await asyncio.wait([task], timeout=min(grace_seconds, LAST_SECONDS))
        if not done:
            writer.give_up()
            await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            log.error("the execution store failed when it was closed", store=writer.spec.kind.name, exc_info=error)
        if lost := writer.counts.stopped:
            log.error("executions are lost: the store did not take them before the end", executions=lost)


__all__ = ["Outage", "Writer", "writing"]
