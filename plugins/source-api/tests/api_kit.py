"""A partner API on bare asyncio streams, which sees a request as it was sent and can answer as badly as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import orjson
from attrs import define, field, frozen
from orchestrator_source_api.plugin import API
from orchestrator_source_api.source import ApiSource

from orchestrator_core.testing import open_source


@frozen
class Seen:
    """A request as it arrived: the target unread, header names in lower case."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


Answer: TypeAlias = "Callable[[Seen], bytes | Awaitable[bytes]]"


@define(eq=False)
class Partner:
    """The server. ``answer`` gives the bytes for a request; the connection closes after bytes that ask for it."""

    answer: Answer
    url: str = ""
    seen: list[Seen] = field(factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    @property
    def last(self) -> Seen:
        return self.seen[-1]


def ok(value: Any = None, *headers: str, status: int = 200, content_type: str = "application/json") -> bytes:
    """A flawless answer: a JSON value, or the bytes themselves."""
    body = value if isinstance(value, bytes) else orjson.dumps(value)
    lines = "".join(f"{line}\r\n" for line in (f"Content-Type: {content_type}", *headers))
    return f"HTTP/1.1 {status} Said\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def echo(seen: Seen) -> bytes:
    return ok({"method": seen.method, "target": seen.target, "body": seen.body.decode(), "headers": seen.headers})


@asynccontextmanager
async def partner(answer: Answer | bytes = echo, tls: ssl.SSLContext | None = None) -> AsyncIterator[Partner]:
    """Serve on a free port of the loopback. Bytes are the answer to everything."""
    server = Partner((lambda _: answer) if isinstance(answer, bytes) else answer)
    speaking: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        speaking.add(task)
        server.connections += 1
        server.open += 1
        server.most_open = max(server.most_open, server.open)
        try:
            with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while True:
                    server.seen.append(await _request(reader))
                    said = server.answer(server.last)
                    said = said if isinstance(said, bytes) else await _unless_closed(said, reader)
                    writer.write(said)
                    await writer.drain()
                    if not said or b"Connection: close" in said:
                        return
        finally:
            server.open -= 1
            speaking.discard(task)
            writer.close()
            with contextlib.suppress(OSError, RuntimeError, asyncio.CancelledError):
                await writer.wait_closed()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    scheme = "http" if tls is None else "https"
    server.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
        for task in list(speaking):
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)
        await listener.wait_closed()


async def _unless_closed(saying: Awaitable[bytes], reader: asyncio.StreamReader) -> bytes:
    """Wait for what is to be said, and no longer when the client closes."""
    said, closed = asyncio.ensure_future(saying), asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait((said, closed), return_when=asyncio.FIRST_COMPLETED)
        return said.result() if said.done() else b""
    finally:
        said.cancel()
        closed.cancel()
        await asyncio.wait((said, closed))


async def _request(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.split("\r\n")[:-2]
    method, target, _ = request_line.split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Seen(method, target, headers, await reader.readexactly(int(headers.get("content-length", 0))))


@asynccontextmanager
async def opened(
    base_url: str, operations: Mapping[str, Any] | None = None, *, folder: Path | None = None, **options: Any
) -> AsyncIterator[ApiSource]:
    """Open a source; without operations it has ``get``, a GET of ``/things/{id}``."""
    declared = {"get": {"path": "/things/{id}"}} if operations is None else operations
    given = {"base_url": base_url, **options}
    async with open_source(API, given, declared, folder=folder or Path(), name="partner") as source:
        assert isinstance(source, ApiSource)
        yield source
