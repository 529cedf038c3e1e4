"""Clients that get no connection, or one for a question about health alone: all are in use, or it is an overload."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import web

from orchestrator_core.engine import Failure, new_execution_id
from orchestrator_core.http.answers import CLOSES, Answer, refusal
from orchestrator_core.http.connection import Connection, Limits, Malformed, answer_of
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.whole import LONGEST, is_last_request

SPARE_SECONDS = 1.0
HEALTH = "/health/"


class SpareConnection(Connection):
    """A connection too many that may ask for the service's health, which is to be seen when all are in use.

    Any other request is refused, and so is a client that says nothing for ``SPARE_SECONDS``. ``refused`` is told then.
    """

    __slots__ = ("_handle", "_most", "_opened_at", "_tell")

    def __init__(
        self, server: web.Server, malformed: Malformed, most: int, refused: Callable[[], None], **options: Any
    ) -> None:
        super().__init__(server, None, malformed, **options)
        self._most, self._tell = most, refused
        self._opened_at = self._loop.time()
        self._handle: Any = self._request_handler
        self._request_handler = self._health_alone
        self.closing = True

    async def _health_alone(self, request: web.BaseRequest) -> Any:
        if request._message.path.startswith(HEALTH):
            return await self._handle(request)
        self._tell()
        return _too_many(self._most)

    def sweep(self, now: float, limits: Limits) -> bool:
        if self.transport is None or not self.idle() or now - self._opened_at < SPARE_SECONDS:
            return super().sweep(now, limits)
        self._tell()
        self.transport.write(_too_many(self._most).written(keep_alive=False))
        self.force_close()
        return True


def refuse_at_once(connection: socket.socket, limit: Limit) -> bool:
    """Refuse what a client has sent on a new connection and close it, if it is a whole request that asks for that.

    Return whether it was; if not, nothing has been read, or the client is gone.
    """
    try:
        data = connection.recv(LONGEST + 1, socket.MSG_PEEK)
        if not is_last_request(data):
            return False
        execution_id = new_execution_id()
        connection.recv(len(data))  # a connection that is closed with something unread is reset, and the answer lost
        connection.send(refusal(execution_id, limit.retry_after, 0.0, CLOSES))
    except OSError:  # nothing is there yet, or its client is gone
        return False
    connection.close()
    limit.shed += 1
    limit.lines.add_unread(execution_id, data, 0.0)
    return True


class RefusedConnection(asyncio.Protocol):
    """A connection too many."""

    def __init__(self, most: int) -> None:
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(_too_many(self._most).written(keep_alive=False))  # type: ignore[attr-defined]  # it is no datagram
        transport.close()


def _too_many(most: int) -> Answer:
    failure = Failure(503, "not available", f"all {most} connections are in use", retry_after_seconds=1)
    answer = answer_of(failure, new_execution_id())
    answer.closes = True
    return answer


__all__ = ["RefusedConnection", "SpareConnection", "refuse_at_once"]
