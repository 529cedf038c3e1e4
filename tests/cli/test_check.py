"""`orchestrator check`: its last line, its exit status and its forms for programs."""

from __future__ import annotations

import json
import re

import click
import pytest

from orchestrator_core.cli.codes import CODES
from orchestrator_core.cli.findings import render, summary
from orchestrator_core.errors import Problem
from orchestrator_core.testing import free_port

from .conftest import Invoke, Write

GOOD = {
    "config/database.yaml": """
        store:
          sources: {default: {url: "store://a"}}
          operations: {get: {query: q, params: [id]}}
        """,
    "config/domains/shop.yaml": """
        endpoints:
          price:
            data_sources:
              - {name: product, type: store, operation: get, params: {id: "$request.path_params.id"}}
        """,
}
MISSPELT = {
    "config/domains/my shop.yaml": """
        domain_id: shop
        descripton: a shop
        endpoints:
          price:
            description: none
            response_mapping: at $request.x
        """,
}
PLUGINS = ("--plugins-dir", "plugins")


def test_a_good_configuration_is_counted(write: Write, orchestrator: Invoke) -> None:
    write(GOOD)

    result = orchestrator("check", *PLUGINS)

    assert re.fullmatch(r"config: 1 endpoint, 1 source: no problems \(\d+\.\d\d s\)\n", result.output)
    assert result.exit_code == 0


def test_warnings_alone_are_no_failure(write: Write, orchestrator: Invoke) -> None:
    write({"config/domains/shop.yaml": "endpoints:\n  price: {response_mapping: at $request.x}\n"})

    result = orchestrator("check")

    problem, last = result.output.rsplit("\n", 2)[:2]
    assert problem == (
        "config/domains/shop.yaml:2:32: ORC508 warning: this is text, in which $request stands for itself\n"
        "    2 |   price: {response_mapping: at $request.x}\n"
        "      |                                ^^^^^^^^\n"
        "      = an expression starts with $; inside a text it is written {{ $… }}"
    )
    assert re.fullmatch(r"config: 1 endpoint, 0 sources: 1 warning \(\d+\.\d\d s\)", last)
    assert result.exit_code == 0


def test_sources_are_opened_unless_offline(write: Write, orchestrator: Invoke) -> None:
    write(GOOD | {"config/database.yaml": GOOD["config/database.yaml"].replace("store://a", "store://nowhere")})

    result = orchestrator("check", *PLUGINS)

    assert result.output == (
        "config/database.yaml:2:13: ORC601 store.default cannot be opened: no store at store://nowhere\n"
        '    2 |   sources: {default: {url: "store://nowhere"}}\n'
        "      |             ^^^^^^^\n"
        "1 problem in 1 file\n"
    )
    assert result.exit_code == 1
    assert orchestrator("check", "--offline", *PLUGINS).exit_code == 0


