"""``accelerate: onnx``: convert an sklearn model when it is loaded, and prove that it predicts the same.

The conversion (skl2onnx) needs sklearn and onnx in memory, some 250 MB; :mod:`model` runs it in a process that ends
afterwards, so that the service holds onnxruntime and the converted model only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

import numpy as np

from orchestrator_core.plugin_api import JSON, SourceError
from orchestrator_model_artifact.features import Column, Matrix, Row, made_up_rows
from orchestrator_model_artifact.onnx_flavor import OnnxFile, OnnxModel, onnx_model
from orchestrator_model_artifact.packages import needs
from orchestrator_model_artifact.sklearn_flavor import SklearnModel

SAMPLE_ROWS = 100


def converted(model: SklearnModel, example: Sequence[Row], tolerance: float) -> bytes:
    """Return the model as ONNX, with the names of its features and classes in its metadata.

    64-bit floats are tried first and 32-bit ones where an operator has no others. The first that predicts the same as
    the model on the sample rows within the tolerance is taken. Raises :class:`SourceError` when none does.
    """
    with needs("accelerate", "accelerate: onnx"):
        import skl2onnx  # noqa: F401
    rows = sample_rows(model.columns, example)
    try:
        expected = model.bind(model.heads)(rows)
    except Exception as error:
        raise SourceError(
            f"accelerate: onnx needs rows to prove the conversion on, and the model fails on made-up ones ({error}):"
            " log it with an input_example"
        ) from error
    reasons = []
    for bits in (64, 32):
        try:
            data = _convert(model, bits)
            _prove(model, onnx_model(OnnxFile("the converted model", data), model.columns), rows, expected, tolerance)
        except SourceError as error:
            reasons.append(f"with {bits}-bit floats, {error}")
        else:
            return data
    raise SourceError(f"accelerate: onnx: {'; '.join(reasons)}: set accelerate: none")


def sample_rows(columns: Sequence[Column], example: Sequence[Row]) -> list[Row]:
    """Return the input example and rows that mix its values, or made-up rows when there is no example."""
    complete = [row for row in example if all(row.get(column.name) is not None for column in columns)]
    if not complete:
        return made_up_rows(columns, SAMPLE_ROWS)
    random = Random(0)
    mixed = [{column.name: random.choice(complete)[column.name] for column in columns} for _ in range(SAMPLE_ROWS)]
    return [*complete[:SAMPLE_ROWS], *mixed]


def _convert(model: SklearnModel, bits: int) -> bytes:
    from skl2onnx import convert_sklearn

    classes = next((head.classes for head in model.heads if head.classes), None)
    options = {id(model.estimator): {"zipmap": False}} if classes else None
    try:
        proto = convert_sklearn(model.estimator, initial_types=_initial_types(model, bits), options=options)
    except Exception as error:  # skl2onnx and the converters it calls have no common error class
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(f"{type(model.estimator).__name__} cannot be converted: {reason[0]}") from error
    metadata: dict[str, Sequence[JSON]] = {"feature_names": [column.name for column in model.columns]}
    if classes:
        metadata["classes"] = classes
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, json.dumps(value)
    return bytes(proto.SerializeToString())


def _initial_types(model: SklearnModel, bits: int) -> list[tuple[str, Any]]:
    from skl2onnx.common import data_types

    number = data_types.DoubleTensorType if bits == 64 else data_types.FloatTensorType
    if isinstance(model.gather, Matrix):
        return [("features", number([None, len(model.columns)]))]
    types: Mapping[str, Any] = {
        "number": number,
        "integer": data_types.Int64TensorType,
        "boolean": data_types.Int64TensorType,
        "string": data_types.StringTensorType,
    }
    return [
        (column.name, (number if column.nullable and column.type == "integer" else types[column.type])([None, 1]))
        for column in model.columns
    ]


def _prove(
    model: SklearnModel, onnx: OnnxModel, rows: Sequence[Row], expected: Sequence[Any], tolerance: float
) -> None:
    """Compare every number and every label. A label may differ where its class is not ahead by the tolerance."""
    try:
        arrays = onnx.bind(onnx.heads)(rows)
    except Exception as error:  # onnxruntime has a class for each of its status codes, without a common base
        raise SourceError(f"the converted model fails: {error}") from error
    found = {head.kind: array for head, array in zip(onnx.heads, arrays, strict=True)}
    tied = np.zeros(len(rows), dtype=bool)
    for head, wanted in zip(reversed(model.heads), reversed(expected), strict=True):
        actual = found[head.kind].reshape(wanted.shape)
        if head.kind == "label":
            wrong = np.flatnonzero((actual != wanted) & ~tied)
            if wrong.size:
                raise _unequal(rows, int(wrong[0]), actual, wanted, tolerance)
            continue
        off = np.abs(actual - wanted) > tolerance * np.maximum(1, np.abs(wanted))
        off |= np.isnan(actual) != np.isnan(wanted)
        if off.any():
            raise _unequal(rows, int(np.argwhere(off)[0][0]), actual, wanted, tolerance)
        if head.kind == "probabilities":
            ranked = np.sort(wanted, axis=1)
            tied = ranked[:, -1] - ranked[:, -2] <= 2 * tolerance


def _unequal(rows: Sequence[Row], row: int, actual: Any, wanted: Any, tolerance: float) -> SourceError:
    return SourceError(
        f"the converted model predicts {actual[row].tolist()} where the model predicts {wanted[row].tolist()},"
        f" more than the tolerance {tolerance:g} apart, on {json.dumps(dict(rows[row]))}"
    )
