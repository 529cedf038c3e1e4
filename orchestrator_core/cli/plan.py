"""``orchestrator plan``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator_core.cli.drawing import as_json, as_mermaid, as_text
from orchestrator_core.cli.options import config_option, format_option, plugins_dir_option
from orchestrator_core.cli.prepare import find_plan, prepare
from orchestrator_core.codegen import generate


@click.command()
@click.argument("endpoint", metavar="DOMAIN.ENDPOINT")
@config_option
@format_option("text", "mermaid", "json", "python")
@plugins_dir_option
def command(endpoint: str, folder: Path, form: str, plugins_dir: Path | None) -> None:
    """Draw what an endpoint does: its steps, what each waits for, and its answer.

    No backend is asked. The format python prints the coroutine that is generated for the endpoint, which is what runs.

    \b
    Example:
      orchestrator plan hello.greet
      orchestrator plan hello.greet --format mermaid
    """
    plan = find_plan(prepare(folder, plugins_dir), endpoint, folder)
    if form == "json":
        click.echo(json.dumps(as_json(plan), indent=2, ensure_ascii=False))
    elif form == "python":
        click.echo(generate(plan, guarded=plan.guarded).source.lstrip("\n"), nl=False)
    else:
        click.echo(as_mermaid(plan) if form == "mermaid" else as_text(plan, folder))
