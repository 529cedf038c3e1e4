"""Feast's Redis store, read directly: prebuilt ``HMGET`` commands, pipelined on one connection.

One connection serves all requests. Replies come in the order of the commands, so a request that is given up only leaves
its reply unread, and there is no pool to wait for.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import hiredis
from attrs import field, frozen
from feast.infra.online_stores.helpers import _mmh3
from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp

from orchestrator_core.plugin_api import OrchestratorError, SourceError, SourceUnavailable
from orchestrator_source_feast.lookup import View
from orchestrator_source_feast.many import in_turns
from orchestrator_source_feast.stores import Found, NoAnswer, Read, ReadMany, age_limits, oldest

__all__ = ["Address", "RedisStore", "address"]

MOST_IN_FLIGHT: Final = 10_000
HASHES_AT_ONCE: Final = 100  # so that the answers of a long list are not all taken apart in one turn of the loop
_stamp: Callable[[bytes], Any] = Timestamp.FromString


@frozen
class Address:
    """A connection string of Feast's that this reader understands wholly."""

    host: str
    port: int
    database: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    client_name: str = ""
    tls: Mapping[str, str] | None = None
    answer_seconds: float | None = None
    connect_seconds: float | None = None

    def __str__(self) -> str:
        return f"Redis at {self.host}:{self.port}"


def address(connection_string: str) -> Address | None:
    """Parse ``host:port,db=0,ssl=true,password=…``; None when something in it only the SDK's client understands."""
    parts = connection_string.split(",")
    nodes = [part for part in parts if "=" not in part]
    given = {}
    for part in parts:
        if "=" in part:
            name, _, text = part.partition("=")
            given[name] = text
    host, colon, port = nodes[0].rpartition(":") if len(nodes) == 1 else ("", "", "")
    try:
        parsed = Address(
            host,
            int(port),
            int(given.pop("db", "0")),
            _text(given.pop("username", "")),
            _text(given.pop("password", "")),
            _text(given.pop("client_name", "")),
            _tls(given),
            _seconds(given.pop("socket_timeout", None)),
            _seconds(given.pop("socket_connect_timeout", None)),
        )
    except ValueError:
        return None
    return parsed if colon and host and not given else None


def _text(value: str) -> str:
    """Feast reads each value as JSON where it is JSON."""
    try:
        decoded = json.loads(value)
    except json.JSONDecodeError:
        return value
    return decoded if isinstance(decoded, str) else value


def _seconds(value: str | None) -> float | None:
    return None if value is None else float(value)


