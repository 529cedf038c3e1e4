"""A read for several items in one statement, where that provably answers as one read for each item does.

The statement itself is never taken apart. PostgreSQL runs it once for each row of a list of parameters (``LATERAL``);
MySQL and MariaDB get one ``UNION ALL`` of it, with each item's parameters in place. So the database compares, converts
and collates exactly as it does for one item, whatever the columns' types are: keys are never matched in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.sql.compiler import SQLCompiler

from orchestrator_source_database.query import Query
from orchestrator_source_database.sql import NO_WORDS, statement, words

__all__ = ["CutShort", "Different", "Rewrite", "can_be_lateral", "can_be_union", "lateral", "union"]

Rewrite: TypeAlias = Callable[[Query], bool]
"""Tells whether a query can be rewritten for several items."""
PLACE = "\0"
LOCKS = frozenset({"UPDATE", "SHARE", "INTO"})
# What makes the columns of a union, or their order, depend on more than the one item's statement.
NOT_IN_A_UNION = LOCKS | {"UNION", "INTERSECT", "EXCEPT", "WITH", "LOCK", "PROCEDURE", "FOUND_ROWS", "ROW_COUNT"}


class Different(Exception):
    """The columns of the rewritten statement are not those of the statement itself."""


class CutShort(Exception):
    """So many rows for all items together that some may be left out: the items have to be read one by one."""


def spelled(query: Query, spell: Callable[[str], str]) -> str:
    """Return the statement with what ``spell`` makes of each parameter's name in its place."""

    class Spelling(SQLCompiler):
        def bindparam_string(self, name: str, *_: Any, **__: Any) -> str:
            return spell(name)

    dialect = DefaultDialect(paramstyle="named")
    dialect.statement_compiler = Spelling
    return str(statement(query.source).compile(dialect=dialect))


def _is_plain_read(query: Query, marks: Sequence[str]) -> bool:
    """Tell whether all that is no SQL word can be told apart for certain, and the parameters stand among the words."""
    statement = spelled(query, lambda _: PLACE)
    if query.writes or query.result == "execute" or not query.positions or any(mark in statement for mark in marks):
        return False
    return NO_WORDS.sub(" ", statement).count(PLACE) == statement.count(PLACE)


def _spoken(query: Query) -> list[str]:
    return [word.upper() for word in words(query.source)]


# --- PostgreSQL ---------------------------------------------------------------------------------------------------


def can_be_lateral(query: Query) -> bool:
    """Tell whether the query can be the right side of a ``LATERAL`` join: any read that takes no locks."""
    spoken = _spoken(query)
    plain = _is_plain_read(query, ("\\", "$", "/*", "--"))
    return plain and spoken[:1] in (["SELECT"], ["WITH"]) and LOCKS.isdisjoint(spoken)


def lateral(query: Query, types: Sequence[str]) -> str:
    """Return the statement for a list of each parameter's values; the number of the item comes first, from 1.

    The types are those that the server told for the statement itself. LIMIT and OFFSET keep the planner from making one
    join of it: it runs as it stands, once for each item.
    """
    columns = {name: f'"_item"."p{index}"' for index, name in enumerate(query.positions)}
    arrays = ", ".join(f"${index + 1}::{type_}[]" for index, type_ in enumerate(types))
    names = ", ".join(f'"p{index}"' for index in range(len(types)))
    fence = f"LIMIT {query.enough_rows}" if query.enough_rows else "OFFSET 0"
    return (
        f'SELECT "_item"."number", "_one".* FROM unnest({arrays}) WITH ORDINALITY AS "_item"({names}, "number")'
        f' CROSS JOIN LATERAL (SELECT * FROM (\n{spelled(query, columns.__getitem__)}\n) AS "_row" {fence}) AS "_one"'
    )


# --- MySQL and MariaDB --------------------------------------------------------------------------------------------


def can_be_union(query: Query) -> bool:
    """Tell whether the query can be a part of a ``UNION ALL``.

    It is one SELECT with its parameters behind FROM, so that its columns have the same types whatever the values are,
    and the order of its rows does not matter or is not asked for.
    """
    if not _is_plain_read(query, ("\\", "#", "@", "/*", "--")):
        return False
    spoken = _spoken(query)
    ordered = "ORDER" in spoken and query.result == "many"
    if spoken[:1] != ["SELECT"] or spoken.count("SELECT") != 1 or ordered or not NOT_IN_A_UNION.isdisjoint(spoken):
        return False
    statement = NO_WORDS.sub(" ", spelled(query, lambda _: PLACE)).upper().replace(PLACE, f" {PLACE} ").split()
    return "FROM" in statement and PLACE not in statement[: statement.index("FROM")]


def union(query: Query, size: int) -> str:
    """Return the statement for as many items; the number of the item comes last, from 0."""
    return " UNION ALL ".join(
        f"SELECT `_one`.*, {number} AS `_item` FROM (\n{query.text}\n) AS `_one`" for number in range(size)
    )
