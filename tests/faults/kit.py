"""A service under fault: what it answers, that it mends, and that nothing more is held than before the fault."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from orchestrator_core.testing import RunningService, leaves_nothing
from orchestrator_core.testing.leaks import held
from orchestrator_core.testing.service import Answer

WITHOUT_POLICIES = "policies: {circuit_breaker: false, retry: false}"
"""What a source does by itself is looked at, call by call: a breaker would soon refuse them."""


def problem(answer: Answer, detail: str, step: str, title: str, instance: str) -> dict[str, Any]:
    """Return the whole problem document that is expected beside the answer's status."""
    return {
        "type": "about:blank",
        "title": title,
        "status": answer.status,
        "detail": detail,
        "execution_id": answer.headers["X-Execution-Id"],
        "instance": instance,
        "step": step,
    }


def amounts() -> tuple[int, int, int]:
    """Return how many tasks, threads and file descriptors there are."""
    now = held()
    return len(now.tasks), len(now.threads), len(now.descriptors)


@asynccontextmanager
async def nothing_left(what: str) -> AsyncIterator[None]:
    """As ``leaves_nothing``, but for what a loop opens for its first server and keeps."""
    async with relay("127.0.0.1", 1):
        pass
    async with leaves_nothing(what):
        yield


async def warmed(served: RunningService, target: str, at_once: int = 1) -> tuple[int, int, int]:
    """Open the client's connections, as many as calls are made at once, and return what is held then."""
    await asyncio.gather(*(served.get(target) for _ in range(at_once)), served.executions())
    return amounts()


async def no_more_than(before: tuple[int, int, int]) -> None:
    """Wait until no more tasks, threads and file descriptors are held than before, 5 s at most."""
    loop = asyncio.get_running_loop()
    patience = loop.time() + 5
    while any(more > less for more, less in zip(amounts(), before, strict=True)):
        assert loop.time() < patience, f"(tasks, threads, descriptors): {amounts()}, before {before}: {held()}"
        await asyncio.sleep(0.01)


async def meanwhile(calls: Sequence[asyncio.Future[Any]], ask: Callable[[], Awaitable[Answer]]) -> list[Answer]:
    """Ask again and again until the calls have ended; return the answers, of which there must be several."""
    answers = []
    while not all(call.done() for call in calls):
        answers.append(await ask())
        await asyncio.sleep(0.005)
    assert len(answers) > 3, "nothing else was answered meanwhile"
    return answers


async def failed_steps(served: RunningService) -> list[tuple[str, str, str]]:
    """Return the steps of the latest execution: name, status, error."""
    (latest, *_) = await served.executions(limit="1")
    return [(step["name"], step["status"], step.get("error", "")) for step in latest["steps"]]


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def skip_without(host: str, port: int, what: str) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        pytest.skip(f"{what} does not answer: {error}")


class Relay:
    """A TCP relay to a server, on a port of its own. It can refuse, swallow what is said, and cut what is open."""

    def __init__(self, host: str, port: int) -> None:
        self.port = unused_port()
        self.swallows = False
        self._target = host, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def refuse(self) -> None:
        """Listen no longer, and cut what is open."""
        if self._server is not None:
            self._server.close()
        self._server = None
        await self.cut()

    async def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    @property
    def open(self) -> int:
        return len(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = await asyncio.open_connection(*self._target)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pipe(reader, back, from_client=True), self._pipe(there, writer))
        finally:
            self._writers -= {writer, back}
            self._tasks.discard(task)

    async def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, from_client: bool = False
    ) -> None:
        # uvloop says RuntimeError where a write comes after the other side closed
        with suppress(OSError, RuntimeError):
            while data := await reader.read(65536):
                if not (from_client and self.swallows):
                    writer.write(data)
        writer.close()


@asynccontextmanager
async def relay(host: str, port: int) -> AsyncIterator[Relay]:
    way = Relay(host, port)
    await way.listen()
    try:
        yield way
    finally:
        await way.refuse()
