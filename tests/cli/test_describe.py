"""`orchestrator plugins`, `schema` and `openapi`."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema_rs
import pytest

from orchestrator_core import __version__

from .conftest import Invoke, Write

BROKEN = {"plugins/broken.py": "import no_such_library\n"}
PLUGINS = ("--plugins-dir", "plugins")


def test_plugins_are_listed_with_what_they_provide(write: Write, orchestrator: Invoke) -> None:
    write(BROKEN)

    result = orchestrator("plugins", *PLUGINS)

    assert result.exit_code == 0
    core = f"orchestrator-api-core {__version__}"
    assert result.output == (
        "source types\n"
        f"  direct  {core}  Returns its params, to name a value.\n"
        f"  ml      {core}  Models, which a plugin for their type brings.\n"
        f"  store   {'plugins/store.py':<{len(core)}}  A store for tests.\n"
        "model types\n"
        f"  line    {'plugins/store.py':<{len(core)}}  The same as linear.\n"
        f"  linear  {'plugins/store.py':<{len(core)}}  A linear model for tests.\n"
        "transformers\n"
        f"  rename  {'plugins/store.py':<{len(core)}}  Renames fields.\n"
        "tracking stores\n"
        "  none\n"
        "telemetry\n"
        "  none\n"
        "failed to import\n"
        "  broken  plugins/broken.py\n"
        "    ModuleNotFoundError: No module named 'no_such_library'\n"
    )


def test_plugins_as_json_have_the_traceback_of_a_failure(write: Write, orchestrator: Invoke) -> None:
    write(BROKEN | {"plugins/second.py": Path("plugins/store.py").read_text(encoding="utf-8")})

    result = orchestrator("plugins", "--format", "json", *PLUGINS)

    assert result.exit_code == 0
    document = json.loads(result.output)
    assert document["source_types"][0] == {
        "name": "direct",
        "provider": "orchestrator-api-core",
        "version": __version__,
        "summary": "Returns its params, to name a value.",
    }
    (failed,) = document["failed"]
    assert failed["traceback"].startswith("Traceback (most recent call last):\n")
    assert failed["reason"] == "ModuleNotFoundError: No module named 'no_such_library'"
    assert "two plugins provide the source type 'store': plugins/second.py and plugins/store.py" in document["problems"]


def test_the_configuration_may_name_the_plugins_folder(write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": "plugins_dir: ../plugins\n"})

    assert "\n  store   config/../plugins/store.py  " in orchestrator("plugins").output


@pytest.mark.parametrize("there", [True, False])
def test_a_secret_in_the_name_of_the_plugins_folder_is_not_shown(
    write: Write, orchestrator: Invoke, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setenv("CANARY", "canary-4711")
    folder = "canary-4711" if there else "elsewhere"
    write(
        {
            "config/config.yaml": "plugins_dir: '../${env:CANARY}'\n",
            f"{folder}/broken.py": "raise ValueError(__file__)\n",
            f"{folder}/good.py": (Path(__file__).with_name("store_plugin.py")).read_text(),
        }
    )
    for form in ("text", "json"):
        result = orchestrator("plugins", "--format", form)
        assert result.exit_code == 0
        assert "canary" not in result.output
        assert ("config/../***/good.py" if there else "there is no plugins folder at config/../***") in result.output


def test_a_plugins_folder_whose_name_lacks_a_variable_is_not_another_one(write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": "plugins_dir: '../plugins/${env:NOT_SET_HERE}'\n"})
    write({"plugins/ran.py": "from pathlib import Path\nPath('ran').touch()\n", "config/domains/d.yaml": "{}"})

    checked = orchestrator("check")

    assert checked.exit_code == 1
    assert "ORC301 the environment variable NOT_SET_HERE is not set" in checked.output
    assert not Path("ran").exists()


def test_schemas_of_all_files_include_the_options_of_plugins(orchestrator: Invoke) -> None:
    result = orchestrator("schema", *PLUGINS)

    assert result.exit_code == 0
    schemas = json.loads(result.output)
    assert list(schemas) == ["config.yaml", "database.yaml", "integrations/*.yaml", "domains/*.yaml"]
    validator = jsonschema_rs.validator_for(schemas["config.yaml"])
    assert validator.is_valid({"server": {"port": 1}, "store": {"sources": {"default": {"url": "store://a"}}}})
    assert not validator.is_valid({"store": {"sources": {"default": {"urll": "store://a"}}}})


@pytest.mark.parametrize("name", ["domains/*.yaml", "domains/shop.yaml"])
def test_one_schema_can_be_asked_for(name: str, orchestrator: Invoke) -> None:
    schema = json.loads(orchestrator("schema", name).output)

    assert schema == json.loads(orchestrator("schema").output)["domains/*.yaml"]


def test_an_unknown_file_names_the_one_that_was_meant(orchestrator: Invoke) -> None:
    result = orchestrator("schema", "databse.yaml")

    assert result.exit_code == 2
    assert result.output.endswith(
        "\nError: there is no configuration file 'databse.yaml', did you mean 'database.yaml'?\n"
    )


def test_a_folder_that_schemas_cannot_be_written_into_is_named(folder: Path, orchestrator: Invoke) -> None:
    (folder / "out").write_text("", encoding="utf-8")

    result = orchestrator("schema", "--output", "out/schemas")

    assert (result.output, result.exit_code) == (
        "Error: cannot write out/schemas/config.schema.json: Not a directory\n",
        1,
    )


def test_schemas_are_written_into_a_folder(folder: Path, orchestrator: Invoke) -> None:
    result = orchestrator("schema", "--output", "out/schemas")

    assert result.output == (
        "wrote out/schemas/config.schema.json\n"
        "wrote out/schemas/database.schema.json\n"
        "wrote out/schemas/integrations.schema.json\n"
        "wrote out/schemas/domains.schema.json\n"
    )
    written = json.loads((folder / "out" / "schemas" / "config.schema.json").read_text(encoding="utf-8"))
    assert written == json.loads(orchestrator("schema", "config.yaml").output)


def test_openapi_has_the_endpoints(write: Write, orchestrator: Invoke) -> None:
    write({"config/domains/shop.yaml": "endpoints:\n  price: {methods: [GET], response_mapping: {a: 1}}\n"})

    result = orchestrator("openapi")

    assert result.exit_code == 0
    document = json.loads(result.output)
    assert document["openapi"].startswith("3.1")
    assert "get" in document["paths"]["/orchestrator/shop/price"]


def test_there_is_no_openapi_of_a_configuration_with_problems(write: Write, orchestrator: Invoke) -> None:
    write({"config/domains/shop.yaml": "endpoints: 5\n"})

    result = orchestrator("openapi")

    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == (
        "config/domains/shop.yaml:1:12: ORC202 expected a mapping of names to endpoints, got an integer\n"
        "    1 | endpoints: 5\n"
        "      |            ^\n"
        "1 problem in 1 file\n"
    )
