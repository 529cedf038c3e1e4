"""A small feature repository on a store of the test's choice, and the configuration that reads it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml
from attrs import frozen

FRESH, EXPIRED, UNKNOWN = 1, 2, 99


@frozen
class Repository:
    """A feature repository whose online store has one fresh entity and one that is past its view's ``ttl``."""

    folder: Path
    sdk: Any

    def elsewhere(self, folder: Path, **store: Any) -> None:
        """Write a ``feature_store.yaml`` with the same registry that looks for its store elsewhere."""
        config = yaml.safe_load((self.folder / "feature_store.yaml").read_text())
        config["registry"]["path"] = str(self.folder / "registry.db")
        config["online_store"].update(store)
        (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))


def make(folder: Path, online_store: dict[str, Any]) -> Repository:
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Int64

    now = datetime.now(UTC)
    config = {
        "project": f"orchestrator_test_{uuid.uuid4().hex[:10]}",
        "provider": "local",
        "registry": {"path": "registry.db"},
        "online_store": online_store,
        "offline_store": {"type": "file"},
        "entity_key_serialization_version": 3,
    }
    (folder / "feature_store.yaml").write_text(yaml.safe_dump(config))
    rows = {"customer_id": [FRESH, EXPIRED], "visits": [12, 3], "event_timestamp": [now, now - timedelta(days=3)]}
    pd.DataFrame(rows).to_parquet(folder / "customers.parquet")
    source = FileSource(path=str(folder / "customers.parquet"), timestamp_field="event_timestamp")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="customer",
        entities=[customer],
        ttl=timedelta(days=1),
        source=source,
        schema=[Field(name="customer_id", dtype=Int64), Field(name="visits", dtype=Int64)],
    )
    sdk = FeatureStore(repo_path=str(folder))
    sdk.apply([customer, view])
    sdk.write_to_online_store("customer", pd.DataFrame(rows))
    return Repository(folder, sdk)
