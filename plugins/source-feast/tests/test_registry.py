"""What `check` learns from the registry, and how a changed registry comes to be used."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Int64, String
from feast_kit import Made, new_store
from orchestrator_source_feast.plugin import FEAST

from orchestrator_core.plugin_api import Finding, OperationFacts, OrchestratorError, SourceError, SourceUnavailable
from orchestrator_core.testing import check_problems, open_source, run


def test_inspect_names_parameters_and_fields(sqlite: Made) -> None:
    async def main() -> None:
        operations: dict[str, Any] = {
            "plain": {"features": ["customer:visits", "customer:tier"]},
            "computed": {"features": ["on_demand:per_visit", "spending:spent"], "full_feature_names": True},
            "service": {"feature_service": "recommender"},
            "bare": {},
        }
        async with sqlite.open(operations) as source:
            inspection = await source.inspect()
        assert inspection.findings == ()
        assert inspection.facts == {
            "plain": OperationFacts(("entity_id",), ("feature_refs",), ("visits", "tier")),
            "computed": OperationFacts(
                ("entity_id", "merchant", "amount"), ("feature_refs",), ("on_demand__per_visit", "spending__spent")
            ),
            "service": OperationFacts(
                ("entity_id", "merchant"), ("feature_refs",), ("purchase_history", "category_affinity", "spent")
            ),
        }

    run(main())


def test_inspect_reports_every_reference_that_is_not_there(sqlite: Made) -> None:
    async def main() -> None:
        operations: dict[str, Any] = {
            "wrong": {"features": ["customer:visit", "custmer:tier", "customer:tier"]},
            "service": {"feature_service": "recomender"},
            "key": {"features": ["customer:tier"], "entity_key": "customer"},
            "same": {"features": ["customer:tier", "customer:tier"]},
        }
        async with sqlite.open(operations) as source:
            assert (await source.inspect()).findings == (
                Finding(
                    "wrong",
                    "the feature view 'customer' has no feature 'visit'",
                    ("features", 0),
                    "visit",
                    "did you mean 'visits'?",
                ),
                Finding(
                    "wrong",
                    "there is no feature view 'custmer'",
                    ("features", 1),
                    "custmer",
                    "did you mean 'customer'?",
                ),
                Finding(
                    "service",
                    "there is no feature service 'recomender'",
                    ("feature_service",),
                    "recomender",
                    "did you mean 'recommender'?",
                ),
                Finding(
                    "key",
                    "these features have no join key 'customer' (theirs: customer_id)",
                    ("entity_key",),
                    "customer",
                    "did you mean 'customer_id'?",
                ),
                Finding("same", "'customer:tier' is asked for twice", ("features", 1), "customer:tier"),
            )

    run(main())


def test_check_points_at_the_reference_in_the_file(sqlite: Made) -> None:
    files = {
        "integrations/feast.yaml": f"""
            feast:
              sources:
                default:
                  repo_path: "{sqlite.folder}"
                  entity_key: customer_id
                  operations:
                    get_features: {{features: ["customer:visits", "customer:teir"]}}
        """,
        "domains/shop.yaml": """
            endpoints:
              predict:
                data_sources:
                  - name: features
                    type: feast
                    operation: get_features
                    params: {entity_id: "$request.path_params.entity_id"}
        """,
    }
    import orchestrator_source_feast.plugin as plugin

    (problem,) = check_problems(files, plugins={"feast": plugin})
    text = str(problem)
    assert text.startswith("integrations/feast.yaml:")
    assert "the feature view 'customer' has no feature 'teir'" in text
    assert "did you mean 'tier'?" in text


def test_a_folder_without_a_repository_says_so(tmp_path: Path, sqlite: Made) -> None:
    async def open_it(**options: Any) -> None:
        async with sqlite.open(**options):
            pass

    with pytest.raises(SourceError, match=r"^there is no folder .*/nowhere"):
        run(open_it(repo_path="nowhere"))
    with pytest.raises(SourceError, match=r"^there is no feature_store\.yaml in "):
        run(open_it(repo_path=str(tmp_path)))
    (tmp_path / "feature_store.yaml").write_text("project: a b\nregistry: [x]\n")
    with pytest.raises(SourceError, match=r"^cannot read feature_store.yaml: "):
        run(open_it(repo_path=str(tmp_path)))
    (tmp_path / "feature_store.yaml").write_text("project: shop\nprovider: local\nregistry: registry.db\n")
    with pytest.raises(SourceUnavailable, match=r"there is no registry .*registry\.db; run `feast apply` in "):
        run(open_it(repo_path=str(tmp_path)))
    assert not (tmp_path / "registry.db").exists()


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[FeatureStore]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sdk = new_store("sqlite", tmp_path)
        grow(sdk, tmp_path, "tier")
    yield sdk
    sdk._get_provider().online_store._conn.close()


def grow(sdk: FeatureStore, folder: Path, *features: str, ttl: timedelta = timedelta(0)) -> None:
    entity = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    source = FileSource(name="none", path=str(folder / "none.parquet"), timestamp_field="event_timestamp")
    schema = [Field(name="customer_id", dtype=Int64), *(Field(name=name, dtype=String) for name in features)]
    sdk.apply([entity, FeatureView(name="customer", entities=[entity], ttl=ttl, source=source, schema=schema)])
    Made("sqlite", folder, sdk).write(
        "customer",
        {"customer_id": Value(int64_val=1)},
        {name: Value(string_val=f"the {name}") for name in features},
        datetime.now(UTC) - timedelta(hours=1),
    )


def test_a_changed_registry_is_used_after_the_next_refresh(growing: FeatureStore, tmp_path: Path) -> None:
    async def main() -> None:
        made = Made("sqlite", tmp_path, growing)
        async with made.open({"get": {"features": ["customer:tier"]}}, registry_refresh="20ms") as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(1) == {"tier": "the tier"}
            await asyncio.to_thread(grow, growing, tmp_path, "tier", "size", ttl=timedelta(minutes=1))
            got = await until(call, lambda got: got != {"tier": "the tier"})
            # The ttl is now a minute, and what is stored an hour old.
            assert got == "get: what is stored for customer_id=1 in feature view 'customer' has expired"
            await asyncio.to_thread(grow, growing, tmp_path, "size")
            got = await until(call, lambda got: "has expired" not in str(got))
            assert got == "get: the feature view 'customer' has no feature 'tier'; expected one of: size"
            await asyncio.to_thread(grow, growing, tmp_path, "tier")
            assert await until(call, lambda got: isinstance(got, dict)) == {"tier": "the tier"}

    run(main())


async def until(call: Any, fits: Callable[[Any], bool]) -> Any:
    """Call for customer 1 until the outcome, or the words of the error, fits."""
    async with asyncio.timeout(10):
        while True:
            try:
                got = await call(1)
            except OrchestratorError as error:
                got = str(error)
            if fits(got):
                return got
            await asyncio.sleep(0.01)


def test_a_registry_that_cannot_be_read_leaves_the_old_one_serving(growing: FeatureStore, tmp_path: Path) -> None:
    async def main() -> None:
        made = Made("sqlite", tmp_path, growing)
        async with made.open({"get": {"features": ["customer:tier"]}}, registry_refresh="10ms") as source:
            call = source.prepare("get", ["entity_id"])
            (tmp_path / "registry.db").write_bytes(b"\xff\xff not a registry")
            await asyncio.sleep(0.2)
            assert await call(1) == {"tier": "the tier"}

    run(main())


def test_a_registry_that_is_half_written_is_not_used(growing: FeatureStore, tmp_path: Path) -> None:
    async def main() -> None:
        made, file = Made("sqlite", tmp_path, growing), tmp_path / "registry.db"
        whole = file.read_bytes()
        async with made.open({"get": {"features": ["customer:tier"]}}, registry_refresh="10ms") as source:
            call = source.prepare("get", ["entity_id"])
            for part in (0, len(whole) // 2, len(whole)):
                file.write_bytes(whole[:part])
                for _ in range(30):
                    assert await call(1) == {"tier": "the tier"}
                    await asyncio.sleep(0.005)

    run(main())


@pytest.mark.parametrize("direct", [True, False])
def test_the_registry_is_never_read_inside_a_request(
    growing: FeatureStore, tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "feature_store.yaml"
    config.write_text(config.read_text().replace("path: registry.db", "path: registry.db\n  cache_ttl_seconds: 1"))

    async def main() -> None:
        made = Made("sqlite", tmp_path, growing)
        operations = {"get": {"features": ["customer:tier"]}}
        async with made.open(operations, registry_refresh="1h", direct_reads=direct) as source:
            registry = source._repository._sdk.registry
            reads = []
            read = registry._registry_store.get_registry_proto
            monkeypatch.setattr(
                registry._registry_store,
                "get_registry_proto",
                lambda: reads.append(threading.current_thread()) or read(),
            )
            call = source.prepare("get", ["entity_id"])
            await asyncio.to_thread(grow, growing, tmp_path, "tier", "size")
            end = time.monotonic() + 1.3  # longer than the registry's cache lives
            while time.monotonic() < end:
                assert await call(1) == {"tier": "the tier"}
                await asyncio.sleep(0.01)
            assert reads == []

    run(main())


def test_a_registry_in_a_database_that_never_answers_fails_within_the_connect_timeout(tmp_path: Path) -> None:
    """Its driver waits for more than two minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        registry = {"registry_type": "sql", "path": f"postgresql+psycopg://feast@{address}/feast"}
        config = {"project": "silent", "provider": "local", "registry": registry, "online_store": {"type": "sqlite"}}
        (tmp_path / "feature_store.yaml").write_text(yaml.safe_dump({**config, "entity_key_serialization_version": 3}))

        async def main() -> None:
            async with asyncio.timeout(30):
                async with open_source(FEAST, {"repo_path": str(tmp_path), "connect_timeout": "1s"}, folder=tmp_path):
                    pass

        with pytest.raises(SourceUnavailable, match=r"^cannot read the registry: .*timeout expired"):
            run(main())


def test_a_registry_in_a_database_leaves_nothing_behind(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = f"sqlite:///{tmp_path / 'registry.sqlite'}"
        sdk = new_store("sqlite", tmp_path, registry_type="sql", path=path, cache_mode="thread")
        grow(sdk, tmp_path, "tier")
        sdk.registry._exit_handler()

    async def main() -> None:
        made = Made("sqlite", tmp_path, sdk)
        before = threading.active_count()
        async with made.open({"get": {"features": ["customer:tier"]}}, registry_refresh="20ms") as source:
            assert await source.fetch("get", {"entity_id": 1}) == {"tier": "the tier"}
            await asyncio.sleep(0.1)
            assert await source.fetch("get", {"entity_id": 1}) == {"tier": "the tier"}
        assert threading.active_count() <= before + 1  # the loop's own thread pool

    run(main())
    sdk._get_provider().online_store._conn.close()
