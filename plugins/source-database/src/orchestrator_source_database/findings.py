"""What a database says of a query that it cannot prepare, in words that point at the query's text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator_core.plugin_api import Finding, OperationFacts, did_you_mean
from orchestrator_source_database.query import Query
from orchestrator_source_database.sql import words

__all__ = ["Catalog", "facts_of", "finding"]

Catalog = Mapping[str, Sequence[str]]
"""The columns of each table that the connection sees."""


def finding(query: Query, message: str, *, near: str = "", hint: str = "") -> Finding:
    return Finding(query.operation, message, at=("query",), near=near, hint=hint)


def missing_table(query: Query, table: str, catalog: Catalog) -> Finding:
    return finding(query, f"there is no table '{table}'", near=table, hint=did_you_mean(table, catalog))


def missing_column(query: Query, column: str, catalog: Catalog) -> Finding:
    """Report a column, suggesting one of the tables that the query speaks of."""
    spoken = {word.lower() for word in words(query.source)}
    tables = [table for table in catalog if table.lower() in spoken]
    known = {name for table in tables or catalog for name in catalog[table]}
    where = f" in {tables[0]}" if len(tables) == 1 else ""
    return finding(query, f"there is no column '{column}'{where}", near=column, hint=did_you_mean(column, known))


def facts_of(query: Query, fields: tuple[str, ...] | None = None) -> OperationFacts:
    """Return what is known of the operation; ``fields`` are the columns that the database tells of."""
    if query.result == "value":
        fields = None
    elif query.result == "execute":
        fields = ("rowcount", "rows") if fields else ("rowcount",) if fields is not None else None
    return OperationFacts(
        required=query.names,
        optional=(),
        fields=fields,
        many=query.result == "many",
        idempotent=query.result != "execute",
    )


def repeated_column(query: Query, fields: Sequence[str]) -> Finding | None:
    twice = next((name for name in fields if list(fields).count(name) > 1), "")
    if not twice:
        return None
    return finding(query, f"the query returns two columns named '{twice}'", near=twice, hint="rename one with AS")
