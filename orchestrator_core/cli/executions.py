"""``orchestrator executions``."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from time import time
from typing import Any
from urllib.parse import quote

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator_core.cli.admin import admin_url, ask, not_the_service, refused, unread
from orchestrator_core.cli.captured import draw_captured
from orchestrator_core.cli.kept import kept_execution, kept_executions
from orchestrator_core.cli.options import admin_option, config_option, format_option, plugins_dir_option
from orchestrator_core.cli.timeline import COLOURS, console, draw, milliseconds, natural_width, plain
from orchestrator_core.config.load import load_configuration
from orchestrator_core.documents import execution_of, moment_of
from orchestrator_core.plugin_api import Execution

_AGO = re.compile(r"([0-9]+(?:\.[0-9]+)?)(s|m|h|d)\Z")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

TITLES = ("id", "started (UTC)", "endpoint", "status", "http", "duration", "degraded or error")
NARROWEST_ERROR = 20

offline_option = click.option(
    "--offline", is_flag=True, help="Read the store that tracking.store names, without asking the service."
)


def _moment(ctx: click.Context, param: click.Parameter, text: str | None) -> str | None:
    """Return the time in Unix seconds where it is so long ago, else as it was written."""
    if text is None:
        return None
    if ago := _AGO.match(text):
        return f"{time() - float(ago[1]) * _SECONDS[ago[2]]:.3f}"
    try:
        moment_of(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}, or how long ago it was, such as 15m, 2h or 1d") from None
    return text


@click.group()
def command() -> None:
    """Show executions: the latest of the running service, and all that its store keeps.

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
@click.option(
    "--since",
    metavar="TIME",
    callback=_moment,
    help="Only those that started at or after an ISO 8601 time, Unix seconds, or so long ago, such as 15m, 2h or 1d.",
)
@click.option("--until", metavar="TIME", callback=_moment, help="Only those that started before.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--cursor", metavar="ID", help="Go on after this execution, the last one of the list before.")
@offline_option
@plugins_dir_option
@format_option("text", "json")
def list_(
    folder: Path,
    admin: str | None,
    offline: bool,
    plugins_dir: Path | None,
    form: str,
    **filters: str | int | None,
) -> None:
    """List the latest executions, the newest first.

    \b
    Example:
      orchestrator executions list --domain hello --status failed --limit 5
    """
    query = {name: _text(str(value)) for name, value in filters.items() if value is not None}
    document = (
        kept_executions(folder, plugins_dir, query)
        if offline
        else _asked(folder, admin, "/executions", "executions", query)
    )
    if incomplete := document.get("incomplete"):
        click.echo(f"note: the list is incomplete: {incomplete}", err=True)
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    executions = [execution_of(entry) for entry in document["executions"]]
    if not executions:
        click.echo("no executions")
        return
    print_executions(executions, console(sys.stdout))
    if document["cursor"]:
        click.echo(f"more: --cursor {document['cursor']}")


@command.command("show")
@click.argument("execution_id", metavar="ID")
@config_option
@admin_option
@offline_option
@plugins_dir_option
@format_option("text", "json")
def show(
    execution_id: str, folder: Path, admin: str | None, offline: bool, plugins_dir: Path | None, form: str
) -> None:
    """Draw one execution as a timeline of its steps, with the values that were captured.

    \b
    Example:
      orchestrator executions show 0193b8c1f4a2...
    """
    execution_id = _text(execution_id)
    if offline:
        document = kept_execution(folder, plugins_dir, execution_id)
    else:
        document = _asked(folder, admin, f"/executions/{quote(execution_id, safe='')}", "steps")
    if form == "json":
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    execution, to = execution_of(document), console(sys.stdout)
    draw(execution, to)
    trace = f"  trace {execution.trace_id}" if execution.trace_id else ""
    to.print(Text(f"generation {execution.generation}  started {_started(execution)} UTC{trace}"), soft_wrap=True)
    if execution.captured is not None:
        draw_captured(execution.captured, to)


def _text(argument: str) -> str:
    """Return an argument as a text that can be asked for: bytes that are no UTF-8 are in no execution."""
    return argument.encode("utf-8", "replace").decode()


def _asked(folder: Path, admin: str | None, path: str, part: str, query: Mapping[str, str] | None = None) -> Any:
    """Return the document of an answer, of which ``part`` is a part."""
    url = admin_url(admin, folder)
    stored = load_configuration(folder).app.tracking.store is not None
    otherwise = ", or read what is stored with --offline" if stored else "" if admin else unread(folder)
    status, document = ask(url, "GET", path, query, otherwise=otherwise)
    if status != 200:
        raise refused(url, status, document)
    if part not in document:
        raise not_the_service(f"{url}{path} answered 200 without '{part}'")
    return document


def _started(execution: Execution) -> str:
    started = datetime.fromtimestamp(execution.started_at, UTC).replace(tzinfo=None)
    return started.isoformat(" ", "milliseconds")


def print_executions(executions: Sequence[Execution], to: Console) -> None:
    """Print a line for each execution; two where the terminal is too narrow, for nothing may be left out."""
    rows = [_cells(execution) for execution in executions]
    if natural_width(_table([row[:-1] for row in rows]), to) + NARROWEST_ERROR <= to.width:
        to.print(_table(rows))
        return
    for id_, started, *rest in rows:
        to.print(Text("  ").join((id_, started)), soft_wrap=True)
        to.print(Text("  ").join((Text(""), *filter(None, rest))), soft_wrap=True)


def _table(rows: Sequence[Sequence[Text]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in TITLES[: len(rows[0])]:
        table.add_column(title, no_wrap=title != TITLES[-1], justify="right" if title == "duration" else "left")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(execution: Execution) -> tuple[Text, ...]:
    return (
        Text(execution.id),
        Text(_started(execution)),
        Text(f"{execution.domain}.{execution.endpoint}"),
        Text(execution.status, style=COLOURS[execution.status]),
        Text(str(execution.http_status)),
        Text(milliseconds(execution.duration_seconds)),
        Text(plain(execution.error) or ", ".join(execution.degraded)),
    )
