"""``orchestrator schema``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click

from orchestrator_core.cli.options import config_option, plugins_dir_option, write_text
from orchestrator_core.config_schema import config_schemas
from orchestrator_core.errors import did_you_mean
from orchestrator_core.reload import make_registry


@click.command()
@click.argument("file", required=False)
@config_option
@click.option(
    "--output",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write one file per schema into this folder.",
)
@plugins_dir_option
def command(file: str | None, folder: Path, output: Path | None, plugins_dir: Path | None) -> None:
    """Print the JSON Schema of every configuration file, the options of the installed plugins included.

    FILE selects one: config.yaml, database.yaml, integrations/<any>.yaml or domains/<any>.yaml. Editors complete and
    check a file with a schema that its first line names:

    \b
      # yaml-language-server: $schema=../../schemas/domains.schema.json

    \b
    Example:
      orchestrator schema domains/hello.yaml
      orchestrator schema --output schemas
    """
    schemas = config_schemas(make_registry(folder, plugins_dir))
    wanted = {name: schema for name, schema in schemas.items() if file is None or fnmatch(file, name)}
    if not wanted:
        raise click.UsageError(f"there is no configuration file '{file}', {did_you_mean(file or '', schemas)}")
    if output is not None:
        _write(wanted, output)
    else:
        document = wanted if file is None else next(iter(wanted.values()))
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _write(schemas: Mapping[str, Any], output: Path) -> None:
    for name, schema in schemas.items():
        target = output / f"{name.removesuffix('.yaml').removesuffix('/*')}.schema.json"
        write_text(target, json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
        click.echo(f"wrote {target.as_posix()}")
