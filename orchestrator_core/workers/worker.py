"""One worker: it opens what its supervisor tells it to, serves, and does what else it is told."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.model import Configuration
from orchestrator_core.documents import problem_json
from orchestrator_core.errors import ConfigError, Problem
from orchestrator_core.garbage import freeze
from orchestrator_core.http.app import LINGER_SECONDS, closed_in_time, serve_live
from orchestrator_core.http.grace import Grace, ending_the_process
from orchestrator_core.logs import LogMask, configure_early_logging, configure_logging, logging_what_nobody_caught
from orchestrator_core.loops import run_async
from orchestrator_core.plugin_api import Telemetry
from orchestrator_core.plugins import Registry, discover
from orchestrator_core.reload import BUILTINS, open_live
from orchestrator_core.snapshot import Snapshot, masked
from orchestrator_core.tracking import ExecutionLog, tracking_json
from orchestrator_core.workers.commands import Commands
from orchestrator_core.workers.images import ordered
from orchestrator_core.workers.process import LONGEST_MESSAGE, figures_at

log = structlog.get_logger("orchestrator.worker")


def work(channel: int, begins: threading.Event) -> None:
    """Work for the supervisor at the other end of the socket with that descriptor, until it says to stop or is gone.

    ``begins`` is set when it has said what to work on.
    """
    configure_early_logging()
    with logging_what_nobody_caught():
        try:
            run_async(ending_the_process(_work(channel, begins)))
        except Exception:  # Python would print it as it is, with secrets in it
            log.exception("the worker ends")
            sys.exit(1)


async def _work(channel: int, begins: threading.Event) -> None:
    os.set_inheritable(channel, False)
    reader, writer = await asyncio.open_unix_connection(sock=_inherited(channel), limit=LONGEST_MESSAGE)
    plugins_dir = json.loads(await reader.readline())["plugins_dir"]
    registry = discover(Path(plugins_dir) if plugins_dir else None, BUILTINS)
    line = await reader.readline()
    if not line:  # a spare that was not needed
        return
    begins.set()
    order = json.loads(line)
    sockets = [[_inherited(number) for number in slot] for slot in order["sockets"]]
    loop = asyncio.get_running_loop()
    stop, serve_on = asyncio.Event(), loop.create_future()
    worker = _Worker(order, registry, sockets, writer, serve_on, stop)
    listening = asyncio.create_task(_hear(reader, worker), name="the supervisor's words")
    serving = asyncio.create_task(worker.serve(), name="serve")
    stopped = asyncio.create_task(stop.wait(), name="stop")
    # However often it comes: one that is for the whole process group comes here too, besides the supervisor's own.
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    try:
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not worker.serves:
            serving.cancel()
        await closed_in_time(serving, worker.grace)  # the supervisor sees to that too, while there is one
    finally:
        stopped.cancel()
        listening.cancel()
        writer.close()
        if worker.alone:
            shutil.rmtree(order["runtime"], ignore_errors=True)
    if serving.done() and not serving.cancelled():
        serving.result()


def _inherited(number: int) -> socket.socket:
    os.set_inheritable(number, False)
    one = socket.socket(fileno=number)
    one.setblocking(False)
    return one


async def _hear(reader: asyncio.StreamReader, worker: _Worker) -> None:
    """Pass on the slots to serve, and that it hurries; stop when the supervisor is gone, however it went."""
    try:
        while line := await reader.readline():
            message = json.loads(line)
            if message.get("hurry"):
                worker.grace.hurry()
            elif not worker.serve_on.done():  # it is cancelled when the worker stops before it serves
                worker.serve_on.set_result(message["serve"])
    except ConnectionError:
        pass
    worker.alone = True
    worker.stop.set()


class _Worker:
    def __init__(
        self,
        order: Mapping[str, Any],
        registry: Registry,
        sockets: list[list[socket.socket]],
        writer: asyncio.StreamWriter,
        serve_on: asyncio.Future[list[int]],
        stop: asyncio.Event,
    ) -> None:
        self.order = order
        self.registry = registry
        self.sockets = sockets
        self.writer = writer
        self.serve_on = serve_on
        self.stop = stop
        self.serves = False
        self.alone = False
        self.image = ordered(order["image"])
        self.folder = Path(order["folder"])
        self.configuration: Configuration = load_configuration(self.folder, image=self.image)
        self.grace = Grace(float(self.configuration.app.server.shutdown_timeout))

    async def serve(self) -> None:
        mask = LogMask(self.configuration.redactor)
        configure_logging(self.configuration.app.logging, mask, worker=self.order["slot"])
        try:
            kept = self.order["kept"]
            async with open_live(self.folder, registry=self.registry, image=self.image, kept=kept) as live:
                freeze()
                live.opening.append(lambda configuration: mask.learn(configuration.redactor))
                commands = Commands(live, self.sockets)
                admin = [_bound(self.order["admin"])]
                async with serve_live(
                    live, [], admin, self.grace, LINGER_SECONDS, commands, self.leave_figures
                ) as service:
                    self._tell_opened(live.snapshot)
                    slots = await self.serve_on
                    self.serves = True
                    await commands.serve(service.listener, slots)
                    self.tell("serving")
                    await self.stop.wait()
                    self.tell("stopping")
                    commands.accept_no_more()
        except ConfigError as error:
            problems = masked(error.problems, self.configuration.redactor)  # a store's words are not, yet
            self.tell("failed", problems, message="the configuration has problems")
            with suppress(ConnectionError):  # a supervisor that has ended needs no reason, and its copies are gone
                await self.writer.drain()

    def _tell_opened(self, snapshot: Snapshot) -> None:
        self.tell("opened", snapshot.problems, generation=snapshot.generation, kept=snapshot.kept())

    async def leave_figures(self, telemetry: Telemetry, executions: ExecutionLog) -> None:
        """Leave to the supervisor what was counted since it asked last."""
        if self.alone:  # the first one to end has removed the folder
            return
        try:
            metrics = (await telemetry.metrics()).text if telemetry.metrics is not None else ""
            figures = figures_at(Path(self.order["admin"]))
            whole = figures.with_suffix(".new")  # it may be killed meanwhile
            whole.write_text(json.dumps({"metrics": metrics, "tracking": tracking_json(executions)}))
            whole.replace(figures)
        except Exception:  # a plugin's, or a full disk: it is no reason to end otherwise
            log.exception("what the worker has counted last is lost")

    def tell(self, event: str, problems: Iterable[Problem] = (), **more: Any) -> None:
        message = {"event": event, "problems": [problem_json(problem) for problem in problems], **more}
        self.writer.write(json.dumps(message).encode() + b"\n")


def _bound(path: str) -> socket.socket:
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    one.bind(path)
    return one


__all__ = ["work"]
