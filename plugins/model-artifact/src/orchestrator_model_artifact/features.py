"""From rows, JSON objects of feature name to value, to the arrays that a model takes.

Each of the three forms has a fast path for rows that are as they should be, and walks the values one by one only
when that fails, to name the feature that is missing, null or of the wrong type. Features that the model does not
ask for are not looked at: the configuration check has compared the names already.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from math import isfinite, nan, nextafter
from operator import itemgetter
from random import Random
from typing import Any, Literal, TypeAlias

import numpy as np
from attrs import frozen

from orchestrator_core.plugin_api import JSON, InvalidParam

FeatureType: TypeAlias = Literal["number", "integer", "boolean", "string", "any"]
Row: TypeAlias = Mapping[str, JSON]
Score: TypeAlias = Callable[[Sequence[Row]], "list[JSON]"]
Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Typecode: TypeAlias = Literal["f", "d", "i", "q"]
"""float32, float64, int32, int64, as :mod:`array` and numpy both spell them."""

_LIMITS: dict[Typecode, float] = {
    "f": nextafter(2.0**128 - 2.0**103, 0.0),  # the last that is rounded to a finite one
    "d": 1.7976931348623157e308,
    "i": 2**31 - 1,
    "q": 2**63 - 1,
}
_SIZES: dict[Typecode, int] = {"f": 4, "d": 8, "i": 4, "q": 8}
_WORDS: dict[FeatureType, str] = {
    "number": "a number",
    "integer": "a whole number",
    "boolean": "true or false",
    "string": "a string",
    "any": "a value",
}


@frozen
class Column:
    """One feature that a model asks for; ``nullable`` says that null is a value it knows.

    ``any`` is what MLflow has further types for, such as lists and times: the value goes to the model as it is.
    """

    name: str
    type: FeatureType = "number"
    nullable: bool = False


@frozen
class Input:
    """An array within a buffer."""

    name: str
    typecode: Typecode
    offset: int
    count: int
    shape: tuple[int, ...]


@frozen
class Layout:
    """How one row's values lie in a buffer: ``format`` is :mod:`struct`'s, for the values in the order of ``names``.

    ``conditions`` are Python expressions over ``values``. Where they hold, and the sum is finite, what is packed is
    what the array for that row would hold; where not, the array's maker has to look.
    """

    names: tuple[str, ...]
    format: str
    size: int
    inputs: tuple[Input, ...]
    conditions: tuple[str, ...]


class Matrix:
    """Rows to one ``[N, F]`` array of numbers of one type."""

    def __init__(self, columns: Sequence[Column], typecode: Typecode) -> None:
        self._columns = columns
        self._typecode = typecode
        self._values: Callable[[Row], Sequence[Any]] = _getter([column.name for column in columns])
        self._whole = [i for i, column in enumerate(columns) if column.type == "integer" and typecode in "fd"]
        self._flags = [i for i, column in enumerate(columns) if column.type == "boolean"]

    def __call__(self, rows: Sequence[Row]) -> Array:
        width = len(self._columns)
        try:
            # array() takes numbers only, where numpy would turn "1.5" into 1.5 and null into NaN.
            values: array[Any] = array(self._typecode, chain.from_iterable(map(self._values, rows)))
        except (KeyError, TypeError, OverflowError):
            values = self._carefully(rows)
        else:
            if (
                not isfinite(sum(values))
                or any(value % 1 for i in self._whole for value in values[i::width])
                or any(value not in (0, 1) for i in self._flags for value in values[i::width])
            ):
                values = self._carefully(rows)
        return np.frombuffer(values, dtype=self._typecode).reshape(len(rows), width)

    def layout(self, name: str) -> Layout:
        """Return where a row's values lie in the model's one input, of that name."""
        count = len(self._columns)
        return Layout(
            names=tuple(column.name for column in self._columns),
            format=f"={count}{self._typecode}",
            size=count * _SIZES[self._typecode],
            inputs=(Input(name, self._typecode, 0, count, (1, count)),),
            conditions=(
                *(f"values[{i}] % 1 == 0" for i in self._whole),
                *(f"values[{i}] in (0, 1)" for i in self._flags),
            ),
        )

    def _carefully(self, rows: Sequence[Row]) -> array[Any]:
        convert = [_converter(column, self._typecode) for column in self._columns]
        return array(
            self._typecode,
            [one(value) for row in rows for one, value in zip(convert, _present(row, self._columns), strict=True)],
        )


class ByName:
    """Rows to one array for each feature, ``[N]`` or ``[N, 1]``, of the feature's own type."""

    def __init__(self, columns: Sequence[Column], typecodes: Mapping[str, Typecode], rank: int = 1) -> None:
        self._columns = columns
        self._convert = [_converter(column, typecodes.get(column.name, "d")) for column in columns]
        self._dtypes = [_dtype(column, typecodes.get(column.name)) for column in columns]
        self._shape = (-1,) if rank == 1 else (-1, 1)
        self._typecodes = typecodes

    def __call__(self, rows: Sequence[Row]) -> dict[str, Array]:
        values = zip(*(_present(row, self._columns) for row in rows), strict=True)
        return {
            column.name: _array([convert(value) for value in cells], dtype, column.type).reshape(self._shape)
            for column, convert, dtype, cells in zip(self._columns, self._convert, self._dtypes, values, strict=True)
        }

    def layout(self) -> Layout | None:
        """Return where a row's values lie, eight bytes apart, or None where they are not all numbers."""
        found = [(column, self._typecodes.get(column.name)) for column in self._columns]
        inputs, codes, conditions = [], [], []
        for index, (column, typecode) in enumerate(found):
            if typecode is None or (column.type == "integer" and typecode in "fd"):
                return None
            inputs.append(Input(column.name, typecode, 8 * index, 1, (1,) * len(self._shape)))
            codes.append(typecode + "4x" * (_SIZES[typecode] == 4))
            if column.type == "boolean":
                conditions.append(f"values[{index}] in (0, 1)")
        names = tuple(column.name for column in self._columns)
        return Layout(names, f"={''.join(codes)}", 8 * len(found), tuple(inputs), tuple(conditions))


