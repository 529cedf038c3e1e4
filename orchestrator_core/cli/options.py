"""The options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _remember(ctx: click.Context, param: click.Parameter, folder: Path) -> Path:
    """Have the command know whose secrets nothing may show that it says when it fails."""
    ctx.find_root().obj = folder
    return folder


config_option: Decorator = click.option(
    "--config",
    "folder",
    metavar="DIR",
    type=click.Path(path_type=Path),
    default=Path("config"),
    show_default=True,
    callback=_remember,
    help="Configuration folder.",
)
plugins_dir_option: Decorator = click.option(
    "--plugins-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Folder of single-file plugins; wins over plugins_dir in config.yaml.",
)
admin_option: Decorator = click.option(
    "--admin",
    metavar="URL",
    help="The service's admin listener, such as http://127.0.0.1:8001; by default where config.yaml puts it.",
)


def write_text(target: Path, text: str) -> None:
    """Write a file, and the folders above it that are not there."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"cannot write {target.as_posix()}: {error.strerror}") from error


def format_option(*formats: str) -> Decorator:
    """Return ``--format``; the first format is the default."""
    kind = click.Choice(formats)
    return click.option(
        "--format", "form", type=kind, default=formats[0], show_default=True, help="Form of the output."
    )
