"""The protocol ``v2``: the Open Inference Protocol of KServe, MLServer, Triton and OpenVINO, over HTTP.

``GET /v2/models/{name}`` names and types the tensors; ``POST /v2/models/{name}/infer`` takes and gives them. The
specification is "Open Inference Protocol (V2 Inference Protocol)", ``rest_predict_v2.yaml``.

Features become tensors in one of two ways. Where the model has a tensor for each feature, by their names. Where it has
one tensor with a column for each feature, the option ``features`` says the columns' order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import JSON, InvalidParam, SourceError, did_you_mean
from orchestrator_model_http.exchange import Exchange, shown

FEATURES = "features"
MATRIX = "input-0"
"""The name of the one tensor where neither the server nor the configuration names it; servers then take any."""

LONGEST_SHOWN = 100

_INTEGERS = {f"{sign}INT{bits}": bits for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {"FP16", "FP32", "FP64", "BF16"}
_RANGES = {
    name: (0, 2**bits - 1) if name.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for name, bits in _INTEGERS.items()
}
_NUMBERS = frozenset((int, float))
_TYPES = {**dict.fromkeys((*_FLOATS, *_RANGES), _NUMBERS), "BOOL": frozenset((bool, int))}
"""What JSON has for the values of an output. Servers write NaN as null, which must not pass for a value."""


@frozen
class Tensor:
    """A tensor of the model. ``width`` is how many values a row has in it, None where any number will do."""

    name: str
    datatype: str
    width: int | None = 1


@frozen
class Metadata:
    """What a server says of a model. ``inputs`` is empty where it says nothing of its tensors."""

    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[str, ...] = ()
    version: str = ""


def read_metadata(answer: Any, call: str) -> Metadata:
    """Return the metadata of a model. Raises ``SourceError`` for what is none."""
    if not isinstance(answer, dict):
        raise SourceError(f"{call}: expected a model's metadata, got {shown(answer)}")
    try:
        inputs = tuple(_tensor(each) for each in answer.get("inputs") or ())
        outputs = tuple(str(each["name"]) for each in answer.get("outputs") or ())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(f"{call}: the metadata names a tensor without name, datatype or shape") from error
    names = [each.name for each in inputs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise SourceError(f"{call}: the metadata names two tensors '{twice}'")
    if unknown := [each for each in inputs if each.datatype not in {*_INTEGERS, *_FLOATS, "BOOL", "BYTES"}]:
        raise SourceError(f"{call}: the tensor '{unknown[0].name}' has the datatype {unknown[0].datatype}, not in V2")
    versions = answer.get("versions")
    return Metadata(inputs, outputs, str(versions[0]) if isinstance(versions, list) and len(versions) == 1 else "")


def _tensor(described: Mapping[str, Any]) -> Tensor:
    rest = [int(size) for size in described["shape"]][1:]
    return Tensor(str(described["name"]), str(described["datatype"]), None if min(rest, default=1) < 0 else prod(rest))


Encode = Callable[[Sequence[Mapping[str, JSON]]], list[dict[str, JSON]]]


def plan_inputs(metadata: Metadata, features: Sequence[str] | None) -> Encode:
    """Return what makes tensors of rows. Raises ``ValueError`` where the metadata does not say how."""
    if features is not None:
        if len(metadata.inputs) > 1:
            names = ", ".join(tensor.name for tensor in metadata.inputs)
            raise ValueError(f"features is for a model with one tensor; this one has {names}, which are the features")
        matrix = metadata.inputs[0] if metadata.inputs else Tensor(MATRIX, "FP64", None)
        if matrix.width not in (None, len(features)):
            raise ValueError(
                f"the tensor '{matrix.name}' takes {matrix.width} values a row, and features names {len(features)}"
            )
        return _Matrix(matrix, tuple(features))
    if len(metadata.inputs) == 1 and metadata.inputs[0].width != 1:
        tensor = metadata.inputs[0]
        wide = "any number of values" if tensor.width is None else f"{tensor.width} values"
        raise ValueError(f"the tensor '{tensor.name}' takes {wide} a row: name them in their order, features: [...]")
    return _Columns(metadata.inputs)


@frozen
class _Matrix:
    """One tensor, a column for each feature."""

    tensor: Tensor
    features: tuple[str, ...]

    def __call__(self, rows: Sequence[Mapping[str, JSON]]) -> list[dict[str, JSON]]:
        tensor, names = self.tensor, self.features
        data: list[JSON] = []
        for row in rows:
            if len(row) != len(names) or not all(name in row for name in names):
                raise _misnamed(row, names)
            data += [_value(name, row[name], tensor.datatype) for name in names]
        return [{"name": tensor.name, "datatype": tensor.datatype, "shape": [len(rows), len(names)], "data": data}]


@frozen
class _Columns:
    """A tensor for each feature; of the types that the values have where the server does not say."""

    tensors: tuple[Tensor, ...]

    def __call__(self, rows: Sequence[Mapping[str, JSON]]) -> list[dict[str, JSON]]:
        tensors = self.tensors or [Tensor(name, _datatype(name, rows)) for name in rows[0]]
        names = [tensor.name for tensor in tensors]
        for row in rows:
            if len(row) != len(names) or not all(name in row for name in names):
                raise _misnamed(row, names)
        return [
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                **_content([row[tensor.name] for row in rows], tensor),
            }
            for tensor in tensors
        ]


def _content(values: Sequence[JSON], tensor: Tensor) -> dict[str, JSON]:
    if tensor.width == 1:
        return {"shape": [len(values), 1], "data": [_value(tensor.name, value, tensor.datatype) for value in values]}
    data: list[JSON] = []
    widths = set()
    for value in values:
        if not isinstance(value, list | tuple) or tensor.width not in (None, len(value)):
            wanted = "values" if tensor.width is None else f"{tensor.width} values"
            raise InvalidParam(FEATURES, f"feature '{tensor.name}': expected a list of {wanted}, got {_what(value)}")
        widths.add(len(value))
        data += [_value(tensor.name, element, tensor.datatype) for element in value]
    if len(widths) > 1:
        raise InvalidParam(FEATURES, f"feature '{tensor.name}' has lists of different lengths in one call")
    return {"shape": [len(values), *widths], "data": data}


def _misnamed(row: Mapping[str, JSON], names: Sequence[str]) -> InvalidParam:
    if missing := [name for name in names if name not in row]:
        return InvalidParam(FEATURES, f"feature '{missing[0]}' is missing")
    unknown = next(name for name in row if name not in names)
    hint = did_you_mean(unknown, names)
    return InvalidParam(FEATURES, f"the model has no feature '{unknown}'{f'; {hint}' if hint else ''}")


def _value(name: str, value: JSON, datatype: str) -> JSON:
    kind = type(value)
    if datatype in _FLOATS:
        if kind is float or kind is int:
            return value
        expected = "a number"
    elif datatype in _RANGES:
        low, high = _RANGES[datatype]
        if isinstance(value, int) and kind is not bool and low <= value <= high:
            return value
        if isinstance(value, float) and value.is_integer() and low <= value <= high:
            return int(value)
        expected = f"a whole number from {low} to {high}"
    elif datatype == "BOOL":
        if kind is bool:
            return value
        expected = "true or false"
    else:
        if kind is str:
            return value
        expected = "a string"
    raise InvalidParam(FEATURES, f"feature '{name}': the model's {datatype} takes {expected}, got {_what(value)}")


def _what(value: JSON) -> str:
    return shown(value) if isinstance(value, list | dict) or value is None else repr(value)


def _datatype(name: str, rows: Sequence[Mapping[str, JSON]]) -> str:
    kinds = {type(row.get(name)) for row in rows}
    for datatype, allowed in (("BOOL", {bool}), ("INT64", {int}), ("FP64", {int, float}), ("BYTES", {str})):
        if kinds <= allowed:
            return datatype
    raise InvalidParam(FEATURES, f"feature '{name}': expected a number, a string, or true or false in every row")


class V2Protocol:
    """Rows to tensors, tensors to results: for each row an object of output name to value, or list of values."""

    def __init__(
        self,
        exchange: Exchange,
        encode: Encode,
        result: Callable[[JSON], JSON],
        *,
        outputs: Sequence[str],
        parameters: Mapping[str, JSON],
    ) -> None:
        self._exchange = exchange
        self._encode = encode
        self._result = result
        self._rest: dict[str, JSON] = {"parameters": dict(parameters)} if parameters else {}
        if outputs:
            self._rest["outputs"] = [{"name": name} for name in outputs]

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        answer = await self._exchange({"inputs": self._encode(rows), **self._rest})
        outputs = answer.get("outputs") if isinstance(answer, dict) else None
        if not isinstance(outputs, list) or not outputs:
            raise self._exchange.unfit("{'outputs': a list of tensors}", answer)
        columns: dict[str, list[JSON]] = {}
        for output in outputs:
            name = output.get("name") if isinstance(output, dict) else output
            if not isinstance(name, str):
                raise self._exchange.unfit("a name for each output", name)
            if name in columns:
                raise SourceError(f"{self._exchange.call}: two outputs are named '{name[:LONGEST_SHOWN]}'")
            try:
                flat = _flat(output["data"])
                columns[name] = _column(flat, output["shape"], len(rows))
            except (KeyError, TypeError, ValueError) as error:
                shortened = name[:LONGEST_SHOWN]
                raise SourceError(
                    f"{self._exchange.call}: the output '{shortened}' has no value for each of {len(rows)} rows"
                ) from error
            datatype = output.get("datatype")
            types = _TYPES.get(datatype) if isinstance(datatype, str) else None
            if types is not None and not types.issuperset(map(type, flat)):
                odd = next(value for value in flat if type(value) not in types)
                raise SourceError(
                    f"{self._exchange.call}: the output '{name[:LONGEST_SHOWN]}' is {datatype}, and holds {shown(odd)}"
                )
        names = list(columns)
        return [self._result(dict(zip(names, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _column(flat: list[Any], shape: Sequence[int], count: int) -> list[JSON]:
    """Return a tensor's values for each row. Raises ``ValueError`` when there is not one for each."""
    width = prod(shape[1:])
    if not shape or shape[0] != count or len(flat) != count * width:
        raise ValueError
    if width == 1:
        return flat
    return [flat[row * width : (row + 1) * width] for row in range(count)]


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise TypeError
    if not data or not isinstance(data[0], list):
        return data
    return [value for part in data for value in _flat(part)]
