"""A small feature repository on the store under test: who is in it, how it is made, and how it is taken down."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pandas as pd
import psycopg
import pytest
import yaml
from aiohttp import web
from attrs import field, frozen
from feast import (
    Entity,
    FeatureService,
    FeatureStore,
    FeatureView,
    Field,
    FileSource,
    PushSource,
    RequestSource,
    ValueType,
)
from feast.on_demand_feature_view import on_demand_feature_view
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Array, Bool, Bytes, Float32, Float64, Int64, String, UnixTimestamp
from orchestrator_source_feast.plugin import FEAST
from psycopg import sql
from redis import Redis

from orchestrator_core.testing import open_source, run

START_SECONDS = 60
STORES = ["sqlite", "redis", "postgresql"]
REDIS = os.environ.get("ORCHESTRATOR_TEST_REDIS", "127.0.0.1:6379")
REDIS_DATABASE = 3
POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")

NOW = datetime.now(UTC).replace(microsecond=0)
SIGNED_UP = datetime(2024, 2, 29, 12, 30, tzinfo=UTC)
ADA, BO, OLD, NAN, UNKNOWN = 1, 2, 3, 4, 99
CUSTOMERS = pd.DataFrame(
    {
        "customer_id": [ADA, BO, OLD, NAN],
        "event_timestamp": [NOW, NOW, NOW - timedelta(days=2), NOW],
        "purchase_history": [[3, 1, 2], None, [1], [2]],
        "category_affinity": [0.25, None, 0.5, float("inf")],
        "visits": [12, 3, 1, 7],
        "tier": ["gold", None, "silver", "Zoë"],
        "vip": [True, False, False, None],
        "signed_up": [SIGNED_UP, None, SIGNED_UP, SIGNED_UP],
        "photo": [b"\x00\xff", b"", None, None],
        "ratios": [[0.5, 0.25], [], None, [1.0]],
    }
).astype({"visits": "Int64", "vip": "boolean"})
SPENDING = pd.DataFrame(
    {"customer_id": [ADA, BO], "merchant": ["shop", "Zoë & co"], "event_timestamp": [NOW, NOW], "spent": [9.5, 20.25]}
)
MARKET = pd.DataFrame({"event_timestamp": [NOW], "rate": [0.0425]})
ADA_FEATURES = {
    "purchase_history": [3, 1, 2],
    "category_affinity": 0.25,
    "visits": 12,
    "tier": "gold",
    "vip": True,
    "signed_up": "2024-02-29T12:30:00+00:00",
    "photo": "AP8=",
    "ratios": [0.5, 0.25],
}
ALL = [f"customer:{name}" for name in ADA_FEATURES]


@frozen
class Made:
    """A repository of the store under test."""

    store: str
    folder: Path
    sdk: FeatureStore = field(repr=False)

    @property
    def options(self) -> dict[str, Any]:
        return {"repo_path": str(self.folder), "entity_key": "customer_id"}

    @asynccontextmanager
    async def open(self, operations: Mapping[str, Any] | None = None, **options: Any) -> AsyncIterator[Any]:
        given = {**self.options, **options}
        async with open_source(FEAST, given, operations, folder=self.folder) as source:
            yield source

    def fetch(self, operation: Mapping[str, Any], params: Mapping[str, Any], **options: Any) -> Any:
        """Open, run one operation, close."""

        async def main() -> Any:
            async with self.open({"get": operation}, **options) as source:
                return await source.fetch("get", params)

        return run(main())

    def write(self, view: str, keys: Mapping[str, Value], values: Mapping[str, Value], at: datetime) -> None:
        """Write one entity past every conversion."""
        entity = EntityKey(join_keys=list(keys), entity_values=list(keys.values()))
        online_store = self.sdk._get_provider().online_store
        table = self.sdk.get_feature_view(view)
        online_store.online_write_batch(self.sdk.config, table, [(entity, dict(values), at, None)], None)

    def take_down(self) -> None:
        """Remove what bears this project's name from the store, and nothing else: others use the servers too."""
        online_store = self.sdk._get_provider().online_store
        for name in ("_conn", "_client"):
            if getattr(online_store, name, None) is not None:
                getattr(online_store, name).close()
        if self.store == "postgresql":
            with psycopg.connect(POSTGRESQL_URL, autocommit=True) as connection:
                connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(self.sdk.project)))
        if self.store == "redis":
            host, _, port = REDIS.partition(":")
            with Redis(host, int(port), db=REDIS_DATABASE) as client:
                for key in client.scan_iter(f"*{self.sdk.project}"):
                    client.delete(key)


