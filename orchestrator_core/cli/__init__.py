"""The ``orchestrator`` command. Each subcommand is a module of this package, imported only when it is called."""

from __future__ import annotations

import errno
import io
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import click

from orchestrator_core import __version__
from orchestrator_core.errors import did_you_mean

COMMANDS: Mapping[str, str] = {
    "serve": "Serve a configuration, and reload it when it changes.",
    "check": "Report everything that is wrong with a configuration.",
    "plan": "Draw what an endpoint does.",
    "run": "Execute one request in this process, without a server.",
    "plugins": "List what the installed plugins provide.",
    "schema": "Print the JSON Schema of the configuration files.",
    "openapi": "Print the OpenAPI document of a configuration.",
    "init": "Write a commented configuration to start from.",
    "reload": "Have the running service read its configuration again.",
    "executions": "Show the latest executions of the running service.",
}
INTERRUPTED = 130
UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def _output() -> Iterator[None]:
    """Say that the output was not taken, as by a full disk. Whoever opens a file says that of it, with its name."""
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        raise click.ClickException(f"the output cannot be written: {error.strerror}") from error


class Commands(click.Group):
    """The subcommands, the suggestion for a misspelt one, and the one place that catches a defect of ours."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"{__name__}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[__name__] = list(args)
        with _output():  # of --help and --version
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            hint = did_you_mean(name, COMMANDS)
            raise click.UsageError(f"there is no command '{name}'{f', {hint}' if hint else ''}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _output():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)
        except click.ClickException as error:
            from orchestrator_core.cli.masking import mask_of

            if isinstance(error, click.UsageError):  # which repeats no more than what was typed
                raise
            raise click.ClickException(mask_of(ctx.obj)(error.message)) from error
        except (click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:  # a defect of ours: the one boundary of the command line
            from orchestrator_core.cli.masking import mask_of, show_tracebacks_masked

            mask = mask_of(ctx.obj)
            if ctx.params["traceback"]:
                show_tracebacks_masked(mask)
                raise
            again = shlex.join([ctx.info_name or "orchestrator", "--traceback", *ctx.meta[__name__]])
            message = f"internal error: {type(error).__name__}: {mask(str(error))}\n  = for the traceback: {again}"
            raise click.ClickException(message) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="`orchestrator COMMAND --help` shows a command's options and an example.",
)
@click.version_option(__version__, package_name="orchestrator-api-core", message="orchestrator %(version)s")
@click.option("--traceback", is_flag=True, help="Show the traceback of an internal error.")
@click.pass_context
def main(ctx: click.Context, traceback: bool) -> None:  # Commands.invoke reads traceback
    """Features and models behind one REST API, composed in YAML."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # bars and lines have characters that a terminal may not know
