"""``orchestrator serve``."""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import structlog

from orchestrator_core.cli.findings import refuse, render, shown
from orchestrator_core.cli.options import config_option, plugins_dir_option
from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.model import MOST_WORKERS, AppConfig, Configuration
from orchestrator_core.config.yaml import SHORTAGES
from orchestrator_core.errors import ConfigError, Problem
from orchestrator_core.http.app import Service, serve
from orchestrator_core.http.grace import ending_the_process
from orchestrator_core.logs import LogMask, configure_logging, logging_what_nobody_caught
from orchestrator_core.loops import run_async
from orchestrator_core.workers.process import StartFailed
from orchestrator_core.workers.serve import Ready, serve_workers

log = structlog.get_logger("orchestrator")

ANOTHER_HOST = "give an address of this machine with --host, or server.host and admin.host in config.yaml"
ANOTHER_PORT = "take another with --port or --admin-port, or server.port and admin.port in config.yaml"
MORE = (
    "allow it more open files (ulimit -n, LimitNOFILE) or processes (TasksMax, pids limit), or serve with fewer workers"
)
_SHORTAGES = {*SHORTAGES, errno.EAGAIN}
_BIND = re.compile(r"address \('([^']+)', (\d+).*?\): (.+)\Z")
_PORT = click.IntRange(0, 65535)


@click.command()
@config_option
@click.option("--host", metavar="ADDRESS", help="Address of the public listener; wins over config.yaml.")
@click.option("--port", type=_PORT, help="Port of the public listener, 0 for any free one; wins over config.yaml.")
@click.option("--admin-port", type=_PORT, help="Port of the admin listener; wins over config.yaml.")
@click.option(
    "--workers",
    type=click.IntRange(1, MOST_WORKERS),
    metavar="N",
    help="How many processes serve; wins over config.yaml. With several, one more looks after them.",
)
@plugins_dir_option
def command(
    folder: Path,
    host: str | None,
    port: int | None,
    admin_port: int | None,
    workers: int | None,
    plugins_dir: Path | None,
) -> None:
    """Serve a configuration, and reload it when it changes.

    A configuration with problems is not served; once one is served, a change with problems leaves it serving. Ctrl-C
    lets requests in flight finish, then stops; a second Ctrl-C stops at once.

    \b
    Example:
      orchestrator serve --config config --port 8080
      orchestrator serve --workers 4
    """
    configuration = load_configuration(folder)
    mask = LogMask(configuration.redactor)
    configure_logging(configuration.app.logging, mask)
    where: dict[str, Any] = {"host": host, "port": port, "admin_port": admin_port, "plugins_dir": plugins_dir}
    workers = workers or configuration.app.server.workers
    if workers > 1 and not hasattr(socket, "SO_REUSEPORT"):
        raise click.ClickException("this platform cannot share a port between processes: serve with --workers 1")
    try:
        with logging_what_nobody_caught():
            if workers == 1:
                seconds = float(configuration.app.server.shutdown_timeout)
                served = serve(folder, **where, ready=_announce, mask=mask, shutdown_seconds=seconds)
                run_async(ending_the_process(served))
            else:
                run_async(serve_workers(folder, configuration, workers, **where, ready=_announce_workers, mask=mask))
    except ConfigError as error:
        refuse(error.problems, folder, configuration.redactor)
    except StartFailed as error:
        raise click.ClickException(f"a worker did not start: {configuration.redactor(str(error))}") from error
    except OSError as error:
        if error.errno in _SHORTAGES:
            reason = (error.strerror or str(error)).lower()
            raise click.ClickException(f"cannot start: {reason}\n  = {MORE}") from error
        is_port = error.errno in (errno.EADDRINUSE, errno.EACCES)
        if not is_port and error.errno != errno.EADDRNOTAVAIL and not _BIND.search(error.strerror or ""):
            raise
        hint = ANOTHER_PORT if is_port else ANOTHER_HOST
        if error.errno == errno.EADDRINUSE and _share_a_port(configuration.app, port, admin_port):
            hint = f"the public listener and the admin listener are both to have this port: {ANOTHER_PORT}"
        raise click.ClickException(f"cannot listen{_where(error)}\n  = {hint}") from error


def _share_a_port(app: AppConfig, port: int | None, admin_port: int | None) -> bool:
    public = app.server.port if port is None else port
    return app.admin.enabled and public == (app.admin.port if admin_port is None else admin_port)


def _where(error: OSError) -> str:
    """Return ``" on 127.0.0.1:8000: address already in use"`` from what asyncio makes of it."""
    text = error.strerror or str(error)
    match = _BIND.search(text)
    return f" on {match[1]}:{match[2]}: {match[3]}" if match else f": {text}"


def _announce(service: Service) -> None:
    snapshot = service.live.snapshot
    _show(snapshot.configuration, snapshot.problems, service.url, service.admin_url)


def _announce_workers(ready: Ready) -> None:
    workers = f"  workers        {', '.join(map(str, ready.pids))}"
    _show(ready.configuration, ready.problems, ready.url, ready.admin_url, workers)


def _show(
    configuration: Configuration, problems: Iterable[Problem], url: str, admin_url: str, workers: str = ""
) -> None:
    found = shown(problems, configuration.folder, configuration.redactor)
    folder = configuration.folder.as_posix()
    if configuration.app.logging.format == "json":  # for programs that read every line
        for problem in found:
            log.warning(str(problem))
        log.info("serving", config=folder, generation=configuration.generation, url=url, admin_url=admin_url or None)
        return
    for problem in found:
        _say(render(problem))
    _say(f"serving {folder} (generation {configuration.generation}) on {url}/orchestrator")
    if workers:
        _say(workers)
    if configuration.app.server.docs:
        _say(f"  documentation  {url}/docs")
    if admin_url:
        _say(f"  admin          {admin_url}/executions")


def _say(text: str) -> None:
    """Write a line to standard error. When nobody reads that, or its disk is full, the service serves all the same."""
    with suppress(OSError):
        click.echo(text, err=True)
