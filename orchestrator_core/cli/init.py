"""``orchestrator init``."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from orchestrator_core.cli.options import config_option


@click.command()
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), required=False)
@config_option
def command(directory: Path | None, folder: Path) -> None:
    """Write a commented configuration that serves as it is.

    DIR is the new configuration folder; without it, --config says where. Nothing is ever overwritten.

    \b
    Example:
      orchestrator init config
    """
    folder = directory or folder
    starter = starter_files()
    in_the_way = [name for name in starter if (folder / name).exists()]
    if folder.exists() and not folder.is_dir():
        raise click.ClickException(f"{folder.as_posix()} is in the way: it is not a folder")
    if in_the_way:
        names = ", ".join((folder / name).as_posix() for name in in_the_way)
        verb = "is" if len(in_the_way) == 1 else "are"
        raise click.ClickException(f"{names} {verb} in the way, nothing was written\n  = give another folder")
    for name, text in starter.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        click.echo(f"wrote {target.as_posix()}")
    at = "" if folder == Path("config") else f" --config {folder.as_posix()}"
    click.echo(
        "\nnext:\n"
        f"  orchestrator check{at}\n"
        f"  orchestrator run{at} hello.greet --path-param name=Ada --trace\n"
        f"  orchestrator serve{at}\n"
        "  curl http://127.0.0.1:8000/orchestrator/hello/greet/Ada"
    )


def starter_files() -> dict[str, str]:
    """Return the text of each starter file by its path in the configuration folder."""
    found: dict[str, str] = {}
    pending: list[tuple[str, Traversable]] = [("", files("orchestrator_core") / "starter")]
    while pending:
        prefix, folder = pending.pop()
        for entry in folder.iterdir():
            if entry.is_dir():
                pending.append((f"{prefix}{entry.name}/", entry))
            elif entry.name.endswith(".yaml"):
                found[prefix + entry.name] = entry.read_text(encoding="utf-8")
    return dict(sorted(found.items()))
