"""A bounded pool of driver connections whose checkout, when one is free, is a list's ``pop``.

SQLAlchemy's asyncio pool spends more CPU on a checkout through its greenlet bridge than a prepared read costs
altogether (docs/sources/database.md has the figures), so connections are lent from here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from orchestrator_core.plugin_api import SourceUnavailable

__all__ = ["MEND_SECONDS", "Lent", "Pool"]

MEND_SECONDS = 0.5
"""How long a server may take to end a given-up statement before its connection is closed: it may be hanging itself."""


class Lent(Protocol):
    """What a pool needs to know of a connection."""

    expired: bool

    def alive(self) -> bool:
        """Tell whether the connection is still open, as far as this side knows."""
        ...

    async def mend(self) -> bool:
        """Bring the connection back to rest after a call was given up; tell whether it can be used again."""
        ...

    async def close(self) -> None: ...


C = TypeVar("C", bound=Lent)


class Pool(Generic[C]):
    """At most ``size`` connections, lent last in, first out; who has to wait is served first come, first served.

    ``free`` may be popped directly: while it holds a connection nobody is waiting. What was taken goes back by
    exactly one of :meth:`release`, :meth:`discard` and :meth:`mend`.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[C]],
        *,
        name: str,
        size: int,
        timeout_seconds: float,
        recycle_seconds: float | None = None,
    ) -> None:
        self.free: list[C] = []
        self._connect = connect
        self._name = name
        self._size = size
        self._timeout_seconds = timeout_seconds
        self._recycle_seconds = recycle_seconds
        self._count = 0
        self._opening = 0
        self._passed_on = 0
        self._late: dict[C, tuple[float, float]] = {}
        self._waiting: deque[tuple[float, asyncio.Future[C | None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()  # Python 3.11 makes a system call to find it, so once will do
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed = True
        self.discard_free()
        if self._timer is not None and not self._waiting:
            self._timer.cancel()
            self._timer = None
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def count(self) -> int:
        """How many connections there are, lent ones and those being opened included."""
        return self._count

    async def acquire(self) -> C:
        """Take a connection, opening or waiting for one. Raise :class:`SourceUnavailable` after the timeout."""
        while self.free:
            connection = self.free.pop()
            if connection.alive():
                return connection
            self.discard(connection)
        if self._count < self._size and not self._waiting:
            return await self._open()
        loop, passed_on = self._loop, self._passed_on
        since = loop.time()
        until = since + self._timeout_seconds
        entry: tuple[float, asyncio.Future[C | None]] = (until, loop.create_future())
        _, waiter = entry
        self._waiting.append(entry)
        if self._timer is None:
            self._timer = loop.call_at(until, self._end_waits)
        try:
            lent = await waiter
        except BaseException as error:
            if not waiter.done() or waiter.cancelled():
                if entry in self._waiting:
                    self._waiting.remove(entry)
            elif waiter.exception() is None:
                self._pass_on(waiter.result())
            self._tell_if_late(error, self._passed_on > passed_on)
            if isinstance(error, TimeoutError):
                raise SourceUnavailable(
                    f"database '{self._name}': all {self._size} connections are in use, and none came free"
                    f" within {self._timeout_seconds:g} s",
                    busy=True,
                ) from None
            raise
        served = self._passed_on > passed_on
        try:
            connection = await self._open(counted=True) if lent is None else lent
        except asyncio.CancelledError as error:
            self._tell_if_late(error, served)
            raise
        if served:
            now = loop.time()
            self._late[connection] = now, now - since
        return connection

    def _tell_if_late(self, error: BaseException, is_late: bool) -> None:
        """Say of a call that it has only come too late, while others were served: the database is not down for that."""
        if isinstance(error, asyncio.CancelledError):
            vars(error)["begun"] = not is_late

    def _end_waits(self) -> None:
        """End the waits whose time is over. One timer serves all: who came first is over first."""
        loop, waiting = self._loop, self._waiting
        while waiting and waiting[0][0] <= loop.time():
            _, waiter = waiting.popleft()
            if not waiter.done():
                waiter.set_exception(TimeoutError())
        self._timer = loop.call_at(waiting[0][0], self._end_waits) if waiting else None

    def refuse_if_busy(self) -> None:
        """Raise :class:`SourceUnavailable` if all connections are in use: for who only asks whether all is well."""
        if self._count >= self._size and not self.free and self._opening < self._count:
            raise SourceUnavailable(f"database '{self._name}': all {self._size} connections are in use", busy=True)

    async def _open(self, *, counted: bool = False) -> C:
        self._count += not counted
        self._opening += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._give_up_place()
            raise
        finally:
            self._opening -= 1
        if self._recycle_seconds:
            self._loop.call_later(self._recycle_seconds, self._expire, connection)
        return connection

    def release(self, connection: C) -> None:
        """Give back a connection that is ready for the next query."""
        if self._closed or connection.expired:
            self.discard(connection)
        elif self._waiting:
            self._pass_on(connection)
        else:
            if self._late:
                self._late.pop(connection, None)
            self.free.append(connection)

    def discard(self, connection: C) -> None:
        """Give back a connection that must not be used again."""
        self._start(self._close(connection))

    def discard_free(self) -> None:
        """Drop all connections at rest, because one of their kind turned out to be cut off."""
        while self.free:
            self.discard(self.free.pop())

    def mend(self, connection: C, error: BaseException | None = None) -> None:
        """Give back a connection on which a call was given up half way: it is used again once it is at rest.

        A call that ``error`` cut off has come too late too when it had the connection for less long than it waited.
        """
        got_at, waited = self._late.pop(connection, (0.0, 0.0))
        if error is not None and self._loop.time() - got_at < waited:
            self._tell_if_late(error, is_late=True)
        self._start(self._mend(connection))

    async def _mend(self, connection: C) -> None:
        try:
            usable = await connection.mend()
        except Exception:  # whatever the driver says: what cannot be mended is replaced
            usable = False
        if usable:
            self.release(connection)
        else:
            await self._close(connection)

    async def _close(self, connection: C) -> None:
        self._late.pop(connection, None)
        try:
            await connection.close()
        finally:
            self._give_up_place()

    def _give_up_place(self) -> None:
        if self._waiting and not self._closed:
            self._pass_on(None)
        else:
            self._count -= 1

    def _pass_on(self, lent: C | None) -> None:
        """Hand a connection, or the place for one (None), to the first who waits."""
        while self._waiting:
            _, waiter = self._waiting.popleft()
            if not waiter.done():
                self._passed_on += lent is not None
                waiter.set_result(lent)
                return
        if lent is None:
            self._count -= 1
        else:
            self.release(lent)

    def _expire(self, connection: C) -> None:
        connection.expired = True
        if connection in self.free:
            self.free.remove(connection)
            self.discard(connection)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