def test_a_shared_cache_that_is_not_there_is_a_warning(write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": f"cache: {{url: 'redis://:hidden@127.0.0.1:{free_port()}/0'}}\n"})

    result = orchestrator("check")

    assert "config/config.yaml:1:1: ORC604 warning: the shared cache cannot be reached: " in result.output
    assert "= skip with --offline" in result.output
    assert "hidden" not in result.output
    assert result.exit_code == 0
    assert "no problems" in orchestrator("check", "--offline").output


def test_a_secret_is_masked_in_what_is_printed(
    write: Write, orchestrator: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORE_HOST", "nowhere")
    write(GOOD | {"config/database.yaml": GOOD["config/database.yaml"].replace("//a", "//${env:STORE_HOST}")})

    result = orchestrator("check", *PLUGINS)

    assert result.output == (
        "config/database.yaml:2:13: ORC601 store.default cannot be opened: no store at store://***\n"
        '    2 |   sources: {default: {url: "store://${env:STORE_HOST}"}}\n'
        "      |             ^^^^^^^\n"
        "1 problem in 1 file\n"
    )


def test_json_has_every_field_of_every_problem(write: Write, orchestrator: Invoke) -> None:
    write(MISSPELT)

    result = orchestrator("check", "--format", "json")

    assert result.exit_code == 1
    assert json.loads(result.output) == {
        "errors": 1,
        "warnings": 1,
        "problems": [
            {
                "code": "ORC201",
                "severity": "error",
                "file": "config/domains/my shop.yaml",
                "line": 2,
                "column": 1,
                "end_column": 11,
                "path": "descripton",
                "message": "unknown key 'descripton'",
                "hint": "did you mean 'description'?",
                "source_line": "descripton: a shop",
                "text": "config/domains/my shop.yaml:2:1: ORC201 unknown key 'descripton'\n"
                "    2 | descripton: a shop\n"
                "      | ^^^^^^^^^^\n"
                "      = did you mean 'description'?",
            },
            {
                "code": "ORC508",
                "severity": "warning",
                "file": "config/domains/my shop.yaml",
                "line": 6,
                "column": 26,
                "end_column": 34,
                "path": "endpoints.price.response_mapping",
                "message": "this is text, in which $request stands for itself",
                "hint": "an expression starts with $; inside a text it is written {{ $… }}",
                "source_line": "    response_mapping: at $request.x",
                "text": "config/domains/my shop.yaml:6:26: ORC508 warning: this is text, in which $request stands for "
                "itself\n"
                "    6 |     response_mapping: at $request.x\n"
                "      |                          ^^^^^^^^\n"
                "      = an expression starts with $; inside a text it is written {{ $… }}",
            },
        ],
    }


def test_sarif_has_a_rule_per_code_and_a_place_per_result(write: Write, orchestrator: Invoke) -> None:
    write(MISSPELT)

    result = orchestrator("check", "--format", "sarif")

    assert result.exit_code == 1
    log = json.loads(result.output)
    assert (log["version"], log["$schema"]) == ("2.1.0", "https://json.schemastore.org/sarif-2.1.0.json")
    (run,) = log["runs"]
    driver = run["tool"]["driver"]
    assert driver["name"] == "orchestrator"
    assert driver["rules"] == [
        {"id": "ORC201", "shortDescription": {"text": "unknown key"}},
        {"id": "ORC508", "shortDescription": {"text": "text that looks like an expression"}},
    ]
    uri = {"uri": "config/domains/my%20shop.yaml"}
    assert run["results"] == [
        {
            "ruleId": "ORC201",
            "ruleIndex": 0,
            "level": "error",
            "message": {"text": "unknown key 'descripton' (did you mean 'description'?)"},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": uri,
                        "region": {"startLine": 2, "startColumn": 1, "endColumn": 11},
                    }
                }
            ],
        },
        {
            "ruleId": "ORC508",
            "ruleIndex": 1,
            "level": "warning",
            "message": {
                "text": "this is text, in which $request stands for itself "
                "(an expression starts with $; inside a text it is written {{ $… }})"
            },
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": uri,
                        "region": {"startLine": 6, "startColumn": 26, "endColumn": 34},
                    }
                }
            ],
        },
    ]


def test_sarif_without_problems_is_a_run_without_results(write: Write, orchestrator: Invoke) -> None:
    write(GOOD)

    log = json.loads(orchestrator("check", "--format", "sarif", *PLUGINS).output)

    assert log["runs"][0]["results"] == []


@pytest.mark.parametrize("severity", ["error", "warning"])
def test_colours_change_nothing_but_colours(severity: str) -> None:
    problem = Problem("a.yaml", 3, 5, "ORC201", "unknown key 'x'", "x", "say 'y'", "error", "\t  x: 1 | ^", 1)
    if severity == "warning":
        problem = problem.as_warning()

    rendered = render(problem)

    assert click.unstyle(rendered) == str(problem)
    assert rendered != str(problem)


def test_the_last_line_counts_problems_files_and_warnings() -> None:
    found = [Problem("a.yaml", 1, 1, "ORC201", "x"), Problem("b.yaml", 1, 1, "ORC508", "y").as_warning()]

    assert summary(found) == "2 problems in 2 files (1 warning)"
    assert summary(found[:1]) == "1 problem in 1 file"
    assert summary([Problem(code="ORC404", message="z")]) == "1 problem"


def test_a_code_has_few_words() -> None:
    assert all(0 < len(words) < 50 and words == words.rstrip(".") for words in CODES.values())
