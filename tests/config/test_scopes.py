"""Files and scopes: what a domain has of its own wins, and nothing is defined twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import frozen

from orchestrator_core.plugin_api import SourceKind, hookimpl, option
from orchestrator_core.testing import check_problems
from orchestrator_core.testing.pytest_plugin import Served

Serve = Callable[..., Served]


@frozen
class Options:
    """Options of a source."""

    tag: str = option("", help="What it returns.")


@frozen
class Operation:
    """Options of an operation."""

    tag: str = option("", help="What it returns.")


class Source:
    def __init__(self, options: Options, operations: Any) -> None:
        self.options = options
        self.operations = operations

    async def fetch(self, operation: str, params: Any) -> Any:
        return f"{self.options.tag}.{self.operations[operation].tag}"


class Tagged:
    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        @asynccontextmanager
        async def opened(options: Options, context: Any) -> Any:
            yield Source(options, context.operations)

        return [SourceKind("tagged", "Returns its tags.", Options, opened, operation=Operation)]


PLUGINS = {"tagged": Tagged()}
ASKS = "endpoints: {e: {data_sources: [{name: s, type: tagged, operation: get}]}}"
GLOBAL = "tagged: {sources: {default: {tag: global}}, operations: {get: {tag: shared}}}"


@pytest.mark.parametrize(
    ("files", "answers"),
    [
        ({"database.yaml": GLOBAL}, {"a": "global.shared", "b": "global.shared"}),
        ({"integrations/x.yaml": GLOBAL}, {"a": "global.shared", "b": "global.shared"}),
        ({"config.yaml": GLOBAL}, {"a": "global.shared", "b": "global.shared"}),
        (
            {
                "database.yaml": "tagged: {sources: {default: {tag: global, operations: {get: {tag: own}}}},"
                " operations: {get: {tag: shared}}}"
            },
            {"a": "global.own", "b": "global.own"},
        ),
        (
            {"database.yaml": GLOBAL, "domains/a/database.yaml": "tagged: {sources: {default: {tag: mine}}}"},
            {"a": "mine.shared", "b": "global.shared"},
        ),
        (
            {"database.yaml": GLOBAL, "domains/a/integrations/y.yaml": "tagged: {operations: {get: {tag: mine}}}"},
            {"a": "global.mine", "b": "global.shared"},
        ),
        (
            {
                "database.yaml": GLOBAL,
                "domains/a/database.yaml": "tagged: {sources: {default: {tag: mine}}, operations: {get: {tag: too}}}",
            },
            {"a": "mine.too", "b": "global.shared"},
        ),
        (
            {
                "integrations/sources.yaml": "tagged: {sources: {default: {tag: split}}}",
                "integrations/operations.yaml": "tagged: {operations: {get: {tag: files}}}",
            },
            {"a": "split.files", "b": "split.files"},
        ),
    ],
)
def test_what_a_domain_has_of_its_own_wins(serve: Serve, files: dict[str, str], answers: dict[str, str]) -> None:
    shop = serve({**files, "domains/a.yaml": ASKS, "domains/b.yaml": ASKS}, plugins=PLUGINS)
    assert {name: shop.get(f"/orchestrator/{name}/e").json for name in answers} == answers


def test_a_source_of_one_domain_is_not_there_for_another() -> None:
    files = {
        "domains/a/database.yaml": GLOBAL,
        "domains/a.yaml": ASKS,
        "domains/b.yaml": ASKS,
    }
    told = check_problems(files, plugins=PLUGINS)
    assert [(problem.file, problem.code, problem.message) for problem in told] == [
        ("domains/b.yaml", "ORC405", "there is no tagged source")
    ]


@pytest.mark.parametrize(
    ("files", "where", "message", "hint"),
    [
        (
            {"database.yaml": GLOBAL, "integrations/x.yaml": "tagged:\n  sources:\n    default: {}\n"},
            "integrations/x.yaml:3:5",
            "the tagged source 'default' is defined twice",
            "first defined at database.yaml:1",
        ),
        (
            {
                "integrations/a.yaml": "tagged:\n  operations:\n    get: {}\n",
                "integrations/b.yaml": "tagged:\n\n  operations:\n    get: {}\n",
            },
            "integrations/b.yaml:4:5",
            "the tagged operation 'get' is defined twice",
            "first defined at integrations/a.yaml:3",
        ),
        (
            {"domains/a.yaml": "domain_id: x\nendpoints: {}", "domains/b.yaml": "domain_id: x\nendpoints: {}"},
            "domains/b.yaml:1:12",
            "the domain 'x' is defined twice",
            "first defined in domains/a.yaml",
        ),
        (
            {"database.yaml": "server: {port: 1}"},
            "database.yaml:1:1",
            "'server' belongs in config.yaml",
            "",
        ),
        (
            {"domains/a.yaml": "domain_id: x\ndomain_name: y\nendpoints: {}"},
            "domains/a.yaml:2:14",
            "domain_id is 'x' but domain_name is 'y'",
            "give one of them",
        ),
        (
            {"domains/a/database.yaml": GLOBAL},
            "domains/a:0:0",
            "no domain file domains/a.yaml belongs to this folder",
            "",
        ),
        (
            {"domains/a.yml": ASKS},
            "domains/a.yml:0:0",
            "only files that end in .yaml are read, not .yml",
            "rename it",
        ),
        (
            {"domains/a.yaml": "endpoints: {'a b': {response_mapping: 1}}"},
            "domains/a.yaml:1:13",
            "'a b' cannot stand in a URL: use letters, digits, _, - and .",
            "",
        ),
        (
            {"integrations/x.yaml": "tagged: {source: {default: {}}}"},
            "integrations/x.yaml:1:10",
            "unknown key 'source' in the section of source type 'tagged'",
            "did you mean 'sources'?",
        ),
    ],
)
def test_what_is_in_the_wrong_place_or_there_twice_is_told(
    files: dict[str, str], where: str, message: str, hint: str
) -> None:
    told = check_problems(files, plugins=PLUGINS)
    assert [(f"{found.file}:{found.line}:{found.column}", found.message, found.hint) for found in told] == [
        (where, message, hint)
    ]


def test_files_of_editors_and_config_maps_are_not_read(serve: Serve) -> None:
    shop = serve(
        {
            "domains/.a.yaml.swp": "{",
            "domains/a.yaml~": "{",
            "domains/#a.yaml#": "{",
            "domains/..data/a.yaml": "{",
            "domains/notes.txt": "{",
            "domains/a.yaml": "endpoints: {e: {response_mapping: 1}}",
            "README.md": "{",
        }
    )
    assert shop.get("/orchestrator/a/e").json == 1


def test_the_domain_is_named_by_its_id_its_name_or_its_file(serve: Serve) -> None:
    body = "endpoints: {e: {response_mapping: 1}}"
    shop = serve(
        {
            "domains/a.yaml": body,
            "domains/b.yaml": f"domain_id: other\n{body}",
            "domains/c.yaml": f"domain_name: named\n{body}",
        }
    )
    assert [domain["domain"] for domain in shop.get("/orchestrator").json["domains"]] == ["a", "named", "other"]


def test_an_empty_folder_serves_nothing_and_is_fine(serve: Serve) -> None:
    shop = serve({"config.yaml": "{}"})
    assert shop.get("/orchestrator").json["domains"] == []
