"""Numbers: ``scale bucket round``."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import attrs
from attrs import frozen

from orchestrator_core.plugin_api import OptionError, option
from orchestrator_transform_standard.rows import (
    DEEPEST,
    NUMBERS,
    Convert,
    Transform,
    Unfit,
    change_fields,
    constant,
    expected,
    in_range,
    on_rows,
    on_value,
    some_fields,
)

_MOST_DIGITS: Final = 20  # 10 ** digits is computed for integers


def _above_zero(_instance: object, attribute: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be greater than 0, got {value:g}")


def _rising(_instance: object, _attribute: object, edges: tuple[float, ...]) -> None:
    if not edges:
        raise ValueError("edges must have at least one number")
    for one, other in pairwise(edges):
        if not one < other:
            raise ValueError(f"edges must rise, got {one:g} and then {other:g}")


@frozen
class ScaleField:
    """How a field is scaled: by `min` and `max`, by `mean` and `std`, or by `factor` and `offset`."""

    min: float | None = option(None, help="The number that becomes 0.")
    max: float | None = option(None, help="The number that becomes 1.")
    mean: float | None = option(None, help="The number that becomes 0.")
    std: float | None = option(None, help="The distance from `mean` that becomes 1.", validator=_above_zero)
    factor: float | None = option(None, help="What the number is multiplied by; 1 if only `offset` is given.")
    offset: float | None = option(None, help="What is added after that; 0 if only `factor` is given.")


@frozen
class BucketField:
    """Which range a number falls into. With n edges there are n + 1 ranges; an edge belongs to the range above it."""

    edges: tuple[float, ...] = option(help="The numbers between the ranges, the smallest first.", validator=_rising)
    labels: tuple[bool | int | float | str, ...] | None = option(
        None, help="What each range is called, the lowest first; without them the ranges are 0, 1, 2, …"
    )
    into: str | None = option(None, help="The field that gets the label; without it the field itself.")


def scale(options: dict[str, ScaleField]) -> Transform:
    some_fields(options)
    return on_rows("scale", change_fields((field, field, _scaled(field, how)) for field, how in options.items()))


def _scaled(field: str, how: ScaleField) -> Convert:
    arithmetic = _arithmetic(field, how)

    def convert(value: Any) -> float:
        if type(value) not in NUMBERS:
            raise expected("a number", value)
        try:
            result = arithmetic(value)
        except OverflowError:
            result = math.inf
        if not math.isfinite(result):
            raise Unfit("the result is not a finite number")
        return result

    return convert


def _arithmetic(field: str, how: ScaleField) -> Callable[[float], float]:
    given = tuple(name for name in attrs.fields_dict(ScaleField) if getattr(how, name) is not None)
    match given:
        case ("min", "max"):
            start, end = _float(how.min), _float(how.max)
            if not start < end:
                raise OptionError(field, f"{field}: max must be greater than min, got {end:g} and {start:g}")
            width = end - start
            if not math.isfinite(width):
                raise OptionError(field, f"{field}: max - min is not a finite number")
            return lambda value: (value - start) / width
        case ("mean", "std"):
            mean, std = _float(how.mean), _float(how.std)
            return lambda value: (value - mean) / std
        case ("factor",) | ("offset",) | ("factor", "offset"):
            factor, offset = _float(how.factor, 1), _float(how.offset, 0)
            return lambda value: value * factor + offset
    got = " and ".join(given) or "nothing"
    raise OptionError(field, f"{field}: expected min and max, mean and std, or factor and offset, got {got}")


def _float(value: float | None, otherwise: float = math.nan) -> float:
    return otherwise if value is None else value


def bucket(options: dict[str, BucketField]) -> Transform:
    some_fields(options)
    return on_rows(
        "bucket", change_fields((field, how.into or field, _label(field, how)) for field, how in options.items())
    )


def _label(field: str, how: BucketField) -> Convert:
    edges = how.edges
    if how.labels is not None and len(how.labels) != len(edges) + 1:
        message = f"{len(edges) + 1} ranges take as many labels, got {len(how.labels)}"
        raise OptionError(field, f"{field}: {message}")
    labels = range(len(edges) + 1) if how.labels is None else constant(how.labels, field, "compute takes expressions")

    def convert(value: Any) -> Any:
        if type(value) not in NUMBERS:
            raise expected("a number", value)
        return labels[bisect_right(edges, in_range(value))]

    return convert


def round_numbers(options: int | dict[str, int]) -> Transform:
    if isinstance(options, int):
        _check_digits(options)
        return on_value("round", _all_rounded(options))
    if not options:
        raise ValueError("give a number of digits, or the fields with a number of digits for each")
    for field, digits in options.items():
        _check_digits(digits, field)
    return on_rows("round", change_fields((field, field, _rounded(digits)) for field, digits in options.items()))


def _check_digits(digits: int, field: str = "") -> None:
    if abs(digits) > _MOST_DIGITS:
        message = f"expected a number of digits between -{_MOST_DIGITS} and {_MOST_DIGITS}, got {digits}"
        raise OptionError(field, f"{field}: {message}") if field else ValueError(message)


def _rounded(digits: int) -> Convert:
    def convert(value: Any) -> Any:
        if type(value) not in NUMBERS:
            raise expected("a number", value)
        return _round(value, digits)

    return convert


def _round(value: Any, digits: int) -> Any:
    try:
        return in_range(round(value, digits))
    except OverflowError:
        raise Unfit("the result is not a finite number") from None


def _all_rounded(digits: int) -> Convert:
    def convert(value: Any, depth: int = 0) -> Any:
        if type(value) in NUMBERS:
            return _round(value, digits)
        if depth > DEEPEST:
            raise Unfit(f"the value is nested more than {DEEPEST} levels deep")
        if type(value) is dict:
            done = {}
            for field, item in value.items():
                try:
                    done[field] = convert(item, depth + 1)
                except Unfit as error:
                    raise error if depth else Unfit(f"field '{field}': {error}") from error
            return done
        if type(value) is list:
            return [convert(item, depth + 1) for item in value]
        return value

    return convert
