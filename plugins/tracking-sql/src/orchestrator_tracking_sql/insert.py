"""Adding many rows with little work, and with few turns of the interpreter's lock.

The rows are made on the event loop; the thread that writes then does almost nothing but wait for the database, without
the lock. Were it to take the lock for each row, the event loop would wait for it as often.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

import orjson
from sqlalchemy import Connection

from orchestrator_tracking_sql.rows import COLUMNS, JSON_COLUMNS, Row, Values
from orchestrator_tracking_sql.schema import executions

VALUES, OTHER_ROWS = 600, 50
"""So many values are in a statement of rows that are alike, and so many rows in one of others: old SQLite takes 999."""
FEW = 4
"""Rows that are alike and fewer than this are written with the others: each count of rows is a statement of its own."""
LARGEST_DOCUMENT = 4 * 2**20
"""Bytes of one statement's parameter: captured values can be large, and a busy server takes its time for them."""

_INTO = f"INSERT INTO {executions.name} ({', '.join(COLUMNS)})"
_ONCE = "ON CONFLICT (id) DO NOTHING"
_NUMBERS = {"http_status": "integer", "started_at": "float8", "duration_seconds": "float8", "engine_seconds": "float8"}


class Insert(Protocol):
    """Rows on their way into the table: made some at a time, and written all at once."""

    def more(self, rows: Sequence[Row]) -> None: ...

    def write(self, connection: Connection) -> None: ...


class SqliteInsert:
    """A statement for each few dozen rows: one call without the lock. JSON functions would take five times as long.

    Rows that agree in all but a few columns, as those of one endpoint do, share the parameters for the others: binding
    a value costs about as much as storing it.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str, list[Any]]] = []
        self._alike: dict[int, list[Any]] = {}
        self._shared: dict[int, Values] = {}
        self._others: list[Any] = []

    def more(self, rows: Sequence[Row]) -> None:
        alike = self._alike
        for own, shared in rows:
            if shared[-1] is not None:  # what was captured differs, and is long
                self._other(own, shared)
                continue
            values = alike.get(id(shared))
            if values is None:
                alike[id(shared)] = [*shared, *own]
                self._shared[id(shared)] = shared  # so that no others get its id
                continue
            values += own
            if len(values) >= VALUES:
                self._end(shared, values)
                del alike[id(shared)]

    def _other(self, own: Sequence[Any], shared: Values) -> None:
        self._others += own
        self._others += shared
        if len(self._others) == OTHER_ROWS * len(COLUMNS):
            self._end_others()

    def _end_others(self) -> None:
        if self._others:
            self._parts.append((_of_rows(len(self._others) // len(COLUMNS)), self._others))
            self._others = []

    def _end(self, shared: Values, values: list[Any]) -> None:
        own = len(COLUMNS) - len(shared)
        count = (len(values) - len(shared)) // own
        if count >= FEW:
            self._parts.append((_of_alike(count, own), values))
            return
        for start in range(len(shared), len(values), own):
            self._other(values[start : start + own], shared)

    def write(self, connection: Connection) -> None:
        for number, values in self._alike.items():
            self._end(self._shared[number], values)
        self._alike, self._shared = {}, {}
        self._end_others()
        driver: Any = connection.connection.driver_connection  # SQLAlchemy would look at each of the values
        for statement, values in self._parts:
            driver.execute(statement, values)


@cache
def _of_rows(count: int) -> str:
    row = f"({', '.join('?' * len(COLUMNS))})"
    return f"{_INTO} VALUES {', '.join([row] * count)} {_ONCE}"


@cache
def _of_alike(count: int, own: int) -> str:
    """Return the statement of so many rows of which so many columns are each row's own."""
    first = len(COLUMNS) - own + 1
    shared = ", ".join(f"?{number}" for number in range(1, first))
    rows = (
        f"({', '.join(f'?{number}' for number in range(start, start + own))}, {shared})"
        for start in range(first, first + count * own, own)
    )
    return f"{_INTO} VALUES {', '.join(rows)} {_ONCE}"


class PostgresqlInsert:
    """One JSON document, which the server takes apart: one round trip, and one value for the driver to adapt.

    What goes into JSON columns is text in it, as PostgreSQL cannot take apart what has a NUL in a string, though it can
    store that. What was captured is apart from the others: PostgreSQL reads a whole value for each part of it that it
    is asked for.
    """

    def __init__(self) -> None:
        self._documents: list[list[bytes]] = []
        self._size = LARGEST_DOCUMENT

    def more(self, rows: Sequence[Row]) -> None:
        part = orjson.dumps([(own + shared[:-1], shared[-1]) for own, shared in rows])[1:-1]
        if self._size + len(part) > LARGEST_DOCUMENT:
            self._documents.append([])
            self._size = 0
        self._documents[-1].append(part)
        self._size += len(part)

    def write(self, connection: Connection) -> None:
        for parts in self._documents:
            connection.exec_driver_sql(_OF_DOCUMENT, (b"[%b]" % b",".join(parts),))


def _of_values(part: str, names: Sequence[str]) -> list[str]:
    types = ["json" if name in JSON_COLUMNS else _NUMBERS.get(name, "text") for name in names]
    return [f"CAST({part}->>{index} AS {type_})" for index, type_ in enumerate(types)]


_VALUES = [*_of_values("one", COLUMNS[:-1]), "CAST(captured AS json)"]
_OF_DOCUMENT = (
    f"{_INTO} SELECT {', '.join(_VALUES)}"
    " FROM (SELECT value->0 AS one, value->>1 AS captured"
    " FROM json_array_elements(convert_from(%s, 'UTF8')::json) AS each(value)"
    f" OFFSET 0) AS parts {_ONCE}"  # without the offset, the parts would be taken for each column again
)

INSERTS: dict[str, type[Insert]] = {"sqlite": SqliteInsert, "postgresql": PostgresqlInsert}

__all__ = ["INSERTS", "Insert"]
