"""``orchestrator executions``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator_core.cli.admin import admin_url, ask, refused
from orchestrator_core.cli.options import admin_option, config_option, format_option
from orchestrator_core.cli.timeline import COLOURS, console, draw, milliseconds
from orchestrator_core.documents import execution_of
from orchestrator_core.plugin_api import Execution


@click.group()
def command() -> None:
    """Show the latest executions of the running service.

    \b
    Example:
      orchestrator executions list --status failed
      orchestrator executions show 0193b8c1f4a2...
    """


@command.command("list")
@config_option
@admin_option
@click.option("--domain", metavar="NAME", help="Only those of a domain.")
@click.option("--endpoint", metavar="NAME", help="Only those of an endpoint.")
@click.option("--status", type=click.Choice(tuple(COLOURS)), help="Only those that ended so.")
@click.option("--since", metavar="TIME", help="Only those that started at or after an ISO 8601 time or Unix seconds.")
@click.option("--until", metavar="TIME", help="Only those that started before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--cursor", metavar="ID", help="Go on after this execution, the last one of the list before.")
@format_option("text", "json")
def list_(folder: Path, admin: str | None, form: str, **filters: str | int | None) -> None:
    """List the latest executions, the newest first.

    \b
    Example:
      orchestrator executions list --domain hello --status failed --limit 5
    """
    url = admin_url(admin, folder)
    query = {name: str(value) for name, value in filters.items() if value is not None}
    status, document = ask(url, "GET", "/executions", query)
    if status != 200:
        raise refused(url, status, document)
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    executions = [execution_of(entry) for entry in document["executions"]]
    if not executions:
        click.echo("no executions")
        return
    _print_table(executions, console(sys.stdout))
    if document["cursor"]:
        click.echo(f"more: --cursor {document['cursor']}")


@command.command("show")
@click.argument("execution_id", metavar="ID")
@config_option
@admin_option
@format_option("text", "json")
def show(execution_id: str, folder: Path, admin: str | None, form: str) -> None:
    """Draw one execution as a timeline of its steps.

    \b
    Example:
      orchestrator executions show 0193b8c1f4a2...
    """
    url = admin_url(admin, folder)
    status, document = ask(url, "GET", f"/executions/{quote(execution_id, safe='')}")
    if status != 200:
        raise refused(url, status, document)
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        draw(execution_of(document), console(sys.stdout))


def _print_table(executions: Sequence[Execution], to: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("id", min_width=32)  # never shortened: `show` asks for it
    for title in ("started (UTC)", "endpoint", "status", "http"):
        table.add_column(title, no_wrap=True)
    table.add_column("duration", justify="right", no_wrap=True)
    table.add_column("degraded or error")
    for execution in executions:
        started = datetime.fromtimestamp(execution.started_at, UTC).replace(tzinfo=None)
        table.add_row(
            execution.id,
            started.isoformat(" ", "milliseconds"),
            f"{execution.domain}.{execution.endpoint}",
            Text(execution.status, style=COLOURS[execution.status]),
            str(execution.http_status),
            milliseconds(execution.duration_seconds),
            Text(execution.error or ", ".join(execution.degraded)),
        )
    to.print(table)
