"""Parameters: JSON values to what a driver takes, checked against the declared and the prepared type."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Container, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias
from uuid import UUID

from orchestrator_core.plugin_api import InvalidParam
from orchestrator_source_database.options import ParamType
from orchestrator_source_database.query import Binding

__all__ = ["DECLARED", "HALF_PAIR", "Converter", "JSONText", "Unfit", "adapter", "in_utc", "scalar", "without_offset"]

Converter: TypeAlias = Callable[[Any], Any]
"""Takes a value and returns it for the driver, or raises :class:`Unfit`. ``None`` stays ``None``."""

INTEGER = re.compile(r"[+-]?[0-9]{1,20}")
SURE_DIGITS = 18  # so many never exceed 63 bits
LEAST, GREATEST = -(2**63), 2**64 - 1
SHOWN = 40
HALF_PAIR = "a parameter is not Unicode text: it has half of a surrogate pair"
"""What SQLite's and MySQL's drivers say with a ``UnicodeEncodeError``, which quotes the value."""


class Unfit(Exception):
    """A value is not what it has to be; the argument says what was expected."""


class JSONText(str):
    """Text that is JSON already, so that a JSON column does not encode it once more."""

    __slots__ = ()


def to_string(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise Unfit("string")


def to_integer(value: Any) -> int | None:
    if type(value) is str and len(value) <= SURE_DIGITS and value.isascii() and value.isdecimal():
        return int(value)
    if type(value) is int and LEAST <= value <= GREATEST:
        return value
    if value is None:
        return None
    whole = isinstance(value, float | Decimal) and value == value // 1
    if whole or (isinstance(value, str) and INTEGER.fullmatch(value)):
        value = int(value)
    if type(value) is not int:
        raise Unfit("integer")
    if not LEAST <= value <= GREATEST:
        raise Unfit("integer of at most 64 bits")
    return value


def to_number(value: Any) -> int | float | None:
    if value is None or type(value) is int:
        return value
    if isinstance(value, str | Decimal):
        try:
            value = float(value)
        except ValueError:
            raise Unfit("number") from None
    if type(value) is not float or not math.isfinite(value):
        raise Unfit("number")
    return value


def to_decimal(value: Any) -> Decimal | None:
    if value is None:
        return None
    try:
        if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
            number = Decimal(repr(value) if isinstance(value, float) else value)
            if number.is_finite():
                return number
    except InvalidOperation:
        pass
    raise Unfit("decimal")


def to_boolean(value: Any) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise Unfit("boolean")


def _parsed(kind: type[Any], expected: str) -> Converter:
    parse: Callable[[str], Any] = getattr(kind, "fromisoformat", kind)

    def convert(value: Any) -> Any:
        if value is None or type(value) is kind:
            return value
        if isinstance(value, str):
            try:
                return parse(value)
            except ValueError:
                pass
        raise Unfit(expected)

    return convert


to_date = _parsed(date, "date such as 2024-01-31")
to_datetime = _parsed(datetime, "datetime such as 2024-01-31T12:30:00")
to_time = _parsed(time, "time such as 12:30:00")
to_uuid = _parsed(UUID, "uuid")


def to_bytes(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise Unfit("bytes in base64")


def to_json(value: Any) -> JSONText | None:
    if value is None or isinstance(value, JSONText):
        return value
    try:
        return JSONText(json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")))
    except (TypeError, ValueError):
        raise Unfit("JSON") from None


def scalar(value: Any) -> Any:
    """A value of an undeclared parameter, for a driver that does not tell the parameter's type."""
    if isinstance(value, list | dict | tuple):
        raise Unfit("single value (declare the parameter json to pass an object or a list)")
    if type(value) is int and not LEAST <= value <= GREATEST:
        raise Unfit("integer of at most 64 bits")
    return value


def in_utc(value: datetime) -> datetime:
    """Return the same instant in UTC without an offset; a datetime without an offset is taken as it is."""
    try:
        return value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
    except OverflowError:
        raise Unfit("datetime whose year is 1 to 9999 in UTC too") from None


def without_offset(value: time) -> time:
    """Return a time of day, for a type that has no offset: without its date there is no other it could be."""
    if value.tzinfo:
        raise Unfit("time without an offset such as 12:30:00")
    return value


DECLARED: dict[ParamType, Converter] = {
    "string": to_string,
    "integer": to_integer,
    "number": to_number,
    "boolean": to_boolean,
    "date": to_date,
    "datetime": to_datetime,
    "time": to_time,
    "decimal": to_decimal,
    "uuid": to_uuid,
    "bytes": to_bytes,
    "json": to_json,
}


def adapter(
    binding: Binding, for_driver: Sequence[Converter], takes_integers: Container[Converter] = ()
) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """Return the function that turns a caller's values into the driver's arguments, one for each placeholder.

    Those of the driver's converters that leave an integer of 63 bits as it is are named in ``takes_integers``.
    """
    types = binding.query.types
    steps = [
        (index, _after(DECLARED[types[name]], convert) if name in types else convert)
        for name, index, convert in zip(binding.query.positions, binding.indices, for_driver, strict=True)
    ]
    if len(steps) == 1:
        ((only, convert_only),) = steps
        is_key = types.get(binding.query.positions[0]) == "integer" and for_driver[0] in takes_integers

        def adapt_key(values: Sequence[Any]) -> tuple[Any, ...]:
            """An integer out of a path, which is all that most reads take, in one step."""
            key = values[only]
            if type(key) is str and len(key) <= SURE_DIGITS and key.isascii() and key.isdecimal():
                return (int(key),)
            return adapt_one(values)

        def adapt_one(values: Sequence[Any]) -> tuple[Any, ...]:
            try:
                return (convert_only(values[only]),)
            except Unfit as unfit:
                raise _invalid(binding, only, unfit, values) from None

        return adapt_key if is_key else adapt_one

    def adapt(values: Sequence[Any]) -> tuple[Any, ...]:
        index = 0
        arguments = []
        try:
            for index, convert in steps:
                arguments.append(convert(values[index]))
        except Unfit as unfit:
            raise _invalid(binding, index, unfit, values) from None
        return tuple(arguments)

    return adapt


def _after(first: Converter, then: Converter) -> Converter:
    return first if first is then else lambda value: then(first(value))


def _invalid(binding: Binding, index: int, unfit: Unfit, values: Sequence[Any]) -> InvalidParam:
    name = binding.names[index]
    message = f"{binding.query.operation}: parameter '{name}' expected {unfit}, got {_shown(values[index])}"
    return InvalidParam(name, message)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{len(text)} characters"
