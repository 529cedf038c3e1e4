"""``orchestrator check``."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter

import click

from orchestrator_core.cli.findings import as_json, as_sarif, counted, render, shown, summary
from orchestrator_core.cli.options import config_option, format_option, plugins_dir_option
from orchestrator_core.cli.prepare import log_to_stderr
from orchestrator_core.loops import run_async
from orchestrator_core.reload import check
from orchestrator_core.snapshot import Draft


@click.command()
@config_option
@format_option("text", "json", "sarif")
@click.option("--offline", is_flag=True, help="Read the files only: no database, model or server is asked.")
@plugins_dir_option
def command(folder: Path, form: str, offline: bool, plugins_dir: Path | None) -> None:
    """Report everything that is wrong with a configuration.

    Reads every file, compiles every endpoint and, unless --offline is given, opens every source, asks it about its
    operations, and looks whether the tracking store and the shared cache are there. Exits with 1 when there are
    problems; warnings alone exit with 0.

    \b
    Example:
      orchestrator check --config config
      orchestrator check --offline --format sarif > check.sarif
    """
    started = perf_counter()
    log_to_stderr(folder)
    prepared, found = run_async(check(folder, plugins_dir, offline=offline))
    problems = shown(found, folder, prepared.configuration.redactor)
    if form == "text":
        for problem in problems:
            click.echo(render(problem))
        failed = any(problem.severity == "error" for problem in problems)
        text = summary(problems) if failed else _passed(prepared, folder, len(problems), perf_counter() - started)
        click.echo(click.style(text, fg="red" if failed else "green", bold=True))
    else:
        document = as_sarif(problems) if form == "sarif" else as_json(problems)
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    if any(problem.severity == "error" for problem in problems):
        raise click.exceptions.Exit(1)


def _passed(prepared: Draft, folder: Path, warnings: int, seconds: float) -> str:
    configured = sum(spec.located is not None for spec in prepared.catalog.specs.values())
    what = f"{counted(len(prepared.plans), 'endpoint')}, {counted(configured, 'source')}"
    found = counted(warnings, "warning") if warnings else "no problems"
    return f"{folder.as_posix()}: {what}: {found} ({seconds:.2f} s)"