def _tls(given: dict[str, str]) -> Mapping[str, str] | None:
    switch = given.pop("ssl", "false")
    if switch not in ("true", "false"):
        raise ValueError(switch)
    return (
        None
        if switch == "false"
        else {name: _text(given.pop(name)) for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile") if name in given}
    )


class RedisStore:
    """The hashes of one project in a Redis server."""

    def __init__(self, where: Address, name: str, project: str, *, seconds: float, connect_seconds: float) -> None:
        self._where = where
        self._name = name
        self._project = project.encode()
        self._seconds = where.answer_seconds or seconds
        self._connect_seconds = where.connect_seconds or connect_seconds
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[Connection] | None = None
        self._closed = False

    def bind(self, views: Sequence[View], max_age_seconds: float | None) -> Read:
        reads = self._hashes(views, max_age_seconds)
        first, count = reads[0], len(reads)

        async def read_one(keys: Sequence[bytes]) -> list[Found]:
            return [first.found((await self._ask(first.command(keys[0]), 1))[0])]

        async def read_all(keys: Sequence[bytes]) -> list[Found]:
            command = b"".join([read.command(key) for read, key in zip(reads, keys, strict=True)])
            replies = await self._ask(command, count)
            return [read.found(reply) for read, reply in zip(reads, replies, strict=True)]

        return read_one if count == 1 else read_all

    def bind_many(self, views: Sequence[View], max_age_seconds: float | None) -> ReadMany:
        reads = self._hashes(views, max_age_seconds)
        count = len(reads)

        def command(keys: Sequence[bytes]) -> bytes:
            return b"".join([read.command(key) for read, key in zip(reads, keys, strict=True)])

        def found(replies: Sequence[Any]) -> list[Found] | OrchestratorError:
            try:
                return [read.found(reply) for read, reply in zip(reads, replies, strict=True)]
            except OrchestratorError as error:
                return error

        async def read_many(entities: Sequence[Sequence[bytes]]) -> Sequence[Sequence[Found] | OrchestratorError]:
            commands = await in_turns(entities, command)
            step = max(1, HASHES_AT_ONCE // count)
            replies: list[Any] = []
            for start in range(0, len(commands), step):
                part = commands[start : start + step]
                replies += await self._ask(b"".join(part), len(part) * count)
            return await in_turns((replies[at : at + count] for at in range(0, len(replies), count)), found)

        return read_many

    def _hashes(self, views: Sequence[View], max_age_seconds: float | None) -> list[_Hash]:
        limits = age_limits(views, max_age_seconds)
        refusal = f"feast '{self._name}': {self._where} answered"
        return [_Hash(view, limit, self._project, refusal) for view, limit in zip(views, limits, strict=True)]

    async def check_ready(self) -> None:
        (reply,) = await self._ask(b"*1\r\n$4\r\nPING\r\n", 1)
        if isinstance(reply, hiredis.ReplyError):
            raise SourceError(f"feast '{self._name}': {self._where} answered: {reply}")

    def refresh(self) -> None:
        """Nothing to look at: a connection that is gone is noticed."""

    async def close(self) -> None:
        self._closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.wait([self._connecting])
        if self._connection is not None:
            await self._connection.close()

    async def _ask(self, command: bytes, count: int) -> list[Any]:
        """Send one or more commands at once and return their replies, ``count`` of them.

        They are sent once more where a connection that was there before is lost. What a new one breaks off the policy
        tries again, within its budget.
        """
        for last in (False, True):
            connection = self._connection
            is_new = connection is None or connection.lost
            if connection is None or connection.lost:
                connection = await self._connect()
            try:
                return await connection.ask(command, count)
            except ConnectionLost as lost:
                message = f"feast '{self._name}': {self._where}: {lost}"
                if lost.timed_out:
                    raise NoAnswer(message) from None
                if last or is_new:
                    raise SourceError(message, transient=True) from None
        raise AssertionError("unreachable")

    async def _connect(self) -> Connection:
        """Connect once for all who wait for it."""
        if self._closed:
            raise SourceUnavailable(f"feast '{self._name}': the source is closed")
        if self._connecting is None:
            self._connecting = asyncio.get_running_loop().create_task(self._open(), name=f"feast {self._name} connect")
            self._connecting.add_done_callback(self._connected)
        return await asyncio.shield(self._connecting)

    def _connected(self, task: asyncio.Task[Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    async def _open(self) -> Connection:
        where, loop = self._where, asyncio.get_running_loop()
        connection = Connection(self._seconds)
        try:
            async with asyncio.timeout(self._connect_seconds):
                context = None if where.tls is None else await asyncio.to_thread(_context, where.tls)
                await loop.create_connection(lambda: connection, where.host, where.port, ssl=context)
                for command in _greeting(where):
                    reply = (await connection.ask(_command(command), 1))[0]
                    if isinstance(reply, hiredis.ReplyError):
                        raise SourceError(f"feast '{self._name}': {where} refused {command[0]}: {reply}")
        except BaseException as error:
            await connection.close()
            if isinstance(error, OSError | ConnectionLost):  # TimeoutError is an OSError
                reason = (
                    f"no connection within {self._connect_seconds:g} s" if isinstance(error, TimeoutError) else error
                )
                message = f"feast '{self._name}': cannot connect to {where}: {reason}"
                raise SourceError(message, transient=True) from None
            raise
        return connection


class _Hash:
    """The read of one view: an entity is a hash, with a field for each feature and one for the view's timestamp."""

    def __init__(self, view: View, limit: float | None, project: bytes, refusal: str) -> None:
        self._view = view.name
        self._refusal = refusal
        self._names = [feature.name for feature in view.features]
        self._limit = limit
        fields = [_mmh3(f"{view.table}:{name}") for name in self._names] + [f"_ts:{view.table}".encode()]
        self._head = b"*%d\r\n$5\r\nHMGET\r\n$" % (len(fields) + 2)
        self._tail = project + b"\r\n" + b"".join([b"$%d\r\n%b\r\n" % (len(field), field) for field in fields])
        self._more = len(project)

    def command(self, key: bytes) -> bytes:
        return b"%b%d\r\n%b%b" % (self._head, len(key) + self._more, key, self._tail)

    def found(self, reply: Any) -> Found:
        """Raise ``SourceError`` for an error in place of the values, which are a list of bytes and None."""
        if isinstance(reply, hiredis.ReplyError):
            raise SourceError(f"{self._refusal}: {reply}")
        stamp = reply[-1]
        if stamp is None:
            return {}, False
        if self._limit is not None:
            try:
                time = _stamp(stamp)
            except DecodeError:
                message = f"the timestamp of feature view '{self._view}' cannot be read"
                raise SourceError(f"{self._refusal}: {message}") from None
            if time.seconds + time.nanos / 1e9 < oldest(self._limit):
                return {}, True
        return dict(zip(self._names, reply)), False  # noqa: B905  # the timestamp is left over


class ConnectionLost(Exception):
    """The connection ended before the answer came."""

    def __init__(self, message: str, *, timed_out: bool = False) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Connection(asyncio.Protocol):
    """A connection whose commands wait for their replies in line."""

    def __init__(self, seconds: float) -> None:
        self.lost = False
        self._seconds = seconds
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[list[Any]], int, float]] = deque()
        self._replies: list[Any] = []
        self._unsent: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def ask(self, command: bytes, count: int) -> asyncio.Future[list[Any]]:
        if self.lost or self._transport is None:
            raise ConnectionLost("the connection was lost")
        if len(self._waiting) >= MOST_IN_FLIGHT:
            raise SourceUnavailable(f"{MOST_IN_FLIGHT} reads wait for Redis already", busy=True)
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        now = self._loop.time()
        self._waiting.append((future, count, now))
        if self._watch is None:
            self._watch = self._loop.call_at(now + self._seconds, self._look)
        self._unsent.append(command)
        if len(self._unsent) == 1:
            self._loop.call_soon(self._send)
        return future

    def _send(self) -> None:
        """Write the commands of all requests that came to it in one turn of the loop: one system call for them."""
        commands, self._unsent = self._unsent, []
        if not self.lost and self._transport is not None:
            self._transport.write(b"".join(commands))

    async def close(self) -> None:
        if self._transport is not None:
            self._lose(ConnectionLost("the connection was closed"))
            self._transport.abort()
            await self._ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # create_connection makes a Transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not False:
                self._take(reply)
        except hiredis.ProtocolError as error:
            self._give_up(ConnectionLost(f"the answer cannot be read: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._lose(ConnectionLost(f"the connection was lost{f': {error}' if error else ''}"))
        if not self._ended.done():
            self._ended.set_result(None)

    def _take(self, reply: Any) -> None:
        if not self._waiting:
            raise hiredis.ProtocolError("an answer that nobody asked for")
        future, count, _ = self._waiting[0]
        self._replies.append(reply)
        if len(self._replies) < count:
            return
        replies, self._replies = self._replies, []
        self._waiting.popleft()
        if not future.done():
            future.set_result(replies)

    def _look(self) -> None:
        """End a connection whose oldest command has waited too long. One timer looks after all of them."""
        self._watch = None
        if not self._waiting:
            return
        due = self._waiting[0][2] + self._seconds
        if self._loop.time() < due:
            self._watch = self._loop.call_at(due, self._look)
        else:
            self._give_up(ConnectionLost(f"no answer within {self._seconds:g} s", timed_out=True))

    def _give_up(self, why: ConnectionLost) -> None:
        self._lose(why)
        if self._transport is not None:
            self._transport.abort()

    def _lose(self, why: ConnectionLost) -> None:
        self.lost = True
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        while self._waiting:
            future, _, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(why)


def _command(parts: Sequence[str]) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"*%d\r\n" % len(encoded) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in encoded])


def _greeting(where: Address) -> list[list[str]]:
    commands = []
    if where.password:
        commands.append(["AUTH", *([where.username] if where.username else []), where.password])
    if where.database:
        commands.append(["SELECT", str(where.database)])
    if where.client_name:
        commands.append(["CLIENT", "SETNAME", where.client_name])
    return commands


def _context(tls: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.get("ssl_ca_certs"))
    if "ssl_certfile" in tls:
        context.load_cert_chain(tls["ssl_certfile"], tls.get("ssl_keyfile"))
    return context
