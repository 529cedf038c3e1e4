"""Starting workers, starting them again when they end, and having all of them change as one."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from attrs import define, field, frozen

from orchestrator_core.config.at_start import waiting_for_a_start
from orchestrator_core.config.model import Configuration
from orchestrator_core.documents import problem_of
from orchestrator_core.errors import ConfigError, OrchestratorError, Problem, SourceUnavailable
from orchestrator_core.http.app import CLOSING_SECONDS
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.sockets import refuse_new
from orchestrator_core.reload import Reloaded, tell_failed, tell_waiting, unread
from orchestrator_core.tasks import to_its_end
from orchestrator_core.workers.images import Taken, take
from orchestrator_core.workers.process import Reply, StartFailed, Worker, WorkerGone
from orchestrator_core.workers.silence import end_when_silent

log = structlog.get_logger("orchestrator.workers")

MOST_FAILED_STARTS = 5
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 1.0
SOON_SECONDS = 1.0
"""A worker that ends sooner than this after it began to serve is started again with a pause, which grows."""
TOLD_BY_OTHERS = "somebody told it to stop"
LONGEST_GAP_SECONDS = 15.0
"""After so long without a worker in a place, those who wait there to be connected are left to the others."""
COMMIT_SECONDS = 10.0
SERVE_SECONDS = 10.0
"""How long a worker that has opened may take until it accepts connections: a reload waits for it then."""
SOME_WORKER_SECONDS = 30.0


@define(eq=False)
class Slot:
    """The place of one worker: its sockets outlive it, and those who wait in their queues wait for its successor."""

    index: int
    sockets: list[socket.socket] = field(repr=False)
    worker: Worker | None = None
    restarts: int = 0
    failed_starts: int = 0
    short_lives: int = 0
    failed: bool = False
    lent: bool = False
    last_exit: str = ""
    changing: asyncio.Lock = field(factory=asyncio.Lock, repr=False)


@frozen
class Restarted:
    """How a rolling restart ended: how many workers were replaced, and why the others were not."""

    workers: int
    error: str = ""
    problems: tuple[Problem, ...] = ()


class Supervisor:
    """Holds the sockets and the processes that serve on them. It opens no source itself."""

    def __init__(
        self, taken: Taken, sockets: Sequence[list[socket.socket]], runtime: Path, plugins_dir: Path | None
    ) -> None:
        self.folder = taken.configuration.folder
        self.slots = [Slot(index, list(one)) for index, one in enumerate(sockets)]
        self.runtime = runtime
        self.plugins_dir = plugins_dir
        self.taken = taken
        self.started = taken.configuration.app
        self.last = Reloaded(True, taken.configuration.generation)
        self.reloads = {"swapped": 0, "failed": 0}
        self.secret_files = dict(taken.configuration.secret_files)
        self.opening: list[Callable[[Configuration], None]] = []
        self.left: list[Callable[[int, str], None]] = []
        """Are told the process id and the metrics of each worker that has ended and left them."""
        self.stopping = False
        self.lost = asyncio.Event()
        self._numbers = count()
        self._lock = asyncio.Lock()  # held while it is decided which configuration a worker serves
        self._reloading = asyncio.Lock()
        self._restarting = asyncio.Lock()
        self._preparing: tuple[tuple[str, str], asyncio.Future[list[Reply]]] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[Worker] = set()
        self._ending: set[Worker] = set()
        self._spare: Worker | None = None
        self._keeps_spare = False

    @property
    def serving(self) -> list[Worker]:
        return [slot.worker for slot in self.slots if slot.worker is not None and slot.worker.state == "serving"]

    @property
    def alive(self) -> set[int]:
        """Return the process ids of the workers that have not ended, as far as they serve or did."""
        return {worker.pid for worker in (*(slot.worker for slot in self.slots), *self._ending) if worker is not None}

    # --- starting ------------------------------------------------------------------------------------------------

    async def start(self) -> tuple[Problem, ...]:
        """Start every worker; returns the warnings of the configuration.

        Raises :class:`ConfigError` with its problems, or :class:`StartFailed` when a worker ends without any. Those
        that serve by then, or when this is cancelled, are there for :meth:`stop` to end.
        """
        async with self._restarting:  # a restart that is asked for meanwhile would start them a second time
            results = await asyncio.gather(*(self._start_in(slot) for slot in self.slots), return_exceptions=True)
        failed = [result for result in results if result is not None]
        if failed:
            told = [problem for error in failed if isinstance(error, StartFailed) for problem in error.problems]
            if told:
                raise ConfigError(told)
            raise failed[0]
        problems = sorted({problem for worker in self.serving for problem in worker.problems})
        self.last = Reloaded(True, self.taken.configuration.generation, tuple(problems))
        self._keep_spare()
        return self.last.problems

    async def _take(self) -> Taken:
        copy = self.runtime / f"configuration-{next(self._numbers)}"
        try:
            taken = await asyncio.to_thread(take, self.folder, copy)
        except OSError as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise unread(error) from error
        self.secret_files = dict(taken.configuration.secret_files)
        return taken

    async def _start_in(self, slot: Slot) -> None:
        self._install(slot, await self._start(slot))

    async def _start(self, slot: Slot) -> Worker:
        """Start a worker on what the others serve. Raises :class:`StartFailed`, also when the service is to stop."""
        self._refuse_when_stopping()
        worker = await self._take_spare() or await self._spawn()
        self._starting.add(worker)
        try:
            self._refuse_when_stopping()
            with self._in_use() as taken:
                worker.store = taken.configuration.app.tracking.store
                await worker.open(slot.index, self._order(taken))
            while not await self._serves(worker, slot, taken):
                with self._in_use() as taken:
                    await worker.change_to(taken.order(), taken.configuration.generation)
            return worker
        except BaseException:
            self._tell_to_stop(worker)
            self._run(self._stop(worker, CLOSING_SECONDS), f"stop worker {slot.index}")
            raise
        finally:
            self._starting.discard(worker)

    @contextmanager
    def _in_use(self) -> Iterator[Taken]:
        """Yield what the workers serve now, whose copy stays until it is read."""
        taken = self.taken
        taken.users += 1
        try:
            yield taken
        finally:
            taken.users -= 1
            self._discard(taken)

    async def _serves(self, worker: Worker, slot: Slot, taken: Taken) -> bool:
        """Have a worker serve what it has opened. Return whether it does: not if the others have reloaded since."""
        async with self._lock:
            if taken is not self.taken:
                return False
            try:
                async with asyncio.timeout(SERVE_SECONDS):
                    await worker.serve([slot.index, *(each.index for each in self.slots if each.lent)])
            except TimeoutError:
                raise StartFailed(f"it did not serve within {SERVE_SECONDS:g} s") from None
            self._refuse_when_stopping()
            return True

    def _refuse_when_stopping(self) -> None:
        if self.stopping:
            raise StartFailed("the service is stopping")

    async def _spawn(self) -> Worker:
        admin = self.runtime / f"{next(self._numbers)}.sock"
        return await Worker.spawn(admin, self.plugins_dir, [one for slot in self.slots for one in slot.sockets])

    def _order(self, taken: Taken) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "image": taken.order(),
            "runtime": str(self.runtime),
            "sockets": [[one.fileno() for one in slot.sockets] for slot in self.slots],
        }

    def _discard(self, taken: Taken) -> None:
        if taken is not self.taken and not taken.users:
            taken.discard()

    def _install(self, slot: Slot, worker: Worker) -> None:
        slot.worker = worker
        slot.failed_starts, slot.failed, slot.lent = 0, False, False
        self._run(self._attend(slot, worker), f"worker {slot.index}")
        if self._keeps_spare:
            self._keep_spare()

    # --- the spare: a process with the plugins loaded, which takes most of the time that a start takes ------------

    def _keep_spare(self) -> None:
        self._keeps_spare = not self.stopping
        if self._keeps_spare and self._spare is None:
            self._run(self._make_spare(), "spare worker")

    async def _make_spare(self) -> None:
        try:
            spare = await self._spawn()
        except OSError as error:  # such as too many processes: a start does without it
            log.warning("no spare worker", error=str(error))
            return
        if self._spare is None and self._keeps_spare:
            self._spare = spare
        else:
            await _end_spare(spare)

    async def _take_spare(self) -> Worker | None:
        spare, self._spare = self._spare, None
        if spare is not None and spare.process.returncode is not None:
            await spare.forget()
            return None
        return spare

    async def _drop_spare(self) -> None:
        self._keeps_spare = False
        if spare := await self._take_spare():
            await _end_spare(spare)

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- starting again ------------------------------------------------------------------------------------------

    async def _attend(self, slot: Slot, worker: Worker) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        asking = asyncio.create_task(end_when_silent(worker, self._longest_silence), name=f"ask worker {slot.index}")
        try:
            leaves = await worker.leaves() and worker.state == "serving"
            how = TOLD_BY_OTHERS if leaves else await worker.ended()
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        self._tell_figures(worker)
        if slot.worker is not worker or self.stopping:
            return
        slot.worker = None
        slot.last_exit = how
        if leaves:  # its successor serves beside it, while it finishes what it is doing
            self._tell_to_stop(worker)
            ending = self._stop(worker, self._shutdown_seconds + CLOSING_SECONDS)
            self._run(ending, f"stop worker {slot.index}")
        event = "worker stops and is replaced" if leaves else "worker ended and is started again"
        log.error(event, worker=slot.index, pid=worker.pid, how=how)
        slot.short_lives = slot.short_lives + 1 if loop.time() - began < SOON_SECONDS else 0
        await self._revive(slot, pause_after(slot.short_lives))

    def _tell_figures(self, worker: Worker) -> None:
        if worker.figures:
            for listener in self.left:
                listener(worker.pid, worker.figures)

    def _longest_silence(self) -> float | None:
        seconds = self.taken.configuration.app.server.worker_timeout
        return None if seconds is None else float(seconds)

    async def _revive(self, slot: Slot, pause_seconds: float) -> None:
        while not self.stopping:
            await asyncio.sleep(pause_seconds)
            async with slot.changing:
                if slot.worker is not None or self.stopping:
                    return
                late = asyncio.get_running_loop().call_later(LONGEST_GAP_SECONDS, self._lend, slot)
                try:
                    self._install(slot, await self._start(slot))
                except (StartFailed, OSError) as error:
                    if self.stopping:
                        return
                    slot.failed_starts += 1
                    slot.last_exit = str(error)
                    log.error(
                        _with_problems("worker did not start", error),
                        worker=slot.index,
                        error=str(error),
                        tries=slot.failed_starts,
                    )
                else:
                    slot.restarts += 1
                    return
                finally:
                    late.cancel()
            if slot.failed_starts >= MOST_FAILED_STARTS:
                await self._give_up(slot)
                return
            pause_seconds = pause_after(slot.short_lives + slot.failed_starts)

    async def _give_up(self, slot: Slot) -> None:
        """Start no more workers in the slot until a reload or a restart."""
        slot.failed = True
        log.error("worker is given up until the next reload", worker=slot.index, others=len(self.serving))
        await self._have_others_accept(slot)
        if all(each.failed for each in self.slots):
            self.lost.set()

    def _lend(self, slot: Slot) -> None:
        log.warning("worker starts late and the others accept its connections", worker=slot.index)
        self._run(self._have_others_accept(slot), f"lend {slot.index}")

    async def _have_others_accept(self, slot: Slot) -> None:
        """Leave the slot's connections to the other workers, and to those that come while it has no worker."""
        async with self._lock:
            slot.lent = slot.worker is None
            await self._ask_all(self.serving, "POST", f"/worker/accept/{slot.index}", seconds=COMMIT_SECONDS)

    def _try_again(self) -> None:
        for slot in self.slots:
            if slot.failed:
                slot.failed, slot.failed_starts = False, 0
                self._run(self._revive(slot, 0.0), f"worker {slot.index}")

    # --- reloading -----------------------------------------------------------------------------------------------

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
                self.secret_files = {**self.taken.configuration.secret_files, **self.secret_files}
                if not force and not self.last.failed and taken.is_like(self.taken):
                    taken.discard()
                    return self.last
                try:
                    reloaded = await self._reload(taken)
                except OrchestratorError:
                    self.reloads["failed"] += 1
                    raise
                finally:
                    self._discard(taken)
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
        loop = asyncio.get_running_loop()
        until = loop.time() + SOME_WORKER_SECONDS
        while not self.serving and not self.lost.is_set() and loop.time() < until:  # noqa: ASYNC110  # it is rare
            await asyncio.sleep(0.05)

    async def _reload(self, taken: Taken) -> Reloaded | None:
        """Prepare and swap. Return None when it was given up for a later one."""
        old = self.taken.configuration
        for listener in self.opening:
            listener(taken.configuration)
        asked: set[Worker] = set()
        replies: list[Reply] = []
        all_ended = False
        while True:
            await self._some_worker()
            async with self._lock:
                workers = [worker for worker in self.serving if worker not in asked]
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
                task = asyncio.current_task()
                if task is not None and task.cancelling():
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
        failed = Reloaded(False, self.taken.configuration.generation, problems)
        tell_failed(failed)
        return self._ended(failed)

    async def _prepare(self, workers: Sequence[Worker], taken: Taken) -> list[Reply]:
        preparing = asyncio.ensure_future(self._ask_all(workers, "POST", "/worker/prepare", taken.order()))
        self._preparing = (taken.identity, preparing)
        try:
            return await preparing
        finally:
            self._preparing = None

    async def _abandon(self, workers: Iterable[Worker]) -> None:
        await self._ask_all(workers, "POST", "/worker/abandon", seconds=COMMIT_SECONDS)

    def _ended(self, reloaded: Reloaded) -> Reloaded:
        self.last = reloaded
        self.reloads["swapped" if reloaded.swapped else "failed"] += 1
        return reloaded

    async def _swap(self, taken: Taken, problems: tuple[Problem, ...]) -> Reloaded:
        await self._commit(taken)
        log.info("configuration reloaded", generation=taken.configuration.generation, workers=len(self.serving))
        self._try_again()
        waiting = waiting_for_a_start(self.started, taken.configuration)
        reloaded = Reloaded(True, taken.configuration.generation, tuple(sorted({*problems, *waiting})))
        tell_waiting(reloaded)
        return self._ended(reloaded)

    async def _commit(self, taken: Taken) -> None:
        workers = self.serving
        before, self.taken = self.taken, taken
        self._discard(before)
        target = f"/worker/commit/{taken.configuration.generation}"
        replies = await asyncio.gather(
            *(worker.ask("POST", target, seconds=COMMIT_SECONDS) for worker in workers), return_exceptions=True
        )
        for worker, reply in zip(workers, replies, strict=True):
            if isinstance(reply, Reply) and reply.status == 200:
                worker.generation = taken.configuration.generation
            elif worker.state == "serving":
                log.error("worker does not serve the new configuration and is replaced", worker=worker.slot)
                worker.killed_for = "it did not serve the new configuration"
                worker.signal(signal.SIGKILL)

    async def _ask_all(
        self, workers: Iterable[Worker], method: str, target: str, body: Any = None, *, seconds: float | None = None
    ) -> list[Reply]:
        """Return the replies of those who gave one."""
        replies = await asyncio.gather(
            *(worker.ask(method, target, body, seconds=seconds) for worker in workers), return_exceptions=True
        )
        for reply in replies:
            if isinstance(reply, BaseException) and not isinstance(reply, WorkerGone):
                raise reply
        return [reply for reply in replies if isinstance(reply, Reply)]

    # --- restarting ----------------------------------------------------------------------------------------------

    async def restart(self) -> Restarted:
        """Replace the workers one by one, each when its successor serves beside it on the same sockets."""
        async with self._restarting:
            await self._drop_spare()  # it has the plugins as they were
            try:
                return await self._replace_all()
            finally:
                self._keep_spare()

    async def _replace_all(self) -> Restarted:
        for number, slot in enumerate(self.slots):
            async with slot.changing:
                old = slot.worker
                try:
                    self._install(slot, await self._start(slot))
                except (StartFailed, OSError) as error:
                    if not self.stopping:
                        event = _with_problems("restart failed, the other workers keep serving", error)
                        log.error(event, worker=slot.index, error=str(error))
                    return Restarted(number, f"worker {slot.index}: {error}", _told_of(error))
            if old is not None:
                await self._stop(old, self._shutdown_seconds + CLOSING_SECONDS)
        log.info("restarted", workers=len(self.slots))
        return Restarted(len(self.slots))

    @property
    def _shutdown_seconds(self) -> float:
        return float(self.taken.configuration.app.server.shutdown_timeout)

    async def _stop(self, worker: Worker, seconds: float) -> None:
        """Have a worker end, and force it after ``seconds``. When this is cancelled, :meth:`stop` waits for the end."""
        self._tell_to_stop(worker)
        await worker.end(seconds)
        self._tell_figures(worker)  # before metrics that are asked for meanwhile count it among the gone, with less
        self._ending.discard(worker)

    def _tell_to_stop(self, worker: Worker) -> None:
        if worker.state in ("starting", "serving"):
            worker.state = "stopping"
            worker.signal(signal.SIGTERM)
        self._ending.add(worker)

    # --- stopping ------------------------------------------------------------------------------------------------

    async def stop(self, grace: Grace) -> None:
        """Let requests in flight finish, as long as ``grace`` says, and end every worker."""
        self.stopping = True
        await self._drop_spare()
        for slot in self.slots:
            for one in slot.sockets:
                refuse_new(one)
        in_place = (slot.worker for slot in self.slots if slot.worker is not None)
        workers = {*self._starting, *in_place, *self._ending}
        ending = asyncio.gather(*(self._stop(worker, grace.seconds + CLOSING_SECONDS) for worker in workers))
        while not ending.done() and grace.left:
            await grace.pause(0.05)
        if not ending.done():
            for worker in workers:
                worker.hurry()
            await asyncio.wait([ending], timeout=CLOSING_SECONDS)
        if not ending.done():
            for worker in workers:
                worker.signal(signal.SIGKILL)
        await ending
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in list(self._ending):  # spawned meanwhile: it has opened nothing
            worker.signal(signal.SIGKILL)
            await worker.ended()


def pause_after(failures: int) -> float:
    """Return how long to wait before a worker is started again that has ended soon so many times in a row."""
    return min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** min(failures - 1, 16)) if failures else 0.0


async def _end_spare(spare: Worker) -> None:
    spare.signal(signal.SIGKILL)  # it has opened nothing
    await spare.ended()


def _told_of(error: Exception) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, StartFailed) else ()


def _with_problems(event: str, error: Exception) -> str:
    return "\n".join((event, *map(str, _told_of(error))))


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
