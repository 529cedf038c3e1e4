"""A listener: aiohttp's server on one or more sockets, its connections, and its end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import structlog
from aiohttp import web

from orchestrator_core.http.accepting import BACKLOG, Acceptor
from orchestrator_core.http.answers import Answer
from orchestrator_core.http.connection import (
    LINGERING_SECONDS,
    SWEEP_SECONDS,
    Connection,
    Limits,
    Malformed,
)
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.sockets import of_no_address
from orchestrator_core.http.turned_away import RefusedConnection, SpareConnection, refuse_at_once

log = structlog.get_logger("orchestrator.http")

NO_ADDRESS = ("", 0)
KEEPALIVE_SECONDS = 75.0
FIRST_REQUEST_SECONDS = 1.0
"""How long a connection that has sent nothing yet is waited for when its listener stops."""
_POLL_SECONDS = 0.02
_CANCEL_SECONDS = 0.05
_CUT_SECONDS = 0.5
SWEPT_AT_ONCE = 5
"""So many connections are looked at without a pause; more, where that would take more than ``MOST_SLICES`` a second."""
MOST_SLICES = 400
SPARE = 32
"""So many connections more may ask for the service's health."""
TOLD_SECONDS = 10.0
"""The log says at most so often how many connections were refused."""

Handler = Callable[[web.BaseRequest], Awaitable[Answer]]


def _tell_nobody(execution_id: str, status: int, detail: str) -> None:
    """For a listener that counts and logs no requests."""


