"""A whole service: endpoints that read features, from the request to the answer."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orchestrator_source_feast.plugin as feast_plugin
import pytest
from aiohttp import web
from attrs import evolve
from feast_kit import ADA, Made, behind, lock, moved, stub, way_to

from orchestrator_core.testing import check_problems, free_port, leaves_nothing, run, service

FEAST = """
    feast:
      sources:
        default:
          repo_path: "{folder}"
          entity_key: customer_id
          operations:
            get_customer_features: {{features: ["customer:purchase_history", "customer:category_affinity"]}}
            get_features: {{features: ["customer:visits", "customer:tier"]}}
"""
# The data sources stand as in the description that the product was ordered with.
SHOP = """
    endpoints:
      recommend:
        description: "Generate recommendations using Feast features"
        endpoint_type: "composite"
        data_sources:
          - name: customer_features
            type: feast
            source_id: default
            operation: get_customer_features
            params:
              entity_id: "$request.path_params.entity_id"
              feature_refs:
                - "customer:purchase_history"
                - "customer:category_affinity"
          - name: behavior_features
            type: feast
            source_id: default
            operation: get_features
            params:
              entity_id: "$request.path_params.entity_id"
        response_mapping:
          customer_id: "$request.path_params.entity_id"
          purchase_history: "$customer_features.purchase_history"
          category_affinity: "$customer_features.category_affinity"
          visits: "$behavior_features.visits"
      by_default:
        data_sources:
          - name: features
            type: feast
            operation: undeclared
            params: {entity_id: "$request.path_params.entity_id", feature_refs: ["customer:tier"]}
            default: {tier: "none"}
        response_mapping: {tier: "$features.tier ?? 'null'"}
"""
PLUGINS = {"feast": feast_plugin}


def files(repo: Made) -> dict[str, str]:
    return {"integrations/feast.yaml": FEAST.format(folder=repo.folder), "domains/shop.yaml": SHOP}


def test_features_come_out_by_name_and_a_missing_entity_is_404(repo: Made) -> None:
    async def main() -> None:
        async with service(files(repo), plugins=PLUGINS) as shop:
            answer = await shop.get("/orchestrator/shop/recommend/1")
            assert (answer.status, answer.json) == (
                200,
                {"customer_id": "1", "purchase_history": [3, 1, 2], "category_affinity": 0.25, "visits": 12},
            )
            missing = await shop.get("/orchestrator/shop/recommend/99")
            assert missing.status == 404
            assert missing.json["step"] in ("customer_features", "behavior_features")
            assert (
                "there is no customer_id='99' in feature view 'customer' of the online store" in missing.json["detail"]
            )
            unfit = await shop.get("/orchestrator/shop/recommend/ada")
            assert unfit.status == 422
            assert (await shop.get("/orchestrator/shop/by_default/2")).json == {"tier": "null"}
            degraded = await shop.get("/orchestrator/shop/by_default/3")
            assert (degraded.status, degraded.json) == (200, {"tier": "none"})
            assert degraded.headers["X-Orchestrator-Degraded"] == "features"
            together = await asyncio.gather(*(shop.get("/orchestrator/shop/recommend/1") for _ in range(50)))
            assert {each.status for each in together} == {200}

    run(main())


@pytest.mark.parametrize("store", ["sqlite"])
def test_a_reload_leaves_the_source_as_it_is(store: str, made: Callable[[str], Made]) -> None:
    async def main() -> None:
        written: dict[str, Any] = files(made(store))
        async with service(written, plugins=PLUGINS) as shop:
            shop.write("domains/shop.yaml", written["domains/shop.yaml"].replace("visits: ", "count: "))
            assert (await shop.reload()).status == 200
            assert (await shop.get("/orchestrator/shop/recommend/1")).json["count"] == 12

    run(main())


# --- what goes wrong, from the outside --------------------------------------------------------------------------------

ONE = """
    endpoints:
      tier:
        data_sources:
          - name: features
            type: feast
            operation: get_features
            params: {entity_id: "$request.path_params.entity_id"}
