"""Results: rows to objects of JSON values, exactly or not at all."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import lru_cache
from math import inf, isfinite
from types import CodeType
from typing import Any, Final, NoReturn, TypeAlias

from orchestrator_core.plugin_api import EntityNotFound, SourceError, check_depth
from orchestrator_source_database.options import Decimals
from orchestrator_source_database.query import Binding, Query

__all__ = ["DECIMALS", "Build", "Shape", "Unreadable", "finisher", "row_builder"]

Reader: TypeAlias = Callable[[Any], Any]
"""Takes a value of the driver that is not None and returns JSON, or raises :class:`Unreadable`."""
Build: TypeAlias = Callable[[Sequence[Any]], dict[str, Any]]

LEAST, GREATEST = -(2**63), 2**64 - 1
LONGEST_INTEGER = 20
EXACT_LENGTH: Final = 16  # 15 significant digits, which every double keeps, and the point
KEY_SHOWN: Final = 64
SURROGATE: Final = re.compile(r"\\u[dD][89a-fA-F]")


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


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def clock_text(value: timedelta) -> str:
    """MySQL's TIME, which is a time of day or a span of up to 838 hours, as MySQL writes it."""
    microseconds = round(value / timedelta(microseconds=1))
    seconds, fraction = divmod(abs(microseconds), 1_000_000)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return ("-" if microseconds < 0 else "") + text + (f".{fraction:06}" if fraction else "")


def json_value(text: str) -> Any:
    try:
        value = json.loads(text, parse_int=_json_integer, parse_float=_json_float)
        check_depth(value, text)
    except (RecursionError, ValueError):
        raise Unreadable("holds JSON that is nested too deep") from None
    if SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Unreadable("holds JSON with half of a surrogate pair, which is no Unicode text") from None
    return value


def _json_integer(text: str) -> int:
    if len(text) <= LONGEST_INTEGER and LEAST <= (number := int(text)) <= GREATEST:
        return number
    raise Unreadable("holds JSON with an integer of more than 64 bits")


def _json_float(text: str) -> float:
    return finite(float(text))


@lru_cache(256)
def row_code(names: tuple[str, ...], floats: tuple[int, ...], read: tuple[int, ...]) -> CodeType:
    """Compile ``build(row)``, which makes the object of a row in one expression, without a call that it can avoid.

    What is finite times zero is zero, and nothing else is. A row with another float, and one whose column cannot be
    read, goes to ``slowly``, which says which column it is.
    """
    columns = [f"c{index}" for index in range(len(names))]
    values = [f"None if {c} is None else r{i}({c})" if i in read else c for i, c in enumerate(columns)]
    strange = " or ".join(f"c{index} is not None and c{index} * 0.0" for index in floats)
    source = [
        "def build(row):",
        f"    {', '.join(columns)}, = row",
        f"    if {strange}: return slowly(row)" if floats else "",
        "    try:",
        f"        return {{{', '.join(f'{name!r}: {value}' for name, value in zip(names, values, strict=True))}}}",
        "    except Unreadable:",
        "        return slowly(row)",
    ]
    return compile("\n".join(source), "<row of a query>", "exec")


def row_builder(names: tuple[str, ...], floats: tuple[int, ...], readers: Mapping[int, Reader], slowly: Build) -> Build:
    """Return what makes the object of a row: ``floats`` are the columns that may hold no JSON number."""
    scope: dict[str, Any] = {"slowly": slowly, "Unreadable": Unreadable}
    scope.update((f"r{index}", reader) for index, reader in readers.items())
    exec(row_code(names, floats, tuple(readers)), scope)  # the source is ours, and a name in it is a literal
    build: Build = scope["build"]
    return build


class Shape:
    """How the rows of a statement become objects: the columns' names, and the readers of those that need one."""

    __slots__ = ("_columns", "_operation", "build", "names")

    build: Build

    def __init__(self, operation: str, columns: Iterable[tuple[str, Reader | None]]) -> None:
        self._columns = tuple(columns)
        self._operation = operation
        names = self.names = tuple(name for name, _ in self._columns)
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise SourceError(f"{operation}: the query returns two columns named '{twice}'; rename one with AS")
        # Floats are what features are made of: they are looked at without a call of their own.
        floats = tuple(index for index, (_, reader) in enumerate(self._columns) if reader is finite)
        readers = {i: reader for i, (_, reader) in enumerate(self._columns) if reader and reader is not finite}
        self.build = row_builder(names, floats, readers, self._build_slowly) if names else lambda row: {}

    def _build_slowly(self, row: Sequence[Any]) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for (name, read), value in zip(self._columns, row, strict=True):
            try:
                result[name] = value if value is None or read is None else read(value)
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
        most = inf if query.max_rows is None else query.max_rows

        def many(shape: Shape, rows: Sequence[Any], _: Sequence[Any]) -> Any:
            return [shape.build(row) for row in rows] if len(rows) <= most else _too_many(query)

        return many
    if query.result == "value":

        def value(shape: Shape, rows: Sequence[Any], values: Sequence[Any]) -> Any:
            return shape.first(rows[0]) if len(rows) == 1 else _not_one(binding, rows, values)

        return value

    def one(shape: Shape, rows: Sequence[Any], values: Sequence[Any]) -> Any:
        return shape.build(rows[0]) if len(rows) == 1 else _not_one(binding, rows, values)

    return one


def executed(query: Query, shape: Shape | None, count: int, rows: Sequence[Any] | None) -> dict[str, Any]:
    """Return the result of ``result: execute``."""
    result: dict[str, Any] = {"rowcount": max(count, 0)}
    if shape and rows is not None:
        if query.max_rows is not None and len(rows) > query.max_rows:
            _too_many(query)
        result["rows"] = [shape.build(row) for row in rows]
    return result


def _too_many(query: Query) -> NoReturn:
    raise SourceError(
        f"{query.operation}: returned more than {query.max_rows} rows, the max_rows of database '{query.database}'"
        " or of the operation; make the query pick fewer, or raise it"
    )


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
