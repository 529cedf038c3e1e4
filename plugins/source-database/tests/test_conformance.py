"""What the testing kit asks of every source, on each engine."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from database_kit import Database
from orchestrator_source_database.plugin import DATABASE

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam
from orchestrator_core.testing import Call, SourceConformance


class Queries(SourceConformance):
    kind = DATABASE
    operations: ClassVar[dict[str, Any]] = {
        "get": {
            "query": "SELECT customer_id, name FROM customers WHERE customer_id = :id",
            "params": {"id": "integer"},
        },
        "list": {
            "query": "SELECT customer_id FROM customers WHERE customer_id < :below ORDER BY 1",
            "params": ["below"],
            "result": "many",
        },
        "count": {"query": "SELECT COUNT(*) FROM customers", "result": "value"},
    }
    calls = (
        Call("get", {"id": 7}, {"customer_id": 7, "name": "customer 7"}),
        Call("get", {"id": "7"}, {"customer_id": 7, "name": "customer 7"}),
        Call("list", {"below": 3}, [{"customer_id": 1}, {"customer_id": 2}]),
        Call("count", {}, 100),
        Call("get", {"id": 0}, error=EntityNotFound, message="get: nothing found for id=0"),
        Call("get", {"id": "x"}, error=InvalidParam, message="get: parameter 'id' expected integer, got 'x'"),
    )


class TestSQLite(Queries):
    @pytest.fixture(autouse=True)
    def database(self, sqlite: Database) -> None:
        self.options = {"connection_string": f"sqlite:///{sqlite.folder / 'test.db'}"}


class TestPostgreSQL(Queries):
    @pytest.fixture(autouse=True)
    def database(self, postgresql: Database) -> None:
        self.options = {"connection_string": postgresql.url}


class TestMySQL(Queries):
    @pytest.fixture(autouse=True)
    def database(self, mysql: Database) -> None:
        self.options = {"connection_string": mysql.url}
