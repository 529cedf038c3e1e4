"""Databases for a test, executions to put in, and what is asked past the plugin."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from attrs import evolve, frozen
from orchestrator_tracking_sql.options import SqlOptions
from orchestrator_tracking_sql.plugin import SqlStore, open_sql

from orchestrator_core.plugin_api import Captured, Execution, FailedAttempt, Identity, StepRecord, StoreContext
from orchestrator_core.testing import RunningService

POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")
STARTED_AT = 1_700_000_000.125


@frozen
class Place:
    """A database that is empty at first."""

    engine: str
    url: str
    folder: Path

    def open(
        self, *, durable: bool = False, existing: bool = False, **options: Any
    ) -> AbstractAsyncContextManager[SqlStore]:
        return open_sql(SqlOptions(url=self.url, **options), StoreContext(self.folder / "config", durable, existing))

    def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, on a connection of its own."""
        if self.engine == "sqlite":
            with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"), timeout=20)) as connection, connection:
                return connection.execute(statement).fetchall()
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def ids(self) -> list[str]:
        return [id_ for (id_,) in self.ask("SELECT id FROM orchestrator_executions ORDER BY id")]


@contextmanager
def postgresql(options: str = "") -> Iterator[str]:
    """Make a database of PostgreSQL; drop it at the end."""
    name = f"orchestrator_test_{uuid.uuid4().hex[:12]}"
    try:
        server = psycopg.connect(POSTGRESQL_URL, autocommit=True)
    except psycopg.OperationalError as error:
        pytest.skip(f"PostgreSQL does not answer at {POSTGRESQL_URL}: {error}")
    with server:
        server.execute(f"CREATE DATABASE {name} {options}")
        try:
            yield f"{POSTGRESQL_URL}/{name}"
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def execution(number: int, **changes: Any) -> Execution:
    """Return the execution that started so many seconds after the first."""
    started_at = STARTED_AT + number
    whole = Execution(
        id=f"{int(started_at * 1000):012x}{number:020x}",
        domain="credit",
        endpoint="predict",
        generation="0123456789ab",
        status="degraded",
        http_status=200,
        started_at=started_at,
        duration_seconds=0.0123,
        engine_seconds=0.0001,
        trace_id="ab" * 16,
        degraded=("score",),
        models=(Identity("risk", "7", "sha256:1234"), Identity("other")),
        steps=(
            StepRecord("customer", "ok", 0.0001, 0.0021, 2, failed_attempts=(FailedAttempt(0.0002, 0.001, "reset"),)),
            StepRecord("score", "default", 0.0022, 0.01, 1, "it is down", items=3, items_failed=1),
            StepRecord("after", "skipped"),
        ),
        error="",
    )
    return evolve(whole, **changes)


def captured(document: dict[str, Any]) -> Captured:
    return Captured(orjson.dumps(document))


def files(place: Place, **tracking: Any) -> dict[str, str]:
    """Return a configuration with one endpoint, which stores its executions there."""
    options = {"store": f"{{type: sql, url: '{place.url}', lock_timeout: 200ms}}", **tracking}
    settings = "".join(f"  {name}: {value}\n" for name, value in options.items())
    return {
        "config.yaml": f"tracking:\n{settings}admin: {{port: 0}}\nserver: {{port: 0}}\n",
        "domains/d.yaml": "endpoints: {hello: {response_mapping: hello}}",
    }


class Relay:
    """A port before a database, which can be closed and opened again, and says nothing while ``speaks`` is not set."""

    def __init__(self, port: int) -> None:
        self.to = port
        self.port = 0
        self.speaks = asyncio.Event()
        self.speaks.set()
        self._server: asyncio.Server | None = None
        self._relays: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Close the port and break every connection."""
        assert self._server is not None
        self._server.close()
        for relay in self._relays:
            relay.cancel()
        await asyncio.gather(*self._relays, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._relay(reader, writer))
        self._relays.add(task)
        task.add_done_callback(self._relays.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self.to)
        ways = [
            asyncio.create_task(self._pump(reader, other_writer)),
            asyncio.create_task(self._pump(other_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            for each in (writer, other_writer):
                each.transport.abort()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self.speaks.wait()
            writer.write(data)
            await writer.drain()


async def counts(served: RunningService) -> dict[str, Any]:
    found: dict[str, Any] = (await served.admin("GET", "/config")).json["tracking"]
    return found


async def until(served: RunningService, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the counts of the service once they hold, within 30 s."""
    async with asyncio.timeout(30):
        while True:
            found = await counts(served)
            if holds(found):
                return found
            await asyncio.sleep(0.02)
