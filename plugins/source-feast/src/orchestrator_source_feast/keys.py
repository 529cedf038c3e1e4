"""Entity keys: a caller's values to the type of the join key, and to the bytes under which a store keeps the entity."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from math import isfinite
from struct import Struct, pack
from typing import Any, Final, TypeAlias

__all__ = ["CONVERTERS", "INPUT_CONVERTERS", "Converter", "Encoder", "Unfit", "as_it_is", "encoder", "shown"]

Converter: TypeAlias = Callable[[Any], Any]
"""Takes a value and returns it in the join key's type, or raises :class:`Unfit`."""
Encoder: TypeAlias = Callable[..., bytes]
"""Takes the converted values of a feature view's join keys, in the order of their names."""

INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
SHOWN: Final = 64
# https://github.com/feast-dev/feast/blob/master/docs/specs/online_store_format.md; the numbers are ValueType.Enum's.
STRING, INT32, INT64 = 2, 3, 4
_two, _int32, _int64 = Struct("<II").pack, Struct("<i").pack, Struct("<q").pack


class Unfit(Exception):
    """A value is not what it has to be; the argument says what was expected."""


def to_string(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise Unfit("string")


def to_integer(value: Any) -> int:
    if type(value) is int:
        return value
    whole = isinstance(value, float) and value.is_integer()
    if whole or (isinstance(value, str) and INTEGER.fullmatch(value)):
        return int(value)
    raise Unfit("integer")


def to_int64(value: Any) -> int:
    number = to_integer(value)
    if -(2**63) <= number < 2**63:
        return number
    raise Unfit("integer of at most 64 bits")


def to_int32(value: Any) -> int:
    number = to_integer(value)
    if -(2**31) <= number < 2**31:
        return number
    raise Unfit("integer of at most 32 bits")


def to_bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(to_string(value), validate=True)
    except (binascii.Error, ValueError, Unfit):
        raise Unfit("bytes in base64") from None


def to_instant(value: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(to_string(value))
    except (ValueError, Unfit):
        raise Unfit("datetime such as 2024-01-31T12:30:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def to_present(value: Any) -> Any:
    """A value of a type that the registry does not tell, or that needs no converting."""
    if value is None or isinstance(value, dict | list | tuple):
        raise Unfit("single value")
    return value


def to_number(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    try:
        number = float(to_string(value))
    except (ValueError, Unfit):
        raise Unfit("number") from None
    if not isfinite(number):
        raise Unfit("number")
    return number


def to_boolean(value: Any) -> bool:
    found = value if isinstance(value, bool) else {"true": True, "false": False}.get(str(value))
    if found is None:
        raise Unfit("true or false")
    return found


def or_null(convert: Converter) -> Converter:
    return lambda value: None if value is None else convert(value)


def as_it_is(value: Any) -> Any:
    """A value of a type that JSON has no counterpart of: an on-demand view's function knows what it takes."""
    return value


INPUT_CONVERTERS: Final[dict[str, Converter]] = {
    "BOOL": or_null(to_boolean),
    "DOUBLE": or_null(to_number),
    "FLOAT": or_null(to_number),
    "INT32": or_null(to_int32),
    "INT64": or_null(to_int64),
    "STRING": or_null(to_string),
}
"""For the request-time inputs of on-demand views, which may be null."""

CONVERTERS: Final[dict[str, Converter]] = {
    "BYTES": to_bytes,
    "INT32": to_int32,
    "INT64": to_int64,
    "STRING": to_string,
    "UNIX_TIMESTAMP": to_instant,
}


def encoder(names: Sequence[str], types: Sequence[str]) -> Encoder | None:
    """Return what serialises an entity key (version 3), or None for a type that only the SDK serialises.

    ``names`` are the sorted join keys, ``types`` the names of their value types.
    """
    head = pack("<I", len(names))
    for name in names:
        encoded = name.encode()
        head += _two(STRING, len(encoded)) + encoded
    if not all(type_ in PARTS for type_ in types):
        return None
    if types == ["INT64"]:
        head += _two(INT64, 8)
        return lambda value: head + _int64(value)
    if types == ["STRING"]:

        def one_string(value: str) -> bytes:
            encoded = value.encode()
            return head + _two(STRING, len(encoded)) + encoded

        return one_string
    parts = [PARTS[type_] for type_ in types]
    return lambda *values: head + b"".join([part(value) for part, value in zip(parts, values, strict=True)])


def _string(value: str) -> bytes:
    encoded = value.encode()
    return _two(STRING, len(encoded)) + encoded


PARTS: Final[dict[str, Callable[[Any], bytes]]] = {
    "INT32": lambda value: _two(INT32, 4) + _int32(value),
    "INT64": lambda value: _two(INT64, 8) + _int64(value),
    "STRING": _string,
}


def shown(value: Any) -> str:
    """Return the value for a message, cut where it is long."""
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "an object"
    if value is None:
        return "null"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
