"""The reference page of the configuration, written from the option classes that parse it.

``python -m orchestrator_core.reference > docs/reference/configuration.md`` writes it anew; a test compares.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import Factory

from orchestrator_core.config.model import (
    UNSET,
    AdminOptions,
    AppConfig,
    DomainFile,
    EndpointConfig,
    LoggingOptions,
    ReloadOptions,
    ServerOptions,
    StepConfig,
    StepTransforms,
    TrackingOptions,
)
from orchestrator_core.models import BatchOptions, CommonOptions, HealthOptions, MlOptions, RestartOptions
from orchestrator_core.plugin_api import Duration, Size

_WORDS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "string",
    Duration: "duration",
    Size: "size",
    Any: "any value",
}

_CLASSES = {
    cls.__name__: cls
    for cls in (
        AppConfig,
        ServerOptions,
        AdminOptions,
        TrackingOptions,
        ReloadOptions,
        LoggingOptions,
        MlOptions,
        CommonOptions,
        BatchOptions,
        HealthOptions,
        RestartOptions,
        DomainFile,
        EndpointConfig,
        StepConfig,
        StepTransforms,
    )
}

_PAGE = """\
# Configuration reference

This page is written from the classes that parse the files: `python -m orchestrator_core.reference`.
`orchestrator schema` prints the same as JSON Schema, installed plugins included.

An unknown key is an error, and so is a value of another type: numbers are never made from strings, nor strings from
numbers. A *duration* is a number of seconds, or a number with a unit, such as `250ms`, `5s`, `2m` or `1h`. A *size* is
a number of bytes, or `64KiB`, `1MiB`, `2GiB`. In `config.yaml`, `database.yaml` and integrations, `${env:NAME}`,
`${env:NAME:-default}` and `${file:PATH}` can stand in any string.

## `config.yaml`

[[AppConfig]]

Every other key of this file is a source type's section, as in `database.yaml` and `integrations/*.yaml`.

### `server`

[[ServerOptions]]

### `admin`

[[AdminOptions]]

### `tracking`

[[TrackingOptions]]

### `reload`

[[ReloadOptions]]

### `logging`

[[LoggingOptions]]

## Sections of source types

`database.yaml` and `integrations/*.yaml` hold sections, one for each source type: `<type>.sources.<source_id>` are its
sources, each with the options and `operations` that its plugin describes, and `<type>.operations` are shared by all of
them. A source's own operation wins. The folder `domains/<domain>/` can hold the same files for one domain; they win
over the global ones.

### A source of models: `ml.sources.<source_id>`

[[MlOptions]]

### A model: `source` or `models.<name>`

[[CommonOptions]]

### `batch`

[[BatchOptions]]

### `health_check`

[[HealthOptions]]

### `restart`

[[RestartOptions]]

## `domains/<domain>.yaml`

[[DomainFile]]

### An endpoint: `endpoints.<name>`

[[EndpointConfig]]

### A step: an entry of `data_sources`

[[StepConfig]]

### The long form of a step's `transform`

[[StepTransforms]]
"""


def configuration_page() -> str:
    """Return the Markdown of ``docs/reference/configuration.md``."""
    return re.sub(r"\[\[(\w+)\]\]", lambda found: _section(_CLASSES[found[1]]), _PAGE)


def _section(cls: type[Any]) -> str:
    summary = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("``", "`")
    return f"{summary}\n\n{options_reference(cls)}"


def options_reference(cls: type[Any]) -> str:
    """Return the options of a class as a Markdown table: name, type, default and meaning."""
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        if attribute.init:
            cells = (
                f"`{attribute.name}`",
                type_in_words(attribute.type),
                _default(attribute.default),
                _prose(attribute.metadata.get("help", "")),
            )
            rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows)


def _prose(text: str) -> str:
    """Return a text on one line, with what would be HTML outside of code as itself."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if index % 2 else part.replace("<", "&lt;") for index, part in enumerate(parts))


def type_in_words(cls: Any) -> str:
    """Return what a value of the type looks like in YAML: ``list of string``, ``duration or null``."""
    origin, arguments = get_origin(cls) or cls, get_args(cls)
    if cls in _WORDS:
        return _WORDS[cls]
    if cls is type(None):
        return "null"
    if origin is Literal:
        return _either([f"`{_yaml(option)}`" for option in arguments])
    if origin in (Union, types.UnionType):
        return _either([type_in_words(arm) for arm in arguments])
    if attrs.has(origin) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        values = arguments[1] if len(arguments) == 2 else Any
        return "mapping" if values is Any else f"mapping of names to {_plural(values)}"
    return f"list of {_plural(arguments[0])}" if arguments and arguments[0] is not Any else "list"


def _either(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else words[0]


def _plural(cls: Any) -> str:
    words = type_in_words(cls)
    return f"{words}s" if words.isalpha() else words


def _default(value: Any) -> str:
    if value is attrs.NOTHING:
        return "required"
    if value is None or value is UNSET:
        return "none"
    if isinstance(value, Factory) or attrs.has(type(value)):  # type: ignore[arg-type]
        return ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    """Return a value as one writes it in YAML."""
    if isinstance(value, Duration):
        return f"{value * 1000:g}ms" if value < 1 else f"{value:g}s"
    if isinstance(value, Size):
        for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= factor and value % factor == 0:
                return f"{value // factor}{unit}"
        return str(int(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return str(value) if value != "" else '""'


if __name__ == "__main__":
    print(configuration_page(), end="")
