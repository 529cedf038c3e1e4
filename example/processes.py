"""The partner and the model server as child processes: started, probed until they answer, watched, ended."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import NamedTuple

from example.serving import HOST, SHUTDOWN_SECONDS

ROOT = Path(__file__).parents[1]
START_SECONDS = 60.0
PROBE_SECONDS = 0.05
Report = Callable[[str], None]


class CannotStart(Exception):
    """A server does not come up, or its port is taken."""


class Server(NamedTuple):
    """A server of the example's. ``variable`` is the environment variable that configuration reads its port from."""

    name: str
    module: str
    variable: str
    port: int
    used_by: str


PARTNER = Server("partner API", "example.partner", "PARTNER_PORT", 9001, "churn and loan_approval")
MODELS = Server("model server", "example.model_server", "MODELS_PORT", 9002, "churn, recommendations and model_loading")


def wanted_port(server: Server) -> int | None:
    """Return the port that the environment asks for, if it does. Raises :class:`CannotStart`."""
    text = os.environ.get(server.variable)
    if not text:
        return None
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise CannotStart(f"{server.variable} is '{text}', which is no port")
    return int(text)


@contextmanager
def running(
    data: Path,
    ports: Mapping[Server, int | None],
    report: Report,
    partner_options: Sequence[str] = (),
) -> Iterator[Mapping[str, str]]:
    """Run both servers on files below ``data``; yield the environment variables that lead to them.

    ``ports`` says where: a number, 0 for any free port, or None for the usual one, or a free one where that is taken.
    A variable is only there when its port is not the usual one. ``report`` is told when a server ends by itself.
    Raises :class:`CannotStart`.
    """
    environment = {}
    with ExitStack() as stack:
        started = []
        for server in (PARTNER, MODELS):
            listener, moved = _listen(server, ports.get(server))
            port = listener.getsockname()[1]
            if moved:
                report(
                    f"note: port {server.port} is taken, the {server.name} listens on {port}"
                    f" (commands in another terminal need {server.variable}={port})"
                )
            if port != server.port:
                environment[server.variable] = str(port)
            options = [*(partner_options if server is PARTNER else ()), "--data", str(data)]
            started.append((server, port, stack.enter_context(_child(server, listener, options))))
        for server, port, process in started:
            _wait_until_ready(server, process, port)
        for server, _, process in started:
            stack.enter_context(_watched(server, process, report))
        yield environment


def _listen(server: Server, wanted: int | None) -> tuple[socket.socket, bool]:
    """Return a listening socket, and whether it is not where it usually is.

    It is opened here and not by the child: a port that was found free cannot be lost to somebody else in between.
    """
    try:
        return _socket(server.port if wanted is None else wanted), False
    except OSError as error:
        if wanted is None:
            return _socket(0), True
        raise CannotStart(
            f"the {server.name} cannot listen on port {wanted}: {error.strerror}\n"
            f"  = take another, or leave {server.variable} out and any free one is taken"
        ) from error


def _socket(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _child(server: Server, listener: socket.socket, options: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with listener:
        process = subprocess.Popen(
            [sys.executable, "-m", server.module, "--fd", str(listener.fileno()), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[listener.fileno()],
            start_new_session=True,  # Ctrl-C is for us: requests in flight still need the servers
            env={**os.environ, "PYTHONPATH": path},
        )
    try:
        yield process
    finally:
        assert process.stdin
        process.stdin.close()  # which the child takes as the end
        try:
            process.wait(SHUTDOWN_SECONDS + 3)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _watched(server: Server, process: subprocess.Popen[bytes], report: Report) -> Iterator[None]:
    """Report if the process ends inside the block."""
    ending = threading.Event()

    def watch() -> None:
        status = process.wait()
        if not ending.is_set():
            how = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
            report(f"error: the {server.name} {how}: {server.used_by} cannot be answered until it is started again")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        ending.set()


def _wait_until_ready(server: Server, process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(port):
        if process.poll() is not None:
            raise CannotStart(f"the {server.name} ended with status {process.returncode} before it answered")
        if time.monotonic() > deadline:
            raise CannotStart(f"the {server.name} does not answer after {START_SECONDS:g} s")
        time.sleep(PROBE_SECONDS)


def _answers(port: int) -> bool:
    with closing(HTTPConnection(HOST, port, timeout=2)) as connection:
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
