"""The ``database`` source kind: what the core finds under ``orchestrator.plugins``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from orchestrator_core.plugin_api import (
    JSON,
    Finding,
    Inspection,
    InvalidParam,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    SourceError,
    SourceKind,
    did_you_mean,
    hookimpl,
)
from orchestrator_source_database.findings import facts_of
from orchestrator_source_database.many import Rewrite, can_be_lateral, can_be_union
from orchestrator_source_database.options import MARIADB, MYSQL, POSTGRESQL, SQLITE, DatabaseOptions, OperationOptions
from orchestrator_source_database.pool import Pool
from orchestrator_source_database.query import Binding, Query, compile_query
from orchestrator_source_database.server import Connection, Server
from orchestrator_source_database.sqlite import Sqlite

__all__ = ["DATABASE", "DatabaseSource", "orchestrator_source_kinds"]


class DatabaseSource:
    """One database with its declared queries. ``fetch`` and what ``prepare`` returns may be called concurrently."""

    def __init__(self, queries: Mapping[str, Query], database: Server | Sqlite) -> None:
        self._queries = queries
        self._database = database
        self._calls: dict[tuple[str, tuple[str, ...]], Callable[..., Awaitable[JSON]]] = {}

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        """Return the coroutine function that runs the operation with the values in the order of the names.

        Raises ``SourceError`` when there is no such operation and ``InvalidParam`` when the names are not its own.
        """
        key = (operation, tuple(param_names))
        call = self._calls.get(key)
        if call is None:
            query = self._queries.get(operation)
            if query is None:
                hint = did_you_mean(operation, self._queries)
                raise SourceError(f"there is no operation '{operation}'{f'; {hint}' if hint else ''}")
            _check_names(query, key[1])
            call = self._calls[key] = self._database.call(Binding(query, key[1]))
        return call

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[[Sequence[Sequence[JSON]]], Awaitable[Sequence[JSON | OrchestratorError]]] | None:
        """Return the read for many items, or ``None`` for a write and for a query that cannot become one for all.

        Raises as :meth:`prepare` does.
        """
        self.prepare(operation, param_names)
        return self._database.many(Binding(self._queries[operation], tuple(param_names)))

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        return await self.prepare(operation, sorted(params))(*[params[name] for name in sorted(params)])

    async def check_ready(self) -> None:
        await self._database.check_ready()

    async def inspect(self) -> Inspection:
        """Hold each query against the database, without running any."""
        facts: dict[str, OperationFacts] = {}
        findings: list[Finding] = []
        for operation, query in self._queries.items():
            looked = await self._database.look_at(query)
            if isinstance(looked, Finding):
                findings.append(looked)
            else:
                facts[operation] = looked
        return Inspection(facts, tuple(findings))


def _check_names(query: Query, names: Sequence[str]) -> None:
    for name in names:
        if name not in query.names:
            hint = did_you_mean(name, query.names)
            message = f"{query.operation}: there is no parameter '{name}'{f'; {hint}' if hint else ''}"
            raise InvalidParam(name, message)
    for name in query.names:
        if name not in names:
            raise InvalidParam(name, f"{query.operation}: parameter '{name}' is missing")


@asynccontextmanager
async def open_database(options: DatabaseOptions, context: OpenContext) -> AsyncIterator[DatabaseSource]:
    """Open the source. Connections are made when they are needed, so the database need not be up."""
    address = options.address
    # Only `?` and `$1` are asked for: a driver that formats values into the text is not used.
    style = {} if address.driver is POSTGRESQL else {"paramstyle": "qmark"}
    dialect = address.url.get_dialect()(**style)
    queries = {
        name: compile_query(name, operation, options, dialect, database=context.name)
        for name, operation in context.operations.items()
    }
    if address.driver is SQLITE:
        async with Sqlite(options, context) as sqlite:
            yield DatabaseSource(queries, sqlite)
        return
    connect: Callable[[], Awaitable[Connection]]
    can_be_many: Rewrite
    # Each driver is an extra of this distribution: only the one that is configured is imported.
    if address.driver in (MYSQL, MARIADB):
        from orchestrator_source_database import mysql

        connect, can_be_many = mysql.connector(address, options, context), can_be_union
    else:
        from orchestrator_source_database import postgresql

        connect, can_be_many = postgresql.connector(address, options, context), can_be_lateral
    pool: Pool[Connection] = Pool(
        connect,
        name=context.name,
        size=options.pool_size,
        timeout_seconds=options.pool_timeout,
        recycle_seconds=options.pool_recycle,
    )
    async with pool:
        yield DatabaseSource(queries, Server(pool, can_be_many, options.pool_size))


def database_facts(options: DatabaseOptions, operations: Mapping[str, OperationOptions]) -> dict[str, OperationFacts]:
    """Return what each query takes, from its text alone."""
    dialect = options.address.url.get_dialect()()
    return {name: facts_of(compile_query(name, operation, options, dialect)) for name, operation in operations.items()}


DATABASE: SourceKind[Any] = SourceKind(
    name="database",
    summary="Queries on SQLite, PostgreSQL, MariaDB and MySQL.",
    options=DatabaseOptions,
    operation=OperationOptions,
    open=open_database,
    facts=database_facts,
    in_process=True,
)


@hookimpl
def orchestrator_source_kinds() -> Iterable[SourceKind[Any]]:
    return [DATABASE]
