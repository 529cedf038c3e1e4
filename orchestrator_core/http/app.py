"""Starting and stopping the service: its listeners, its signals, its watch on the configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import time

import structlog
from attrs import frozen

from orchestrator_core.config.model import LoggingOptions
from orchestrator_core.config.secrets import Redactor, without_passwords
from orchestrator_core.http.admin import AdminApp
from orchestrator_core.http.listener import listen
from orchestrator_core.http.public import PublicApp
from orchestrator_core.plugin_api import Generation, StoreContext
from orchestrator_core.reload import Live, open_live
from orchestrator_core.snapshot import Snapshot
from orchestrator_core.tracking import ExecutionLog, Writer, writing

log = structlog.get_logger("orchestrator")

MAX_ADMIN_BODY = 2**20


@frozen
class Service:
    """A running service and where it listens: ``(host, port)`` as bound; ``admin`` is None when it is off."""

    live: Live
    executions: ExecutionLog
    public: tuple[str, int]
    admin: tuple[str, int] | None

    @property
    def url(self) -> str:
        return _url(self.public)

    @property
    def admin_url(self) -> str:
        return _url(self.admin) if self.admin else ""


def _url(address: tuple[str, int]) -> str:
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
) -> AsyncIterator[Service]:
    """Open the configuration and serve it until the block is left. Arguments win over ``config.yaml``.

    Raises :class:`ConfigError` when the configuration has errors and ``OSError`` when a port is taken.
    """
    async with open_live(folder, plugins_dir, plugins) as live:
        options = live.snapshot.configuration.app
        writer = _writer(live)
        executions = ExecutionLog(options.tracking.capacity, live.registry.observers, writer)
        public = PublicApp(live, executions)
        address = (host or options.server.host, options.server.port if port is None else port)
        admin_address = (options.admin.host, options.admin.port if admin_port is None else admin_port)
        max_body = int(options.server.max_body_size)
        grace = float(options.server.shutdown_timeout)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(writing(writer, grace))
            bound = await stack.enter_async_context(listen(public.handle, address, max_body, grace))
            admin_bound = None
            if options.admin.enabled:
                admin = AdminApp(live, executions)
                admin_bound = await stack.enter_async_context(listen(admin.handle, admin_address, MAX_ADMIN_BODY, 1.0))
            await stack.enter_async_context(_watching(live, options.reload.watch if watch is None else watch))
            stack.callback(public.stop)
            yield Service(live, executions, bound, admin_bound)


def _writer(live: Live) -> Writer | None:
    """Return what writes to the store that the configuration asks for, and have it follow the configuration."""
    first = live.snapshot
    tracking = first.configuration.app.tracking
    writer = None
    if first.store is not None:
        context = StoreContext(first.configuration.folder, tracking.mode == "durable")
        writer = Writer(first.store, context, tracking)
        writer.serve(_generation(first))

    def follow(snapshot: Snapshot) -> None:
        now = snapshot.configuration.app.tracking
        if (snapshot.store, now.mode) != (first.store, tracking.mode):
            log.warning("tracking.store and tracking.mode change when the service is started the next time")
        if writer is not None:
            writer.options = now
            writer.serve(_generation(snapshot))

    live.swapped.append(follow)
    return writer


def _generation(snapshot: Snapshot) -> Generation:
    """Return what is kept of a configuration: its text too where values are captured, to explain them by."""
    configuration = snapshot.configuration
    texts: dict[str, str] = {}
    if any(ready.capture is not None for ready in snapshot.plans.values()):
        texts = {name: without_passwords(configuration.redactor(text)) for name, text in configuration.texts.items()}
    return Generation(snapshot.generation, time(), dict(configuration.files), texts)


@asynccontextmanager
async def _watching(live: Live, enabled: bool) -> AsyncIterator[None]:
    if not enabled:
        yield
        return
    task = asyncio.create_task(live.watch(), name="watch configuration")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def serve(
    folder: Path,
    *,
    host: str | None = None,
    port: int | None = None,
    admin_port: int | None = None,
    plugins_dir: Path | None = None,
    ready: Callable[[Service], None] | None = None,
    mask: LogMask | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM; SIGHUP reloads. ``ready`` is called once both listeners accept.

    ``mask`` learns the secrets of every configuration that is swapped in.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with run_service(folder, host=host, port=port, admin_port=admin_port, plugins_dir=plugins_dir) as service:
        reloads: set[asyncio.Task[object]] = set()

        def reload() -> None:
            task: asyncio.Task[object] = loop.create_task(service.live.reload())
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        loop.add_signal_handler(signal.SIGHUP, reload)
        if mask:
            service.live.swapped.append(lambda snapshot: mask.learn(snapshot.configuration.redactor))
        if ready:
            ready(service)
        await stop.wait()
        log.info("stopping", running=service.live.snapshot.running)


class LogMask:
    """Masks the secrets of the configuration that serves, and of those before: requests may still be on them."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor

    def learn(self, redactor: Redactor) -> None:
        self._redactor = Redactor.of({*self._redactor.values, *redactor.values})

    def __call__(self, text: str) -> str:
        return self._redactor(text)


def configure_logging(options: LoggingOptions, redact: Callable[[str], str]) -> None:
    """Send the log to standard error, as lines for people or as JSON, with every known secret masked."""

    def mask(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        return {key: redact(value) if isinstance(value, str) else value for key, value in event.items()}

    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if options.format == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
            exception_formatter=structlog.dev.plain_traceback,
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            mask,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, options.level.upper())),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
