"""The connections to one origin: who may use one, who waits in line, and when they close."""

from __future__ import annotations

import asyncio
import math
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from attrs import frozen

from orchestrator_core.http_client.connection import Connection
from orchestrator_core.http_client.dial import ProxyRefused
from orchestrator_core.http_client.egress import EgressRefused
from orchestrator_core.http_client.errors import HttpConnectError, HttpTimeout, fail_future
from orchestrator_core.http_client.options import HttpOptions
from orchestrator_core.http_client.request import RequestHead
from orchestrator_core.http_client.resends import WINDOW_SECONDS, Resends

Dial = Callable[[Connection], Awaitable[None]]


@frozen
class PoolStats:
    """Connections of one origin at one moment. ``open`` counts those being made too; ``waiting`` counts callers."""

    open: int
    idle: int
    in_use: int
    waiting: int


class Expired(Exception):
    """A watched future's deadline passed."""


class Deadlines:
    """Fails futures with :class:`Expired` when their deadline passes, all with one timer.

    A timer per call would be set and cancelled thousands of times a second to fire almost never. This one sleeps until
    the earliest deadline it has heard of; by then that call is mostly over, and it sleeps until the next.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: dict[asyncio.Future[Any], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    def watch(self, future: asyncio.Future[Any], deadline: float) -> None:
        self._pending[future] = deadline
        if deadline < self._wakes_at:
            self._sleep_until(deadline)

    def forget(self, future: asyncio.Future[Any]) -> None:
        self._pending.pop(future, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _sleep_until(self, when: float) -> None:
        self.close()
        self._wakes_at = when
        self._timer = self._loop.call_at(when, self._wake)

    def _wake(self) -> None:
        now = self._loop.time()
        for future in [future for future, deadline in self._pending.items() if deadline <= now]:
            del self._pending[future]
            fail_future(future, Expired())
        self._wakes_at = math.inf
        if self._pending:
            self._sleep_until(min(self._pending.values()))


class Pool:
    """At most ``max_connections`` slots. A slot belongs to an idle connection or to one caller, who must release it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: HttpOptions, dial: Dial, deadlines: Deadlines) -> None:
        self._loop = loop
        self._options = options
        self._dial = dial
        self._deadlines = deadlines
        self._slots = 0
        self._idle: list[Connection] = []
        self._live: set[Connection] = set()
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._handed_on = 0
        self._late: dict[Connection, tuple[float, float]] = {}
        self._resends = Resends(loop.time())
        self._answers_before = 0
        self._trusts_again: asyncio.TimerHandle | None = None
        self._closed = False
        self._emptied = asyncio.Event()

    @property
    def stats(self) -> PoolStats:
        idle = sum(not connection.closed for connection in self._idle)
        return PoolStats(self._slots, idle, self._slots - len(self._idle), len(self._waiters))

    def take(self) -> Connection | None:
        """The connection used last, with its slot, or ``None`` when no idle one is any good."""
        idle = self._idle
        while idle:
            connection = idle.pop()
            if not connection.closed:
                if self._loop.time() - connection.idle_since <= self._options.keepalive_seconds:
                    return connection
                connection.close()
            self._free_slot()
        return None

    async def acquire(
        self, head: RequestHead, deadline: float, total_seconds: float, *, fresh: bool = False
    ) -> Connection:
        """A new connection, or in turn, unless it must be ``fresh``, one that another caller was just answered on."""
        self._refuse_if_closed(head)
        since, handed_on = self._loop.time(), self._handed_on
        connection: Connection | None = None
        if self._slots < self._options.max_connections:
            self._slots += 1
        else:
            connection = await self._wait_in_line(head, deadline, total_seconds)
        got_at = self._loop.time()
        if connection is not None and fresh:
            connection.abort()
            connection = None
        waited = got_at - since if self._handed_on > handed_on else 0.0
        if connection is None:
            try:
                connection = await self._connect(head, deadline, total_seconds)
            except BaseException as error:
                self._free_slot()
                self._tell_if_late(error, got_at, waited)
                raise
        if waited:
            self._late[connection] = got_at, waited
        return connection

    def gave_up(self, connection: Connection, error: BaseException) -> None:
        """Have the error say so if the call came too late: it had the connection for less long than it had waited."""
        self._tell_if_late(error, *self._late.pop(connection, (0.0, 0.0)))

    def _tell_if_late(self, error: BaseException, got_at: float, waited: float) -> None:
        """The peer is not down for such a call, as for one that waited in vain while others were answered."""
        if self._loop.time() - got_at < waited:
            if isinstance(error, HttpTimeout):
                error.busy = error.phase == "total"
            elif isinstance(error, asyncio.CancelledError):
                vars(error)["begun"] = False

    def release(self, connection: Connection) -> None:
        """Give the slot back; the connection stays open only if it is fit for another request."""
        if not connection.usable or self._closed:
            connection.abort()
            self._free_slot()
        elif self._trusts_again is not None:
            connection.close()
            self._free_slot()
        elif not self._hand_over(connection):
            if self._late:
                self._late.pop(connection, None)
            connection.idle_since = self._loop.time()
            self._idle.append(connection)
            if self._sweep_timer is None:
                self._sweep_timer = self._loop.call_later(self._options.keepalive_seconds, self._sweep)

    async def close(self) -> None:
        """Close every connection, those in use too, and return when their sockets are closed."""
        self._closed = True
        self._deadlines.close()
        for timer in (self._sweep_timer, self._trusts_again):
            if timer is not None:
                timer.cancel()
        while self._hand_over(None):
            self._slots += 1
        for connection in list(self._live):
            connection.cut_off()
            connection.close()
        if self._live:
            await self._emptied.wait()

    async def _wait_in_line(self, head: RequestHead, deadline: float, total_seconds: float) -> Connection | None:
        """Wait for a slot; with it comes the connection, unless that has meanwhile closed.

        Who waits in vain while others are answered has only come too late: the peer is not down for that.
        """
        handed_on = self._handed_on
        waiter: asyncio.Future[Connection | None] = self._loop.create_future()
        self._waiters.append(waiter)
        self._deadlines.watch(waiter, deadline)
        try:
            connection = await waiter
        except Expired:
            if waiter in self._waiters:  # else a slot that came free in the same moment has passed it by
                self._waiters.remove(waiter)
            raise HttpTimeout(head.call, "pool", total_seconds, busy=self._handed_on > handed_on) from None
        except asyncio.CancelledError as error:
            self._leave_line(waiter)
            vars(error)["begun"] = self._handed_on == handed_on
            raise
        finally:
            self._deadlines.forget(waiter)
        return connection if connection is not None and connection.usable else None

    def _leave_line(self, waiter: asyncio.Future[Connection | None]) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
            return
        # The slot was handed over in the moment of the cancellation: it goes to the next in line.
        connection = waiter.result()
        if connection is not None:
            self.release(connection)
        else:
            self._free_slot()

    async def _connect(self, head: RequestHead, deadline: float, total_seconds: float) -> Connection:
        self._refuse_if_closed(head)
        connection = Connection(self._loop, self._options.max_response_bytes, self._lost)
        seconds = self._options.connect_timeout_seconds
        connect_by = self._loop.time() + seconds
        try:
            async with asyncio.timeout_at(min(connect_by, deadline)) as timer:
                await self._dial(connection)
        except OSError as error:
            if not timer.expired():
                # One that is broken off in the handshake has no message.
                why = str(error) or "the peer closed the connection during the TLS handshake"
                raise HttpConnectError(head.call, f"cannot connect: {why}", transient=_is_transient(error)) from error
            if connect_by <= deadline:
                raise HttpTimeout(head.call, "connect", seconds) from None
            raise HttpTimeout(head.call, "total", total_seconds) from None
        if not connection.lost:
            self._live.add(connection)
        if self._closed:
            connection.abort()
        self._refuse_if_closed(head)
        return connection

    def _refuse_if_closed(self, head: RequestHead) -> None:
        if self._closed:
            raise HttpConnectError(head.call, "the client is closed")

    def _hand_over(self, connection: Connection | None) -> bool:
        """Pass a slot, and its connection if it has one, to the first in line who still waits."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._handed_on += connection is not None
                waiter.set_result(connection)
                return True
        return False

    def _free_slot(self) -> None:
        if not self._hand_over(None):
            self._slots -= 1

    def note_resend(self) -> None:
        """Note that a request is sent again whose connection had been closed. After too many none is kept for a while.

        What closes its connections without a word would be sent most requests twice.
        """
        answers = self._answers_before + sum(connection.answers for connection in self._live)
        if not self._resends.take(self._loop.time(), answers) and self._trusts_again is None:
            self._trusts_again = self._loop.call_later(WINDOW_SECONDS, self._trust)
            for connection in list(self._idle):
                connection.close()

    def _trust(self) -> None:
        self._trusts_again = None

    def _lost(self, connection: Connection) -> None:
        self._live.discard(connection)
        self._answers_before += connection.answers
        self._late.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)
            self._free_slot()
        if self._closed and not self._live:
            self._emptied.set()

    def _sweep(self) -> None:
        self._sweep_timer = None
        stale_since = self._loop.time() - self._options.keepalive_seconds
        for connection in [connection for connection in self._idle if connection.idle_since <= stale_since]:
            connection.close()
        fresh = [connection.idle_since for connection in self._idle if not connection.closed]
        if fresh:
            when = min(fresh) + self._options.keepalive_seconds
            self._sweep_timer = self._loop.call_at(when, self._sweep)


def _is_transient(error: OSError) -> bool:
    if isinstance(error, ProxyRefused):
        return error.transient
    return not isinstance(error, ssl.SSLError | EgressRefused)
