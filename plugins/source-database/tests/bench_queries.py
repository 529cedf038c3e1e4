"""CPU time per read by key: SQLAlchemy async, the driver by hand and this plugin. Run: ``python bench_queries.py``.

Prints medians of interleaved rounds in microseconds of process CPU time, threads included.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import asyncpg
import uvloop
from orchestrator_source_database.options import DatabaseOptions, OperationOptions
from orchestrator_source_database.plugin import DATABASE
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from orchestrator_core.plugin_api import OpenContext

ROUNDS, CALLS, ROWS = 61, 300, 10_000
QUERY = "SELECT customer_id, credit_score, annual_income FROM customers WHERE customer_id = :customer_id"
POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")
Contestants = dict[str, Callable[[int], Awaitable[Any]]]


async def measure(title: str, contestants: Contestants) -> None:
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name, read in contestants.items():
        expected = {"customer_id": 7, "credit_score": 507, "annual_income": 7003.5}
        assert await read(7) == expected, name
    for _ in range(ROUNDS):
        for name, read in contestants.items():
            started = time.process_time()
            for number in range(CALLS):
                await read(number % ROWS + 1)
            times[name].append((time.process_time() - started) / CALLS * 1e6)
    medians = {name: statistics.median(each) for name, each in times.items()}
    by_hand = next(value for name, value in medians.items() if "by hand" in name)
    print(f"\n{title}")
    for name, median in medians.items():
        print(f"  {name:<46} {median:7.1f} µs   {by_hand / median:5.2f} of by hand")


def context(folder: Path) -> OpenContext:
    return OpenContext("bench", folder, None, {"get": OperationOptions(QUERY)})  # type: ignore[arg-type]


async def bench_sqlite(folder: Path) -> None:
    file = folder / "bench.db"
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, credit_score INT, annual_income REAL)")
    connection.execute("BEGIN")
    rows = [(number, 500 + number % 350, 1000.5 * number) for number in range(1, ROWS + 1)]
    connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", rows)
    connection.execute("COMMIT")
    prepared = QUERY.replace(":customer_id", "?")
    names = ("customer_id", "credit_score", "annual_income")

    async def on_the_loop(key: int) -> Any:
        return dict(zip(names, connection.execute(prepared, (key,)).fetchone(), strict=True))

    async def with_aiosqlite(key: int) -> Any:
        rows = await threaded.execute_fetchall(prepared, (key,))
        return dict(zip(names, rows[0], strict=True))

    engine = create_async_engine(f"sqlite+aiosqlite:///{file}")
    statement = text(QUERY)

    async def with_sqlalchemy(key: int) -> Any:
        async with engine.connect() as lent:
            row = (await lent.execute(statement, {"customer_id": key})).mappings().one()
            return dict(row)

    async with (
        aiosqlite.connect(file) as threaded,
        DATABASE.open(DatabaseOptions("sqlite:///bench.db"), context(folder)) as source,
    ):
        await measure(
            "SQLite",
            {
                "SQLAlchemy async, text()": with_sqlalchemy,
                "aiosqlite": with_aiosqlite,
                "sqlite3 by hand, unguarded on the loop": on_the_loop,
                "this plugin, prepared call": source.prepare("get", ["customer_id"]),
                "this plugin, fetch": lambda key: source.fetch("get", {"customer_id": key}),
            },
        )
    await engine.dispose()
    connection.close()


async def bench_postgresql(folder: Path) -> None:
    url, name = POSTGRESQL_URL, f"orchestrator_bench_{os.getpid()}"
    admin = await asyncpg.connect(f"{url}/postgres")
    await admin.execute(f"CREATE DATABASE {name}")
    try:
        connection = await asyncpg.connect(f"{url}/{name}")
        await connection.execute(
            "CREATE TABLE customers (customer_id int PRIMARY KEY, credit_score int, annual_income float8)"
        )
        await connection.execute(
            f"INSERT INTO customers SELECT n, 500 + n % 350, 1000.5 * n FROM generate_series(1, {ROWS}) n"
        )
        await connection.execute("ANALYZE customers")
        sql = QUERY.replace(":customer_id", "$1")
        held = await connection.prepare(sql)
        statement = text(QUERY)
        engine = create_async_engine(f"{url.replace('postgresql', 'postgresql+asyncpg')}/{name}")

        async def by_hand(key: int) -> Any:
            return dict(await held.fetchrow(key))

        async def with_pool(key: int) -> Any:
            async with pool.acquire() as lent:
                return dict(await lent.fetchrow(sql, key))

        async def with_sqlalchemy(key: int) -> Any:
            async with engine.connect() as lent:
                return dict((await lent.execute(statement, {"customer_id": key})).mappings().one())

        async with (
            asyncpg.create_pool(f"{url}/{name}", min_size=1, max_size=5) as pool,
            DATABASE.open(DatabaseOptions(f"{url}/{name}"), context(folder)) as source,
        ):
            await measure(
                "PostgreSQL",
                {
                    "SQLAlchemy async, text()": with_sqlalchemy,
                    "asyncpg pool": with_pool,
                    "asyncpg by hand, held prepared statement": by_hand,
                    "this plugin, prepared call": source.prepare("get", ["customer_id"]),
                    "this plugin, fetch": lambda key: source.fetch("get", {"customer_id": key}),
                },
            )
        await engine.dispose()
        await connection.close()
    finally:
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        await bench_sqlite(Path(folder))
        await bench_postgresql(Path(folder))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
