"""What the transformers share: a function of one object becomes one of rows, and errors say which row and field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from types import NoneType
from typing import Any, Final, TypeAlias

from orchestrator_core.plugin_api import JSON, OptionError, SourceError

Row: TypeAlias = dict[str, Any]
RowFunction: TypeAlias = Callable[[Row], Row]
Convert: TypeAlias = Callable[[Any], Any]
Transform: TypeAlias = Callable[[JSON], JSON]

NUMBERS: Final = frozenset({int, float})  # compared with type(), so that booleans are not numbers
DEEPEST: Final = 200  # deeper than this no answer can be written

_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1
_SHOWN_FIELDS: Final = 8
_SHOWN_LENGTH: Final = 40
_KINDS: Final = {
    NoneType: "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Unfit(Exception):
    """A value that a transformer cannot work on. The message never has the value in it, for it is data."""


def kind(value: object) -> str:
    """Return the JSON type in words, with its article."""
    return _KINDS.get(type(value), "a value that is not JSON")


def expected(what: str, value: object) -> Unfit:
    return Unfit(f"expected {what}, got {kind(value)}")


def missing(field: str, row: Row) -> Unfit:
    return Unfit(f"field '{field}' is missing (it has: {some(row)})")


def some(names: Iterable[str]) -> str:
    """Return the first names in alphabetical order, each cut short: a backend can choose them."""
    ordered = sorted(names)
    shown = [name if len(name) <= _SHOWN_LENGTH else f"{name[: _SHOWN_LENGTH - 3]}..." for name in ordered]
    if len(shown) > _SHOWN_FIELDS:
        shown[_SHOWN_FIELDS:] = [f"and {len(ordered) - _SHOWN_FIELDS} more"]
    return ", ".join(shown) or "nothing"


def in_range(value: Any) -> Any:
    """Return the number if JSON can carry it."""
    if type(value) is int:
        if _SMALLEST <= value <= _LARGEST:
            return value
        raise Unfit("the number does not fit in a 64-bit integer")
    if math.isfinite(value):
        return value
    raise Unfit("the number is not finite")


# --- rows --------------------------------------------------------------------------------------------------------


def on_value(name: str, apply: Convert) -> Transform:
    """Return the transformer that runs on any value but null, which stays null."""

    def transform(value: Any) -> Any:
        if value is None:
            return None
        try:
            return apply(value)
        except Unfit as error:
            raise SourceError(f"{name}: {error}") from error

    return transform


def on_rows(name: str, apply: RowFunction) -> Transform:
    """Return the transformer that runs on an object, or on each object of a list. What is null stays null."""

    def on_list(rows: list[Any]) -> list[Any]:
        done: list[Any] = []
        for row in rows:
            try:
                done.append(None if row is None else apply(_object(row)))
            except Unfit as error:
                raise Unfit(f"row {len(done)}: {error}") from error
        return done

    def transform(value: Any) -> Any:
        if type(value) is dict:
            return apply(value)
        if type(value) is list:
            return on_list(value)
        raise expected("an object or a list of objects", value)

    return on_value(name, transform)


def _object(row: Any) -> Row:
    if type(row) is not dict:
        raise expected("an object", row)
    return row


# --- fields ------------------------------------------------------------------------------------------------------


def change_fields(changes: Iterable[tuple[str, str, Convert]]) -> RowFunction:
    """Return the function that converts fields, each given as its name, the name of the result and how.

    Null stays null, and a list is converted element by element.
    """
    ordered = tuple(changes)

    def apply(row: Row) -> Row:
        done = row.copy()
        for field, into, convert in ordered:
            try:
                value = row[field]
            except KeyError:
                raise missing(field, row) from None
            try:
                done[into] = _converted(value, convert)
            except Unfit as error:
                raise Unfit(f"field '{field}': {error}") from error
        return done

    return apply


def _converted(value: Any, convert: Convert) -> Any:
    if value is None:
        return None
    if type(value) is not list:
        return convert(value)
    done: list[Any] = []
    for element in value:
        try:
            done.append(None if element is None else convert(element))
        except Unfit as error:
            raise Unfit(f"element {len(done)}: {error}") from error
    return done


# --- options -----------------------------------------------------------------------------------------------------


def some_fields(fields: Sequence[str] | dict[str, Any]) -> None:
    """Refuse a transformer that is given nothing to do, and a field given twice."""
    if not fields:
        raise ValueError("name at least one field")
    if twice := first_twice(fields):
        raise ValueError(f"the field '{twice}' stands twice in the list")


def first_twice(names: Iterable[str]) -> str:
    """Return the first name that was there before, or an empty string."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return ""


def constant(value: Any, option: str, hint: str) -> Any:
    """Return what a value in YAML stands for where no expression can stand. ``$$`` begins a text with one ``$``.

    Raises :class:`OptionError` for an expression.
    """
    if isinstance(value, dict):
        return {key: constant(item, option, hint) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [constant(item, option, hint) for item in value]
    if isinstance(value, str):
        if value.startswith("$$"):
            return value[1:]
        if value.startswith("$") or "{{" in value:
            raise OptionError(option, f"{option}: '{value}' is an expression, where a constant is expected; {hint}")
    if type(value) in NUMBERS:
        try:
            in_range(value)
        except Unfit as error:
            raise OptionError(option, f"{option}: a constant cannot be written as JSON: {error}") from error
    return value
