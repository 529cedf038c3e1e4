"""``orchestrator plugins``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from orchestrator_core.cli.masking import Mask, mask_of
from orchestrator_core.cli.options import config_option, format_option, plugins_dir_option
from orchestrator_core.plugins import Provided, Registry
from orchestrator_core.reload import make_registry


@click.command()
@config_option
@format_option("text", "json")
@plugins_dir_option
def command(folder: Path, form: str, plugins_dir: Path | None) -> None:
    """List the source types, model types, transformers, tracking stores and telemetry there are, with providers.

    A plugin that is installed but failed to import is listed with the reason.

    \b
    Example:
      orchestrator plugins
      orchestrator plugins --plugins-dir plugins --format json
    """
    registry = make_registry(folder, plugins_dir)
    document = _document(registry, mask_of(folder))
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_text(document)))


def _document(registry: Registry, mask: Mask) -> dict[str, Any]:
    telemetry = registry.telemetry
    return {
        "source_types": _kinds(registry.sources, mask),
        "model_types": _kinds(registry.models, mask),
        "transformers": _kinds(registry.transformers, mask),
        "tracking_stores": _kinds(registry.stores, mask),
        "telemetry": _kinds({telemetry.kind.name: telemetry} if telemetry is not None else {}, mask),
        "failed": [
            {
                "plugin": plugin.name,
                "provider": mask(plugin.origin),
                "version": plugin.version,
                "reason": mask(plugin.error).strip().splitlines()[-1],
                "traceback": mask(plugin.error),
            }
            for plugin in registry.plugins
            if plugin.error
        ],
        "problems": [mask(problem.message) for problem in registry.problems],
    }


def _kinds(provided: Mapping[str, Provided[Any]], mask: Mask) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "provider": mask(entry.plugin.origin),
            "version": entry.plugin.version,
            "summary": entry.kind.summary if name == entry.kind.name else f"The same as {entry.kind.name}.",
        }
        for name, entry in sorted(provided.items())
    ]


def _text(document: Mapping[str, Any]) -> Iterator[str]:
    titles = {
        "source_types": "source types",
        "model_types": "model types",
        "transformers": "transformers",
        "tracking_stores": "tracking stores",
        "telemetry": "telemetry",
    }
    kinds = [kind for key in titles for kind in document[key]]
    name_width = max((len(kind["name"]) for kind in kinds), default=0)
    by_width = max((len(f"{kind['provider']} {kind['version']}") for kind in kinds), default=0)
    for key, title in titles.items():
        yield click.style(title, bold=True)
        for kind in document[key]:
            by = f"{kind['provider']} {kind['version']}".rstrip()
            yield f"  {kind['name']:<{name_width}}  {by:<{by_width}}  {kind['summary']}".rstrip()
        if not document[key]:
            yield "  none"
    if document["failed"]:
        yield click.style("failed to import", bold=True, fg="red")
    for failed in document["failed"]:
        by = f"{failed['provider']} {failed['version']}".rstrip()
        yield f"  {failed['plugin']}  {by}"
        yield f"    {failed['reason']}"
    for message in document["problems"]:
        yield click.style(message, fg="red")
