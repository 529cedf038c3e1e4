"""A page for each kind that a plugin provides: its options, those of its operations, and all classes within them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import ModelKind, SourceKind, StoreKind, TelemetryKind, TransformerKind
from orchestrator_core.plugins import Plugin, Provided, Registry
from orchestrator_core.reference.tables import (
    class_with_parts,
    classes_in,
    description,
    options_reference,
    prose,
    summary,
    type_in_words,
)

COMMAND = "python -m orchestrator_core.reference"


@frozen
class KindPage:
    """A page of the reference: its file's name, what it is about, its summary and its Markdown."""

    file: str
    subject: str
    summary: str
    text: str


def kind_pages(registry: Registry, folder: Path) -> list[KindPage]:
    """Return the pages of all source types, model types, transformers and stores, in that order, then telemetry's.

    A page links to the guide beside its folder, ``../sources/<name>.md`` and the like, where there is one.
    """
    sources = [_source_page(each.kind, each.plugin, folder) for _, each in sorted(registry.sources.items())]
    # An alias is another name for a kind that has its page.
    models = [
        _model_page(each.kind, each.plugin, folder)
        for name, each in sorted(registry.models.items())
        if name == each.kind.name
    ]
    transformers = [_transformers_page(registry.transformers, folder)] if registry.transformers else []
    stores = [_store_page(each.kind, each.plugin, folder) for _, each in sorted(registry.stores.items())]
    told = registry.telemetry
    telemetry = [] if told is None else [_telemetry_page(told.kind, told.plugin, folder)]
    return [*sources, *models, *transformers, *stores, *telemetry]


_POLICIES = (
    "It also takes the [policies](configuration.md#policies-of-a-source) of every source, but for a key that stands in"
    " the table above."
)


def _source_page(kind: SourceKind[Any], plugin: Plugin, folder: Path) -> KindPage:
    subject = f"source type `{kind.name}`"
    parts = [
        *_head(f"The {subject}", kind.summary, [plugin], _guide(folder, f"../sources/{kind.name}.md")),
        f"## A source: `{kind.name}.sources.<source_id>`",
        description(kind.options),
        *class_with_parts(kind.options, "###"),
        _POLICIES,
        "## An operation: `operations.<name>`",
        f"Operations stand in a source or, shared by all of them, in `{kind.name}.operations`; a source's own wins.",
    ]
    if kind.operation is None:
        parts.append("They need not be declared: a step's `operation` is passed on as it is.")
    else:
        if kind.undeclared_operations:
            parts.append("A step can also name an operation that is not declared.")
        parts += [description(kind.operation), *class_with_parts(kind.operation, "###", "operations.<name>")]
    return KindPage(f"source-{kind.name}.md", subject, kind.summary, _joined(parts))


def _model_page(kind: ModelKind[Any], plugin: Plugin, folder: Path) -> KindPage:
    subject = f"model type `{kind.name}`"
    others = f"Another name for it is `{'` or `'.join(kind.aliases)}`." if kind.aliases else ""
    parts = [
        *_head(f"The {subject}", kind.summary, [plugin], _guide(folder, f"../models/{kind.name}.md")),
        "## A model: `source` or `models.<name>`",
        f"It stands in a source of models, `ml.sources.<source_id>`, with `type: {kind.name}`. {others}".strip(),
        "`type`, `batch` and what else every model has are on the page of [the configuration](configuration.md).",
        description(kind.options),
        *class_with_parts(kind.options, "###"),
    ]
    return KindPage(f"model-{kind.name}.md", subject, kind.summary, _joined(parts))


def _store_page(kind: StoreKind[Any], plugin: Plugin, folder: Path) -> KindPage:
    subject = f"tracking store `{kind.name}`"
    parts = [
        *_head(f"The {subject}", kind.summary, [plugin], _guide(folder, "../tracking.md")),
        "## `tracking.store`",
        f"It stands in `config.yaml`, with `type: {kind.name}`.",
        description(kind.options),
        *class_with_parts(kind.options, "###"),
    ]
    return KindPage(f"tracking-{kind.name}.md", subject, kind.summary, _joined(parts))


def _transformers_page(transformers: Mapping[str, Provided[TransformerKind[Any]]], folder: Path) -> KindPage:
    plugins = {provided.plugin.origin: provided.plugin for provided in transformers.values()}
    what = "Functions on a JSON value, named in a `transform:` list."
    parts = _head("Options of the transformers", what, plugins.values(), _guide(folder, "../transformers.md"))
    for name, provided in sorted(transformers.items()):
        parts += [f"## `{name}`", provided.kind.summary, f"Is given: {type_in_words(provided.kind.options)}."]
        for place, cls in classes_in(provided.kind.options):
            parts.append(summary(cls) if not place else f"`{place.strip('.')}`: {summary(cls)}")
            parts.append(options_reference(cls))
    return KindPage("transformers.md", "transformers", what, _joined(parts))


def _telemetry_page(kind: TelemetryKind[Any], plugin: Plugin, folder: Path) -> KindPage:
    parts = [
        *_head("Options of telemetry", kind.summary, [plugin], _guide(folder, "../telemetry.md")),
        "## `telemetry` in `config.yaml`",
        description(kind.options),
        *class_with_parts(kind.options, "###", "telemetry"),
    ]
    return KindPage("telemetry.md", "telemetry", kind.summary, _joined(parts))


def _guide(folder: Path, target: str) -> str:
    return f"[The guide]({target}) shows it at work.\n" if (folder / target).is_file() else ""


def _head(title: str, what: str, plugins: Iterable[Plugin], guide: str) -> list[str]:
    origins = " ".join(plugin.origin for plugin in plugins)
    return [
        f"# {title}",
        prose(what),
        (
            f"{guide}[The configuration reference](configuration.md) says what a duration, a size and `${{env:NAME}}`"
            f" are.\n`pip install {origins}` brings it; this page is written from its option classes: `{COMMAND}`."
        ),
    ]


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
