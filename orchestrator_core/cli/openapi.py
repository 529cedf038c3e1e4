"""``orchestrator openapi``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator_core.cli.findings import refuse
from orchestrator_core.cli.options import config_option, plugins_dir_option
from orchestrator_core.cli.prepare import prepare
from orchestrator_core.http.openapi import openapi


@click.command()
@config_option
@plugins_dir_option
def command(folder: Path, plugins_dir: Path | None) -> None:
    """Print the OpenAPI 3.1 document of a configuration, the one that /openapi.json serves.

    \b
    Example:
      orchestrator openapi --config config > openapi.json
    """
    prepared = prepare(folder, plugins_dir)
    if prepared.errors:
        refuse(prepared.problems, folder, prepared.configuration.redactor)
    click.echo(json.dumps(openapi(prepared.configuration, prepared.plans), indent=2, ensure_ascii=False))
