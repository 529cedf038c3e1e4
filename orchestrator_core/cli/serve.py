"""``orchestrator serve``."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import click

from orchestrator_core.cli.findings import refuse, render, shown
from orchestrator_core.cli.options import config_option, plugins_dir_option
from orchestrator_core.cli.prepare import run_async
from orchestrator_core.config.load import load_configuration
from orchestrator_core.errors import ConfigError
from orchestrator_core.http.app import Service, serve
from orchestrator_core.logs import LogMask, configure_logging

_BIND = re.compile(r"address \('([^']+)', (\d+).*?\): (.+)\Z")
_PORT = click.IntRange(0, 65535)


@click.command()
@config_option
@click.option("--host", metavar="ADDRESS", help="Address of the public listener; wins over config.yaml.")
@click.option("--port", type=_PORT, help="Port of the public listener, 0 for any free one; wins over config.yaml.")
@click.option("--admin-port", type=_PORT, help="Port of the admin listener; wins over config.yaml.")
@plugins_dir_option
def command(folder: Path, host: str | None, port: int | None, admin_port: int | None, plugins_dir: Path | None) -> None:
    """Serve a configuration, and reload it when it changes.

    A configuration with problems is not served; once one is served, a change with problems leaves it serving. Ctrl-C
    lets requests in flight finish, then stops.

    \b
    Example:
      orchestrator serve --config config --port 8080
    """
    configuration = load_configuration(folder)
    mask = LogMask(configuration.redactor)
    configure_logging(configuration.app.logging, mask)
    try:
        run_async(
            serve(
                folder,
                host=host,
                port=port,
                admin_port=admin_port,
                plugins_dir=plugins_dir,
                ready=_announce,
                mask=mask,
            )
        )
    except ConfigError as error:
        refuse(error.problems, folder, configuration.redactor)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
            raise
        hint = "take another with --port or --admin-port, or server.port and admin.port in config.yaml"
        raise click.ClickException(f"cannot listen{_where(error)}\n  = {hint}") from error


def _where(error: OSError) -> str:
    """Return ``" on 127.0.0.1:8000: address already in use"`` from what asyncio makes of it."""
    text = error.strerror or str(error)
    match = _BIND.search(text)
    return f" on {match[1]}:{match[2]}: {match[3]}" if match else f": {text}"


def _announce(service: Service) -> None:
    configuration = service.live.snapshot.configuration
    for problem in shown(service.live.snapshot.problems, configuration.folder, configuration.redactor):
        click.echo(render(problem), err=True)
    folder, generation = service.live.folder.as_posix(), service.live.snapshot.generation
    click.echo(f"serving {folder} (generation {generation}) on {service.url}/orchestrator", err=True)
    if service.live.snapshot.configuration.app.server.docs:
        click.echo(f"  documentation  {service.url}/docs", err=True)
    if service.admin_url:
        click.echo(f"  admin          {service.admin_url}/executions", err=True)
