"""The feature repository of the loan flow, on Redis: a project of the bench's own, made by Feast and taken down again."""

from __future__ import annotations

import asyncio
import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.bench.task import BEHAVIOR, BEHAVIOR_VIEW

CONFIG = """\
project: {project}
provider: local
registry: {{path: registry.db, cache_ttl_seconds: 3600}}
online_store: {{type: redis, connection_string: "{redis}"}}
offline_store: {{type: file}}
entity_key_serialization_version: 3
"""


async def redis_answers(redis: str) -> None:
    """Raise ``OSError`` when nobody listens there."""
    host, _, port = redis.partition(",")[0].rpartition(":")
    async with asyncio.timeout(5):
        _, writer = await asyncio.open_connection(host, int(port))
    writer.close()


async def redis_process(redis: str) -> int | None:
    """Return the process id of the server, if it runs on this machine."""
    from redis.asyncio import Redis

    host, _, port = redis.partition(",")[0].rpartition(":")
    async with Redis(host=host, port=int(port)) as client:
        pid = int((await client.info("server"))["process_id"])
    return pid if Path(f"/proc/{pid}/stat").exists() and "redis" in Path(f"/proc/{pid}/comm").read_text() else None


@asynccontextmanager
async def feature_repository(folder: Path, redis: str, customers: int) -> AsyncIterator[str]:
    """Make the repository with every customer in the online store; delete its keys in the end. Yields its folder."""
    folder.mkdir()
    project = f"orchestrator_bench_{uuid.uuid4().hex[:12]}"
    (folder / "feature_store.yaml").write_text(CONFIG.format(project=project, redis=redis))
    store = await asyncio.to_thread(_make, folder, customers)
    try:
        yield str(folder)
    finally:
        await asyncio.shield(asyncio.to_thread(store.teardown))


def _make(folder: Path, customers: int) -> Any:
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