class _Server(web.Server):
    """aiohttp's server, with a look at each connection about once a second."""

    closing = False

    def __init__(
        self, handler: Handler, limit: Limit | None, limits: Limits, malformed: Malformed = _tell_nobody
    ) -> None:
        super().__init__(
            handler,  # type: ignore[arg-type]  # an Answer has all that the protocol asks of a response
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # what it cannot decode it calls no HTTP
            keepalive_timeout=KEEPALIVE_SECONDS,
            lingering_time=LINGERING_SECONDS,
        )
        self._limit = limit
        self._limits = limits
        self._malformed = malformed
        self._round: Iterator[Any] = iter(())
        self._slice = self._left = SWEPT_AT_ONCE
        self._pause = SWEEP_SECONDS
        self._timer: asyncio.Handle = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._refused = 0
        self._telling: asyncio.TimerHandle | None = None
        self.acceptor = Acceptor(self, self._is_refused)

    def __call__(self) -> web.RequestHandler:
        self.acceptor.look_soon()
        most = self._limits.max_connections
        beyond = len(self._connections) - most
        if beyond >= SPARE:
            self._count_refused()
            return RefusedConnection(most)  # type: ignore[return-value]  # it is of no other use
        if beyond >= 0:
            return SpareConnection(self, self._malformed, most, self._count_refused, loop=self._loop, **self._kwargs)
        connection = Connection(self, self._limit, self._malformed, loop=self._loop, **self._kwargs)
        connection.closing = self.closing
        return connection

    def _is_refused(self, connection: socket.socket) -> bool:
        """Refuse a request that came with its connection, which ends with it; return whether it was.

        aiohttp's connection costs several times as much as the answer.
        """
        limit = self._limit
        return (
            limit is not None and limit.engaged and limit.is_full(limit.waiting) and refuse_at_once(connection, limit)
        )

    def _count_refused(self) -> None:
        if self._limit is not None:
            self._limit.connections_refused += 1
        self._refused += 1
        if self._telling is None:
            self._tell_refused()

    def _tell_refused(self) -> None:
        """Log how many were refused: at once, and later how many more."""
        self._telling = None
        if self._refused:
            log.warning("connections refused: all are in use", most=self._limits.max_connections, refused=self._refused)
            self._refused = 0
            self._telling = self._loop.call_later(TOLD_SECONDS, self._tell_refused)

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        protocol.begin()
        return web.BaseRequest(
            message, payload, protocol, writer, task, self._loop, client_max_size=self._limits.max_body
        )

    def _sweep(self) -> None:
        """Look at the next few connections, and close one at a time: a thousand do not keep the others waiting."""
        now = self._loop.time()
        for connection in islice(self._round, self._left):
            self._left -= 1
            if connection.sweep(now, self._limits):
                self._timer = self._loop.call_soon(self._sweep)
                return
        if self._left:
            if self._limit is not None:
                self._limit.look()
            connections = self.connections
            self._round = iter(connections)
            self._slice = max(SWEPT_AT_ONCE, -(-len(connections) // MOST_SLICES))
            self._pause = SWEEP_SECONDS / (len(connections) // self._slice + 1)
        self._left = self._slice
        self._timer = self._loop.call_later(self._pause, self._sweep)

    def stop_timers(self) -> None:
        self._timer.cancel()
        self._tell_refused()
        if self._telling is not None:
            self._telling.cancel()


class Listener:
    """Accepts connections on one or more sockets. ``address`` is the host and port of the first, as bound."""

    def __init__(self, server: _Server, cut: Callable[[], None]) -> None:
        self.address = NO_ADDRESS
        self._server = server
        self._cut = cut

    async def bind(self, host: str, port: int) -> None:
        """Bind the address and accept connections on it. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        try:
            accepting = await loop.create_server(self._server, host, port, backlog=BACKLOG)
        except socket.gaierror as error:
            raise of_no_address(host, port, error) from None
        self._accept(accepting, own=True)

    async def accept_on(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on sockets that are bound already, and that others may accept on too."""
        loop = asyncio.get_running_loop()
        for bound in sockets:
            create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
            self._accept(await create(self._server, sock=bound, backlog=BACKLOG), own=False)

    def _accept(self, accepting: asyncio.Server, *, own: bool) -> None:
        if self.address == NO_ADDRESS:
            bound = accepting.sockets[0].getsockname()
            self.address = (str(bound[0]), int(bound[1])) if isinstance(bound, tuple) else (str(bound), 0)
        self._server.acceptor.watch(accepting, own=own)

    async def stop(self, grace: Grace, linger_seconds: float) -> None:
        """Accept no more, serve those who are connected or wait to be, and close their connections.

        Answers say ``Connection: close`` from now on. A connection without a request is closed after
        ``linger_seconds``, in which a client that was about to send one gets its answer.
        """
        server = self._server
        server.closing = True
        for protocol in server.connections:
            protocol.closing = True  # type: ignore[attr-defined]  # each is a Connection
        await server.acceptor.stop()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while server.connections and grace.left:
            waited = loop.time() - began
            for protocol in server.connections:
                assert isinstance(protocol, Connection)
                patience = linger_seconds if protocol._request_count else max(linger_seconds, FIRST_REQUEST_SECONDS)
                if waited >= patience and protocol.is_over():
                    protocol.force_close()
            await grace.pause(_POLL_SECONDS if waited else 0)
        self._cut()
        answering = Grace(_CUT_SECONDS)
        while answering.left and not all(protocol.idle() for protocol in server.connections):  # type: ignore[attr-defined]
            await answering.pause(_POLL_SECONDS)
        await server.shutdown(_CANCEL_SECONDS)


@asynccontextmanager
async def listen(
    handler: Handler,
    where: tuple[str, int] | Sequence[socket.socket],
    limits: Limits,
    grace: Grace,
    linger_seconds: float = 0.0,
    limit: Limit | None = None,
    malformed: Malformed = _tell_nobody,
    cut: Callable[[], None] = lambda: None,
) -> AsyncIterator[Listener]:
    """Accept connections while the block runs, on an address or on sockets that are bound already.

    At the end no new connection is accepted, and requests in flight get the time of ``grace`` to finish. ``cut`` then
    has the others answered, and what is left after that is cancelled. Raises ``OSError`` when the address cannot be
    bound.
    """
    server = _Server(handler, limit, limits, malformed)
    listener = Listener(server, cut)
    try:
        if isinstance(where, tuple):
            await listener.bind(*where)
        else:
            await listener.accept_on(where)
        yield listener
    finally:
        await listener.stop(grace, linger_seconds)
        server.stop_timers()
