"""A database pool that is used up, and clients that go away while a database works for them."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from urllib.parse import urlsplit

import asyncpg
from attrs import frozen

from orchestrator_core.testing import RunningService, service

POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")
POOL_SIZE = 4
POOL_TIMEOUT_SECONDS = 0.2
DATABASE = """
database:
  sources:
    default:
      connection_string: "{url}/{name}"
      pool_size: {size}
      pool_timeout: 200ms
      retry: false
      circuit_breaker: false
  operations:
    read: {{query: "SELECT CAST(1 AS integer) AS one"}}
    nap: {{query: "SELECT pg_sleep(CAST(:seconds AS float8))", params: {{seconds: number}}}}
    write: {{query: "SELECT pg_sleep(0.01)", result: execute}}
"""
DOMAIN = """
endpoints:
  read:
    data_sources: [{name: read, type: database, operation: read}]
    response_mapping: {one: "$read.one"}
  nap:
    input_schema: {properties: {seconds: {type: number}}}
    data_sources: [{name: nap, type: database, operation: nap, params: {seconds: "$request.seconds"}}]
    response_mapping: {done: true}
  write:
    data_sources: [{name: write, type: database, operation: write}]
    response_mapping: {done: true}
"""


@frozen
class Found:
    """What was seen. ``connections`` are those that PostgreSQL has of the service afterwards, by their state."""

    exhausted: Mapping[int, int]
    longest_seconds: float
    cancelled: int
    connections: Mapping[str, int]
    after: Mapping[int, int]
    in_flight: int


@asynccontextmanager
async def served(name: str) -> AsyncIterator[RunningService]:
    """Serve a database of its own, which is gone afterwards."""
    await _ask(f'CREATE DATABASE "{name}"')
    files = {
        "database.yaml": DATABASE.format(url=POSTGRESQL_URL, name=name, size=POOL_SIZE),
        "domains/bank.yaml": DOMAIN,
    }
    try:
        async with service(files) as running:
            yield running
    finally:
        await _ask(f'DROP DATABASE "{name}" WITH (FORCE)')


async def measure(cancelled: int = 10_000, at_once: int = 50, seed: int = 1) -> Found:
    """Use the pool up and ask on; then send so many requests that their clients give up at a random moment."""
    name = f"orchestrator_pools_{os.getpid()}"
    async with served(name) as running:
        sleepers = [asyncio.create_task(running.get("/orchestrator/bank/nap?seconds=2")) for _ in range(POOL_SIZE)]
        await _until_used(name)
        answers, longest = Counter[int](), 0.0
        for _ in range(5):
            started = perf_counter()
            got = await asyncio.gather(*(running.get("/orchestrator/bank/read") for _ in range(10)))
            longest = max(longest, perf_counter() - started)
            answers.update(answer.status for answer in got)
        await asyncio.gather(*sleepers)

        rng, numbers = random.Random(seed), iter(range(cancelled))

        async def give_up() -> None:
            host, port = running.running.public
            for _ in numbers:
                reader, writer = await asyncio.open_connection(host, port)
                target = rng.choice(["read", "write", "nap?seconds=0.02", "nap?seconds=5"])
                writer.write(f"GET /orchestrator/bank/{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                await asyncio.sleep(rng.random() * 0.02)
                writer.transport.abort()
                with suppress(ConnectionError):
                    await reader.read(1)

        await asyncio.gather(*(give_up() for _ in range(at_once)))
        async with asyncio.timeout(20):
            while running.running.live.snapshot.running:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.05)
        after = Counter[int]()
        for _ in range(20):
            got = await asyncio.gather(*(running.get("/orchestrator/bank/read") for _ in range(POOL_SIZE)))
            after.update(answer.status for answer in got)
        connections = await _connections(name)
        in_flight = running.running.live.snapshot.running
    return Found(answers, longest, cancelled, connections, after, in_flight)


async def _ask(statement: str, *values: str) -> list[asyncpg.Record]:
    parts = urlsplit(POSTGRESQL_URL)
    connection = await asyncpg.connect(
        host=parts.hostname, port=parts.port, user=parts.username, password=parts.password, database="postgres"
    )
    try:
        rows: list[asyncpg.Record] = await connection.fetch(statement, *values)
    finally:
        await connection.close()
    return rows


async def _connections(name: str) -> dict[str, int]:
    counted = "SELECT state, count(*) AS number FROM pg_stat_activity WHERE datname = $1 GROUP BY state"
    return {row["state"]: row["number"] for row in await _ask(counted, name)}


async def _until_used(name: str) -> None:
    async with asyncio.timeout(20):
        while (await _connections(name)).get("active") != POOL_SIZE:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.02)


if __name__ == "__main__":
    import sys

    import uvloop

    print(uvloop.run(measure(int(sys.argv[1]))))
