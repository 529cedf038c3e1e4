"""What the testing kit asks of every source, on each store, read directly and through the SDK."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from feast_kit import ADA, ADA_FEATURES, ALL, Made
from orchestrator_source_feast.plugin import FEAST

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam
from orchestrator_core.testing import Call, SourceConformance


class Features(SourceConformance):
    kind = FEAST
    store: ClassVar[str]
    operations: ClassVar[dict[str, Any]] = {
        "get": {"features": ALL},
        "both": {"features": ["customer:visits", "spending:spent", "market:rate"], "full_feature_names": True},
        "known": {"features": ["customer:tier", "customer:visits"], "on_missing": "allow"},
    }
    calls = (
        Call("get", {"entity_id": ADA}, ADA_FEATURES),
        Call("get", {"entity_id": "1"}, ADA_FEATURES),
        Call(
            "both",
            {"entity_id": ADA, "merchant": "shop"},
            {"customer__visits": 12, "spending__spent": 9.5, "market__rate": 0.0425},
        ),
        Call("known", {"entity_id": 99}, {"tier": None, "visits": None}),
        Call("undeclared", {"entity_id": 2, "feature_refs": ["customer:visits"]}, {"visits": 3}),
        Call(
            "get",
            {"entity_id": 99},
            error=EntityNotFound,
            message="get: there is no customer_id=99 in feature view 'customer' of the online store",
        ),
        Call(
            "get",
            {"entity_id": 3},
            error=EntityNotFound,
            message="get: what is stored for customer_id=3 in feature view 'customer' has expired",
        ),
        Call(
            "get",
            {"entity_id": "x"},
            error=InvalidParam,
            message="get: parameter 'entity_id' expected integer, got 'x'",
        ),
    )

    @pytest.fixture(autouse=True)
    def repository(self, made: Callable[[str], Made]) -> None:
        self.options = made(self.store).options


class TestSQLite(Features):
    store = "sqlite"


class TestRedis(Features):
    store = "redis"


class TestPostgreSQL(Features):
    store = "postgresql"


class TestSQLiteThroughTheSDK(Features):
    store = "sqlite"

    @pytest.fixture(autouse=True)
    def through_sdk(self, repository: None) -> None:
        self.options = {**self.options, "direct_reads": False, "pool_size": 2}
