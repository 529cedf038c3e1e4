"""HTTP servers and proxies that misbehave on purpose, written on bare asyncio streams so that no library corrects them.

A :class:`Behaviour` speaks on one accepted connection until it returns; then the connection is closed.

>>> async with hostile(always(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nok")) as server:
...     server.url
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TypeAlias

from attrs import define, field, frozen

Behaviour: TypeAlias = "Callable[[Peer], Awaitable[None]]"


@frozen
class Received:
    """A request as it arrived. ``headers`` have lower-case names."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


@define(eq=False)
class Server:
    """What a hostile server has seen."""

    scheme: str
    port: int = 0
    requests: list[Received] = field(factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"


@define(eq=False)
class Peer:
    """One accepted connection, as its behaviour sees it."""

    server: Server
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> Received:
        """Read one request and note it; ``IncompleteReadError`` when the client closed instead."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.split("\r\n")[:-2]
        method, target, _ = request_line.split(" ")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        received = Received(method, target, headers, body)
        self.server.requests.append(received)
        return received

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_client_closes(self) -> None:
        while await self.reader.read(2**16):
            pass


@asynccontextmanager
async def hostile(behaviour: Behaviour, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Serve on a free port of the loopback; leaving ends every behaviour that is still running."""
    server = Server("http" if tls is None else "https")
    speaking: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        speaking.add(task)
        server.connections += 1
        server.open += 1
        server.most_open = max(server.most_open, server.open)
        try:
            # uvloop says RuntimeError where a write comes after the client closed
            with contextlib.suppress(OSError, RuntimeError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await behaviour(Peer(server, reader, writer, server.connections))
        finally:
            server.open -= 1
            speaking.discard(task)
            writer.close()
            with contextlib.suppress(OSError, RuntimeError, asyncio.CancelledError):
                await writer.wait_closed()

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(speaking):
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)
        await listener.wait_closed()


# -- answers ---------------------------------------------------------------------------------------------------------


def ok(body: bytes = b"ok", *headers: str, status: str = "200 OK") -> bytes:
    """A flawless answer with a Content-Length."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    parts = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + parts + b"0\r\n" + trailers + b"\r\n"


def gzipped(body: bytes) -> bytes:
    return ok(gzip.compress(body, mtime=0), "Content-Encoding: gzip")


# -- behaviours ------------------------------------------------------------------------------------------------------


def always(answer: bytes) -> Behaviour:
    """Answer every request of a connection with the same bytes."""

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(answer)

    return behave


def once(answer: bytes) -> Behaviour:
    """Answer one request, then close the connection without having announced it."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    return behave


def in_turn(*behaviours: Behaviour) -> Behaviour:
    """The nth connection gets the nth behaviour, all further ones the last."""

    async def behave(peer: Peer) -> None:
        await behaviours[min(peer.number, len(behaviours)) - 1](peer)

    return behave


def drip(answer: bytes, pause_seconds: float = 0.002) -> Behaviour:
    """Answer one byte at a time."""

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            for byte in answer:
                await peer.send(bytes([byte]))
                await asyncio.sleep(pause_seconds)

    return behave


def forever(start: bytes, more: bytes) -> Behaviour:
    """Start an answer and never end it."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(start)
        while True:
            await peer.send(more)

    return behave


async def never_answers(peer: Peer) -> None:
    await peer.request()
    await peer.until_client_closes()


async def silent(peer: Peer) -> None:
    """Accept and say nothing: no TLS handshake either, where the client expects one."""
    await peer.until_client_closes()


async def babbles(peer: Peer) -> None:
    """Speak first, and not TLS."""
    await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await peer.until_client_closes()


async def closes_at_once(peer: Peer) -> None:
    """Close with the first byte the client sends still unread or half read."""
    await peer.reader.read(1)


async def closes_unanswered(peer: Peer) -> None:
    await peer.request()


def answers_then_closes_on_next_request(answer: bytes) -> Behaviour:
    """A kept-alive connection that turns out to be dead only when it is used again."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)
        await peer.request()

    return behave


async def moody(peer: Peer) -> None:
    """Behave as each request's target says."""
    answers = {
        "/ok": ok(b"ok"),
        "/chunked": chunked(b"o", b"k", trailers=b"X-Sum: 1\r\n"),
        "/gzip": gzipped(b"ok"),
        "/interim": b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok(b"ok"),
        "/extra": ok(b"ok") + b"HTTP/1.1 200 OK\r\n",
        "/close": ok(b"ok", "Connection: close"),
        "/until-close": b"HTTP/1.0 200 OK\r\n\r\nok",
        "/unannounced": ok(b"ok"),
        "/cut": b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok",
        "/garbage": b"\x16\x03\x01 what is this",
        "/nothing": b"",
    }
    while True:
        target = (await peer.request()).target
        await peer.send(answers[target])
        if target in ("/close", "/until-close", "/unannounced", "/cut", "/nothing"):
            return


# -- proxies ---------------------------------------------------------------------------------------------------------


def tunnelling(host: str, port: int, answer: bytes = b"HTTP/1.1 200 Connection established\r\n\r\n") -> Behaviour:
    """A proxy that answers a CONNECT, whatever its target, and then passes bytes to ``host:port``."""

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def behave(peer: Peer) -> None:
        await peer.request()
        peer.writer.write(answer)
        reader, writer = await asyncio.open_connection(host, port)
        try:
            with contextlib.suppress(OSError):
                await asyncio.gather(copy(peer.reader, writer), copy(reader, peer.writer))
        finally:
            writer.close()

    return behave
