"""Feast's PostgreSQL store, read directly: one prepared statement for all feature views of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar
from urllib.parse import quote, urlencode

import asyncpg
from attrs import field, frozen
from feast.infra.online_stores.postgres_online_store.postgres import PostgreSQLOnlineStoreConfig

from orchestrator_core.plugin_api import OrchestratorError, SourceError
from orchestrator_source_feast.lookup import View
from orchestrator_source_feast.many import in_turns
from orchestrator_source_feast.places import Places
from orchestrator_source_feast.stores import Found, NoAnswer, Read, ReadMany, age_limits, oldest

__all__ = ["PostgreSQLStore"]

T = TypeVar("T")
Rows: TypeAlias = Sequence[Sequence[Any]]
MEND_SECONDS = 0.5
"""How long a server may take to end a given-up query before its connection is closed: it may be hanging itself."""
ROWS_AT_ONCE = 1_000  # so that a long list is not taken apart in one turn of the loop
OUTDATED = (asyncpg.InvalidCachedStatementError, asyncpg.InvalidSQLStatementNameError)
TRANSIENT = (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InsufficientResourcesError)


@frozen(eq=False)
class Held:
    """A connection and what is prepared on it."""

    connection: Any
    statements: dict[str, Any] = field(factory=dict)

    async def fetch(self, query: str, given: Sequence[Any]) -> Rows:
        statement = self.statements.get(query)
        if statement is None:
            statement = self.statements[query] = await self.connection.prepare(query)
        rows: Rows = await statement.fetch(*given)
        return rows


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
        self._seconds = seconds
        self._connect_seconds = connect_seconds
        self._places = Places(name, "connections", size, wait_seconds)
        self._free: list[Held] = []
        self._mending: set[asyncio.Task[None]] = set()
        self._closed = False

    def bind(self, views: Sequence[View], max_age_seconds: float | None) -> Read:
        query, names = _query(self._project, views, "entity_key = ${}")
        limits = age_limits(views, max_age_seconds)

        async def read(keys: Sequence[bytes]) -> list[Found]:
            given = [*keys, *names]
            rows = await self._lent(lambda held: held.fetch(query, given))
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

    def bind_many(self, views: Sequence[View], max_age_seconds: float | None) -> ReadMany:
        query, names = _query(self._project, views, "entity_key = ANY(${})", "entity_key, ")
        limits = age_limits(views, max_age_seconds)
        step = max(1, ROWS_AT_ONCE // sum(len(view.features) for view in views))

        async def read(entities: Sequence[Sequence[bytes]]) -> list[Sequence[Found]]:
            given = [*(list(dict.fromkeys(column)) for column in zip(*entities, strict=True)), *names]
            rows = await self._lent(lambda held: held.fetch(query, given))
            after = [None if limit is None else oldest(limit) for limit in limits]
            by_key: list[dict[bytes, tuple[dict[str, Any], bool]]] = [{} for _ in views]

            def sort(row: Sequence[Any]) -> None:
                index, key, name, value, stamp = row
                least, of = after[index], by_key[index]
                values, expired = of.get(key) or ({}, False)
                if least is None or stamp >= least:
                    values[name] = value
                else:
                    expired = True
                of[key] = values, expired

            await in_turns(rows, sort)
            return [[of.get(key, ({}, False)) for of, key in zip(by_key, entity, strict=True)] for entity in entities]

        async def read_many(entities: Sequence[Sequence[bytes]]) -> Sequence[Sequence[Found] | OrchestratorError]:
            found: list[Sequence[Found] | OrchestratorError] = []
            for start in range(0, len(entities), step):
                found += await read(entities[start : start + step])
            return found

        return read_many

    async def check_ready(self) -> None:
        self._places.refuse_if_busy()
        await self._lent(lambda held: held.connection.execute("SELECT 1"))

    def refresh(self) -> None:
        """Nothing to look at: a connection that is gone is noticed."""

    async def close(self) -> None:
        self._closed = True
        while self._mending:
            await asyncio.wait(self._mending)
        while self._free:
            await _closed(self._free.pop())

    async def _lent(self, job: Callable[[Held], Awaitable[T]]) -> T:
        await self._places.take()
        lent = True
        try:
            held = self._free.pop() if self._free else None
            while True:
                reused, held = held is not None, held or await self._connect()
                try:
                    async with asyncio.timeout(self._seconds):
                        result = await job(held)
                except (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError) as error:
                    if held.connection.is_closed():
                        if reused:  # closed while it was at rest: a read may be made again
                            held = None
                            continue
                    elif isinstance(error, OUTDATED) and held.statements:
                        held.statements.clear()
                        continue
                    else:
                        await self._put_back(held)
                    raise self._translate(error) from None
                except BaseException as error:
                    lent = False
                    self._mend(held)
                    if isinstance(error, TimeoutError):
                        message = f"feast '{self._name}': PostgreSQL gave no answer within {self._seconds:g} s"
                        raise NoAnswer(message) from None
                    raise
                await self._put_back(held)
                return result
        finally:
            if lent:
                self._places.release()

    def _mend(self, held: Held) -> None:
        """Take a connection back whose query was given up, once the server has ended it. Nobody waits for that."""
        mending = asyncio.get_running_loop().create_task(self._mended(held), name=f"feast {self._name} mend")
        self._mending.add(mending)
        mending.add_done_callback(self._mending.discard)

    async def _mended(self, held: Held) -> None:
        try:
            async with asyncio.timeout(MEND_SECONDS):
                await held.connection.execute("SELECT 1")
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # TimeoutError is an OSError
            held.connection.terminate()
        else:
            await self._put_back(held)
        finally:
            self._places.release()

    async def _put_back(self, held: Held) -> None:
        if self._closed:
            await _closed(held)
        else:
            self._free.append(held)

    async def _connect(self) -> Held:
        try:
            connecting = asyncpg.connect(_url(self._config), timeout=self._connect_seconds, **_settings(self._config))
            return Held(await connecting)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, ValueError) as error:
            config, why = self._config, f"no connection within {self._connect_seconds:g} s"
            raise SourceError(
                f"feast '{self._name}': cannot connect to PostgreSQL at {config.host}:{config.port}: "
                f"{why if isinstance(error, TimeoutError) else error}",
                transient=True,
            ) from None

    def _translate(self, error: Exception) -> OrchestratorError:
        if isinstance(error, asyncpg.UndefinedTableError):
            return SourceError(f"feast '{self._name}': the online store: {error}; has `feast apply` been run?")
        transient = isinstance(error, (*TRANSIENT, ConnectionError))
        return SourceError(f"feast '{self._name}': PostgreSQL: {error}", transient=transient)


async def _closed(held: Held) -> None:
    with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):  # it is gone already
        await held.connection.close(timeout=MEND_SECONDS)


def _url(config: PostgreSQLOnlineStoreConfig) -> str:
    files = {"sslkey": config.sslkey_path, "sslcert": config.sslcert_path, "sslrootcert": config.sslrootcert_path}
    given = {name: path for name, path in files.items() if path} | {"sslmode": config.sslmode or "prefer"}
    return f"postgresql:///{quote(config.database)}?{urlencode(given)}"


def _settings(config: PostgreSQLOnlineStoreConfig) -> dict[str, Any]:
    search_path = (config.db_schema or config.user).strip()  # as Feast makes it
    return {
        "host": config.host,
        "port": config.port,
        "user": config.user,
        "password": config.password,
        "server_settings": {"search_path": search_path if search_path == "public" else f"{search_path},public"},
        "statement_cache_size": 0,  # what is prepared is held
    }


def _query(project: str, views: Sequence[View], which: str, more: str = "") -> tuple[str, list[list[str]]]:
    """Return the query and the values of its parameters after the keys: the names of each view's features."""
    selects = []
    for index, view in enumerate(views):
        table = f"{project}_{view.table}".replace('"', '""')
        selects.append(
            f"SELECT {index} AS view, {more}feature_name, value, extract(epoch FROM event_ts)::float8"
            f' FROM "{table}" WHERE {which.format(index + 1)} AND feature_name = ANY(${len(views) + index + 1})'
        )
    return " UNION ALL ".join(selects), [[feature.name for feature in view.features] for view in views]
