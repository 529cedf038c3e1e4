"""Having all workers change to another configuration as one: each of them serves it, or none does."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import structlog

from orchestrator_core.config.at_start import waiting_for_a_start
from orchestrator_core.config.model import Configuration
from orchestrator_core.documents import problem_of
from orchestrator_core.errors import OrchestratorError, Problem, SourceUnavailable
from orchestrator_core.reload import Reloaded, tell_failed, tell_waiting, unread
from orchestrator_core.tasks import is_told_to_end, to_its_end
from orchestrator_core.workers.images import Taken, take
from orchestrator_core.workers.process import COMMIT_SECONDS, Reply, StartFailed, Worker

if TYPE_CHECKING:
    from orchestrator_core.workers.supervisor import Supervisor

log = structlog.get_logger("orchestrator.workers")

SOME_WORKER_SECONDS = 30.0


class Reloads:
    """The reloads of a supervisor's workers: how the ``last`` one ended, and the ``counts`` of how they did.

    ``secret_files`` are those that the folder's configuration names, and those that the workers serve with. ``opening``
    are told of a configuration before a worker opens it.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        configuration = supervisor.taken.configuration
        self.last = Reloaded(True, configuration.generation)
        self.counts = {"swapped": 0, "failed": 0}
        self.secret_files = dict(configuration.secret_files)
        self.opening: list[Callable[[Configuration], None]] = []
        self._supervisor = supervisor
        self._started = configuration.app
        self._numbers = count()
        self._reloading = asyncio.Lock()
        self._preparing: tuple[tuple[str, str], asyncio.Future[list[Reply]]] | None = None

    async def reload(self, *, force: bool = True) -> Reloaded:
        """Have all workers open the folder's configuration, and then, if all of them could, serve it.

        Without ``force`` nothing happens when nothing has changed. A worker that ends meanwhile does not count: its
        successor begins with what the others serve. When this is cancelled, all of them serve the new one or none.
        Raises :class:`SourceUnavailable` when nobody is there to prepare it or the folder cannot be read at the moment.
        """
        await self._give_up_what_is_outdated()
        async with self._reloading:
            while True:
                taken = await self._take()
                self.secret_files = {**self._supervisor.taken.configuration.secret_files, **self.secret_files}
                if not force and not self.last.failed and taken.is_like(self._supervisor.taken):
                    taken.discard()
                    return self.last
                try:
                    reloaded = await self._reload(taken)
                except OrchestratorError:
                    self.counts["failed"] += 1
                    raise
                finally:
                    self._supervisor.discard(taken)
                if reloaded is not None:
                    return reloaded

    async def _give_up_what_is_outdated(self) -> None:
        if self._preparing is not None:
            taken = await self._take()
            taken.discard()
            if self._preparing is not None and self._preparing[0] != taken.identity:
                self._preparing[1].cancel()

    async def _some_worker(self) -> None:
        """Wait for a worker to ask, if all of them have just ended."""
        loop, supervisor = asyncio.get_running_loop(), self._supervisor
        until = loop.time() + SOME_WORKER_SECONDS
        while not supervisor.serving and not supervisor.lost.is_set() and loop.time() < until:  # noqa: ASYNC110  # rare
            await asyncio.sleep(0.05)

    async def _reload(self, taken: Taken) -> Reloaded | None:
        """Prepare and swap. Return None when it was given up for a later one."""
        old = self._supervisor.taken.configuration
        for listener in self.opening:
            listener(taken.configuration)
        asked: set[Worker] = set()
        replies: list[Reply] = []
        all_ended = False
        while True:
            await self._some_worker()
            async with self._supervisor.deciding:
                workers = [worker for worker in self._supervisor.serving if worker not in asked]
                if not workers and replies:
                    return await to_its_end(asyncio.ensure_future(self._swap(taken, _problems(replies))))
            if not workers:
                raise StartFailed("no worker is there to prepare the configuration")
            if all_ended:
                workers = workers[:1]  # it may be the configuration that ends them, and the others serve meanwhile
            try:
                prepared = await self._prepare(workers, taken)
            except asyncio.CancelledError:
                await to_its_end(asyncio.ensure_future(self._abandon({*asked, *workers})))
                if is_told_to_end():
                    raise
                log.info("reload starts over: the configuration has changed again", generation=old.generation)
                return None
            asked.update(workers)
            replies += prepared
            if not replies:
                ends = await asyncio.gather(*map(_end_of, workers))
                if all_ended:
                    return self._refused((_deadly(ends[0]),))
                all_ended = True
            if refused := [reply for reply in replies if reply.status != 200]:
                await self._abandon(asked)
                problems = _problems(refused)
                if not problems and (short := next((reply for reply in refused if reply.status == 503), None)):
                    raise SourceUnavailable(short.json["detail"])  # so that whoever watches tries again
                if not problems:
                    raise OrchestratorError("a worker could not prepare the configuration: the log tells more")
                return self._refused(problems)

    def _refused(self, problems: tuple[Problem, ...]) -> Reloaded:
        failed = Reloaded(False, self._supervisor.taken.configuration.generation, problems)
        tell_failed(failed)
        return self._ended(failed)

    async def _prepare(self, workers: Sequence[Worker], taken: Taken) -> list[Reply]:
        preparing = asyncio.ensure_future(self._supervisor.ask_all(workers, "POST", "/worker/prepare", taken.order()))
        self._preparing = (taken.identity, preparing)
        try:
            return await preparing
        finally:
            self._preparing = None

    async def _abandon(self, workers: Iterable[Worker]) -> None:
        await self._supervisor.ask_all(workers, "POST", "/worker/abandon", seconds=COMMIT_SECONDS)

    def _ended(self, reloaded: Reloaded) -> Reloaded:
        self.last = reloaded
        self.counts["swapped" if reloaded.swapped else "failed"] += 1
        return reloaded

    async def _swap(self, taken: Taken, problems: tuple[Problem, ...]) -> Reloaded:
        await self._supervisor.commit(taken)
        workers = len(self._supervisor.serving)
        log.info("configuration reloaded", generation=taken.configuration.generation, workers=workers)
        self._supervisor.try_again()
        waiting = waiting_for_a_start(self._started, taken.configuration)
        reloaded = Reloaded(True, taken.configuration.generation, tuple(sorted({*problems, *waiting})))
        tell_waiting(reloaded)
        return self._ended(reloaded)

    async def _take(self) -> Taken:
        copy = self._supervisor.runtime / f"configuration-{next(self._numbers)}"
        try:
            taken = await asyncio.to_thread(take, self._supervisor.folder, copy)
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise unread(error) from error
        self.secret_files = dict(taken.configuration.secret_files)
        return taken


async def _end_of(worker: Worker) -> str:
    """Return how a worker ended that does not answer, once it has."""
    with suppress(TimeoutError):
        async with asyncio.timeout(COMMIT_SECONDS):
            return await worker.ended()
    return "no answer"


def _deadly(how: str) -> Problem:
    message = f"workers end while they open the configuration: {how}"
    hint = "a source or model of it may crash, or take too much memory: the log tells what was said last"
    return Problem(code="ORC601", message=message, hint=hint)


def _problems(replies: Iterable[Reply]) -> tuple[Problem, ...]:
    found = [problem for reply in replies for problem in reply.json.get("problems", ())]
    return tuple(sorted(set(map(problem_of, found))))


__all__ = ["Reloads"]
