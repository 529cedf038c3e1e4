"""Types and categories: ``cast map_values one_hot``."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, Literal

import orjson
from attrs import frozen

from orchestrator_core.plugin_api import option
from orchestrator_transform_standard.rows import (
    NUMBERS,
    Convert,
    Row,
    Transform,
    Unfit,
    change_fields,
    constant,
    expected,
    first_twice,
    in_range,
    kind,
    missing,
    on_rows,
    some,
    some_fields,
)

CastType = Literal["integer", "number", "string", "boolean", "date"]

_is_integer: Final = re.compile(r"[+-]?[0-9]{1,100}").fullmatch
_is_number: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?").fullmatch


# --- cast --------------------------------------------------------------------------------------------------------


def cast(options: dict[str, CastType]) -> Transform:
    some_fields(options)
    return on_rows("cast", change_fields((field, field, _CASTS[type_]) for field, type_ in options.items()))


def _to_integer(value: Any) -> int:
    if type(value) is int:
        return int(in_range(value))
    if type(value) is bool:
        return int(value)
    if type(value) is float:
        if not in_range(value).is_integer():
            raise Unfit("expected a whole number, got one with a fraction")
        return int(in_range(int(value)))
    if type(value) is str:
        if not _is_integer(value):
            raise Unfit("expected the string of an integer, got another string")
        return int(in_range(int(value)))
    raise expected("an integer, a boolean or a string", value)


def _to_number(value: Any) -> int | float:
    if type(value) in NUMBERS:
        return in_range(value)  # type: ignore[no-any-return]
    if type(value) is bool:
        return int(value)
    if type(value) is str:
        if _is_integer(value):
            return int(in_range(int(value)))
        if _is_number(value):
            return float(in_range(float(value)))
        raise Unfit("expected the string of a number, got another string")
    raise expected("a number, a boolean or a string", value)


def _to_string(value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) is bool or type(value) in NUMBERS:
        return orjson.dumps(in_range(value)).decode()
    raise expected("a string, a number or a boolean", value)


def _to_boolean(value: Any) -> bool:
    if type(value) is bool:
        return value
    if type(value) in NUMBERS and value in (0, 1):
        return bool(value)
    if type(value) is str and (lowered := value.lower()) in ("true", "false"):
        return lowered == "true"
    other = {int: "another number", float: "another number", str: "another string"}.get(type(value))
    if other:
        raise Unfit(f"expected a boolean, 0, 1, 'true' or 'false', got {other}")
    raise expected("a boolean, 0, 1, 'true' or 'false'", value)


def _to_date(value: Any) -> str:
    if type(value) is not str and type(value) not in NUMBERS:
        raise expected("an ISO 8601 string or seconds since 1970", value)
    try:
        moment = datetime.fromisoformat(value) if type(value) is str else datetime.fromtimestamp(value, UTC)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()
    except (ValueError, OverflowError, OSError):
        other = "another string" if type(value) is str else "a number out of range"
        raise Unfit(f"expected an ISO 8601 string or seconds since 1970, got {other}") from None


_CASTS: Final[dict[CastType, Convert]] = {
    "integer": _to_integer,
    "number": _to_number,
    "string": _to_string,
    "boolean": _to_boolean,
    "date": _to_date,
}


# --- map_values --------------------------------------------------------------------------------------------------


@frozen
class NoDefault:
    """The absence of a default, since null can be one."""


def _number(key: str) -> int | float | None:
    if _is_integer(key):
        return int(key)
    return float(key) if _is_number(key) else None


def _keys(_instance: object, _attribute: object, values: dict[str, Any]) -> None:
    if not values:
        raise ValueError("values must have at least one key")
    numbers: dict[Any, str] = {}
    for key in values:
        if (number := _number(key)) is not None and (other := numbers.setdefault(number, key)) != key:
            raise ValueError(f"the keys '{other}' and '{key}' are the same number")


@frozen
class MapField:
    """What each value of a field becomes."""

    values: dict[str, Any] = option(
        help="The value for each value. A key that reads as a number also stands for that number, `true` and `false` "
        "also for the booleans.",
        validator=_keys,
    )
    default: Any = option(
        NoDefault(), help="The value for a value that has no key; without one that is an error. Null stays null."
    )


def map_values(options: dict[str, MapField]) -> Transform:
    some_fields(options)
    return on_rows("map_values", change_fields((field, field, _lookup(field, how)) for field, how in options.items()))


def _lookup(field: str, how: MapField) -> Convert:
    hint = "compute takes expressions"
    texts = {key: constant(value, field, hint) for key, value in how.values.items()}
    numbers = {number: value for key, value in texts.items() if (number := _number(key)) is not None}
    fallback = how.default if isinstance(how.default, NoDefault) else constant(how.default, field, hint)

    def convert(value: Any) -> Any:
        if type(value) is str:
            found = texts.get(value, fallback)
        elif type(value) in NUMBERS:
            found = numbers.get(value, fallback)
        elif type(value) is bool:
            found = texts.get("true" if value else "false", fallback)
        else:
            raise expected("a string, a number or a boolean", value)
        if type(found) is NoDefault:
            raise Unfit(f"got {kind(value)} that is none of the keys ({some(texts)}), and there is no default")
        return found

    return convert


# --- one_hot -----------------------------------------------------------------------------------------------------


def _categories(_instance: object, _attribute: object, values: tuple[Any, ...]) -> None:
    if not values:
        raise ValueError("values must have at least one value")
    try:
        texts = [_to_string(value) for value in values]
    except Unfit as error:
        raise ValueError(f"a value cannot be written as JSON: {error}") from error
    if twice := first_twice(texts):
        raise ValueError(f"the value '{twice}' stands twice in the list")
    if len({_category(value) for value in values}) < len(values):
        raise ValueError("two of the values are the same number")


@frozen
class OneHotField:
    """The fields that a category becomes: one for each value, 1 where the field has that value and else 0."""

    values: tuple[bool | int | float | str, ...] = option(
        help="The values, in the order of the new fields.", validator=_categories
    )
    prefix: str | None = option(
        None, help="What the new names begin with, before the value; without it the field's name and `_`."
    )
    drop_original: bool = option(True, help="Whether the field itself goes away.")
    unknown: Literal["error", "ignore"] = option(
        "error", help="What null and a value that is not in `values` is: an `error`, or all zeros (`ignore`)."
    )

    def names(self, field: str) -> dict[Any, str]:
        """Return the name of the new field for each value."""
        prefix = f"{field}_" if self.prefix is None else self.prefix
        values = [constant(value, field, "values are constants") for value in self.values]
        return {_category(value): prefix + _to_string(value) for value in values}


def _category(value: Any) -> Any:
    """Return the key of a value, in which ``true`` is not 1."""
    return (value,) if type(value) is bool else value


def one_hot(options: dict[str, OneHotField]) -> Transform:
    some_fields(options)
    encoders = [(field, how.names(field), how.unknown == "ignore") for field, how in options.items()]
    dropped = frozenset(field for field, how in options.items() if how.drop_original)
    if twice := first_twice(name for _, names, _ in encoders for name in names.values()):
        raise ValueError(f"two fields would be named '{twice}'")

    def apply(row: Row) -> Row:
        done = {field: value for field, value in row.items() if field not in dropped}
        for field, names, lenient in encoders:
            if field not in row:
                raise missing(field, row)
            if there := [name for name in names.values() if name in done]:
                raise Unfit(f"field '{field}': the field '{there[0]}' is there already")
            done |= dict.fromkeys(names.values(), 0)
            value = row[field]
            for element in value if type(value) is list else (value,):
                if name := _name(field, element, names, lenient):
                    done[name] = 1
        return done

    return on_rows("one_hot", apply)


def _name(field: str, value: Any, names: dict[Any, str], lenient: bool) -> str | None:
    if type(value) in (dict, list):
        raise Unfit(f"field '{field}': {expected('a string, a number or a boolean', value)}")
    name = names.get(_category(value))
    if name is None and not lenient:
        known = some(_to_string(key[0] if isinstance(key, tuple) else key) for key in names)
        raise Unfit(f"field '{field}': got {kind(value)} that is none of the values ({known})")
    return name
