"""Feature values: Feast's protobuf ``Value`` to JSON, exactly or not at all.

Loaded after Feast. The wire format is Feast's `online store format`_; the tests hold it against the SDK's reading.

.. _online store format: https://github.com/feast-dev/feast/blob/master/docs/specs/online_store_format.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from math import isfinite
from struct import Struct
from typing import Any, Final
from uuid import UUID

from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import NULL_TIMESTAMP_INT_VALUE, _zone_from_name
from google.protobuf.message import DecodeError

from orchestrator_core.plugin_api import JSON, check_depth

__all__ = ["Unreadable", "finite_json", "from_bytes", "from_message", "uuid_text"]

DOUBLE_TAG: Final = 0x29  # field 5, eight bytes
STRING_TAG: Final = 0x12  # field 2, with a length
_double = Struct("<d").unpack_from
_parse: Callable[[bytes], Any] = Value.FromString


class Unreadable(Exception):
    """A value has no JSON form; the argument says why, as in ``feature 'x' <why>``."""


def from_bytes(data: bytes) -> JSON:
    """Return the JSON value of a serialised ``Value``. The two commonest types are read without parsing protobuf."""
    size = len(data)
    if size == 9 and data[0] == DOUBLE_TAG:
        number: float = _double(data, 1)[0]
        return number if isfinite(number) else _finite(number)
    try:
        if 1 < size < 130 and data[0] == STRING_TAG and data[1] == size - 2:
            return data[2:].decode()
        return from_message(_parse(data)) if size else None
    except (DecodeError, UnicodeDecodeError):
        raise Unreadable("holds bytes that are no value of Feast's") from None


def from_message(value: Any) -> JSON:
    which = value.WhichOneof("val")
    if which is None:
        return None
    read = READERS.get(which)
    if read is None:
        raise Unreadable(f"holds a {which.removesuffix('_val')}, which this version cannot read")
    json_value: JSON = read(getattr(value, which))
    return json_value


def uuid_text(value: JSON) -> JSON:
    """A UUID as Feast reads one that was stored as text, by a version without the type."""
    try:
        return str(UUID(value)) if isinstance(value, str) else value
    except ValueError:
        raise Unreadable("holds text that is no UUID") from None


def finite_json(value: JSON) -> JSON:
    """Return a value that was parsed as JSON, or raise for NaN and infinity, which Python's parser lets through."""
    if isinstance(value, float):
        return _finite(value)
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        finite_json(part)
    return value


def _plain(value: Any) -> Any:
    return value


def _finite(value: float) -> float:
    if isfinite(value):
        return value
    raise Unreadable("holds NaN or Infinity, which JSON has no number for")


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _instant(seconds: int) -> str | None:
    if seconds == NULL_TIMESTAMP_INT_VALUE:
        return None
    try:
        return datetime.fromtimestamp(seconds, tz=UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        raise Unreadable(f"holds the timestamp {seconds}, which is no date of the years 1 to 9999") from None


def _zoned_instant(value: Any) -> str | None:
    if value.unix_timestamp == NULL_TIMESTAMP_INT_VALUE:
        return None
    return datetime.fromtimestamp(value.unix_timestamp, tz=_zone_from_name(value.zone)).isoformat()


def _json(text: str) -> JSON:
    try:
        value: JSON = json.loads(text)
        check_depth(value, text)
    except json.JSONDecodeError:
        return text  # as the SDK does
    except (RecursionError, ValueError) as error:
        raise Unreadable(f"holds JSON that cannot be used: {error}") from None
    return finite_json(value)


def _map(value: Any) -> JSON:
    return {key: from_message(item) for key, item in value.val.items()}


def _scalar_map(value: Any) -> JSON:
    return {_key(entry.key): from_message(entry.value) for entry in value.val}


def _key(key: Any) -> str:
    which = key.WhichOneof("key")
    if which is None:
        return "null"
    value = KEYS.get(which.removesuffix("_key"), _plain)(getattr(key, which))
    return value if isinstance(value, str) else json.dumps(value)


def _list(read: Callable[[Any], Any]) -> Callable[[Any], JSON]:
    return (lambda value: list(value.val)) if read is _plain else (lambda value: [read(item) for item in value.val])


def _set(read: Callable[[Any], Any]) -> Callable[[Any], JSON]:
    return lambda value: [read(item) for item in _distinct(value.val)]


def _distinct(items: Iterable[Any]) -> Iterable[Any]:
    return dict.fromkeys(items)


def _messages(value: Any) -> JSON:
    return [from_message(item) for item in value.val]


SCALARS: Final[dict[str, Callable[[Any], Any]]] = {
    "bool": _plain,
    "bytes": _base64,
    "decimal": _plain,
    "double": _finite,
    "float": _finite,
    "int32": _plain,
    "int64": _plain,
    "json": _json,
    "string": _plain,
    "time_uuid": uuid_text,
    "unix_timestamp": _instant,
    "uuid": uuid_text,
}
KEYS: Final[dict[str, Callable[[Any], Any]]] = {
    "bytes": _base64,
    "double": _finite,
    "float": _finite,
    "unix_timestamp": _instant,
}
READERS: Final[dict[str, Callable[[Any], Any]]] = {
    **{f"{name}_val": read for name, read in SCALARS.items()},
    **{f"{name}_list_val": _list(read) for name, read in SCALARS.items()},
    **{f"{name}_set_val": _set(read) for name, read in SCALARS.items()},
    "list_val": _messages,
    "map_val": _map,
    "map_list_val": lambda value: [_map(item) for item in value.val],
    "null_val": lambda _: None,
    "scalar_map_val": _scalar_map,
    "set_val": _messages,
    "struct_val": _map,
    "struct_list_val": lambda value: [_map(item) for item in value.val],
    "zoned_timestamp_val": _zoned_instant,
}
