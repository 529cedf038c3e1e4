"""`orchestrator init` and what it writes, which is what `config/` holds."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator_core.cli.init import starter_files
from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.model import AppConfig

from .conftest import Invoke, Write

CONFIG = Path(__file__).parents[2] / "config"
NAMES = ["config.yaml", "database.yaml", "domains/hello.yaml", "integrations/models.yaml"]


def test_config_is_the_starter() -> None:
    files = {path.relative_to(CONFIG).as_posix(): path.read_text("utf-8") for path in CONFIG.rglob("*.yaml")}

    assert files == starter_files()
    assert sorted(files) == NAMES


def test_its_settings_are_the_defaults() -> None:
    assert load_configuration(CONFIG).app == AppConfig()


def test_the_starter_checks_runs_and_says_what_is_next(folder: Path, orchestrator: Invoke) -> None:
    result = orchestrator("init")

    assert result.exit_code == 0
    assert result.output == (
        "wrote config/config.yaml\n"
        "wrote config/database.yaml\n"
        "wrote config/domains/hello.yaml\n"
        "wrote config/integrations/models.yaml\n"
        "\n"
        "next:\n"
        "  orchestrator check\n"
        "  orchestrator run hello.greet --path-param name=Ada --trace\n"
        "  orchestrator serve\n"
        "  curl http://127.0.0.1:8000/orchestrator/hello/greet/Ada\n"
    )
    assert orchestrator("check").output.startswith("config: 1 endpoint, 0 sources: no problems (")
    new = orchestrator("run", "hello.greet", "--path-param", "name=Ada")
    regular = orchestrator("run", "hello.greet", "--path-param", "name=Ada", "--query", "visits=4")
    assert json.loads(new.output) == {"greeting": "hello Ada", "reward": None}
    assert json.loads(regular.output) == {"greeting": "hello Ada", "reward": "thank you for 4 visits"}


def test_what_is_commented_out_is_a_configuration_too(folder: Path, orchestrator: Invoke) -> None:
    """The blocks behind # are YAML that says what it seems to: the only problems are types not installed here."""
    orchestrator("init")
    for name in ("database.yaml", "integrations/models.yaml"):
        path = folder / "config" / name
        lines = path.read_text(encoding="utf-8").splitlines()
        first = next(index for index, line in enumerate(lines) if line in ("# database:", "# ml:"))
        path.write_text("\n".join(line.removeprefix("# ") for line in lines[first:]) + "\n", encoding="utf-8")

    document = json.loads(orchestrator("check", "--offline", "--format", "json").output)

    assert [problem["message"] for problem in document["problems"]] == [
        "no installed plugin provides the source type 'database'",
        "no installed plugin provides the model type 'artifact'",
        "no installed plugin provides the model type 'http'",
    ]


def test_another_folder_is_named_in_what_is_next(orchestrator: Invoke) -> None:
    by_argument, by_option = orchestrator("init", "my/config"), orchestrator("init", "--config", "other")

    assert "\n  orchestrator check --config my/config\n" in by_argument.output
    assert "\n  orchestrator serve --config other\n" in by_option.output


def test_nothing_is_overwritten(folder: Path, write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": "server: {port: 1}\n", "config/domains/hello.yaml": "endpoints: {}\n"})

    result = orchestrator("init")

    assert result.exit_code == 1
    assert result.output == (
        "Error: config/config.yaml, config/domains/hello.yaml are in the way, nothing was written\n"
        "  = give another folder: orchestrator init DIR\n"
    )
    assert (folder / "config" / "config.yaml").read_text(encoding="utf-8") == "server: {port: 1}\n"
    assert not (folder / "config" / "database.yaml").exists()


def test_a_file_where_a_folder_should_be_is_in_the_way(folder: Path, orchestrator: Invoke) -> None:
    (folder / "config").write_text("", encoding="utf-8")

    result = orchestrator("init")

    assert result.exit_code == 1
    assert result.output.startswith("Error: config is in the way, nothing was written\n")
