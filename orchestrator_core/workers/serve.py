"""``orchestrator serve --workers N``: sockets, supervisor, admin listener, signals, watch."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import structlog
from attrs import frozen

from orchestrator_core.config.model import Configuration
from orchestrator_core.errors import Problem
from orchestrator_core.http.accepting import BACKLOG
from orchestrator_core.http.app import ADMIN_GRACE_SECONDS, on_stop_signals, url_of
from orchestrator_core.http.connection import Limits
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.listener import listen
from orchestrator_core.http.sockets import bind_shared
from orchestrator_core.leases import runtime_folder
from orchestrator_core.logs import LogMask
from orchestrator_core.tasks import beside
from orchestrator_core.watching import watch
from orchestrator_core.workers.admin import MergedAdmin
from orchestrator_core.workers.images import take
from orchestrator_core.workers.process import StartFailed
from orchestrator_core.workers.supervisor import Supervisor

log = structlog.get_logger("orchestrator.workers")

MOST_FOR_A_CORE = 4
"""Of more workers than that for each core nobody has more than memory and connections to lose."""
LONGEST_FOLDER = 60
"""A Unix socket's path has 107 bytes at most."""


@frozen
class Ready:
    """All workers serve: at which addresses, and with which warnings. ``admin_url`` is empty when it is off."""

    configuration: Configuration
    problems: tuple[Problem, ...]
    url: str
    admin_url: str
    pids: tuple[int, ...]


async def serve_workers(
    folder: Path,
    configuration: Configuration,
    workers: int,
    *,
    host: str | None = None,
    port: int | None = None,
    admin_port: int | None = None,
    plugins_dir: Path | None = None,
    ready: Callable[[Ready], None] | None = None,
    mask: LogMask | None = None,
) -> None:
    """Serve with several processes until SIGINT or SIGTERM; a second one ends requests in flight.

    SIGHUP reloads, SIGUSR2 replaces the workers one by one. Raises :class:`ConfigError` with the problems of the
    configuration, ``OSError`` when a port is taken, and :class:`StartFailed` when the workers end by themselves.
    """
    options = configuration.app
    if workers > MOST_FOR_A_CORE * (cores := os.cpu_count() or 1):
        log.warning("so many workers take turns at few cores", workers=workers, cores=cores)
    stop, grace = asyncio.Event(), Grace(float(options.server.shutdown_timeout))
    on_stop_signals(stop, grace)
    early: list[int] = []
    for number in (signal.SIGHUP, signal.SIGUSR2):
        asyncio.get_running_loop().add_signal_handler(number, early.append, number)
    async with AsyncExitStack() as stack:
        shared = bind_shared(host or options.server.host, options.server.port if port is None else port, workers)
        for sockets in shared:
            for one in sockets:
                stack.enter_context(one)
                one.listen(BACKLOG)
        runtime = stack.enter_context(_runtime())
        taken = await asyncio.to_thread(take, folder, Path(runtime) / "configuration")
        named = taken.configuration.app.plugins_dir
        plugins_dir = plugins_dir or (folder / named if named else None)
        supervisor = Supervisor(taken, shared, Path(runtime), plugins_dir)
        admin_url = ""
        if options.admin.enabled:
            address = (options.admin.host, options.admin.port if admin_port is None else admin_port)
            handle = MergedAdmin(supervisor).handle
            admin = await stack.enter_async_context(listen(handle, address, Limits(), Grace(ADMIN_GRACE_SECONDS)))
            admin_url = url_of(admin.address)
        stack.push_async_callback(supervisor.stop, grace)
        if not await _unless(stop, supervisor.start()):
            return
        reloads = supervisor.reloads
        if mask:
            reloads.opening.append(lambda configuration: mask.learn(configuration.redactor))
        await stack.enter_async_context(_signals(supervisor, early))
        if options.reload.watch:
            watching = watch(supervisor.folder, lambda: reloads.secret_files, lambda: reloads.reload(force=False))
            await stack.enter_async_context(beside(watching, "watch configuration"))
        if ready:
            bound = shared[0][0].getsockname()
            pids = tuple(worker.pid for worker in supervisor.serving)
            problems = reloads.last.problems
            ready(Ready(supervisor.taken.configuration, problems, url_of(bound[:2]), admin_url, pids))
        await _unless(stop, supervisor.lost.wait())
        if not stop.is_set():
            raise StartFailed("no worker can be started any more")
        log.info("stopping", workers=len(supervisor.serving))


async def _unless(stop: asyncio.Event, doing: Coroutine[Any, Any, Any]) -> bool:
    """Wait for something, or give it up when the service is to stop. Return whether it was done."""
    task, stopped = asyncio.create_task(doing), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        done = task.done()
        if not done:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
    if done:
        task.result()
    return done


def _runtime() -> tempfile.TemporaryDirectory[str]:
    """Return a folder for the configuration that is served and the workers' sockets. Raises :class:`StartFailed`."""
    try:
        return tempfile.TemporaryDirectory(prefix="workers-", dir=_base())
    except OSError as error:
        hint = "workers share a folder: set ORCHESTRATOR_RUNTIME_DIR to one that can be written"
        reason = error.strerror or str(error)
        message = f"{error.filename}: {reason}" if error.filename else reason
        raise StartFailed(f"{message}\n  = {hint}") from error


def _base() -> Path:
    folder = runtime_folder()
    return folder if len(str(folder)) <= LONGEST_FOLDER else Path(tempfile.gettempdir())


def _nothing() -> None:
    """Ignore a signal that comes when the service stops."""


@asynccontextmanager
async def _signals(supervisor: Supervisor, early: Collection[int]) -> AsyncIterator[None]:
    """Heed SIGHUP and SIGUSR2, also those that came early: while the workers started."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    async def outliving(what: str, doing: Coroutine[Any, Any, Any]) -> None:
        try:
            await doing
        except Exception:  # nobody waits for the outcome of a signal but the log
            log.exception("what a signal asked for failed", action=what)

    def on(number: int, what: str, action: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        def act() -> None:
            task = loop.create_task(outliving(what, action()), name=what)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        loop.add_signal_handler(number, act)
        if number in early:
            act()

    on(signal.SIGHUP, "reload", supervisor.reloads.reload)
    on(signal.SIGUSR2, "restart", supervisor.restart)
    try:
        yield
    finally:
        for number in (signal.SIGHUP, signal.SIGUSR2):
            loop.add_signal_handler(number, _nothing)
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
