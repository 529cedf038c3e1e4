"""Feast's PostgreSQL store, read directly: one prepared statement for all feature views of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeAlias, TypeVar

import psycopg
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStoreConfig
from feast.infra.utils.postgres.connection_utils import _get_conn_kwargs, _get_conninfo
from psycopg import sql

from orchestrator_core.plugin_api import OrchestratorError, SourceError, SourceUnavailable
from orchestrator_source_feast.lookup import View
from orchestrator_source_feast.stores import Found, Read, age_limits, oldest

__all__ = ["PostgreSQLStore"]

T = TypeVar("T")
Connection: TypeAlias = Any
"""A connection of psycopg's, which is installed only with its extra."""


class PostgreSQLStore:
    """The tables of one project in a PostgreSQL database, on connections that are opened when they are needed."""

    def __init__(
        self,
        config: PostgreSQLOnlineStoreConfig,
        name: str,
        project: str,
        *,
        size: int,
        wait_seconds: float,
        seconds: float,
        connect_seconds: float,
    ) -> None:
        self._config = config
        self._name = name
        self._project = project
        self._size = size
        self._wait_seconds = wait_seconds
        self._seconds = seconds
        self._connect_seconds = connect_seconds
        self._places = asyncio.Semaphore(size)
        self._free: list[Connection] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def bind(self, views: Sequence[View], max_age_seconds: float | None) -> Read:
        query = sql.SQL(" UNION ALL ").join([_select(self._project, index, view) for index, view in enumerate(views)])
        names = [[feature.name for feature in view.features] for view in views]
        limits = age_limits(views, max_age_seconds)

        async def job(connection: Connection, keys: Sequence[bytes]) -> list[tuple[int, str, bytes, float]]:
            given = [value for pair in zip(keys, names, strict=True) for value in pair]
            cursor = await connection.execute(query, given, prepare=True, binary=True)
            rows: list[tuple[int, str, bytes, float]] = await cursor.fetchall()
            return rows

        async def read(keys: Sequence[bytes]) -> list[Found]:
            rows = await self._lent(lambda connection: job(connection, keys))
            after = [None if limit is None else oldest(limit) for limit in limits]
            found: list[tuple[dict[str, Any], bool]] = [({}, False) for _ in views]
            for index, name, value, stamp in rows:
                least = after[index]
                if least is None or stamp >= least:
                    found[index][0][name] = value
                else:
                    found[index] = found[index][0], True
            return list(found)

        return read

    async def check_ready(self) -> None:
        async def job(connection: Connection) -> None:
            await connection.execute("SELECT 1")

        await self._lent(job)

    def refresh(self) -> None:
        """Nothing to look at: a connection that is gone is noticed."""

    async def close(self) -> None:
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)
        while self._free:
            await self._free.pop().close()

    async def _lent(self, job: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        try:
            async with asyncio.timeout(self._wait_seconds):
                await self._places.acquire()
        except TimeoutError:
            raise SourceUnavailable(
                f"feast '{self._name}': all {self._size} connections are in use, and none came free within"
                f" {self._wait_seconds:g} s"
            ) from None
        try:
            async with asyncio.timeout(self._connect_seconds + self._seconds) as limit:
                # A task of its own: when it is cancelled psycopg first asks the server to end the query, which may
                # take its time, and nobody waits for that.
                running = asyncio.get_running_loop().create_task(self._on_connection(job, limit))
                self._running.add(running)
                running.add_done_callback(self._done)
                try:
                    return await asyncio.shield(running)
                except BaseException:
                    running.cancel()
                    raise
        except TimeoutError:
            message = f"feast '{self._name}': PostgreSQL gave no answer within {self._seconds:g} s"
            raise SourceError(message, transient=True) from None

    def _done(self, running: asyncio.Task[Any]) -> None:
        self._running.discard(running)
        self._places.release()
        if not running.cancelled():
            running.exception()  # whoever asked has been told, or has gone

    async def _on_connection(self, job: Callable[[Connection], Coroutine[Any, Any, T]], limit: asyncio.Timeout) -> T:
        while True:
            held = self._free.pop() if self._free else None
            connection = held or await self._connected()
            limit.reschedule(asyncio.get_running_loop().time() + self._seconds)
            try:
                result = await job(connection)
            except psycopg.Error as error:
                if not connection.broken and not connection.closed:
                    await self._put_back(connection)
                elif held is not None:
                    await connection.close()
                    continue  # it had been closed while it was at rest: a read may be made again
                raise self._translate(error) from None
            except BaseException:
                await connection.close()
                raise
            await self._put_back(connection)
            return result

    async def _put_back(self, connection: Connection) -> None:
        if self._closed:
            await connection.close()
        else:
            self._free.append(connection)

    async def _connected(self) -> Connection:
        """Connect to the end also when nobody waits any more: psycopg forgets the socket of one that is cancelled."""
        connecting = asyncio.get_running_loop().create_task(self._connect())
        self._running.add(connecting)
        connecting.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(self._left_over)
            raise

    def _left_over(self, connecting: asyncio.Task[Connection]) -> None:
        if connecting.cancelled() or connecting.exception() is not None:
            return
        if self._closed or len(self._free) >= self._size:
            connecting.result().pgconn.finish()
        else:
            self._free.append(connecting.result())

    async def _connect(self) -> Connection:
        config = self._config
        try:
            async with asyncio.timeout(self._connect_seconds):
                return await psycopg.AsyncConnection.connect(
                    _get_conninfo(config),
                    autocommit=True,
                    keepalives_idle=config.keepalives_idle,
                    **_get_conn_kwargs(config),
                )
        except (psycopg.Error, TimeoutError) as error:
            why = f"no connection within {self._connect_seconds:g} s" if isinstance(error, TimeoutError) else error
            raise SourceUnavailable(
                f"feast '{self._name}': cannot connect to PostgreSQL at {config.host}:{config.port}: {why}"
            ) from None

    def _translate(self, error: psycopg.Error) -> OrchestratorError:
        if isinstance(error, psycopg.errors.UndefinedTable):
            table = str(error).partition("\n")[0]
            return SourceError(f"feast '{self._name}': the online store: {table}; has `feast apply` been run?")
        transient = isinstance(error, psycopg.OperationalError)
        return SourceError(f"feast '{self._name}': PostgreSQL: {str(error).partition(chr(10))[0]}", transient=transient)


def _select(project: str, index: int, view: View) -> sql.Composed:
    return sql.SQL(
        "SELECT {} AS view, feature_name, value, extract(epoch FROM event_ts)::float8"
        " FROM {} WHERE entity_key = %s AND feature_name = ANY(%s)"
    ).format(sql.Literal(index), sql.Identifier(f"{project}_{view.table}"))
