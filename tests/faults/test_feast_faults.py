"""A feature store that is down, hanging or damaged, and entities that are unknown or expired: answers and leftovers."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from orchestrator_core.testing import RunningService, service
from orchestrator_core.testing.service import Answer
from tests.faults.features import EXPIRED, FRESH, UNKNOWN, Repository, make
from tests.faults.kit import (
    WITHOUT_POLICIES,
    failed_steps,
    no_more_than,
    nothing_left,
    problem,
    relay,
    skip_without,
    warmed,
)

Run = Callable[[Coroutine[Any, Any, None]], None]

REDIS = os.environ.get("ORCHESTRATOR_TEST_REDIS", "127.0.0.1:6379")
POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")

FEAST = """
    feast:
      sources:
        default:
          repo_path: "{folder}"
          entity_key: customer_id
          timeout: 500ms
          connect_timeout: 5s
          pool_size: 1
          pool_timeout: 200ms
      operations:
        get_visits: {{features: ["customer:visits"]}}
        get_visits_or_null: {{features: ["customer:visits"], on_missing: allow}}
"""
DOMAIN = """
    endpoints:
      visits:
        input_schema: {properties: {entity_id: {type: integer}}}
        data_sources:
          - {name: behaviour, type: feast, operation: get_visits, params: {entity_id: "$request.path_params.entity_id"}}
        response_mapping: {visits: "$behaviour.visits"}
      lenient:
        input_schema: {properties: {entity_id: {type: integer}}}
        data_sources:
          - name: behaviour
            type: feast
            operation: get_visits_or_null
            params: {entity_id: "$request.path_params.entity_id"}
        response_mapping: {visits: "$behaviour.visits ?? 'none'"}
      resilient:
        input_schema: {properties: {entity_id: {type: integer}}}
        data_sources:
          - name: behaviour
            type: feast
            operation: get_visits
            params: {entity_id: "$request.path_params.entity_id"}
            default: {visits: 0}
        response_mapping: {visits: "$behaviour.visits", degraded: "$execution.degraded"}
      other:
        response_mapping: {fine: true}
