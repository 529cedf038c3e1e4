"""Results: rows to objects of JSON values, exactly or not at all."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from math import isfinite
from typing import Any, Final, TypeAlias

from orchestrator_core.plugin_api import EntityNotFound, SourceError
from orchestrator_source_database.options import Decimals
from orchestrator_source_database.query import Binding

__all__ = ["DECIMALS", "Shape", "Unreadable", "finisher"]

Reader: TypeAlias = Callable[[Any], Any]
"""Takes a value of the driver that is not None and returns JSON, or raises :class:`Unreadable`."""

LEAST, GREATEST = -(2**63), 2**64 - 1
EXACT_LENGTH: Final = 16  # 15 significant digits, which every double keeps, and the point
KEY_SHOWN: Final = 64


class Unreadable(Exception):
    """A value has no JSON form; the argument says why, as in ``column 'x' <why>``."""


def finite(value: float) -> float:
    if isfinite(value):
        return value
    raise Unreadable("holds NaN or Infinity, which JSON has no number for")


def exact_number(value: Decimal) -> int | float:
    text = str(value)
    if "." in text and len(text) <= EXACT_LENGTH and "E" not in text:
        return float(text)
    if not value.is_finite():
        raise Unreadable("holds NaN or Infinity, which JSON has no number for")
    if value == value.to_integral_value() and LEAST <= value <= GREATEST:
        return int(value) if "." not in text else float(value) if float(value) == value else int(value)
    number = float(value)
    if Decimal(repr(number)) == value:
        return number
    raise Unreadable(
        "has more digits than a JSON number holds exactly; round it in the query, or set decimals: rounded or string"
    )


def nearest_number(value: Decimal) -> int | float:
    if not value.is_finite():
        raise Unreadable("holds NaN or Infinity, which JSON has no number for")
    if value.as_tuple().exponent == 0 and LEAST <= value <= GREATEST:
        return int(value)
    return finite(float(value))


def decimal_text(value: Decimal) -> str:
    return format(value, "f") if value.is_finite() else str(value)


DECIMALS: dict[Decimals, Reader] = {"number": exact_number, "rounded": nearest_number, "string": decimal_text}


def iso(value: date | time) -> str:
    return value.isoformat()


def iso_instant(value: datetime) -> str:
    if value.tzinfo is None:  # how asyncpg hands over infinity in a column with time zone
        raise Unreadable("holds an infinite time, which ISO 8601 has no text for")
    return value.isoformat()


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def clock_text(value: timedelta) -> str:
    """MySQL's TIME, which is a time of day or a span of up to 838 hours, as MySQL writes it."""
    microseconds = round(value / timedelta(microseconds=1))
    seconds, fraction = divmod(abs(microseconds), 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return ("-" if microseconds < 0 else "") + text + (f".{fraction:06}" if fraction else "")


def json_value(text: str) -> Any:
    return json.loads(text, parse_int=_json_integer, parse_float=_json_float)


def _json_integer(text: str) -> int:
    number = int(text)
    if LEAST <= number <= GREATEST:
        return number
    raise Unreadable("holds JSON with an integer of more than 64 bits")


def _json_float(text: str) -> float:
    return finite(float(text))


class Shape:
    """How the rows of a statement become objects: the columns' names, and the readers of those that need one."""

    __slots__ = ("_floats", "_names", "_operation", "_readers", "build")

    build: Callable[[Sequence[Any]], dict[str, Any]]

    def __init__(self, operation: str, columns: Iterable[tuple[str, Reader | None]]) -> None:
        columns = tuple(columns)
        names = self._names = tuple(name for name, _ in columns)
        self._operation = operation
        # Floats are what features are made of: they are looked at without a call of their own.
        self._floats = tuple(name for name, reader in columns if reader is finite)
        self._readers = tuple((name, reader) for name, reader in columns if reader and reader is not finite)
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise SourceError(f"{operation}: the query returns two columns named '{twice}'; rename one with AS")
        read = self._readers or self._floats
        self.build = self._build_read if read else lambda row: dict(zip(names, row))  # noqa: B905  # always as long

    def _build_read(self, row: Sequence[Any]) -> dict[str, Any]:
        result = dict(zip(self._names, row))  # noqa: B905  # always as long, and strict costs
        name = ""
        try:
            for name in self._floats:
                value = result[name]
                if value is not None and not isfinite(value):
                    finite(value)
            for name, read in self._readers:
                value = result[name]
                if value is not None:
                    result[name] = read(value)
        except Unreadable as unreadable:
            raise self.unreadable(name, unreadable) from None
        return result

    def first(self, row: Sequence[Any]) -> Any:
        return next(iter(self.build(row).values()), None)

    def unreadable(self, column: str, reason: Unreadable) -> SourceError:
        return SourceError(f"{self._operation}: column '{column}' {reason}")


Finish: TypeAlias = Callable[[Shape, Sequence[Any], Sequence[Any]], Any]
"""Makes an operation's result from the shape, the rows and the values that were passed."""


def finisher(binding: Binding) -> Finish:
    """Return what makes a read's result; for ``one`` and ``value`` it is an error when there is a second row."""
    query = binding.query
    if query.result == "many":
        return lambda shape, rows, _: [shape.build(row) for row in rows]
    if query.result == "value":

        def value(shape: Shape, rows: Sequence[Any], values: Sequence[Any]) -> Any:
            return shape.first(rows[0]) if len(rows) == 1 else _not_one(binding, rows, values)

        return value

    def one(shape: Shape, rows: Sequence[Any], values: Sequence[Any]) -> Any:
        return shape.build(rows[0]) if len(rows) == 1 else _not_one(binding, rows, values)

    return one


def executed(shape: Shape | None, count: int, rows: Sequence[Any] | None) -> dict[str, Any]:
    """Return the result of ``result: execute``."""
    result: dict[str, Any] = {"rowcount": max(count, 0)}
    if shape and rows is not None:
        result["rows"] = [shape.build(row) for row in rows]
    return result


def _not_one(binding: Binding, rows: Sequence[Any], values: Sequence[Any]) -> None:
    operation = binding.query.operation
    if rows:
        raise SourceError(f"{operation}: returned more than one row; make the query pick one, or use result: many")
    if not binding.query.allow_missing:
        key = ", ".join(f"{name}={_key(value)}" for name, value in zip(binding.names, values, strict=True))
        raise EntityNotFound(f"{operation}: nothing found for {key}" if key else f"{operation}: nothing found")


def _key(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= KEY_SHOWN else f"{text[:KEY_SHOWN]}…"
