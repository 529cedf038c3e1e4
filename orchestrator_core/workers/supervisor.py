"""Starting workers, starting them again when they end, replacing them in turn, and stopping."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from attrs import define, field, frozen

from orchestrator_core.errors import ConfigError, Problem
from orchestrator_core.http.app import CLOSING_SECONDS
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.sockets import refuse_new
from orchestrator_core.reload import Reloaded
from orchestrator_core.workers.images import Taken
from orchestrator_core.workers.process import COMMIT_SECONDS, Figures, Reply, StartFailed, Worker, WorkerGone
from orchestrator_core.workers.reloads import Reloads
from orchestrator_core.workers.silence import end_when_silent
from orchestrator_core.workers.spare import Spare

log = structlog.get_logger("orchestrator.workers")

MOST_FAILED_STARTS = 5
FIRST_BACKOFF_SECONDS = 0.1
LONGEST_BACKOFF_SECONDS = 1.0
SOON_SECONDS = 1.0
"""A worker that ends sooner than this after it began to serve is started again with a pause, which grows."""
TOLD_BY_OTHERS = "somebody told it to stop"
LONGEST_GAP_SECONDS = 15.0
"""After so long without a worker in a place, those who wait there to be connected are left to the others."""
SERVE_SECONDS = 10.0
"""How long a worker that has opened may take until it accepts connections: a reload waits for it then."""


@define(eq=False)
class Slot:
    """The place of one worker: its sockets outlive it, and those who wait in their queues wait for its successor.

    ``last`` is the one that was here until it ended, if it served what the others serve.
    """

    index: int
    sockets: list[socket.socket] = field(repr=False)
    worker: Worker | None = None
    last: Worker | None = field(default=None, repr=False)
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
        self.reloads = Reloads(self)
        self.left: list[Callable[[int, Figures], None]] = []
        """Are told the process id and the figures of each worker that has ended and left them."""
        self.stopping = False
        self.lost = asyncio.Event()
        self._numbers = count()
        self.deciding = asyncio.Lock()  # held while it is decided which configuration a worker serves
        self._restarting = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting: set[Worker] = set()
        self._ending: set[Worker] = set()
        self._spare = Spare(self._spawn, self._run)

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
        self.reloads.last = Reloaded(True, self.taken.configuration.generation, tuple(problems))
        self._keep_spare()
        return tuple(problems)

    async def _start_in(self, slot: Slot) -> None:
        self._install(slot, await self._start(slot))

    async def _start(self, slot: Slot, *, again: bool = False) -> Worker:
        """Start a worker on what the others serve, ``again`` with the same models, such as images of containers.

        Raises :class:`StartFailed`, also when the service is to stop.
        """
        self._refuse_when_stopping()
        worker = await self._spare.take() or await self._spawn()
        self._starting.add(worker)
        try:
            self._refuse_when_stopping()
            with self._in_use() as taken:
                worker.store = taken.configuration.app.tracking.store
                kept = self._kept(slot, taken) if again else {}
                await worker.open(slot.index, {**self._order(taken), "kept": kept})
                if worker.generation != taken.configuration.generation:
                    raise StartFailed("it has opened another configuration than the others serve")
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

    def _kept(self, slot: Slot, taken: Taken) -> dict[str, Any]:
        """Return what the models of a worker in the slot begin with: as those do that serve, or did.

        What a tag of an image stands for by now may be one that a reload has refused, or that nobody has asked for.
        """
        kept: dict[str, Any] = {}
        known = [*self.serving, *([slot.last] if slot.last is not None else [])]
        for worker in sorted(known, key=lambda one: one.opened_at):
            if worker.generation == taken.configuration.generation:
                kept |= worker.kept
        return kept

    @contextmanager
    def _in_use(self) -> Iterator[Taken]:
        """Yield what the workers serve now, whose copy stays until it is read."""
        taken = self.taken
        taken.users += 1
        try:
            yield taken
        finally:
            taken.users -= 1
            self.discard(taken)

    async def _serves(self, worker: Worker, slot: Slot, taken: Taken) -> bool:
        """Have a worker serve what it has opened. Return whether it does: not if the others have reloaded since."""
        async with self.deciding:
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

    def discard(self, taken: Taken) -> None:
        if taken is not self.taken and not taken.users:
            taken.discard()

    def _install(self, slot: Slot, worker: Worker) -> None:
        slot.worker, slot.last = worker, None
        slot.failed_starts, slot.failed, slot.lent = 0, False, False
        self._run(self._attend(slot, worker), f"worker {slot.index}")
        if self._spare.keeps:
            self._keep_spare()

    def _keep_spare(self) -> None:
        if not self.stopping:
            self._spare.keep()

    def _run(self, coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

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
        slot.worker, slot.last = None, worker
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
        if worker.figures is not None:
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
                    self._install(slot, await self._start(slot, again=True))
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
        async with self.deciding:
            slot.lent = slot.worker is None
            await self.ask_all(self.serving, "POST", f"/worker/accept/{slot.index}", seconds=COMMIT_SECONDS)

    def try_again(self) -> None:
        for slot in self.slots:
            if slot.failed:
                slot.failed, slot.failed_starts = False, 0
                self._run(self._revive(slot, 0.0), f"worker {slot.index}")

    # --- changing to another configuration, as ``reloads`` decides -----------------------------------------------

    async def commit(self, taken: Taken) -> None:
        """Have all workers serve what they have prepared; one that does not is replaced."""
        workers = self.serving
        before, self.taken = self.taken, taken
        self.discard(before)
        for slot in self.slots:
            slot.last = None
        target = f"/worker/commit/{taken.configuration.generation}"
        replies = await asyncio.gather(
            *(worker.ask("POST", target, seconds=COMMIT_SECONDS) for worker in workers), return_exceptions=True
        )
        for worker, reply in zip(workers, replies, strict=True):
            if isinstance(reply, Reply) and reply.status == 200:
                worker.serves_now(reply.json)
            elif worker.state == "serving":
                log.error("worker does not serve the new configuration and is replaced", worker=worker.slot)
                worker.killed_for, worker.kept = "it did not serve the new configuration", {}
                worker.signal(signal.SIGKILL)

    async def ask_all(
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
            await self._spare.drop()  # it has the plugins as they were
            try:
                return await self._replace_all()
            except asyncio.CancelledError:  # whoever has asked for it is gone, or the service stops
                log.warning("restart is given up, the workers that are not replaced yet keep serving")
                raise
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
            if old is not None:  # it is seen to its end, also when the restart is given up meanwhile
                ending = self._stop(old, self._shutdown_seconds + CLOSING_SECONDS)
                await asyncio.shield(self._run(ending, f"stop worker {slot.index}"))
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
        await self._spare.drop()
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


def _told_of(error: Exception) -> tuple[Problem, ...]:
    return error.problems if isinstance(error, StartFailed) else ()


def _with_problems(event: str, error: Exception) -> str:
    return "\n".join((event, *map(str, _told_of(error))))
