"""What JSON may be that is read: how deep it is nested, and how long its integers are.

What is read of a source must fit into an answer, and orjson writes 254 levels and 64 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import orjson

__all__ = ["MOST_DEEP", "check_depth", "check_integers", "is_deeper"]

MOST_DEEP = 200
"""So deep may what a source answers be: a mapping and the page of an execution put some levels around it."""

_WRITTEN = 254
_LONG_NUMBER = re.compile(rb"[0-9]{19}")


def check_depth(value: Any, text: bytes | str) -> None:
    """Raise ``ValueError`` if JSON that was read of a text is nested more than :data:`MOST_DEEP` deep."""
    opened = text.count(b"[") + text.count(b"{") if isinstance(text, bytes) else text.count("[") + text.count("{")
    if opened > MOST_DEEP and is_deeper(value, MOST_DEEP):
        raise ValueError(f"it is nested more than {MOST_DEEP} deep")


def check_integers(text: bytes) -> None:
    """Raise ``ValueError`` if an integer of a JSON text does not fit in 64 bits: orjson makes another number of it.

    Raises ``RecursionError`` for a text that has a long number and is nested deeper than Python goes.
    """
    if _LONG_NUMBER.search(text):
        json.loads(text, parse_int=_exact)


def _exact(digits: str) -> int:
    number = int(digits) if len(digits) <= 20 else 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer in it does not fit in 64 bits")
    return number


def is_deeper(value: Any, levels: int) -> bool:
    """Return whether lists and objects lie in each other more than so many levels deep."""
    wrapped = value
    for _ in range(_WRITTEN - levels):
        wrapped = [wrapped]
    try:
        orjson.dumps(wrapped)
    except TypeError:
        return _leads_deeper(value, levels)
    return False


def _leads_deeper(value: Any, levels: int) -> bool:
    if not isinstance(value, Mapping | list | tuple):
        return False
    items = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_leads_deeper(item, levels - 1) for item in items)
