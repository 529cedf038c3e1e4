"""The tracking store ``sql``: what the core finds under ``orchestrator.plugins``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter
from time import time
from typing import Any, TypeVar

import orjson
from sqlalchemy import Connection, Select, delete, select

from orchestrator_core.plugin_api import (
    Execution,
    Generation,
    OptionError,
    Page,
    Query,
    SourceUnavailable,
    StorableRun,
    StoreContext,
    StoreKind,
    StoreNotMade,
    hookimpl,
)
from orchestrator_tracking_sql.database import Database, file_of
from orchestrator_tracking_sql.insert import INSERTS
from orchestrator_tracking_sql.options import SqlOptions
from orchestrator_tracking_sql.rows import Row, RowsOfRuns, Values, alike, execution_of, generation_of, row_of
from orchestrator_tracking_sql.schema import executions as table
from orchestrator_tracking_sql.schema import generations
from orchestrator_tracking_sql.statements import (
    INSERT_GENERATION,
    STILL_SERVES,
    answers,
    before_id,
    found,
    found_of_each,
    newest,
    one,
    one_generation,
    past,
)

T = TypeVar("T", Execution, StorableRun)

PRUNED_AT_ONCE = 500
COUNTED_AT_ONCE = 200_000
ROWS_AT_ONCE = 50
GENERATIONS_AT_ONCE = 20
TOLD_SECONDS = 120.0
"""How long a generation can go on serving after the core last said that it does: it says so more often."""

_id = attrgetter("id")

__all__ = ["SQL", "SqlStore", "orchestrator_execution_stores", "select_of"]


class SqlStore:
    """Executions in one table: an ``ExecutionStore`` that ``AddsRuns`` (see :mod:`orchestrator_core.plugin_api`)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._insert = INSERTS[database.dialect]
        self._beyond: tuple[int, str | None] | None = None

    async def add(self, executions: Sequence[Execution]) -> None:
        known: dict[Values, Values] = {}
        await self._add(executions, lambda some: [alike(row_of(one), known) for one in some])

    async def add_runs(self, runs: Sequence[StorableRun]) -> None:
        await self._add(runs, RowsOfRuns().rows_of)

    async def _add(self, given: Sequence[T], rows: Callable[[Sequence[T]], Sequence[Row]]) -> None:
        insert = self._insert()
        given = sorted(given, key=_id)  # near the order of the indexes, so that neighbours stand on one page
        for start in range(0, len(given), ROWS_AT_ONCE):
            if start:
                await asyncio.sleep(0)  # this runs beside requests
            insert.more(rows(given[start : start + ROWS_AT_ONCE]))
        await self._database.write(insert.write)

    async def find(self, query: Query) -> Page:
        if _is_nowhere(query.domain, query.endpoint, query.status):
            return Page((), None)
        rows = await self._database.read(lambda connection: connection.execute(select_of(connection, query)).all())
        executions = tuple(execution_of(row) for row in rows[: query.limit])
        return Page(executions, executions[-1].id if len(rows) > query.limit else None)

    async def get(self, execution_id: str) -> Execution | None:
        if _is_nowhere(execution_id):
            return None
        row = await self._database.read(lambda connection: connection.execute(one(execution_id)).one_or_none())
        return None if row is None else execution_of(row)

    async def prune(self, before: float | None, keep: int | None) -> int:
        beyond = None if keep is None else await self._newest_beyond(keep)

        def work(connection: Connection) -> int:
            deleted = 0
            if before is not None:
                old = select(table.c.row_id).where(table.c.started_at < before, table.c.id < before_id(before))
                deleted += _delete(connection, old.order_by(table.c.id))
            if beyond is not None:
                deleted += _delete(connection, select(table.c.row_id).where(table.c.id <= beyond))
            if not deleted:  # only then the oldest execution is one that stays
                now = time()
                _delete_generations(connection, min(before or now, now - TOLD_SECONDS))
            return deleted

        deleted = await self._database.write(work)
        if not deleted:
            self._beyond = None  # the next time others are beyond
        return deleted

    async def _newest_beyond(self, keep: int) -> str | None:
        """Return the id of the newest execution beyond so many, if there are more; the same until all those are gone.

        Many are counted in parts, each a statement of its own, and where nobody waits for it to write.
        """
        if self._beyond is None or self._beyond[0] != keep:
            found, left = await self._at(None, min(keep, COUNTED_AT_ONCE)), keep - COUNTED_AT_ONCE
            while found is not None and left > 0:
                found, left = await self._at(found, min(left, COUNTED_AT_ONCE)), left - COUNTED_AT_ONCE
            self._beyond = keep, found
        return self._beyond[1]

    async def _at(self, until: str | None, offset: int) -> str | None:
        statement = newest(until, offset)
        return await self._database.read(lambda connection: connection.execute(statement).scalar())

    async def add_generation(self, generation: Generation) -> None:
        values = {
            "id": generation.id,
            "served_at": generation.served_at,
            "last_served_at": time(),
            "files": orjson.dumps(dict(generation.files)).decode(),
            "texts": orjson.dumps(dict(generation.texts)).decode(),
        }

        def work(connection: Connection) -> None:
            still = {name: values[name] for name in ("id", "last_served_at")}
            if not connection.execute(STILL_SERVES, still).rowcount:
                connection.execute(INSERT_GENERATION, values)

        await self._database.write(work)

    async def get_generation(self, generation_id: str) -> Generation | None:
        if _is_nowhere(generation_id):
            return None
        statement = one_generation(generation_id)
        row = await self._database.read(lambda connection: connection.execute(statement).one_or_none())
        return None if row is None else generation_of(row)


