"""Starting and stopping the service: its listeners, its signals, its watch on the configuration."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from pathlib import Path
from time import time
from typing import Any

import structlog
from attrs import evolve, frozen

from orchestrator_core.config.model import ServerOptions
from orchestrator_core.garbage import freeze
from orchestrator_core.http.admin import AdminApp
from orchestrator_core.http.connection import Limits
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.listener import Handler, Listener, listen
from orchestrator_core.http.public import PublicApp
from orchestrator_core.http.sockets import room_for
from orchestrator_core.http.telemetry import ServiceState, open_telemetry
from orchestrator_core.logs import LogMask
from orchestrator_core.plugin_api import Generation, StoreContext, Telemetry
from orchestrator_core.reload import Live, open_live
from orchestrator_core.run import clock
from orchestrator_core.snapshot import Snapshot
from orchestrator_core.tasks import beside
from orchestrator_core.tracking import ExecutionLog, Writer, writing
from orchestrator_core.watching import outliving

log = structlog.get_logger("orchestrator")

ADMIN_GRACE_SECONDS = 1.0
CLOSING_SECONDS = 10.0
"""How long sources may take to close, after the requests in flight have had their time."""
_POLL_SECONDS = 0.05
LINGER_SECONDS = 0.5
"""How long a stop leaves connections open that have no request: time for one that is on its way."""


@frozen
class Service:
    """A running service and where it listens: ``(host, port)`` as bound; ``admin`` is None when it is off."""

    live: Live
    executions: ExecutionLog
    limit: Limit
    listener: Listener
    public: tuple[str, int]
    admin: tuple[str, int] | None

    @property
    def url(self) -> str:
        return url_of(self.public)

    @property
    def admin_url(self) -> str:
        return url_of(self.admin) if self.admin else ""


def url_of(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


@asynccontextmanager
async def run_service(
    folder: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    admin_port: int | None = None,
    plugins_dir: Path | None = None,
    watch: bool | None = None,
    plugins: Mapping[str, object] | None = None,
    grace: Grace | None = None,
    linger_seconds: float = 0.0,
    alone: bool = False,
) -> AsyncIterator[Service]:
    """Open the configuration and serve it until the block is left. Arguments win over ``config.yaml``.

    At the end requests in flight may take as long as ``grace`` says, by default ``server.shutdown_timeout``, and
    connections without one stay open for ``linger_seconds``. A service that is ``alone`` in its process tells the
    garbage collector so. Raises :class:`ConfigError` when the configuration has
    errors and ``OSError`` when a port is taken.
    """
    async with open_live(folder, plugins_dir, plugins) as live:
        if alone:
            freeze()
        options = live.snapshot.configuration.app
        address = (host or options.server.host, options.server.port if port is None else port)
        admin_address = (options.admin.host, options.admin.port if admin_port is None else admin_port)
        watches = options.reload.watch if watch is None else watch
        async with (
            serve_live(
                live, address, admin_address if options.admin.enabled else None, grace, linger_seconds
            ) as service,
            beside(live.watch(), "watch configuration") if watches else nullcontext(),
        ):
            yield service


@asynccontextmanager
async def serve_live(
    live: Live,
    public_at: tuple[str, int] | Sequence[socket.socket],
    admin_at: tuple[str, int] | Sequence[socket.socket] | None,
    grace: Grace | None = None,
    linger_seconds: float = 0.0,
    wrap_admin: Callable[[Handler], Handler] = lambda pages: pages,
    served: Callable[[Telemetry, ExecutionLog], Awaitable[None]] | None = None,
) -> AsyncIterator[Service]:
    """Serve an open configuration at addresses, or on sockets that are bound already, until the block is left.

    ``wrap_admin`` may add pages to the admin listener's. ``served`` is awaited when the last request has been answered,
    and again when the store has its execution, which it may wait for.
    """
    options = live.snapshot.configuration.app
    grace = grace or Grace(float(options.server.shutdown_timeout))
    limits = _limits(options.server)
    writer = _writer(live)
    executions = ExecutionLog(options.tracking.capacity, live.registry.observers, writer)
    async with AsyncExitStack() as stack:
        state = ServiceState(live, executions)
        telemetry = await stack.enter_async_context(open_telemetry(live, state))
        if served is not None:
            stack.push_async_callback(served, telemetry, executions)
        await stack.enter_async_context(writing(writer, float(options.server.shutdown_timeout)))
        if served is not None:
            stack.push_async_callback(served, telemetry, executions)
        public = PublicApp(live, executions, telemetry)
        state.limit = public.limit
        admin = None
        if admin_at is not None:
            handle, admin_grace = wrap_admin(AdminApp(live, executions, telemetry).handle), Grace(ADMIN_GRACE_SECONDS)
            admin = await stack.enter_async_context(listen(handle, admin_at, Limits(), admin_grace))
        stack.callback(public.stop)
        listener = await stack.enter_async_context(
            listen(
                public.handle,
                public_at,
                limits,
                grace,
                linger_seconds,
                public.limit,
                public.malformed,
                public.cut,
            )
        )
        stack.callback(public.drain)
        yield Service(live, executions, public.limit, listener, listener.address, admin.address if admin else None)


def _limits(options: ServerOptions) -> Limits:
    limits = Limits.of(options)
    room = room_for(limits.max_connections)
    if room < limits.max_connections:
        log.warning("fewer connections are taken than server.max_connections: the system allows no more", taken=room)
    return evolve(limits, max_connections=room)


def _writer(live: Live) -> Writer | None:
    """Return what writes to the store that the configuration asks for, and have it follow the configuration."""
    store = live.snapshot.store  # and not the snapshot, which must go when it is replaced
    tracking = live.snapshot.configuration.app.tracking
    writer = None
    if store is not None:
        context = StoreContext(live.folder, tracking.mode == "durable")
        writer = Writer(store, context, tracking)
        writer.serve(_generation(live.snapshot))

    def follow(snapshot: Snapshot) -> None:
        now = snapshot.configuration.app.tracking
        if (snapshot.store, now.mode) != (store, tracking.mode):
            log.warning("tracking.store and tracking.mode change when the service is started the next time")
        if writer is not None:
            writer.use(now)
            writer.serve(_generation(snapshot))

    live.swapped.append(follow)
    return writer


def _generation(snapshot: Snapshot) -> Generation:
    """Return what is kept of a configuration: its text too where values are captured, to explain them by."""
    configuration = snapshot.configuration
    texts: dict[str, str] = {}
    if any(ready.capture is not None and ready.capture.values for ready in snapshot.plans.values()):
        texts = {name: configuration.redactor(text) for name, text in configuration.texts.items()}
    return Generation(snapshot.generation, time(), dict(configuration.files), texts)


async def serve(
    folder: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    admin_port: int | None = None,
    plugins_dir: Path | None = None,
    ready: Callable[[Service], None] | None = None,
    mask: LogMask | None = None,
    shutdown_seconds: float,
) -> None:
    """Serve until SIGINT or SIGTERM, and a second one ends requests in flight; SIGHUP reloads.

    ``ready`` is called once both listeners accept; what is not open yet when the service is to stop is given up.
    ``mask`` learns the secrets of every configuration before it is opened: what opens may log them.
    """
    stop, grace, opened, hangup = asyncio.Event(), Grace(shutdown_seconds), asyncio.Event(), asyncio.Event()
    on_stop_signals(stop, grace)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hangup.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, _cannot_restart)  # which would end the process
    where: dict[str, Any] = {"host": host, "port": port, "admin_port": admin_port, "plugins_dir": plugins_dir}

    async def serve_until_stopped() -> None:
        async with (
            run_service(folder, **where, grace=grace, linger_seconds=LINGER_SECONDS, alone=True) as service,
            _reloading_on(hangup, service.live),
        ):
            opened.set()
            if mask:
                service.live.opening.append(lambda configuration: mask.learn(configuration.redactor))
            if ready:
                ready(service)
            await stop.wait()
            log.info("stopping", running=service.live.snapshot.running)

    serving = asyncio.create_task(serve_until_stopped(), name="serve")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    patience = CLOSING_SECONDS
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if opened.is_set() and stop.is_set():
            await closed_in_time(serving, grace)
            patience = 0
    finally:
        stopped.cancel()
        if not serving.done():
            serving.cancel()
            await asyncio.wait({serving}, timeout=patience)
    if serving.done() and not serving.cancelled():
        serving.result()


def _cannot_restart() -> None:
    log.warning("SIGUSR2 is ignored: one process cannot replace itself, as serve with --workers does")


async def closed_in_time(serving: asyncio.Task[None], grace: Grace) -> None:
    """Wait until what serves has ended: as long as the grace says, and then for what is to be closed."""
    while not serving.done() and grace.left:
        await asyncio.wait({serving}, timeout=min(_POLL_SECONDS, grace.left))
    await asyncio.wait({serving}, timeout=CLOSING_SECONDS)
    if not serving.done():
        log.error("stopping, though something that was opened does not close")


@asynccontextmanager
async def _reloading_on(hangup: asyncio.Event, live: Live) -> AsyncIterator[None]:
    """Reload on each SIGHUP, and for one that came while the service started, which ``hangup`` tells."""
    loop = asyncio.get_running_loop()
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        task = loop.create_task(outliving(live.reload), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    if hangup.is_set():
        reload()
    try:
        yield
    finally:
        loop.add_signal_handler(signal.SIGHUP, hangup.set)
        for task in reloads:
            task.cancel()
        await asyncio.gather(*reloads, return_exceptions=True)


STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
ONE_SIGNAL_SECONDS = 0.1
"""Signals so close to each other are one: ``timeout`` and others send theirs to the process and to its group."""


def on_stop_signals(stop: asyncio.Event, grace: Grace) -> None:
    """Set ``stop`` on the first signal to stop, and end the grace on the second."""
    first_at = 0.0

    def stopped() -> None:
        nonlocal first_at
        if not stop.is_set():
            first_at = clock()
        elif clock() - first_at > ONE_SIGNAL_SECONDS:
            log.warning("stopping at once: requests in flight are cancelled")
            grace.hurry()
        stop.set()

    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stopped)
