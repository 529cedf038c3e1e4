"""A worker as its supervisor sees it: a process, what it has said, and questions to it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, Literal, NoReturn

import aiohttp
from attrs import frozen

from orchestrator_core.documents import problem_of
from orchestrator_core.errors import Problem, SourceUnavailable

MODULE = "orchestrator_core.workers"
LONGEST_MESSAGE = 2**30
"""A message is one line: with all problems of a configuration, or with what its secret files said."""
_SAFE_PATH = () if {"", os.getcwd()} & set(sys.path) else ("-P",)
"""Modules in the working directory must not be found by a worker when they are not by its supervisor."""
COMMAND = "X-Orchestrator-Command"
"""The header of what a supervisor has a worker do; who asks the admin listener for a page has none that arrives."""
PING = "/worker/ping"
COMMIT_SECONDS = 10.0
"""How long a worker may take for what takes it no time, such as to serve what it has prepared."""
PING_SECONDS = 2.0
"""Whoever only asks a worker waits for so long until it answers at all; ``silence`` says when it is killed."""
State = Literal["starting", "serving", "stopping", "ended"]


class StartFailed(SourceUnavailable):
    """A worker that ended, or gave up, before it served; with the problems of the configuration, if it told any."""

    def __init__(self, message: str, problems: Iterable[Problem] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class WorkerGone(SourceUnavailable):
    """A worker that did not answer, since it has ended or is about to."""


class WorkerSilent(WorkerGone):
    """A worker that did not answer in time."""


@frozen
class Reply:
    """What a worker answered."""

    status: int
    content_type: str
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@frozen
class Figures:
    """What a worker has counted: its metrics, empty without telemetry, and what became of executions for a store."""

    metrics: str
    tracking: Mapping[str, Any] | None


class Worker:
    """A process that serves. It is told what to do over a socket, at whose end it stops."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        admin: Path,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.process = process
        self.pid = process.pid
        self.slot = -1
        self.started_at = time()
        self.state: State = "starting"
        self.generation = ""
        self.opened_at = 0.0
        """When it began with the configuration that it serves, on the clock of the event loop."""
        self.kept: dict[str, Any] = {}
        """What its models had noted for a start by themselves when it was asked last; see ``Snapshot.kept``."""
        self.store: Mapping[str, Any] | None = None
        """Where it keeps executions: the store that was configured when it started, or its own memory."""
        self.figures: Figures | None = None
        """What it has left, once it has ended as it was told to."""
        self.killed_for = ""
        """Why its supervisor killed it, if it did."""
        self.problems: tuple[Problem, ...] = ()
        self._admin = admin
        self._reader = reader
        self._writer = writer
        self._session: aiohttp.ClientSession | None = None

    @classmethod
    async def spawn(cls, admin: Path, plugins_dir: Path | None, listening: Sequence[socket.socket]) -> Worker:
        """Start a process, and have it load the plugins. It inherits the sockets; ``admin`` is to be its own."""
        ours, theirs = socket.socketpair()
        with theirs:
            ours.setblocking(False)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *_SAFE_PATH, "-m", MODULE, "--channel", str(theirs.fileno())),
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *(one.fileno() for one in listening)],
            )
        worker = cls(process, admin, *await asyncio.open_unix_connection(sock=ours, limit=LONGEST_MESSAGE))
        await worker._tell({"plugins_dir": str(plugins_dir) if plugins_dir else None})
        return worker

    async def open(self, slot: int, order: Mapping[str, Any]) -> None:
        """Have it open a configuration, and wait until that is open: it can be asked then, and serves nobody yet.

        Raises :class:`StartFailed`.
        """
        self.slot = slot
        self.started_at = time()
        await self._tell({"slot": slot, "admin": str(self._admin), **order})
        await self._opened()

    async def _opened(self) -> None:
        message = await self._told("opened")
        self.serves_now(message)
        self.problems = tuple(map(problem_of, message["problems"]))
        self._session = aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(self._admin)))

    async def change_to(self, image: Mapping[str, Any], generation: str) -> None:
        """Have it open another configuration instead, before it serves. Raises :class:`StartFailed`."""
        try:
            prepared = await self.ask("POST", "/worker/prepare", image)
            if prepared.status != 200:
                problems = tuple(map(problem_of, prepared.json.get("problems", ())))
                raise StartFailed("the configuration has problems", problems)
            committed = await self.ask("POST", f"/worker/commit/{generation}")
        except WorkerGone as error:
            raise StartFailed(f"it ended before it served: {error}") from error
        if committed.status != 200:
            raise StartFailed(f"it does not have the configuration {generation}")
        self.serves_now(committed.json)

    def serves_now(self, told: Mapping[str, Any]) -> None:
        """Note what it says of the configuration that it has begun with."""
        self.generation, self.kept = told["generation"], told["kept"]
        self.opened_at = asyncio.get_running_loop().time()

    async def ping(self, seconds: float) -> None:
        """Ask whether it is there. Raises as :meth:`ask` does."""
        reply = await self.ask("GET", PING, seconds=seconds)
        self.kept = reply.json["kept"]

    async def serve(self, slots: Sequence[int]) -> None:
        """Have it accept connections on the sockets of these slots. Raises :class:`StartFailed`."""
        await self._tell({"serve": list(slots)})
        await self._told("serving")
        if self.state == "starting":  # and not told to stop meanwhile
            self.state = "serving"

    async def leaves(self) -> bool:
        """Wait until it stops or ends. Return whether it says that it stops."""
        try:
            return bool(await self._reader.readline())
        except ConnectionError:
            return False

    def hurry(self) -> None:
        """Have it give up the requests in flight, once it stops."""
        if not self._writer.is_closing():
            self._writer.write(_line({"hurry": True}))

    async def _tell(self, message: Mapping[str, Any]) -> None:
        with suppress(ConnectionError):  # its end says more, and comes next
            self._writer.write(_line(message))
            await self._writer.drain()

    async def _told(self, event: str) -> dict[str, Any]:
        try:
            line = await self._reader.readline()
        except ConnectionError:
            line = b""
        if not line:
            raise StartFailed(f"it ended before it served: {how_it_ended(await self.process.wait())}")
        message: dict[str, Any] = json.loads(line)
        if message["event"] != event:
            problems = tuple(map(problem_of, message["problems"]))
            raise StartFailed(message["message"], problems)
        return message

    async def ask(
        self, method: str, target: str, body: Any = None, *, seconds: float | None = None, page: bool = False
    ) -> Reply:
        """Ask its admin listener; for a ``page`` whose path may be anybody's, and not a command.

        Raises :class:`WorkerGone` when there is no answer, and :class:`WorkerSilent` when there is none within
        ``seconds``.
        """
        if self._session is None or self.state == "ended":
            raise WorkerGone(f"worker {self.slot} has ended")
        timeout = aiohttp.ClientTimeout(total=seconds)
        data = None if body is None else json.dumps(body).encode()
        url = f"http://worker{target}"
        headers = {"Accept": "*/*"} if page else {COMMAND: "yes"}
        try:
            async with self._session.request(
                method, url, data=data, timeout=timeout, headers=headers, allow_redirects=False
            ) as answer:
                return Reply(answer.status, answer.headers.get("Content-Type", ""), await answer.read())
        except TimeoutError as error:
            raise WorkerSilent(f"worker {self.slot} did not answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise WorkerGone(f"worker {self.slot} did not answer: {error}") from error

    async def ask_while_there(self, method: str, target: str, *, seconds: float) -> Reply:
        """Ask for a page, and wait only as long as the worker answers at all, however long the page takes."""
        asking = asyncio.create_task(self.ask(method, target, seconds=seconds, page=True))
        pinging = asyncio.create_task(self._while_there())
        try:
            await asyncio.wait({asking, pinging}, return_when=asyncio.FIRST_COMPLETED)
            return await (asking if asking.done() else pinging)
        finally:
            asking.cancel()
            pinging.cancel()
            await asyncio.gather(asking, pinging, return_exceptions=True)

    async def _while_there(self) -> NoReturn:
        while True:
            await self.ask("GET", PING, seconds=PING_SECONDS)
            await asyncio.sleep(PING_SECONDS)

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    async def ended(self) -> str:
        """Wait for the end of the process, and say how it ended."""
        code = await self.process.wait()
        await self.forget()
        return self.killed_for or how_it_ended(code)

    async def end(self, seconds: float) -> None:
        """Wait for the end, and force it after ``seconds``."""
        try:
            async with asyncio.timeout(seconds):
                await self.process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
        await self.ended()

    async def forget(self) -> None:
        """Close what is ours of it."""
        self.state = "ended"
        self._writer.close()
        if self._session is not None:
            await self._session.close()
        figures = figures_at(self._admin)
        with suppress(OSError):
            self.figures = Figures(**json.loads(figures.read_bytes()))
            figures.unlink()
        with suppress(FileNotFoundError):
            os.unlink(self._admin)


def figures_at(admin: Path) -> Path:
    """Return where a worker with this socket leaves what it has counted when it ends, as JSON."""
    return admin.with_suffix(".figures")


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def how_it_ended(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
