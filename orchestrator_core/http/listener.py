"""A listener: aiohttp's server with our answers, also where a client does not speak HTTP."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import structlog
from aiohttp import web

from orchestrator_core.engine import Failure, new_execution_id
from orchestrator_core.http.answers import Answer, common_headers, own_timing, problem
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.sockets import accept_waiting, refuse_new
from orchestrator_core.run import clock

log = structlog.get_logger("orchestrator.http")

BACKLOG = 1024
KEEPALIVE_SECONDS = 75.0
LINGERING_SECONDS = 2.0
FIRST_REQUEST_SECONDS = 1.0
"""How long a connection that has sent nothing yet is waited for when its listener stops."""
_POLL_SECONDS = 0.02
_CANCEL_SECONDS = 0.05

Handler = Callable[[web.BaseRequest], Awaitable[Answer]]


class _Protocol(web.RequestHandler):
    """aiohttp's connection, which tells a client that does not speak HTTP so in a problem document."""

    closing = False  # whether the next answer is the last one on the connection

    def idle(self) -> bool:
        """Return whether the connection waits for a request."""
        return self._waiter is not None and not self._messages

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        started, execution_id = clock(), new_execution_id()
        if status >= 500:
            log.error("defect", execution_id=execution_id, exc_info=exc)
            failure = Failure(500, "internal error", "an internal error; the log tells more under the execution id")
        else:
            reason = (message or "").strip().partition("\n")[0].rstrip(":")
            failure = Failure(status, "bad request", f"this is not HTTP: {reason}" if reason else "this is not HTTP")
        answer = problem(failure, execution_id, common_headers(execution_id, own_timing(started)))
        answer.closes = True
        return answer  # type: ignore[return-value]  # an Answer has all that the protocol asks of a response


class _Server(web.Server):
    closing = False

    def __call__(self) -> web.RequestHandler:
        protocol = _Protocol(self, loop=self._loop, **self._kwargs)
        protocol.closing = self.closing
        return protocol


class Listener:
    """Accepts connections on one or more sockets. ``address`` is the host and port of the first, as bound."""

    def __init__(self, server: _Server) -> None:
        self.address = ("", 0)
        self._server = server
        self._accepting: list[tuple[asyncio.Server, bool]] = []

    async def bind(self, host: str, port: int) -> None:
        """Bind the address and accept connections on it. Raises ``OSError``."""
        loop = asyncio.get_running_loop()
        await self._accept(await loop.create_server(self._server, host, port, backlog=BACKLOG), own=True)

    async def accept_on(self, sockets: Sequence[socket.socket]) -> None:
        """Accept connections on sockets that are bound already, and that others may accept on too."""
        loop = asyncio.get_running_loop()
        for bound in sockets:
            create = loop.create_unix_server if bound.family == socket.AF_UNIX else loop.create_server
            await self._accept(await create(self._server, sock=bound, backlog=BACKLOG), own=False)

    async def _accept(self, accepting: asyncio.Server, *, own: bool) -> None:
        if not self._accepting:
            bound = accepting.sockets[0].getsockname()
            self.address = (str(bound[0]), int(bound[1])) if isinstance(bound, tuple) else (str(bound), 0)
        self._accepting.append((accepting, own))

    async def stop(self, grace: Grace, linger_seconds: float) -> None:
        """Accept no more, serve those who are connected or wait to be, and close their connections.

        Answers say ``Connection: close`` from now on. A connection without a request is closed after
        ``linger_seconds``, in which a client that was about to send one gets its answer.
        """
        server = self._server
        server.closing = True
        for protocol in server.connections:
            protocol.closing = True  # type: ignore[attr-defined]  # each is a _Protocol
        await self._accept_the_last()
        loop = asyncio.get_running_loop()
        began = loop.time()
        while server.connections and grace.left:
            waited = loop.time() - began
            for protocol in server.connections:
                assert isinstance(protocol, _Protocol)
                patience = linger_seconds if protocol._request_count else max(linger_seconds, FIRST_REQUEST_SECONDS)
                if protocol.idle() and waited >= patience:
                    protocol.force_close()
            await grace.pause(_POLL_SECONDS if waited else 0)
        await server.shutdown(_CANCEL_SECONDS)

    async def _accept_the_last(self) -> None:
        loop = asyncio.get_running_loop()
        kept: list[socket.socket] = []
        for accepting, own in self._accepting:
            for bound in accepting.sockets:
                one = socket.socket(fileno=os.dup(bound.fileno()))
                one.setblocking(False)
                if own:
                    refuse_new(one)
                kept.append(one)
            accepting.close()
        self._accepting.clear()
        for _ in range(2):
            await asyncio.sleep(0)
            for one in kept:
                for connection in accept_waiting(one, BACKLOG):
                    await loop.connect_accepted_socket(self._server, connection)
        for one in kept:
            one.close()


@asynccontextmanager
async def listen(
    handler: Handler,
    where: tuple[str, int] | Sequence[socket.socket],
    max_body: int,
    grace: Grace,
    linger_seconds: float = 0.0,
) -> AsyncIterator[Listener]:
    """Accept connections while the block runs, on an address or on sockets that are bound already.

    At the end no new connection is accepted, and requests in flight get the time of ``grace`` to finish. Raises
    ``OSError`` when the address cannot be bound.
    """
    server = _Server(
        handler,  # type: ignore[arg-type]  # an Answer has all that the protocol asks of a response
        request_factory=partial(web.BaseRequest, loop=asyncio.get_running_loop(), client_max_size=max_body),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=LINGERING_SECONDS,
    )
    listener = Listener(server)
    try:
        if isinstance(where, tuple):
            await listener.bind(*where)
        else:
            await listener.accept_on(where)
        yield listener
    finally:
        await listener.stop(grace, linger_seconds)
