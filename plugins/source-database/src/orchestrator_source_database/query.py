"""A declared operation, compiled once: the database's own placeholders, their order, and what the statement is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from attrs import field, frozen
from sqlalchemy.engine.interfaces import Dialect

from orchestrator_source_database.options import DatabaseOptions, Decimals, OperationOptions, ParamType
from orchestrator_source_database.sql import param_names, statement, words

__all__ = ["MOST_TO_ASK", "Binding", "Query", "compile_query"]

READS = frozenset({"SELECT", "VALUES", "TABLE", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "PRAGMA"})
CHANGES = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE", "REPLACE"})
MOST_TO_ASK = 2**31 - 1


@frozen(eq=False)
class Query:
    """An operation of one source, whose name is ``database``.

    ``text`` is the statement with the driver's placeholders and ``positions`` the parameter name of each of them.
    ``names`` are the parameters in declared order. ``writes`` tells that the statement may change data, ``returns``
    that a statement which does also returns rows.
    """

    database: str
    operation: str
    source: str
    text: str
    names: tuple[str, ...]
    positions: tuple[str, ...]
    types: Mapping[str, ParamType]
    result: Literal["one", "many", "value", "execute"]
    allow_missing: bool
    max_rows: int | None
    decimals: Decimals
    writes: bool
    returns: bool
    columns_vary: bool

    @property
    def enough_rows(self) -> int:
        """How many rows to read at most, 0 for all: one more than there may be shows that there are too many."""
        if self.result in ("one", "value"):
            return 0 if self.writes else 2
        return 0 if self.max_rows is None else min(self.max_rows + 1, MOST_TO_ASK)


@frozen(eq=False)
class Binding:
    """A query together with the order in which its caller passes the values."""

    query: Query
    names: tuple[str, ...]
    indices: tuple[int, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        order = {name: index for index, name in enumerate(self.names)}
        object.__setattr__(self, "indices", tuple(order[name] for name in self.query.positions))


def compile_query(
    operation: str, options: OperationOptions, of: DatabaseOptions, dialect: Dialect, *, database: str = ""
) -> Query:
    """Let SQLAlchemy translate ``:name`` to the dialect's placeholders."""
    source = options.query.strip().removesuffix(";")
    compiled = statement(source).compile(dialect=dialect)
    used: Sequence[str] = compiled.positiontup or ()
    spoken = [word.upper() for word in words(source)]
    first = spoken[0] if spoken else ""
    writes = first not in READS and not (first == "WITH" and CHANGES.isdisjoint(spoken))
    return Query(
        database=database,
        operation=operation,
        source=source,
        text=str(compiled),
        names=tuple(options.params) or param_names(source),
        positions=tuple(used),
        types=options.params if isinstance(options.params, Mapping) else {},
        result=options.result,
        allow_missing=options.on_missing == "allow",
        max_rows=options.most_rows(of),
        decimals=options.decimals or of.decimals,
        writes=writes,
        returns=writes and "RETURNING" in spoken,
        columns_vary="*" in source,
    )