def _array(values: list[Any], dtype: str, type: FeatureType) -> Array:
    if type != "any":
        return np.array(values, dtype=dtype)
    array = np.empty(len(values), dtype=object)  # numpy would make a matrix of lists that are equally long
    for index, value in enumerate(values):
        array[index] = value
    return array


class ObjectMatrix:
    """Rows to one ``[N, F]`` array of Python objects, for models fitted on one."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._by_name = ByName(columns, {})

    def __call__(self, rows: Sequence[Row]) -> Array:
        return np.column_stack([array.astype(object) for array in self._by_name(rows).values()])


class Frame:
    """Rows to a DataFrame, for models that look their columns up by name. ``times`` are columns of ISO 8601 times."""

    def __init__(
        self, columns: Sequence[Column], typecodes: Mapping[str, Typecode] | None = None, times: Sequence[str] = ()
    ) -> None:
        import pandas

        self._pandas = pandas
        self._by_name = ByName(columns, typecodes or {})
        self._times = times

    def __call__(self, rows: Sequence[Row]) -> Any:
        frame = self._pandas.DataFrame(self._by_name(rows))
        for name in self._times:
            try:
                times = self._pandas.to_datetime(frame[name], format="ISO8601", utc=True)
            except (ValueError, TypeError, OverflowError) as error:
                raise InvalidParam(
                    "features", f"feature '{name}' must be a time as ISO 8601 writes it: {error}"
                ) from error
            frame[name] = times.dt.tz_localize(None)  # MLflow takes times without a zone only: they are in UTC
        return frame


def made_up_rows(columns: Sequence[Column], count: int) -> list[Row]:
    """Return the same rows each time, with values of the columns' types and of several magnitudes."""
    random = Random(0)  # numpy's would be 3 MB more to import
    values: dict[FeatureType, Callable[[int], JSON]] = {
        "number": lambda row: random.gauss() * 10.0 ** (row % 4),
        "integer": lambda row: random.randrange(10 ** (1 + row % 3)),
        "boolean": lambda _: random.random() < 0.5,
        "string": lambda row: "abc"[row % 3],
        "any": lambda _: None,
    }
    return [{column.name: values[column.type](row) for column in columns} for row in range(count)]


def _getter(names: Sequence[str]) -> Callable[[Row], Sequence[JSON]]:
    if len(names) == 1:
        (name,) = names
        return lambda row: (row[name],)
    return itemgetter(*names)


def _present(row: Row, columns: Sequence[Column]) -> list[JSON]:
    try:
        return [row[column.name] for column in columns]
    except KeyError:
        missing = [f"'{column.name}'" for column in columns if column.name not in row]
        word, verb = ("feature", "is") if len(missing) == 1 else ("features", "are")
        raise InvalidParam("features", f"{word} {', '.join(missing)} {verb} missing") from None


def _dtype(column: Column, typecode: Typecode | None) -> str:
    if typecode:
        return typecode
    # A missing value has no place among integers and booleans: such columns are float and object, as in pandas.
    return {
        "string": "O",
        "any": "O",
        "boolean": "O" if column.nullable else "?",
        "integer": "d" if column.nullable else "q",
        "number": "d",
    }[column.type]


def _converter(column: Column, typecode: Typecode) -> Callable[[JSON], Any]:
    """Return the function that makes one value what the column takes, or says why it cannot."""
    takes_integers = typecode in "iq"
    takes_null = column.nullable and not takes_integers
    is_whole = takes_integers or column.type == "integer"
    most = _LIMITS["q"] if is_whole and not takes_integers else _LIMITS[typecode]
    least = -most - 1 if is_whole else -most

    def unfit(value: JSON) -> InvalidParam:
        shown = "null" if value is None else "NaN" if value != value else repr(value)
        return InvalidParam("features", f"feature '{column.name}' must be {_WORDS[column.type]}, got {shown}")

    def string(value: JSON) -> str | None:
        if isinstance(value, str) or (value is None and takes_null):
            return value
        raise unfit(value)

    def number(value: Any) -> float:
        if (value is None or value != value) and takes_null:
            return nan
        if value is None or isinstance(value, str | bytes) or not hasattr(value, "__float__") or value != value:
            raise unfit(value)
        if not least <= value <= most:
            raise InvalidParam("features", f"feature '{column.name}' is too large for the model: {value}")
        if is_whole and value % 1:
            raise unfit(value)
        return int(value) if takes_integers or (is_whole and not column.nullable) else float(value)

    def boolean(value: Any) -> Any:
        if value is None and takes_null:
            return nan
        if value in (0, 1):
            return value
        raise unfit(value)

    def as_it_is(value: JSON) -> JSON:
        return value

    converters: dict[FeatureType, Callable[[Any], Any]] = {
        "string": string,
        "number": number,
        "integer": number,
        "boolean": boolean,
        "any": as_it_is,
    }
    return converters[column.type]
