"""The reference pages: they say what the option classes say, for every kind there is, and for those to come."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
from attrs import frozen

from orchestrator_core.config.model import AppConfig, DomainFile
from orchestrator_core.models import CommonOptions, MlOptions
from orchestrator_core.plugin_api import Duration, ModelKind, SourceKind, TransformerKind, option
from orchestrator_core.plugins import Plugin, Provided, Registry, discover
from orchestrator_core.policies.options import PolicyOptions
from orchestrator_core.reference import reference_pages
from orchestrator_core.reference.tables import anchor_of, class_with_parts, classes_in, options_reference

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"
INSTALLED = discover()
PAGES = reference_pages(INSTALLED, FOLDER)
KINDS = [
    *(("source", name, provided.kind) for name, provided in INSTALLED.sources.items()),
    *(("model", name, provided.kind) for name, provided in INSTALLED.models.items() if name == provided.kind.name),
]


def test_the_pages_are_what_the_classes_say() -> None:
    """Write them anew with: make reference"""
    assert [plugin for plugin in INSTALLED.plugins if plugin.error] == []
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(PAGES)
    assert [name for name, text in PAGES.items() if (FOLDER / name).read_text(encoding="utf-8") != text] == []


def test_every_kind_that_comes_with_the_project_has_its_page() -> None:
    expected = {f"source-{name}.md" for name in ("api", "database", "feast")} | {"transformers.md"}
    expected |= {f"model-{name}.md" for name in ("artifact", "http")}
    assert expected <= set(PAGES)


def option_classes(kind: Any) -> set[type[Any]]:
    """Return the option classes of a kind, however deep they are held."""
    pending = [cls for _, cls in classes_in(kind.options)]
    pending += [kind.operation] if getattr(kind, "operation", None) else []
    found: set[type[Any]] = set()
    while pending:
        cls = pending.pop()
        if cls not in found:
            found.add(cls)
            pending += [part for each in attrs.fields(attrs.resolve_types(cls)) for _, part in classes_in(each.type)]
    return found


@pytest.mark.parametrize(("sort", "name", "kind"), KINDS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_option_of_a_kind_is_on_its_page_with_a_sentence(sort: str, name: str, kind: Any) -> None:
    page = PAGES[f"{sort}-{name}.md"]
    for cls in option_classes(kind):
        for each in attrs.fields(cls):
            if each.init:
                assert re.search(rf"^\| `{each.name}` \| \S.* \| .+ \| \S.* \|$", page, re.MULTILINE), (cls, each.name)


def test_every_option_of_the_core_is_on_the_page_of_its_files() -> None:
    pending: list[type[Any]] = [AppConfig, PolicyOptions, MlOptions, CommonOptions, DomainFile]
    shown: set[type[Any]] = set()
    while pending:
        cls = pending.pop()
        if cls not in shown:
            shown.add(cls)
            assert options_reference(cls) in PAGES["configuration.md"], cls
            pending += [part for each in attrs.fields(attrs.resolve_types(cls)) for _, part in classes_in(each.type)]


@pytest.mark.parametrize("name", sorted(INSTALLED.transformers))
def test_every_option_of_a_transformer_is_on_the_page_with_a_sentence(name: str) -> None:
    section = PAGES["transformers.md"].split(f"\n## `{name}`\n")[1].split("\n## ")[0]
    for cls in option_classes(INSTALLED.transformers[name].kind):
        for each in attrs.fields(cls):
            assert re.search(rf"^\| `{each.name}` \| \S.* \| .+ \| \S.* \|$", section, re.MULTILINE), each.name


def test_links_within_a_page_lead_to_its_headings() -> None:
    for name, text in PAGES.items():
        headings = [anchor_of(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
        assert len(headings) == len(set(headings)), name
        assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= set(headings), name


def test_each_guide_and_readme_leads_to_the_reference() -> None:
    for sort, name, _ in KINDS:
        guide = ROOT / "docs" / f"{sort}s" / f"{name}.md"
        page = f"reference/{sort}-{name}.md"
        if guide.exists():
            assert f"](../{page}" in guide.read_text(encoding="utf-8"), guide
    assert "](reference/README.md)" in (ROOT / "docs/README.md").read_text(encoding="utf-8")


def test_the_command_writes_the_pages(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator_core.reference", str(tmp_path / "docs" / "reference")]
    said = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ}).stdout
    assert said == f"{len(PAGES)} pages in {tmp_path}/docs/reference\n"
    assert {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "docs" / "reference").iterdir()} == (
        reference_pages(INSTALLED, tmp_path / "docs" / "reference")
    )


# --- a kind that comes later ------------------------------------------------------------------------------------------


@frozen
class Limits:
    """How much it may take.

    What follows is for readers of the code.
    """

    memory: str = option("1GiB", help="Memory.")


@frozen
class Volume:
    """A folder that it sees."""

    target: str = option(help="Where it sees it.")
    limits: Limits = option(Limits(), help="Limits of the folder.")


@frozen
class ContainerOptions:
    """A container.

    It is started with the service.
    """

    image: str = option(help="The image.")
    pull: Literal["always", "never"] = option("never", help="When to pull; see `docker pull`.")
    wait: Duration = option(Duration(60), help="How long it may take to start.")
    limits: Limits = option(Limits(), help="Limits of the container.")
    volumes: Mapping[str, str | Volume] = option(factory=dict, help="Folders by <name>.")
    ports: tuple[int, ...] = option((), help="Ports.")
    labels: Mapping[str, int] = option(factory=lambda: {"a": 1}, help="Labels.")
    more: Limits = option(factory=Limits, help="More limits.")


@frozen
class Call:
    """A call."""

    limits: Limits | None = option(None, help="Limits of the call.")


def never(*_: Any) -> Any:
    raise AssertionError("a reference opens nothing")


LATER = Plugin("later", "orchestrator-api-later", "1.2")
REGISTRY = Registry(
    sources={
        "box": Provided(SourceKind("box", "Opens boxes.", ContainerOptions, never, operation=Call), LATER),
        "free": Provided(SourceKind("free", "Takes anything.", Limits, never), LATER),
    },
    models={
        name: Provided(ModelKind("docker", "Runs a container.", ContainerOptions, never, aliases=("podman",)), LATER)
        for name in ("docker", "podman")
    },
    transformers={"trim": Provided(TransformerKind("trim", "Trims texts.", dict[str, int], never), LATER)},
)

HEAD = """\
[The configuration reference](configuration.md) says what a duration, a size and `${env:NAME}` are.
`pip install orchestrator-api-later` brings it; this page is written from its option classes: \
`python -m orchestrator_core.reference`.
"""
OPTIONS = """\
A container.

