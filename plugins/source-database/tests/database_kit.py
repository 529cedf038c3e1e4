"""A database on the engine under test, and how it is made, asked past the plugin, and dropped."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncmy
import asyncpg
import pytest
import uvloop
from attrs import evolve, field, frozen
from orchestrator_source_database.options import DatabaseOptions, OperationOptions
from orchestrator_source_database.plugin import DATABASE, DatabaseSource
from sqlalchemy.engine import make_url

from orchestrator_core.plugin_api import OpenContext

T = TypeVar("T")
POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")
MYSQL_URL = os.environ.get("ORCHESTRATOR_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306")
_mysql = make_url(MYSQL_URL)
MYSQL = {
    "host": _mysql.host,
    "port": _mysql.port or 3306,
    "user": _mysql.username,
    "password": _mysql.password or "",
}

TYPES = {
    "sqlite": ("INTEGER", "TEXT", "REAL"),
    "postgresql": ("int", "text", "float8"),
    "mysql": ("int", "varchar(200)", "double"),
}


def tables(engine: str) -> list[str]:
    whole, text, real = TYPES[engine]
    customers = f"customer_id {whole} PRIMARY KEY, name {text}, credit_score {whole}, annual_income {real}"
    accounts = f"account_id {whole} PRIMARY KEY, owner {text} NOT NULL, balance {whole} CHECK (balance >= 0)"
    return [
        f"CREATE TABLE customers ({customers})",
        f"CREATE TABLE accounts ({accounts})",
    ]


CUSTOMERS = [(number, f"customer {number}", 500 + number % 350, 1000.5 * number) for number in range(1, 101)]


def run(main: Coroutine[Any, Any, T], *, loop: str = "uvloop") -> T:
    """Run a coroutine to its end on a new event loop, on which no task may be left."""
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop

    async def alone() -> T:
        async with asyncio.timeout(60):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(alone())


@frozen
class Database:
    """A database of the engine under test, with the tables above and 100 customers."""

    engine: str
    url: str
    folder: Path
    options: Mapping[str, Any] = field(factory=dict)

    def having(self, **options: Any) -> Database:
        return evolve(self, options={**self.options, **options})

    @asynccontextmanager
    async def open(self, **operations: str | dict[str, Any]) -> AsyncIterator[DatabaseSource]:
        """Open the kind with these operations; a string is a query."""
        declared = {
            name: OperationOptions(**({"query": spelled} if isinstance(spelled, str) else spelled))
            for name, spelled in operations.items()
        }
        options = DatabaseOptions(self.url, **self.options)
        context = OpenContext(name="default", config_dir=self.folder, http=None, operations=declared)  # type: ignore[arg-type]
        async with DATABASE.open(options, context) as source:
            yield source

    def fetch(self, operation: str | dict[str, Any], **params: Any) -> Any:
        """Open, run one operation, close."""

        async def main() -> Any:
            async with self.open(operation=operation) as source:
                return await source.fetch("operation", params)

        return run(main())

    async def sql(self, *statements: str) -> list[Any]:
        """Run statements past the plugin; return the rows of the last."""
        rows: Any = []
        if self.engine == "sqlite":
            connection = sqlite3.connect(self.folder / "test.db")
            try:
                for statement in statements:
                    rows = connection.execute(statement).fetchall()
                connection.commit()
            finally:
                connection.close()
        elif self.engine == "postgresql":
            postgres = await asyncpg.connect(self.url)
            try:
                for statement in statements:
                    rows = [tuple(row) for row in await postgres.fetch(statement)]
            finally:
                await postgres.close()
        else:
            mysql = await asyncmy.connect(**MYSQL, db=self.url.rpartition("/")[2], autocommit=True)
            try:
                for statement in statements:
                    async with mysql.cursor() as cursor:
                        await cursor.execute(statement)
                        rows = await cursor.fetchall()
            finally:
                await mysql.ensure_closed()
        return list(rows)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until the condition holds, 20 seconds at most."""
    async with asyncio.timeout(20):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


def absent(engine: str, error: Exception) -> None:
    """Skip, or under CI fail, since an engine that silently is not tested is worse than none."""
    reason = f"{engine} does not answer: {error}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


async def make(engine: str, name: str, folder: Path) -> Database:
    if engine == "sqlite":
        database = Database(engine, "sqlite:///test.db", folder)
    elif engine == "postgresql":
        server = await asyncpg.connect(f"{POSTGRESQL_URL}/postgres", timeout=5)
        await server.execute(f"CREATE DATABASE {name}")
        await server.close()
        database = Database(engine, f"{POSTGRESQL_URL}/{name}", folder)
    else:
        admin = await asyncmy.connect(**MYSQL, autocommit=True, connect_timeout=5)
        await admin.query(f"CREATE DATABASE {name}")
        await admin.ensure_closed()
        database = Database(engine, f"{MYSQL_URL}/{name}", folder)
    rows = ", ".join(str(row) for row in CUSTOMERS)
    await database.sql(*tables(engine), f"INSERT INTO customers VALUES {rows}")
    return database


async def drop(engine: str, name: str) -> None:
    if engine == "postgresql":
        server = await asyncpg.connect(f"{POSTGRESQL_URL}/postgres")
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()
    elif engine == "mysql":
        admin = await asyncmy.connect(**MYSQL, autocommit=True)
        await admin.query(f"DROP DATABASE {name}")
        await admin.ensure_closed()
