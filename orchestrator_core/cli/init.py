"""``orchestrator init``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from orchestrator_core.cli.options import config_option, write_text


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
    if in_the_way := _in_the_way(folder, starter):
        names = ", ".join(path.as_posix() for path in in_the_way)
        verb = "is" if len(in_the_way) == 1 else "are"
        hint = "give another folder: orchestrator init DIR"
        raise click.ClickException(f"{names} {verb} in the way, nothing was written\n  = {hint}")
    for name, text in starter.items():
        target = folder / name
        write_text(target, text)
        click.echo(f"wrote {target.as_posix()}")
    at = "" if folder == Path("config") else f" --config {folder.as_posix()}"
    click.echo(
        "\nnext:\n"
        f"  orchestrator check{at}\n"
        f"  orchestrator run{at} hello.greet --path-param name=Ada --trace\n"
        f"  orchestrator serve{at}\n"
        "  curl http://127.0.0.1:8000/orchestrator/hello/greet/Ada"
    )


def _in_the_way(folder: Path, starter: Mapping[str, str]) -> list[Path]:
    """Return the files that would be overwritten, and the files that stand where folders should."""
    targets = [folder / name for name in starter]
    parents = [parent for target in targets for parent in target.parents if parent.exists() and not parent.is_dir()]
    return [*dict.fromkeys(parents), *(target for target in targets if target.exists())]


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
