"""MLflow's pyfunc, for every model that no native flavor is for. It runs the model's own code, and needs MLflow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from attrs import evolve, frozen

from orchestrator_core.plugin_api import SourceError
from orchestrator_model_artifact.accelerate import sample_rows
from orchestrator_model_artifact.array_model import ArrayModel
from orchestrator_model_artifact.features import Array, Column, Frame, Matrix, Row, Typecode
from orchestrator_model_artifact.fields import Head
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.mlmodel import MLmodel
from orchestrator_model_artifact.packages import needs
from orchestrator_model_artifact.serialized import Trust, own_code

_TYPECODES: dict[str, Typecode] = {"integer": "i", "long": "q", "float": "f", "double": "d"}
_TIME = "datetime"
_ONLY = "predict"


@frozen
class _Outputs:
    """The function from what pyfunc returned to an array for each head."""

    heads: tuple[Head, ...]

    def __call__(self, result: Any, rows: int) -> list[Array]:
        named = _named(result)
        try:
            arrays = [named[head.name] for head in self.heads]
        except KeyError as error:
            raise SourceError(f"the model returned {', '.join(map(str, named))}, and not {error}") from error
        for head, array in zip(self.heads, arrays, strict=True):
            if len(array) != rows:
                raise SourceError(f"the model returned {len(array)} values of '{head.name}' for {rows} rows")
        return arrays


def pyfunc_model(
    location: Location, mlmodel: MLmodel, features: Sequence[str] | None, nullable: bool, trust: Trust
) -> ArrayModel:
    """Load the model by MLflow. Raises :class:`SourceError` when that is not trusted, or fails."""
    flavor = mlmodel.flavors["python_function"]
    if not trust.everything:
        loader = flavor.get("loader_module")
        raise SourceError(
            f"the model is a pyfunc: MLflow loads it by running its loader_module '{loader}', and with that code of the"
            " model's: set trust: true if you know who made it"
        )
    columns = mlmodel.columns or tuple(Column(name, "any") for name in features or ())
    if not columns:
        raise SourceError("the model does not say its features: log it with a signature, or list them in `features`")
    if features and mlmodel.columns and set(features) != {column.name for column in columns}:
        known = ", ".join(column.name for column in columns)
        raise SourceError(f"the features {', '.join(features)} are not the model's signature: {known}")
    columns = tuple(evolve(column, nullable=column.nullable or nullable) for column in columns)
    gather = _gather(columns, mlmodel)
    model = _loaded(location, trust)

    def run(frame: Any) -> Any:
        return model.predict(frame)

    outputs = _Outputs(_heads(run, gather, sample_rows(columns, mlmodel.example), mlmodel.outputs))
    return ArrayModel(columns, outputs.heads, gather, lambda frame: outputs(run(frame), len(frame)))


def _loaded(location: Location, trust: Trust) -> Any:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on packages whose versions differ: we say so in our own words
        with needs("mlflow", "an MLflow model without a flavor that is loaded natively"):
            import mlflow.pyfunc
        try:
            with needs("mlflow", "the model"), own_code(location, None, trust):
                return mlflow.pyfunc.load_model(str(location.path))
        except SourceError:
            raise
        except BaseException as error:  # it is the model's own code that fails
            raise SourceError(f"MLflow cannot load the model: {type(error).__name__}: {error}") from error


def _gather(columns: tuple[Column, ...], mlmodel: MLmodel) -> Callable[[Sequence[Row]], Any]:
    if mlmodel.tensor:
        matrix = Matrix([evolve(column, type="number") for column in columns], "d")
        return lambda rows: matrix(rows).astype(mlmodel.tensor)
    nullable = {column.name for column in columns if column.nullable}
    typecodes: Mapping[str, Typecode] = {
        name: _TYPECODES[kind] for name, kind in mlmodel.types.items() if kind in _TYPECODES and name not in nullable
    }
    with needs("mlflow", "a pyfunc model"):
        return Frame(columns, typecodes, [name for name, kind in mlmodel.types.items() if kind == _TIME])


def _heads(
    run: Callable[[Any], Any],
    gather: Callable[[Sequence[Row]], Any],
    sample: Sequence[Row],
    named: Sequence[str],
) -> tuple[Head, ...]:
    """Return what the model gives, seen on a row; else what its signature says, for a made-up row may not fit it."""
    try:
        found = _named(run(gather(sample[:1])))
    except BaseException:  # the model's own code can raise anything
        return tuple(Head(name, "value") for name in (named if len(named) > 1 else (_ONLY,)))
    return tuple(Head(name, "value", array.shape[1] if array.ndim > 1 else None) for name, array in found.items())


def _named(result: Any) -> dict[str, Array]:
    """Return what a pyfunc returned as arrays with a row for each row: a table's columns, or one that has no name."""
    if hasattr(result, "columns") and hasattr(result, "to_numpy"):
        return {str(name): _plain(result[name].to_numpy()) for name in result.columns}
    if isinstance(result, Mapping):
        return {str(name): _plain(values) for name, values in result.items()}
    return {_ONLY: _plain(result.to_numpy() if hasattr(result, "to_numpy") else result)}


def _plain(values: Any) -> Array:
    if isinstance(values, np.ndarray):
        if values.dtype.kind in "mM":
            if np.isnat(values).any():
                raise _not_a_time()
            return values.astype(f"{values.dtype.kind}8[us]")  # in nanoseconds it would become an integer
        if values.dtype.kind != "O" or values.ndim != 1:
            return values
    try:
        array = np.asarray(values)
        if array.dtype.kind in "biuf" and array.ndim in (1, 2):
            return array
        items = list(values)
    except (TypeError, ValueError):
        if not isinstance(values, list | tuple):
            raise SourceError(f"the model returned a {type(values).__name__}, not a value for each row") from None
        items = list(values)
    array = np.empty(len(items), dtype=object)
    for index, item in enumerate(items):
        array[index] = _without_numpy(item)
    return array


def _without_numpy(item: Any) -> Any:
    """Return what a model has put together for one row, with plain numbers and lists for numpy's."""
    if isinstance(item, Mapping):
        return {str(key): _without_numpy(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return [_without_numpy(value) for value in item]
    if isinstance(item, np.datetime64 | np.timedelta64 | datetime | timedelta) and item != item:  # as NaN is not NaN
        raise _not_a_time()
    return item.tolist() if isinstance(item, np.generic | np.ndarray) else item


def _not_a_time() -> SourceError:
    return SourceError("the model predicted NaT, which is no time; JSON has no value for it")
