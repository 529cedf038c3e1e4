"""A worker process: it calls functions for its parent, one after another, and ends with it.

Frames of an 8-byte length and a pickle go both ways over the process's standard input and output: ``(function,
arguments)`` in, ``(error or None, result)`` out. End of input ends the process, so none outlives a killed parent;
that, and no helper process or semaphore left behind, is why this is not ``concurrent.futures``.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from orchestrator_core.plugin_api import InvalidParam, OrchestratorError, SourceError, SourceUnavailable

T = TypeVar("T")

_END_SECONDS = 5.0


class WorkerDied(Exception):
    """The process ended before it answered."""


class Worker:
    """The parent's side of a worker process. One call at a time, and a call must not be cancelled."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests = process.stdin
        self._answers = process.stdout

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """Return what the module-level function returns there; raise the :class:`OrchestratorError` it raised."""
        try:
            self._requests.write(_frame((function, args)))
            await self._requests.drain()
            size = int.from_bytes(await self._answers.readexactly(8), "big")
            error, result = pickle.loads(await self._answers.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError) as broken:
            code = await self._process.wait()
            raise WorkerDied(f"the worker process ended with code {code}") from broken
        if error is not None:
            raise _decoded(error)
        done: T = result
        return done

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    def kill(self) -> None:
        """End the process at once; a call that is under way then raises :class:`WorkerDied`."""
        with suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Let the process end; kill it when it takes too long."""
        self._requests.close()
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()


@asynccontextmanager
async def worker() -> AsyncIterator[Worker]:
    """Start a worker process, and end it."""
    started = await start_worker()
    try:
        yield started
    finally:
        await asyncio.shield(started.end())


async def start_worker() -> Worker:
    return Worker(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
    )


def main() -> None:
    """Serve the parent until the end of input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal; the parent ends us in its order
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a model prints must not end up between two frames
    while head := requests.read(8):
        function, args = pickle.loads(requests.read(int.from_bytes(head, "big")))
        try:
            answer: tuple[tuple[str, str, bool] | None, Any] = (None, function(*args))
        except BaseException as error:  # the parent raises it
            answer = (_encoded(error), None)
        try:
            answers.write(_frame(answer))
            answers.flush()
        except BrokenPipeError:  # the parent was killed meanwhile
            os._exit(1)


def _frame(value: Any) -> bytes:
    body = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    return len(body).to_bytes(8, "big") + body


def _encoded(error: BaseException) -> tuple[str, str, bool]:
    if isinstance(error, InvalidParam):
        return "param", str(error), False
    if isinstance(error, SourceUnavailable):
        return "unavailable", str(error), bool(error.started)
    if isinstance(error, OrchestratorError):
        return "source", str(error), getattr(error, "transient", False)
    return "defect", "".join(traceback.format_exception(error)), False


def _decoded(error: tuple[str, str, bool]) -> Exception:
    kind, message, transient = error
    if kind == "param":
        return InvalidParam("features", message)
    if kind == "unavailable":
        return SourceUnavailable(message, started=transient)
    if kind == "source":
        return SourceError(message, transient=transient)
    return RuntimeError(f"in the worker process:\n{message}")