def select_of(connection: Connection, query: Query) -> Select[Any]:
    """Return the select of a page, and one row more, in the way that looks at the fewest rows."""
    alone = (query.domain is None) != (query.endpoint is None)
    each = found_of_each(connection, query) if alone and query.status in (None, "ok") else None
    return found(query) if each is None else each


def _is_nowhere(*asked: str | None) -> bool:
    """Return whether one of the texts has a NUL: no row has, and PostgreSQL refuses the question."""
    return any(text is not None and "\0" in text for text in asked)


def _delete(connection: Connection, rows: Any) -> int:
    deleted: int = connection.execute(delete(table).where(table.c.row_id.in_(rows.limit(PRUNED_AT_ONCE)))).rowcount
    return deleted


def _delete_generations(connection: Connection, before: float) -> None:
    """Delete configurations that have answered none of the executions that are kept."""
    for id_, last_served_at in connection.execute(past(before, GENERATIONS_AT_ONCE)).all():
        if connection.execute(answers(id_, last_served_at + TOLD_SECONDS)).first() is None:
            connection.execute(delete(generations).where(generations.c.id == id_))


def check_sql(options: SqlOptions, context: StoreContext) -> None:
    """Raise :class:`OptionError` for a file that must not be where it is to be."""
    path = file_of(options, context.path)
    if path is not None and path.is_relative_to(context.config_dir.resolve()):
        raise OptionError(
            "url",
            f"{path.name} lies in the configuration folder, where each change has the configuration read"
            " again: keep it elsewhere, such as sqlite:///../executions.db",
        )


@asynccontextmanager
async def open_sql(options: SqlOptions, context: StoreContext) -> AsyncIterator[SqlStore]:
    """Open the database; make its tables, or bring them up to date, unless somebody only reads them."""
    check_sql(options, context)
    database = Database(options, context.path, context.durable)
    if context.existing and database.path is not None and not database.path.exists():
        if not database.path.parent.is_dir():
            raise SourceUnavailable(f"there is no folder {database.path.parent}")
        raise StoreNotMade(f"there is no file {database.path}")
    try:
        await (database.look() if context.existing else database.open())
        yield SqlStore(database)
    finally:
        await database.close()


SQL: StoreKind[Any] = StoreKind(
    name="sql",
    summary="Executions in SQLite, or in PostgreSQL for several machines.",
    options=SqlOptions,
    open=open_sql,
    check=check_sql,
)


@hookimpl
def orchestrator_execution_stores() -> Iterable[StoreKind[Any]]:
    return [SQL]