"""
OTHER = "/orchestrator/shop/other"


def visits(entity: int) -> str:
    return f"/orchestrator/shop/visits/{entity}"


def files(folder: Path) -> dict[str, str]:
    return {
        "config.yaml": WITHOUT_POLICIES,
        "integrations/feast.yaml": FEAST.format(folder=folder),
        "domains/shop.yaml": DOMAIN,
    }


def elsewhere(repository: Repository, folder: Path, **store: Any) -> dict[str, str]:
    """Return the files of a configuration whose repository looks for its store elsewhere."""
    repository.elsewhere(folder, **store)
    return files(folder)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    return make(tmp_path_factory.mktemp("sqlite"), {"type": "sqlite", "path": "online.db"})


@pytest.fixture(scope="module", params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """A repository on a server, which is emptied afterwards."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "redis":
        skip_without(*address_of("redis"), "Redis")
        made = make(folder, {"type": "redis", "connection_string": f"{REDIS},db=3"})
    else:
        skip_without(*address_of("postgresql"), "PostgreSQL")
        import psycopg

        url = urlsplit(POSTGRESQL_URL)
        schema = f"orchestrator_test_{uuid.uuid4().hex[:10]}"
        with psycopg.connect(POSTGRESQL_URL, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        store = {
            "type": "postgres",
            "host": url.hostname,
            "port": url.port or 5432,
            "database": url.path.strip("/") or "postgres",
            "db_schema": schema,
            "user": url.username or "postgres",
            "password": url.password or "unused",
            "sslmode": "disable",
        }
        made = make(folder, store)
    yield made
    made.sdk.teardown()
    online = made.sdk._get_provider().online_store
    for name in ("_conn", "_client"):
        if getattr(online, name, None) is not None:
            getattr(online, name).close()
    if request.param == "postgresql":
        with psycopg.connect(POSTGRESQL_URL, autocommit=True) as connection:
            connection.execute(f"DROP SCHEMA {schema} CASCADE")


def address_of(store: str) -> tuple[str, int]:
    if store == "redis":
        host, _, port = REDIS.partition(":")
        return host, int(port)
    url = urlsplit(POSTGRESQL_URL)
    return url.hostname or "127.0.0.1", url.port or 5432


def through(repository: Repository, folder: Path, port: int) -> dict[str, str]:
    if repository.sdk.config.online_store.type == "redis":
        return elsewhere(repository, folder, connection_string=f"127.0.0.1:{port},db=3")
    return elsewhere(repository, folder, host="127.0.0.1", port=port)


# --- entities ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entity", [UNKNOWN, EXPIRED])
def test_an_entity_that_is_unknown_or_expired_is_404_and_names_step_and_key(
    sqlite: Repository, entity: int, run: Run
) -> None:
    async def main() -> None:
        async with nothing_left("a missing entity"), service(files(sqlite.folder)) as served:
            assert (await served.get(visits(FRESH))).json == {"visits": 12}
            answer = await served.get(visits(entity))
            assert (answer.status, answer.json["title"], answer.json["step"]) == (404, "not found", "behaviour")
            assert answer.json["detail"].startswith("step 'behaviour': get_visits: ")
            assert f"customer_id={entity}" in answer.json["detail"]
            assert (await served.get(f"/orchestrator/shop/lenient/{entity}")).json == {"visits": "none"}
            resilient = await served.get(f"/orchestrator/shop/resilient/{entity}")
            assert resilient.json == {"visits": 0, "degraded": True}

    run(main())


# --- stores -----------------------------------------------------------------------------------------------------------


def store_is_down(answer: Answer, target: str = visits(FRESH)) -> str:
    """Assert that the answer is that of a source that cannot be read, and return what it says."""
    said: str = answer.json["detail"]
    title = {502: "source failed", 503: "not available", 504: "deadline passed"}[answer.status]
    assert answer.json == problem(answer, said, "behaviour", title, target)
    assert ("Retry-After" in answer.headers) == (answer.status == 503)
    assert said.startswith("step 'behaviour'")
    return said


@pytest.mark.parametrize("damage", ["removed before", "removed while", "no database", "locked"])
def test_a_store_file_that_cannot_be_read_is_a_failed_source(
    sqlite: Repository, tmp_path: Path, damage: str, run: Run
) -> None:
    import shutil
    import sqlite3

    file = tmp_path / "online.db"
    if damage != "removed before":
        shutil.copy(sqlite.folder / "online.db", file)
    if damage == "no database":
        file.write_bytes(b"this is no database, but long enough to be taken for one" * 100)

    async def main() -> None:
        given = elsewhere(sqlite, tmp_path)
        if damage == "removed while":  # then it is looked for
            given["integrations/feast.yaml"] = given["integrations/feast.yaml"].replace(
                "timeout: 500ms", "timeout: 500ms\n          registry_refresh: 100ms", 1
            )
        async with nothing_left(damage), service(given) as served:
            if damage == "removed while":
                assert (await served.get(visits(FRESH))).json == {"visits": 12}
                file.unlink()
                async with asyncio.timeout(10):
                    while (await served.get(visits(FRESH))).status == 200:  # noqa: ASYNC110  # what is open is read
                        await asyncio.sleep(0.05)
            blocker = sqlite3.connect(file, isolation_level=None) if damage == "locked" else None
            if blocker is not None:
                blocker.execute("BEGIN EXCLUSIVE")
            store_is_down(await served.get(visits(FRESH)))
            assert (await served.get("/orchestrator/shop/resilient/1")).json == {"visits": 0, "degraded": True}
            assert (await served.get(OTHER)).json == {"fine": True}
            if blocker is not None:
                blocker.close()
                assert (await served.get(visits(FRESH))).json == {"visits": 12}

    run(main())


def test_a_store_server_that_is_down_is_a_failed_source_until_it_is_back(
    server: Repository, tmp_path: Path, run: Run
) -> None:
    async def main() -> None:
        async with (
            nothing_left("a store that is down"),
            relay(*address_of(kind_of(server))) as way,
            service(through(server, tmp_path, way.port)) as served,
        ):
            assert (await served.get(visits(FRESH))).json == {"visits": 12}
            before = await warmed(served, OTHER)
            await way.refuse()
            for _ in range(2):
                said = store_is_down(await served.get(visits(FRESH)))
                assert f"127.0.0.1:{way.port}" in said
            resilient = await served.get("/orchestrator/shop/resilient/1")
            assert (resilient.json, resilient.headers["X-Orchestrator-Degraded"]) == (
                {"visits": 0, "degraded": True},
                "behaviour",
            )
            assert (await served.get(OTHER)).json == {"fine": True}
            await way.listen()
            await mended(served, before)

    run(main())


def test_a_store_that_is_down_is_502_and_one_that_hangs_504(server: Repository, tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with (
            relay(*address_of(kind_of(server))) as way,
            service(through(server, tmp_path, way.port)) as served,
        ):
            assert (await served.get(visits(FRESH))).json == {"visits": 12}
            way.swallows = True
            hanging = (await served.get(visits(FRESH))).status
            await way.refuse()
            assert ((await served.get(visits(FRESH))).status, hanging) == (502, 504)

    run(main())


def test_a_store_server_that_was_down_at_the_start_is_read_when_it_is_there(
    server: Repository, tmp_path: Path, run: Run
) -> None:
    async def main() -> None:
        async with nothing_left("a store that is down"), relay(*address_of(kind_of(server))) as way:
            await way.refuse()
            async with service(through(server, tmp_path, way.port)) as served:
                store_is_down(await served.get(visits(FRESH)))
                await way.listen()
                assert (await served.get(visits(FRESH))).json == {"visits": 12}

    run(main())


def test_a_store_server_that_hangs_is_given_up_after_the_timeout_while_others_go_on(
    server: Repository, tmp_path: Path, run: Run
) -> None:
    async def main() -> None:
        async with (
            nothing_left("a store that hangs"),
            relay(*address_of(kind_of(server))) as way,
            service(through(server, tmp_path, way.port)) as served,
        ):
            assert (await served.get(visits(FRESH))).json == {"visits": 12}
            before = await warmed(served, OTHER)
            way.swallows = True
            assert "no answer within 0.5 s" in store_is_down(await served.get(visits(FRESH)))
            ((name, status, _),) = await failed_steps(served)
            assert (name, status) == ("behaviour", "failed")
            assert (await served.get(OTHER)).json == {"fine": True}
            way.swallows = False
            await way.cut()
            await mended(served, before)

    run(main())


def test_an_idle_connection_to_the_store_that_was_cut_costs_no_request(
    server: Repository, tmp_path: Path, run: Run
) -> None:
    async def main() -> None:
        async with (
            nothing_left("a store that cuts"),
            relay(*address_of(kind_of(server))) as way,
            service(through(server, tmp_path, way.port)) as served,
        ):
            assert (await served.get(visits(FRESH))).json == {"visits": 12}
            before = await warmed(served, OTHER)
            for _ in range(3):
                await way.cut()
                await mended(served, before)

    run(main())


def kind_of(repository: Repository) -> str:
    return "redis" if repository.sdk.config.online_store.type == "redis" else "postgresql"


async def mended(served: RunningService, before: tuple[int, int, int]) -> None:
    answer = await served.get(visits(FRESH))
    assert (answer.status, answer.json) == (200, {"visits": 12})
    await no_more_than(before)
