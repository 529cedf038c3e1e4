"""What tells the results of calls apart in a cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import isfinite
from typing import Any

import orjson

__all__ = ["KeyOf", "choose", "document", "document_of", "key_of", "key_of_one", "plain"]

KeyOf = Callable[[Sequence[Any]], Hashable]

_SCALARS = frozenset({str, int, float, bool, type(None)})


def key_of(values: Sequence[Any]) -> Hashable:
    """Return a dictionary's key for the values of a call; None when they cannot be told apart from others.

    1, 1.0 and true are one key to a dictionary, and three values here.
    """
    types = tuple(map(type, values))
    if _SCALARS.issuperset(types):
        return (*values, types)
    return document(values)


def key_of_one(values: Sequence[Any]) -> Hashable:
    """Return the same for a single value, faster."""
    value: Hashable = values[0]
    of = type(value)
    if of is str:
        return value
    return (value, of) if of in _SCALARS else document(values)


def document(values: Any, *, in_order: bool = True) -> bytes | None:
    """Return JSON in which equal values are equal bytes; None for what JSON cannot tell apart from something else.

    The fields of objects are ``in_order`` of their names, else as they stand.
    """
    try:
        text = orjson.dumps(values, default=plain, option=orjson.OPT_SORT_KEYS if in_order else None)
    except (TypeError, ValueError):
        return None
    if b"null" in text and not _is_told_apart(values):
        return None  # NaN and the infinities become null
    return text


def document_of(key: Hashable) -> bytes | None:
    """Return the JSON of the values that a dictionary's key was made of."""
    if isinstance(key, bytes):
        return key
    return document([key] if isinstance(key, str) else key[:-1] if isinstance(key, tuple) else key)


def choose(names: Sequence[str], chosen: Sequence[str]) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """Return what takes the chosen parameters' values out of all; None where they are all, in order."""
    if tuple(names) == tuple(chosen):
        return None
    places = [names.index(name) for name in chosen]
    return lambda values: [values[place] for place in places]


def plain(value: Any) -> Any:
    """Return what JSON has of a mapping or sequence of another class, for orjson's ``default``."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence):
        return list(value)
    raise TypeError(f"{type(value).__name__} is no JSON")


def _is_told_apart(value: Any) -> bool:
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, str):
        return True
    if isinstance(value, Mapping):
        return all(map(_is_told_apart, value.values()))
    return all(map(_is_told_apart, value)) if isinstance(value, Sequence) else True
