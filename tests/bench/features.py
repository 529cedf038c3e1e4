"""The feature repository of the loan flow, on Redis: made by Feast, and taken down again."""

from __future__ import annotations

import asyncio
import shutil
import uuid
import warnings
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from orchestrator_core.testing import free_port
from tests.bench.process import started
from tests.bench.task import BEHAVIOR, BEHAVIOR_VIEW

DEFAULT_REDIS = "127.0.0.1:6379,db=3"
CONFIG = """\
project: {project}
provider: local
registry: {{path: registry.db, cache_ttl_seconds: 3600}}
online_store: {{type: redis, connection_string: "{redis}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


@asynccontextmanager
async def redis_server(given: str, folder: Path, cores: Collection[int]) -> AsyncIterator[tuple[str, int | None]]:
    """Yield the address of the server that was given, or of one of the bench's own, and its process id if known.

    Raises ``OSError`` when there is none.
    """
    program = None if given else shutil.which("redis-server")
    if program is None:
        address = given or DEFAULT_REDIS
        await _answers(address)
        yield address, None
        return
    port = free_port()
    command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    async with started("Redis", command, port, cores, folder / "redis.log") as server:
        yield f"127.0.0.1:{port}", server.pid


async def _answers(redis: str) -> None:
    host, _, port = redis.partition(",")[0].rpartition(":")
    async with asyncio.timeout(5):
        _, writer = await asyncio.open_connection(host, int(port))
    writer.close()


@asynccontextmanager
async def feature_repository(folder: Path, redis: str, customers: int) -> AsyncIterator[str]:
    """Make the repository with every customer in the online store; delete its keys in the end. Yields its folder."""
    store = await asyncio.to_thread(_make, folder, redis, customers)
    try:
        yield str(folder)
    finally:
        await asyncio.shield(asyncio.to_thread(store.teardown))


def _make(folder: Path, redis: str, customers: int) -> Any:
    folder.mkdir()
    project = f"orchestrator_bench_{uuid.uuid4().hex[:12]}"
    (folder / "feature_store.yaml").write_text(CONFIG.format(project=project, redis=redis))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas
        from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
        from feast.types import Float64, Int64, String

        numbers = range(1, customers + 1)
        rows = pandas.DataFrame(
            {
                "customer_id": numbers,
                "event_timestamp": [datetime.now(UTC)] * customers,
                "payment_history": [number * 31 % 97 / 97 for number in numbers],
                "monthly_spend": [number * 17 % 5000 / 2 for number in numbers],
                "logins": [number % 40 for number in numbers],
                "tier": [("basic", "silver", "gold")[number % 3] for number in numbers],
            }
        )
        rows.to_parquet(folder / "behavior.parquet")
        customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
        types = dict(zip(BEHAVIOR, (Float64, Float64, Int64, String), strict=True))
        view = FeatureView(
            name=BEHAVIOR_VIEW,
            entities=[customer],
            ttl=timedelta(days=1),
            source=FileSource(path=str(folder / "behavior.parquet"), timestamp_field="event_timestamp"),
            schema=[Field(name="customer_id", dtype=Int64)]
            + [Field(name=name, dtype=dtype) for name, dtype in types.items()],
        )
        store = FeatureStore(repo_path=str(folder))
        store.apply([customer, view])
        try:
            store.write_to_online_store(BEHAVIOR_VIEW, rows)
        except BaseException:
            store.teardown()
            raise
        return store