def online_store(store: str, folder: Path, project: str) -> dict[str, Any]:
    """Return the store's part of ``feature_store.yaml``; skip, or under CI fail, when the server is not there."""
    if store == "sqlite":
        return {"type": "sqlite", "path": "online.db"}
    if store == "redis":
        host, _, port = REDIS.partition(":")
        _reach(store, host, int(port))
        return {"type": "redis", "connection_string": f"{REDIS},db={REDIS_DATABASE}"}
    url = urlsplit(POSTGRESQL_URL)
    host, number = url.hostname or "127.0.0.1", url.port or 5432
    _reach(store, host, number)
    with psycopg.connect(POSTGRESQL_URL, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {project}")
    return {
        "type": "postgres",
        "host": host,
        "port": number,
        "database": url.path.strip("/") or "postgres",
        "db_schema": project,
        "user": url.username or "postgres",
        "password": url.password or "unused",
        "sslmode": "disable",
    }


def _reach(store: str, host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        reason = f"{store} does not answer: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


def new_store(store: str, folder: Path, **registry: Any) -> FeatureStore:
    """Write ``feature_store.yaml`` and return the SDK's store; nothing is applied yet."""
    project = f"orchestrator_test_{uuid.uuid4().hex[:20]}"  # whatever bears this name in a shared store is this run's
    config = {
        "project": project,
        "provider": "local",
        "registry": {"path": "registry.db", **registry},
        "online_store": online_store(store, folder, project),
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return FeatureStore(repo_path=str(folder))


def source_of(folder: Path, name: str, rows: pd.DataFrame) -> FileSource:
    file = folder / f"{name}.parquet"
    rows.to_parquet(file)
    return FileSource(name=name, path=str(file), timestamp_field="event_timestamp")


def make(store: str, folder: Path) -> Made:
    sdk = new_store(store, folder)
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    merchant = Entity(name="merchant", join_keys=["merchant"], value_type=ValueType.STRING)
    customers = FeatureView(
        name="customer",
        entities=[customer],
        ttl=timedelta(days=1),
        source=source_of(folder, "customers", CUSTOMERS),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="purchase_history", dtype=Array(Int64)),
            Field(name="category_affinity", dtype=Float64),
            Field(name="visits", dtype=Int64),
            Field(name="tier", dtype=String),
            Field(name="vip", dtype=Bool),
            Field(name="signed_up", dtype=UnixTimestamp),
            Field(name="photo", dtype=Bytes),
            Field(name="ratios", dtype=Array(Float32)),
        ],
    )
    spending = FeatureView(
        name="spending",
        entities=[customer, merchant],
        ttl=timedelta(0),
        source=PushSource(name="spending_push", batch_source=source_of(folder, "spending", SPENDING)),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="merchant", dtype=String),
            Field(name="spent", dtype=Float64),
        ],
    )
    market = FeatureView(
        name="market",
        entities=[],
        ttl=timedelta(0),
        source=source_of(folder, "market", MARKET),
        schema=[Field(name="rate", dtype=Float64)],
    )
    amount = RequestSource(name="asked", schema=[Field(name="amount", dtype=Float64)])

    @on_demand_feature_view(sources=[customers, amount], schema=[Field(name="per_visit", dtype=Float64)], mode="python")
    def on_demand(inputs: dict[str, Any]) -> dict[str, Any]:
        visits = inputs["visits"]
        return {"per_visit": [a / v for a, v in zip(inputs["amount"], visits, strict=True)]}

    @on_demand_feature_view(sources=[customers], schema=[Field(name="doubled", dtype=Int64)], mode="pandas")
    def frames(inputs: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"doubled": inputs["visits"] * 2})

    recommender = FeatureService(
        name="recommender",
        features=[customers[["purchase_history", "category_affinity"]], spending.with_name("bought")[["spent"]]],
    )
    priced = FeatureService(name="priced", features=[customers[["visits"]], on_demand])
    sdk.apply([customer, merchant, customers, spending, market, on_demand, frames, recommender, priced])
    sdk.materialize(NOW - timedelta(days=7), NOW + timedelta(minutes=1), feature_views=["customer", "market"])
    sdk.push("spending_push", SPENDING)
    return Made(store, folder, sdk)


def lock(file: Path) -> sqlite3.Connection:
    """Return a connection that keeps readers out until it is closed."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    return connection


# --- stores that are not there, or do not answer ---------------------------------------------------------------------


def moved(made: Made, folder: Path, **store: Any) -> Made:
    """A copy of the repository that looks for its store elsewhere."""
    config = yaml.safe_load((made.folder / "feature_store.yaml").read_text())
    config["registry"]["path"] = str(made.folder / "registry.db")
    config["online_store"].update(store)
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    return Made(made.store, folder, made.sdk)


class Way:
    """A TCP relay to a server, which can swallow what is said, and end every connection."""

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.swallows = False
        self.connections = 0
        self._writers: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            self.cut()
            await asyncio.sleep(0.05)

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            there, back = await asyncio.open_connection(*self.target)
        except OSError:
            writer.close()
            return
        self._writers += [writer, back]
        await asyncio.gather(self._pipe(reader, back, client=True), self._pipe(there, writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, client: bool = False) -> None:
        try:
            while data := await reader.read(65536):
                if not (client and self.swallows):
                    writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()


def way_to(made: Made) -> Way:
    if made.store == "redis":
        host, _, port = REDIS.partition(":")
        return Way(host, int(port))
    return Way("127.0.0.1", 5432)


def behind(made: Made, folder: Path, port: int) -> Made:
    if made.store == "redis":
        return moved(made, folder, connection_string=f"127.0.0.1:{port},db={REDIS_DATABASE}")
    return moved(made, folder, host="127.0.0.1", port=port)


# --- feature servers --------------------------------------------------------------------------------------------------


@contextmanager
def serving(made: Made) -> Iterator[str]:
    """Run ``feast serve``, and leave when the process has ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = made.folder / "server.log"
    command = [str(Path(sys.executable).with_name("feast")), "--chdir", str(made.folder), "serve"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--no-access-log", "--max-requests", "1000000"],
            stdout=output,
            stderr=output,
            env={**os.environ, "FEAST_USAGE": "False", "PYTHONWARNINGS": "ignore"},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)  # the server and its worker
        process.wait(20)


@asynccontextmanager
async def open_server(url: str, operations: Mapping[str, Any], **options: Any) -> AsyncIterator[Any]:
    given = {"server_url": url, "entity_key": "customer_id", "timeout": "10s", **options}
    async with open_source(FEAST, given, operations, folder=Path()) as source:
        yield source


@asynccontextmanager
async def stub(handler: Any) -> AsyncIterator[str]:
    """A feature server that answers what the handler does."""
    app = web.Application()
    if handler is not None:
        app.router.add_post("/get-online-features", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
