"""Option classes as Markdown: a table of the options, types in the words of YAML, and nested classes in sections."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import Factory

from orchestrator_core.config.model import UNSET
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


def options_reference(cls: type[Any], anchors: Mapping[str, str] | None = None) -> str:
    """Return the options of a class as a Markdown table: name, type, default and meaning.

    ``anchors`` are the places on the page where the options of nested classes stand, by the option that holds them.
    """
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        if attribute.init:
            words, anchor = type_in_words(attribute.type), (anchors or {}).get(attribute.name)
            cells = (
                f"`{attribute.name}`",
                f"[{words}](#{anchor})" if anchor else words,
                _default(attribute),
                prose(attribute.metadata.get("help", "")),
            )
            rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows)


def summary(cls: type[Any]) -> str:
    """Return the first paragraph of a class's docstring."""
    return next(_paragraphs(cls), "")


def description(cls: type[Any]) -> str:
    """Return the whole docstring of a class."""
    return "\n\n".join(_paragraphs(cls))


def _paragraphs(cls: type[Any]) -> Iterator[str]:
    for paragraph in inspect.cleandoc(cls.__doc__ or "").split("\n\n"):
        yield prose(paragraph.replace("``", "`"))


# --- classes within classes -----------------------------------------------------------------------------------------


def class_with_parts(cls: type[Any], heading: str, place: str = "") -> Iterator[str]:
    """Yield the table of a class and, under headings such as ``### `tls` ``, those of the classes that it holds.

    A class that is held at several places is shown at the first. ``place`` is what the names of its parts begin with.
    """
    shown: dict[type[Any], str] = {cls: ""}
    yield from _with_parts(cls, heading, place, shown)


def _with_parts(cls: type[Any], heading: str, place: str, shown: dict[type[Any], str]) -> Iterator[str]:
    anchors: dict[str, str] = {}
    parts: list[tuple[str, type[Any]]] = []
    for attribute in attrs.fields(attrs.resolve_types(cls)):
        name = f"{place}.{attribute.name}" if place else attribute.name
        for suffix, part in classes_in(attribute.type) if attribute.init else ():
            if part not in shown:
                shown[part] = anchor_of(f"`{name}{suffix}`")
                parts.append((f"{name}{suffix}", part))
            anchors.setdefault(attribute.name, shown[part])
    yield options_reference(cls, anchors)
    said = ""
    for name, part in parts:
        if name != said:
            yield f"{heading} `{name}`"
        said = name
        yield summary(part)
        yield from _with_parts(part, heading, name, shown)


def classes_in(type_: Any, suffix: str = "") -> Iterator[tuple[str, type[Any]]]:
    """Yield the option classes that a value of the type can be or hold, and where: ``.<name>`` or ``[]`` behind it."""
    origin, arguments = get_origin(type_) or type_, get_args(type_)
    if attrs.has(origin):
        yield suffix, type_
    elif origin in (Union, types.UnionType):
        for arm in arguments:
            yield from classes_in(arm, suffix)
    elif arguments and origin is not Literal:
        is_mapping = isinstance(origin, type) and issubclass(origin, Mapping)
        yield from classes_in(
            arguments[-1] if is_mapping else arguments[0], suffix + (".<name>" if is_mapping else "[]")
        )


def anchor_of(heading: str) -> str:
    """Return the fragment by which a heading is linked to."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


# --- words ----------------------------------------------------------------------------------------------------------


def prose(text: str) -> str:
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


def _default(attribute: attrs.Attribute[Any]) -> str:
    value: Any = attribute.default
    if value is attrs.NOTHING:
        return "required"
    if isinstance(value, Factory):  # type: ignore[arg-type]
        if value.takes_self:
            return ""
        value = value.factory()
    held = [part for _, part in classes_in(attribute.type)]
    if type(value) in held:
        return "`{}`" if _is_all_defaults(value) else ""
    # A value of a class that is no option stands for the absence of one.
    return "none" if value is None or value is UNSET or attrs.has(type(value)) else f"`{_yaml(value)}`"


def _is_all_defaults(value: Any) -> bool:
    try:
        return bool(value == type(value)())
    except TypeError:  # it has options that must be given
        return False


def _yaml(value: Any) -> str:
    """Return a value as one writes it in YAML."""
    if isinstance(value, Duration):
        for unit, seconds in (("h", 3600), ("m", 60)):
            if value and value % seconds == 0:
                return f"{value / seconds:g}{unit}"
        return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:g}s"
    if isinstance(value, Size):
        for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if value >= factor and value % factor == 0:
                return f"{value // factor}{unit}"
        return str(int(value))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_yaml(key)}: {_yaml(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{', '.join(_yaml(item) for item in value)}]"
    return str(value) if value != "" else '""'
