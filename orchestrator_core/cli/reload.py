"""``orchestrator reload``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestrator_core.cli.admin import admin_url, ask, refused, unread
from orchestrator_core.cli.findings import refuse, render, shown
from orchestrator_core.cli.options import admin_option, config_option
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.documents import problem_of

_LONGEST_RELOAD_SECONDS = 600.0


@click.command()
@config_option
@admin_option
@click.option("--restart", is_flag=True, help="Replace the workers one by one instead; needs serve --workers.")
def command(folder: Path, admin: str | None, restart: bool) -> None:
    """Have the running service read its configuration again.

    Returns when the new configuration serves. When it has problems they are printed, the old one keeps serving, and
    the exit status is 1.

    \b
    Example:
      orchestrator reload
      orchestrator reload --admin http://127.0.0.1:8001
      orchestrator reload --restart
    """
    url = admin_url(admin, folder)
    otherwise = "" if admin else unread(folder)
    if restart:
        _restart(url, folder, otherwise)
        return
    status, document = ask(url, "POST", "/reload", timeout_seconds=_LONGEST_RELOAD_SECONDS, otherwise=otherwise)
    if "swapped" not in document:
        raise refused(url, status, document)
    problems = [problem_of(problem) for problem in document["problems"]]
    if not document["swapped"]:
        click.echo(f"not reloaded, generation {document['generation']} keeps serving", err=True)
        refuse(problems, folder, Redactor())
    for problem in shown(problems, folder, Redactor()):
        click.echo(render(problem), err=True)
    click.echo(f"generation {document['generation']} serves")


def _restart(url: str, folder: Path, otherwise: str) -> None:
    status, document = ask(url, "POST", "/restart", timeout_seconds=_LONGEST_RELOAD_SECONDS, otherwise=otherwise)
    if "restarted" not in document:
        raise _not_restarted(url, status, document)
    if document["error"]:
        click.echo(f"not restarted, the workers keep serving: {document['error']}", err=True)
        refuse([problem_of(problem) for problem in document["problems"]], folder, Redactor())
    click.echo(f"{document['restarted']} workers restarted")


def _not_restarted(url: str, status: int, document: Any) -> click.ClickException:
    if status == 404:
        return click.ClickException(f"{url} is one process, which cannot replace itself: serve with --workers")
    return refused(url, status, document)
