"""The statements, for SQLite and PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Select, Text, cast, func, select, text, union_all

from orchestrator_core.plugin_api import Query
from orchestrator_tracking_sql.rows import COLUMNS, JSON_COLUMNS
from orchestrator_tracking_sql.schema import executions, generations

MOST_PAGES = 100
CLOCK_STEPS_SECONDS = 60.0
"""How far an execution's start may be from the time in its id: the clock can be set in between."""


def found(query: Query) -> Select[Any]:
    """Return the select of a page and one row more, which tells whether there is another page.

    What was captured, the last column, may be large: it is for those who ask for one execution.
    """
    return _filtered(_selected(COLUMNS[:-1]), query)


def found_of_each(connection: Connection, query: Query) -> Select[Any] | None:
    """Return the same for a query of a domain or of an endpoint alone, which none of the indexes is in the order of.

    The page is made of the pages of each endpoint of the domain, or of the endpoint in each domain: to sort all of a
    domain takes a second a million. None where there are too many.
    """
    columns = executions.c
    other = columns.endpoint if query.endpoint is None else columns.domain
    of_domain = [] if query.domain is None else [columns.domain == query.domain]
    names: list[str] = []
    step = select(other).where(*of_domain).order_by(other).limit(1)
    while (name := connection.execute(step.where(other > names[-1]) if names else step).scalar()) is not None:
        names.append(name)
        if len(names) > MOST_PAGES:
            return None
    pages = [_filtered(select(columns.id), query).where(other == name).subquery() for name in names]
    ids: Any = union_all(*[select(page.c.id) for page in pages]) if pages else []
    return _selected(COLUMNS[:-1]).where(columns.id.in_(ids)).order_by(columns.id.desc()).limit(query.limit + 1)


def _filtered(statement: Select[Any], query: Query) -> Select[Any]:
    columns = executions.c
    statement = statement.order_by(columns.id.desc()).limit(query.limit + 1)
    if query.domain is not None:
        statement = statement.where(columns.domain == query.domain)
    if query.endpoint is not None:
        statement = statement.where(columns.endpoint == query.endpoint)
    if query.status is not None:
        statement = statement.where(columns.status == query.status)
        if query.status != "ok":
            statement = statement.where(columns.status != "ok")  # which its index has not
    # Ids begin with a time, so a range of them spares looking at everything that is newer or older.
    if query.since is not None:
        statement = statement.where(columns.started_at >= query.since)
        statement = statement.where(columns.id >= _first_id(query.since - CLOCK_STEPS_SECONDS))
    if query.until is not None:
        statement = statement.where(columns.started_at < query.until)
        statement = statement.where(columns.id < before_id(query.until))
    if query.cursor is not None:
        statement = statement.where(columns.id < query.cursor)
    return statement


def before_id(moment: float) -> str:
    """Return an id that is after those of all executions that started before the Unix time."""
    return _first_id(moment + CLOCK_STEPS_SECONDS)


def _first_id(moment: float) -> str:
    milliseconds = min(max(0, math.floor(moment * 1000)), 16**12 - 1)
    return f"{milliseconds:012x}"


def newest(until: str | None, offset: int) -> Select[Any]:
    """Return the select of the id that is so many before the newest, or before the one that is given."""
    statement = select(executions.c.id).order_by(executions.c.id.desc()).offset(offset).limit(1)
    return statement if until is None else statement.where(executions.c.id <= until)


def one(execution_id: str) -> Select[Any]:
    return _selected(COLUMNS).where(executions.c.id == execution_id)


def _selected(names: Sequence[str]) -> Select[Any]:
    # As text: the drivers would otherwise make objects of some, each in its own way.
    return select(*(_text(executions.c[name]) if name in JSON_COLUMNS else executions.c[name] for name in names))


def _text(column: Any) -> Any:
    return cast(column, Text).label(column.name)


def one_generation(generation_id: str) -> Select[Any]:
    columns = generations.c
    return select(columns.id, columns.served_at, _text(columns.files), _text(columns.texts)).where(
        columns.id == generation_id
    )


def past(before: float, limit: int) -> Select[Any]:
    """Return the select of generations that were last known to serve before the Unix time, and before all executions.

    Looking for the executions of each would take an index, which each execution would pay for.
    """
    oldest = select(executions.c.started_at).order_by(executions.c.id).limit(1).scalar_subquery()
    columns = generations.c
    last = columns.last_served_at
    statement = select(columns.id, last).where(last < before, last < func.coalesce(oldest, before))
    return statement.order_by(last).limit(limit)


def answers(generation_id: str, until: float) -> Select[Any]:
    """Return the select of an execution of a generation that started before the Unix time, or a little later."""
    columns = executions.c
    return select(columns.id).where(columns.generation == generation_id, columns.id < before_id(until)).limit(1)


INSERT_GENERATION = text(
    f"INSERT INTO {generations.name} (id, served_at, last_served_at, files, texts)"
    " VALUES (:id, :served_at, :last_served_at, :files, :texts) ON CONFLICT (id) DO NOTHING"
)
STILL_SERVES = text(f"UPDATE {generations.name} SET last_served_at = :last_served_at WHERE id = :id")

__all__ = [
    "INSERT_GENERATION",
    "STILL_SERVES",
    "answers",
    "before_id",
    "found",
    "found_of_each",
    "newest",
    "one",
    "one_generation",
    "past",
]
