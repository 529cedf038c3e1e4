"""`orchestrator executions` shows what the store keeps, with the service and without it."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from tracking_kit import Place, files

from orchestrator_core.cli import main
from orchestrator_core.testing import free_port, service
from orchestrator_core.testing.service import write_files

Run = Callable[..., Any]


def orchestrator(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)], prog_name="orchestrator")


def test_executions_outlive_the_service(run: Run, place: Place) -> None:
    folder = place.folder / "config"
    settings = files(place, capture="full", capacity=1)
    settings["domains/d.yaml"] = """
        endpoints:
          hello:
            data_sources:
              - {name: guest, type: direct, params: {name: $request.path_params.name, secret: $request.body}}
            response_mapping: "hello {{ $guest.name }}"
    """

    async def serve() -> list[str]:
        async with service(settings, folder=folder) as shop:
            first = await shop.post("/orchestrator/d/hello/Ada", "x" * 300)
            await asyncio.sleep(0.002)  # ids of one millisecond sort by chance
            then = await shop.post("/orchestrator/d/hello/Grace", "x" * 300)
            return [answer.headers["X-Execution-Id"] for answer in (first, then)]

    ids = run(serve())
    listed = orchestrator("executions", "list", "--offline", "--config", folder, "--limit", "1")
    assert listed.output.splitlines()[1].split()[0] == ids[1], listed.output
    assert listed.output.splitlines()[2] == f"more: --cursor {ids[1]}"
    rest = orchestrator("executions", "list", "--offline", "--config", folder, "--cursor", ids[1], "--format", "json")
    assert [execution["id"] for execution in json.loads(rest.output)["executions"]] == [ids[0]]

    shown = orchestrator("executions", "show", ids[0], "--offline", "--config", folder).output.splitlines()
    assert re.match(rf"{ids[0]}  d\.hello  ok  200  [\d.]+ ms  \(engine [\d.]+ ms\)", shown[0])
    assert re.match(r"guest  ok  [\d.]+ ms  ", shown[1])
    assert re.match(r"generation [0-9a-f]{12}  started \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC", shown[2])
    captured = [re.sub(" {2,}", "  ", line.rstrip()) for line in shown[3:] if "headers" not in line]
    guest = '{"name": "Ada", "secret": "'
    guest += "x" * (120 - len(guest)) + "… 329 characters; --format json has all"
    assert captured == [
        'request  path_params  {"name": "Ada"}',
        f'  body  "{"x" * 119}… 302 characters; --format json has all',
        f"guest  params  {guest}",
        f"  result  {guest}",
        'answer  "hello Ada"',
    ]


def test_an_execution_that_the_store_does_not_have(run: Run, place: Place) -> None:
    folder = place.folder / "config"

    async def serve() -> None:
        async with service(files(place), folder=folder):
            pass

    run(serve())
    assert orchestrator("executions", "show", "x", "--offline", "--config", folder).output == (
        "Error: no execution x is kept\n"
    )
    no_utf8 = b"\xff".decode("utf-8", "surrogateescape")  # as Python has such arguments
    assert orchestrator("executions", "show", no_utf8, "--offline", "--config", folder).output == (
        "Error: no execution ? is kept\n"
    )
    listed = orchestrator("executions", "list", "--domain", no_utf8, "--offline", "--config", folder)
    assert listed.output == "no executions\n"


def test_a_file_that_is_not_there_is_said_and_not_made(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("tracking: {store: {type: sql, url: 'sqlite:///../typo.db'}}\n")
    assert orchestrator("executions", "list", "--offline", "--config", tmp_path / "config").output == (
        f"Error: the tracking store cannot be read: there is no file {tmp_path / 'typo.db'}\n"
    )
    assert not (tmp_path / "typo.db").exists()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    write_files(tmp_path / "config", {"config.yaml": "tracking: {store: {type: sql, url: 'sqlite:///../wrong.csv'}}\n"})
    (tmp_path / "wrong.csv").write_text("id,score\n" * 100)
    said = f"file is not a database: {tmp_path / 'wrong.csv'}"
    listed = orchestrator("executions", "list", "--offline", "--config", tmp_path / "config")
    assert listed.output == f"Error: the tracking store cannot be read: {said}\n"
    found = orchestrator("check", "--config", tmp_path / "config")
    assert f"config.yaml:1:19: ORC604 the tracking store cannot be reached: {said}" in found.output


def test_without_a_store_there_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("tracking: {capacity: 5}\n")
    assert orchestrator("executions", "list", "--offline", "--config", tmp_path).output == (
        f"Error: {tmp_path}/config.yaml has no tracking.store: executions are kept as long as the service runs\n"
    )


def test_check_looks_at_the_store_and_changes_nothing(run: Run, place: Place) -> None:
    folder = place.folder / "config"

    def check() -> Result:
        return orchestrator("check", "--config", folder)

    async def serve() -> None:
        async with service(files(place), folder=folder):
            pass

    write_files(folder, files(place))
    assert "no problems" in check().output  # it is not there yet: the service makes it
    assert place.engine == "postgresql" or not (place.folder / "executions.db").exists()
    run(serve())
    assert "no problems" in check().output
    place.ask("UPDATE orchestrator_tracking_version SET version_num = '9999'")
    later = check()
    assert "ORC601 the tracking store cannot be used: its tables have the schema 9999" in later.output
    assert later.exit_code == 1
    assert orchestrator("check", "--offline", "--config", folder).exit_code == 0


def test_check_tells_of_a_store_that_cannot_be_reached(tmp_path: Path) -> None:
    for url, reason in {
        f"postgresql://postgres:hidden@127.0.0.1:{free_port()}/test": "Connection refused",
        "sqlite:///../missing/executions.db": "there is no folder",
    }.items():
        write_files(tmp_path / "config", {"config.yaml": f"tracking: {{store: {{type: sql, url: '{url}'}}}}\n"})
        found = orchestrator("check", "--config", tmp_path / "config")
        assert "config.yaml:1:19: ORC604 the tracking store cannot be reached: " in found.output
        assert reason in found.output
        assert "= skip with --offline" in found.output
        assert "hidden" not in found.output
        assert found.exit_code == 1
