"""The functions an expression can call. The list is fixed: there is no way to add to it.

Each takes JSON values and returns one. Wrong arguments raise :class:`ExpressionError` with a message that names the
function and the type it got, never the value.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from attrs import frozen

from orchestrator_core.errors import ExpressionError
from orchestrator_core.expressions.values import JSON, NUMBERS, in_range, kind

__all__ = ["FUNCTIONS", "Function", "to_str"]

_is_integer: Final = re.compile(r"[+-]?[0-9]{1,100}").fullmatch
_is_number: Final = re.compile(r"[+-]?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?").fullmatch


@frozen
class Function:
    """A function with how many arguments it takes; ``maximum`` None means any number."""

    call: Callable[..., JSON]
    minimum: int
    maximum: int | None

    def arity(self) -> str:
        """How many arguments it takes, in words."""
        if self.maximum is None:
            return f"at least {_arguments(self.minimum)}"
        if self.minimum == self.maximum:
            return _arguments(self.minimum)
        return f"{self.minimum} or {_arguments(self.maximum)}"


def _arguments(count: int) -> str:
    return {0: "no arguments", 1: "1 argument"}.get(count, f"{count} arguments")


def _unfit(name: str, expected: str, got: object) -> ExpressionError:
    return ExpressionError(f"{name} takes {expected}, got {kind(got)}")


def length(value: Any) -> JSON:
    if type(value) not in (str, list, dict):
        raise _unfit("len", "a string, a list or an object", value)
    return len(value)


def _of_string(name: str, operation: Callable[[str], str]) -> Callable[[Any], JSON]:
    def apply(value: Any) -> JSON:
        if type(value) is not str:
            raise _unfit(name, "a string", value)
        return operation(value)

    return apply


def rounded(value: Any, digits: Any = None) -> JSON:
    """Round half to even, as Python does; without digits the result is an integer."""
    if type(value) not in NUMBERS:
        raise _unfit("round", "a number", value)
    if digits is not None:
        if type(digits) is not int:
            raise _unfit("round", "an integer as the number of digits", digits)
        if abs(digits) > 20:  # 10 ** digits is computed for integers
            raise ExpressionError("round takes a number of digits between -20 and 20")
    elif not math.isfinite(value):
        raise ExpressionError("the result of round is not a finite number")
    try:
        result = round(value, digits)
    except OverflowError:
        raise ExpressionError("the result of round is not a finite number") from None
    return in_range(result, "round")  # type: ignore[no-any-return]


def absolute(value: Any) -> JSON:
    if type(value) not in NUMBERS:
        raise _unfit("abs", "a number", value)
    return in_range(abs(value), "abs")  # type: ignore[no-any-return]


def _members(name: str, values: tuple[Any, ...]) -> list[Any]:
    if len(values) > 1:
        return list(values)
    if type(values[0]) is not list:
        raise _unfit(name, "a list or several arguments", values[0])
    return values[0]


def _extreme(name: str, choose: Callable[[Iterable[Any]], Any]) -> Callable[..., JSON]:
    def apply(*values: Any) -> JSON:
        members = _members(name, values)
        if not members:
            raise ExpressionError(f"{name} takes a list with at least one element, got an empty list")
        kinds = set(map(kind, members))
        if kinds not in ({"a number"}, {"a string"}):
            raise ExpressionError(f"{name} takes only numbers or only strings, got {' and '.join(sorted(kinds))}")
        return choose(members)  # type: ignore[no-any-return]

    return apply


def total(*values: Any) -> JSON:
    members = _members("sum", values)
    for member in members:
        if type(member) not in NUMBERS:
            raise _unfit("sum", "only numbers", member)
    try:
        return in_range(sum(members), "sum")  # type: ignore[no-any-return]
    except OverflowError:
        raise ExpressionError("the result of sum is not a finite number") from None


def to_int(value: Any) -> JSON:
    """Cut off what follows the decimal point, or read the string of an integer."""
    if type(value) is str:
        if not _is_integer(value):
            raise ExpressionError("int takes a number or the string of an integer, got another string")
        return in_range(int(value), "int")  # type: ignore[no-any-return]
    if type(value) not in NUMBERS:
        raise _unfit("int", "a number or the string of an integer", value)
    return in_range(int(in_range(value, "int")), "int")  # type: ignore[no-any-return]


def to_float(value: Any) -> JSON:
    if type(value) is str:
        if not _is_number(value):
            raise ExpressionError("float takes a number or the string of a number, got another string")
    elif type(value) not in NUMBERS:
        raise _unfit("float", "a number or the string of a number", value)
    try:
        return in_range(float(value), "float")  # type: ignore[no-any-return]
    except OverflowError:
        raise ExpressionError("the result of float is not a finite number") from None


def to_str(value: Any) -> str:
    """A string as it is, anything else as JSON text."""
    if type(value) is str:
        return value
    if value is None:
        return "null"
    if type(value) is bool:
        return "true" if value else "false"
    if type(value) is int:
        return str(in_range(value, "str"))
    if type(value) is float:
        in_range(value, "str")
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError:
        raise ExpressionError(f"str cannot write {kind(value)} as JSON") from None


def to_bool(value: Any) -> JSON:
    """False for null, false, 0, '', 'false', [] and {}; of strings only 'true' is true, and others are an error."""
    if type(value) is str:
        lowered = value.lower()
        if lowered not in ("true", "false", ""):
            raise ExpressionError("bool takes the strings 'true', 'false' and '', got another string")
        return lowered == "true"
    return bool(value)


def keys(value: Any) -> JSON:
    if type(value) is not dict:
        raise _unfit("keys", "an object", value)
    return list(value)


def values(value: Any) -> JSON:
    if type(value) is not dict:
        raise _unfit("values", "an object", value)
    return list(value.values())


def date(value: Any) -> JSON:
    """The UTC day, ``YYYY-MM-DD``, of an ISO 8601 string (UTC if it names no zone) or of seconds since 1970."""
    if type(value) is not str and type(value) not in NUMBERS:
        raise _unfit("date", "an ISO 8601 string or seconds since 1970", value)
    try:
        moment = datetime.fromisoformat(value) if type(value) is str else datetime.fromtimestamp(value, UTC)
        return (moment.astimezone(UTC) if moment.tzinfo else moment).date().isoformat()
    except (ValueError, OverflowError, OSError):
        if type(value) is str:
            raise ExpressionError("date takes an ISO 8601 string, got another string") from None
        raise ExpressionError("date takes seconds since 1970, got a number out of range") from None


def now(at: float | None = None) -> JSON:
    """The UTC time, with milliseconds: of an execution always ``at``, the Unix time at which it began."""
    moment = datetime.now(UTC) if at is None else datetime.fromtimestamp(at, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


FUNCTIONS: Final[dict[str, Function]] = {
    "len": Function(length, 1, 1),
    "lower": Function(_of_string("lower", str.lower), 1, 1),
    "upper": Function(_of_string("upper", str.upper), 1, 1),
    "trim": Function(_of_string("trim", str.strip), 1, 1),
    "round": Function(rounded, 1, 2),
    "abs": Function(absolute, 1, 1),
    "min": Function(_extreme("min", min), 1, None),
    "max": Function(_extreme("max", max), 1, None),
    "sum": Function(total, 1, None),
    "int": Function(to_int, 1, 1),
    "float": Function(to_float, 1, 1),
    "str": Function(to_str, 1, 1),
    "bool": Function(to_bool, 1, 1),
    "keys": Function(keys, 1, 1),
    "values": Function(values, 1, 1),
    "date": Function(date, 1, 1),
    "now": Function(now, 0, 0),
}