"""


async def answer_of(folder: Path, entity: int | str = ADA, **options: str) -> tuple[int, str, str]:
    """Serve one endpoint on the repository and return status, step and detail of its answer."""
    more = "".join(f"\n          {name}: {value}" for name, value in options.items())
    configuration = FEAST.format(folder=folder).replace("entity_key:", f"entity_key: customer_id{more}\n          #")
    async with service({"integrations/feast.yaml": configuration, "domains/shop.yaml": ONE}, plugins=PLUGINS) as shop:
        answer = await shop.get(f"/orchestrator/shop/tier/{entity}")
    return answer.status, answer.json.get("step", ""), answer.json.get("detail", "")


@asynccontextmanager
async def nothing_left(what: str) -> AsyncIterator[None]:
    async with stub(None):  # libuv keeps a descriptor for the loop's first listener
        pass
    async with leaves_nothing(what):
        yield


def check_fault(outcome: Coroutine[Any, Any, tuple[int, str, str]], status: int, detail: str) -> None:
    async def main() -> None:
        async with nothing_left(detail):
            assert await outcome == (status, "features", detail)

    run(main())


def test_an_unknown_or_expired_entity_is_404(repo: Made) -> None:
    where = "in feature view 'customer'"
    missing = f"step 'features': get_features: there is no customer_id='99' {where} of the online store"
    check_fault(answer_of(repo.folder, 99), 404, missing)
    expired = f"step 'features': get_features: what is stored for customer_id='3' {where} has expired"
    check_fault(answer_of(repo.folder, 3), 404, expired)


def test_a_key_that_is_none_is_422(sqlite: Made) -> None:
    detail = "step 'features': get_features: parameter 'entity_id' expected integer, got 'ada'"
    check_fault(answer_of(sqlite.folder, "ada"), 422, detail)


@pytest.mark.parametrize("store", ["redis", "postgresql"])
def test_a_server_that_is_down_is_502(store: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    async def main() -> None:
        port = free_port()
        async with nothing_left(f"{store} down"):
            status, step, detail = await answer_of(behind(made(store), tmp_path, port).folder)
        assert (status, step) == (502, "features")
        name = {"redis": "Redis", "postgresql": "PostgreSQL"}[store]
        assert detail.startswith(f"step 'features': feast 'default': cannot connect to {name} at 127.0.0.1:{port}: ")

    run(main())


@pytest.mark.parametrize("store", ["redis", "postgresql"])
def test_a_server_that_hangs_is_given_up_in_time(store: str, made: Callable[[str], Made], tmp_path: Path) -> None:
    async def main() -> None:
        way = way_to(made(store))
        way.swallows = True
        async with way.open() as port, nothing_left(f"{store} hanging"):
            folder = behind(made(store), tmp_path, port).folder
            started = time.monotonic()
            status, step, detail = await answer_of(folder, timeout="200ms", connect_timeout="200ms")
            assert time.monotonic() - started < 5
            # The database number, and PostgreSQL's greeting, are a part of connecting.
            assert (status, step) == (502, "features")
            assert "within 0.2 s" in detail
            way.cut()

    run(main())


def test_a_sqlite_file_that_is_gone_or_none_or_locked_is_502(sqlite: Made, tmp_path: Path) -> None:
    folder, file = moved(sqlite, tmp_path).folder, tmp_path / "online.db"
    start = f"step 'features': feast 'default': cannot open the online store {file}"
    check_fault(answer_of(folder), 502, f"{start}: unable to open database file")
    file.write_bytes(b"no database" * 1_000)
    check_fault(answer_of(folder), 502, f"{start}: file is not a database")
    shutil.copy(sqlite.folder / "online.db", file)
    locked = lock(file)
    try:
        status, step, detail = run(answer_of(folder, timeout="200ms"))
        assert (status, step) in ((502, "features"), (504, "features"))
        assert "stayed locked for 0.2 s" in detail or "no answer within 0.2 s" in detail
    finally:
        locked.close()


def test_a_feature_server_that_is_down_or_hangs_or_fails(sqlite: Made) -> None:
    async def answer_from(url: str) -> tuple[int, str, str]:
        configuration = FEAST.replace('repo_path: "{folder}"', f'server_url: "{url}"\n          timeout: 300ms')
        files = {"integrations/feast.yaml": configuration.format(), "domains/shop.yaml": ONE}
        async with service(files, plugins=PLUGINS) as shop:
            answer = await shop.get("/orchestrator/shop/tier/1")
            return answer.status, answer.json["step"], answer.json["detail"]

    async def hang(request: web.Request) -> web.Response:
        await asyncio.sleep(5)
        raise AssertionError("nobody waits for this")

    async def fail(request: web.Request) -> web.Response:
        return web.Response(status=500, text="out of luck")

    async def main() -> None:
        port = free_port()
        async with nothing_left("feature servers"):
            url = f"http://127.0.0.1:{port}"
            status, step, detail = await answer_from(url)
            assert (status, step) == (502, "features")
            assert detail.startswith(f"step 'features': POST {url}/get-online-features: ")
            async with stub(hang) as url:
                assert (await answer_from(url))[:2] == (504, "features")
            async with stub(fail) as url:
                detail = (
                    f"step 'features': POST {url}/get-online-features: the feature server answered 500: out of luck"
                )
                assert await answer_from(url) == (502, "features", detail)

    run(main())


def test_a_registry_that_is_deleted_or_spoilt_while_serving_changes_nothing(
    sqlite: Made, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = tmp_path / "registry.db"
    shutil.copy(sqlite.folder / "registry.db", registry)
    shutil.copy(sqlite.folder / "online.db", tmp_path / "online.db")
    moved(sqlite, tmp_path)
    config = tmp_path / "feature_store.yaml"
    config.write_text(config.read_text().replace(str(sqlite.folder / "registry.db"), "registry.db"))

    async def main() -> None:
        configuration = FEAST.format(folder=tmp_path).replace(
            "entity_key:", "registry_refresh: 20ms\n          entity_key:"
        )
        files = {"integrations/feast.yaml": configuration, "domains/shop.yaml": ONE}
        async with service(files, plugins=PLUGINS) as shop:
            whole = registry.read_bytes()
            for spoil in (registry.unlink, lambda: registry.write_bytes(b"\xff no registry")):
                spoil()
                await asyncio.sleep(0.3)
                assert (await shop.get("/orchestrator/shop/tier/1")).json == {"visits": 12, "tier": "gold"}
            registry.write_bytes(whole)
            await asyncio.sleep(0.3)
            assert (await shop.get("/orchestrator/shop/tier/1")).status == 200

    run(main())
    said = [record.getMessage() for record in caplog.records if "registry" in record.getMessage()]
    reasons = [
        "FileNotFoundError: Registry not found at path",
        "DecodeError: Error parsing message",
        "can be read again",
    ]
    assert [reason in line for reason, line in zip(reasons, said, strict=True)] == [True] * 3, said


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: shutil.rmtree(folder), "there is no folder {folder}"),
        (lambda folder: (folder / "feature_store.yaml").unlink(), "there is no feature_store.yaml in {folder}"),
        (
            lambda folder: (folder / "feature_store.yaml").write_text("project: [shop"),
            "cannot read feature_store.yaml: ParserError: ",
        ),
        (
            lambda folder: (folder / "registry.db").unlink(),
            "there is no registry {folder}/registry.db; run `feast apply` in {folder}",
        ),
        (
            lambda folder: (folder / "registry.db").write_bytes(b"\xff no registry"),
            "cannot read the registry: DecodeError: ",
        ),
    ],
)
def test_a_repository_that_cannot_be_opened_is_said_where_the_source_stands(
    sqlite: Made, tmp_path: Path, spoil: Callable[[Path], Any], reason: str
) -> None:
    folder = tmp_path / "repository"
    shutil.copytree(sqlite.folder, folder)
    spoil(folder)
    (problem,) = check_problems(files(evolve(sqlite, folder=folder)), plugins=PLUGINS)
    assert (problem.code, problem.file, problem.line) == ("ORC601", "integrations/feast.yaml", 4)
    assert problem.message.startswith(f"feast.default cannot be opened: {reason.format(folder=folder)}")


@pytest.mark.parametrize("how", ["missing", "broken"])
def test_feast_that_cannot_be_imported_is_said_where_the_source_stands(how: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "feast.py").write_text("raise RuntimeError('numpy is too new')")
    code = f"""
import sys
def missing(name):
    if name.partition(".")[0] == "feast":
        raise ModuleNotFoundError("No module named 'feast'")
if {how!r} == "missing":
    sys.meta_path.insert(0, type("No", (), {{"find_spec": staticmethod(lambda name, *_: missing(name))}}))
else:
    sys.path.insert(0, {str(tmp_path / "broken")!r})
import orchestrator_source_feast.plugin as plugin
from orchestrator_core.testing import check_problems
source = "feast: {{sources: {{default: {{repo_path: .}}, served: {{server_url: 'http://127.0.0.1:9'}}}}}}"
for problem in check_problems({{"integrations/feast.yaml": source}}, plugins={{"feast": plugin}}):
    print(problem.code, problem.message)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    reason = {
        "missing": "ModuleNotFoundError: No module named 'feast'",
        "broken": "RuntimeError: numpy is too new",
    }[how]
    assert said[0] == (
        f"ORC601 feast.default cannot be opened: Feast cannot be imported: {reason};"
        " look at `pip check`, or use server_url, which needs no Feast here"
    )
    assert said[1].startswith("ORC604 ")  # the other source was opened and asked
