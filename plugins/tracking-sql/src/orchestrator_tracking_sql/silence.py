"""Ending a connection on which the server says nothing any more.

PostgreSQL ends by itself what takes longer than ``statement_timeout``. A server that has stopped, or is behind a
network that lost it, does not, and the driver would wait for good: TCP tells only of what was sent and not received.
"""

from __future__ import annotations

import os
import socket
from time import monotonic
from typing import Any

from sqlalchemy import Connection, Engine, event

UNBOUNDED = "takes as long as it takes"
"""Set in a connection's ``info`` while it does what has no time limit."""

SPARE_SECONDS = 2.0
"""How much later than the server this ends a statement: the server's word for it comes first."""


class Silence:
    """Watches the one connection of an engine, which one thread uses while :meth:`look` is called from another."""

    def __init__(self, engine: Engine, statement_timeout: float) -> None:
        self.seconds = statement_timeout + SPARE_SECONDS
        self.is_over = False
        self._since = 0.0
        self._info: dict[Any, Any] = {}
        self._socket: socket.socket | None = None

        @event.listens_for(engine, "connect", insert=True)  # before SQLAlchemy asks for the server's version
        def _connected(connection: Any, record: Any) -> None:
            _closed()
            # One of our own: the number of the driver's could be another socket's by the time that it is used.
            self._info, self._socket = record.info, socket.socket(fileno=os.dup(connection.fileno()))
            self._since = monotonic()

        @event.listens_for(engine, "close")
        def _closed(*_: Any) -> None:
            own, self._socket = self._socket, None
            if own is not None:
                own.close()

        @event.listens_for(engine, "before_cursor_execute")
        @event.listens_for(engine, "after_cursor_execute")
        def _heard(connection: Connection, *_: Any) -> None:
            self._since = monotonic()

    def begin(self) -> None:
        """Say that something is asked now."""
        self._since, self.is_over = monotonic(), False

    def look(self) -> None:
        """End the connection if it has been silent for too long: the thread then has an error."""
        own = self._socket
        if own is None or self._info.get(UNBOUNDED) or monotonic() - self._since <= self.seconds:
            return
        self.is_over = True
        try:
            own.shutdown(socket.SHUT_RDWR)
        except OSError:  # it is closed already
            return


__all__ = ["UNBOUNDED", "Silence"]