It is started with the service.

| option | type | default | meaning |
|---|---|---|---|
| `image` | string | required | The image. |
| `pull` | `always` or `never` | `never` | When to pull; see `docker pull`. |
| `wait` | duration | `1m` | How long it may take to start. |
| `limits` | [mapping](#limits) | `{}` | Limits of the container. |
| `volumes` | [mapping of names to string or mapping](#volumesname) | `{}` | Folders by &lt;name>. |
| `ports` | list of integers | `[]` | Ports. |
| `labels` | mapping of names to integers | `{a: 1}` | Labels. |
| `more` | [mapping](#limits) | `{}` | More limits. |

### `limits`

How much it may take.

| option | type | default | meaning |
|---|---|---|---|
| `memory` | string | `1GiB` | Memory. |

### `volumes.<name>`

A folder that it sees.

| option | type | default | meaning |
|---|---|---|---|
| `target` | string | required | Where it sees it. |
| `limits` | [mapping](#limits) | `{}` | Limits of the folder. |
"""


POLICIES = """\
It also takes the [policies](configuration.md#policies-of-a-source) of every source, but for a key that stands in the \
table above.
"""


def test_a_kind_that_comes_later_has_its_page_without_further_ado(tmp_path: Path) -> None:
    pages = reference_pages(REGISTRY, tmp_path)
    assert sorted(pages) == [
        *("README.md", "configuration.md", "model-docker.md", "source-box.md", "source-free.md", "transformers.md"),
    ]
    assert pages["model-docker.md"] == (
        f"# The model type `docker`\n\nRuns a container.\n\n{HEAD}\n"
        "## A model: `source` or `models.<name>`\n\n"
        "It stands in a source of models, `ml.sources.<source_id>`, with `type: docker`. "
        "Another name for it is `podman`.\n\n"
        "`type`, `batch` and what else every model has are on the page of [the configuration](configuration.md).\n\n"
        f"{OPTIONS}"
    )
    assert pages["source-box.md"] == (
        f"# The source type `box`\n\nOpens boxes.\n\n{HEAD}\n"
        f"## A source: `box.sources.<source_id>`\n\n{OPTIONS}\n{POLICIES}\n"
        "## An operation: `operations.<name>`\n\n"
        "Operations stand in a source or, shared by all of them, in `box.operations`; a source's own wins.\n\n"
        "A call.\n\n"
        "| option | type | default | meaning |\n|---|---|---|---|\n"
        "| `limits` | [mapping or null](#operationsnamelimits) | none | Limits of the call. |\n\n"
        "### `operations.<name>.limits`\n\nHow much it may take.\n\n"
        "| option | type | default | meaning |\n|---|---|---|---|\n| `memory` | string | `1GiB` | Memory. |\n"
    )
    assert pages["source-free.md"].endswith("They need not be declared: a step's `operation` is passed on as it is.\n")
    assert pages["transformers.md"].endswith("## `trim`\n\nTrims texts.\n\nIs given: mapping of names to integers.\n")
    assert "| [model type `docker`](model-docker.md) | Runs a container. |\n" in pages["README.md"]


def test_a_page_leads_to_the_guide_beside_it(tmp_path: Path) -> None:
    (tmp_path / "sources").mkdir()
    (tmp_path / "sources" / "box.md").write_text("How boxes are opened.")
    (tmp_path / "reference").mkdir()
    pages = reference_pages(REGISTRY, tmp_path / "reference")
    assert "[The guide](../sources/box.md) shows it at work.\n" in pages["source-box.md"]
    assert "guide" not in pages["source-free.md"]


def test_a_class_that_holds_itself_ends() -> None:
    text = "\n".join(class_with_parts(Tree, "###"))
    assert text.count("| `branches` |") == 1


@frozen
class Tree:
    """A tree."""

    branches: tuple[Tree, ...] = option((), help="Its branches.")
