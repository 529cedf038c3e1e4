"""JSON values as expressions see them: kinds, equality, the range of numbers, and the sentinel for "not there"."""

from __future__ import annotations

import enum
import math
from types import NoneType
from typing import Any, Final, TypeAlias

from orchestrator_core.errors import ExpressionError

__all__ = ["JSON", "MISSING", "NUMBERS", "Missing", "equal", "in_range", "kind"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

NUMBERS: Final = frozenset({int, float})  # compared with type(), so that booleans are not numbers

_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**64 - 1  # what orjson can write

_KINDS: Final = {
    NoneType: "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


class Missing(enum.Enum):
    """The type of :data:`MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
"""What the variable of a skipped step holds, and the body of a request that has none."""


def kind(value: object) -> str:
    """The JSON type in words, with its article: ``a list``; never the value."""
    return _KINDS.get(type(value), "a value that is not JSON")


def in_range(value: Any, what: str) -> Any:
    """Return the number if JSON can carry it.

    Raises :class:`ExpressionError`, which names ``what``, for infinities, NaN and integers beyond 64 bits.
    """
    if type(value) is int:
        if _SMALLEST <= value <= _LARGEST:
            return value
        raise ExpressionError(f"the result of {what} does not fit in a 64-bit integer")
    if math.isfinite(value):
        return value
    raise ExpressionError(f"the result of {what} is not a finite number")


def equal(left: Any, right: Any) -> bool:
    """JSON equality, deep: ``1`` equals ``1.0``, ``true`` does not equal ``1``, order of fields does not count."""
    # A loop, not recursion: a client chooses how deep its body is nested.
    pending = [(left, right)]
    while pending:
        left, right = pending.pop()
        one, other = type(left), type(right)
        if one is bool or other is bool:
            if left is not right:
                return False
        elif one is dict and other is dict:
            if left.keys() != right.keys():
                return False
            pending.extend((value, right[key]) for key, value in left.items())
        elif one is list and other is list:
            if len(left) != len(right):
                return False
            pending.extend(zip(left, right, strict=True))
        elif one is dict or one is list or left != right:
            return False
    return True
