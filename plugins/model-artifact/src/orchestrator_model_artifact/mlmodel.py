"""The ``MLmodel`` file of an MLflow model folder, read without importing MLflow.

The file is YAML and MLflow's documented format (https://mlflow.org/docs/latest/ml/model/#mlmodel-file). Importing
``mlflow`` to parse it would cost seconds and more memory than the model; see docs/decisions/0003.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml
from attrs import field, frozen

from orchestrator_core.plugin_api import JSON, SourceError
from orchestrator_model_artifact.features import Column, FeatureType
from orchestrator_model_artifact.location import Location

_TYPES: dict[str, FeatureType] = {
    "double": "number",
    "float": "number",
    "long": "integer",
    "integer": "integer",
    "boolean": "boolean",
    "string": "string",
}


@frozen
class MLmodel:
    """What an ``MLmodel`` file says. ``columns`` and ``outputs`` are empty where the signature has no names.

    ``types`` are MLflow's words for the columns' types; ``tensor`` that of a signature which is one bare tensor.
    """

    flavors: Mapping[str, Mapping[str, Any]]
    columns: tuple[Column, ...] = ()
    types: Mapping[str, str] = field(factory=dict)
    tensor: str = ""
    outputs: tuple[str, ...] = ()
    version: str = ""
    example: tuple[Mapping[str, JSON], ...] = field(default=(), repr=False)

    def scalar_columns(self) -> tuple[Column, ...]:
        """Return the columns for a model that takes numbers, booleans and strings only, or raise SourceError."""
        for column in self.columns:
            if column.type == "any":
                kind = self.types[column.name]
                shown = "tensor" if kind == "tensor" else f"type '{kind}'"
                raise SourceError(
                    f"the signature's column '{column.name}' is a {shown}: the native flavors take numbers, booleans"
                    " and strings: set flavor: pyfunc with trust: true"
                )
        return self.columns


def read_mlmodel(location: Location) -> MLmodel:
    """Read the folder's ``MLmodel`` and input example. Raises :class:`SourceError` when it is not a model folder."""
    if "MLmodel" not in location.files:
        raise SourceError(f"{location.path} is no MLflow model: it has no file 'MLmodel'")
    where = location.path / "MLmodel"
    try:
        data = yaml.safe_load(location.read("MLmodel").decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError(f"{where} cannot be read: {error}") from error
    flavors = data.get("flavors") if isinstance(data, dict) else None
    if not isinstance(flavors, dict) or not all(isinstance(flavor, dict) for flavor in flavors.values()):
        raise SourceError(f"{where} names no flavors")
    try:
        signature = data.get("signature") or {}
        inputs, outputs = _schema(signature.get("inputs")), _schema(signature.get("outputs"))
        columns = tuple(_column(entry) for entry in inputs if "name" in entry)
        return MLmodel(
            flavors=flavors,
            columns=columns,
            types={str(entry["name"]): str(entry.get("type")) for entry in inputs if "name" in entry},
            tensor=str(inputs[0]["tensor-spec"]["dtype"]) if inputs and "name" not in inputs[0] else "",
            outputs=tuple(str(entry["name"]) for entry in outputs if "name" in entry),
            version=_version(location, data),
            example=_example(location, data.get("saved_input_example_info"), columns),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise SourceError(f"{where} is damaged: {type(error).__name__}: {error}") from error


def _schema(text: str | None) -> list[dict[str, Any]]:
    """Return the entries of a signature's half: all with a name, or one bare tensor or column without."""
    entries: list[dict[str, Any]] = json.loads(text) if text else []
    named = [entry for entry in entries if "name" in entry]
    return named if len(named) == len(entries) else [entry for entry in entries[:1] if "tensor-spec" in entry]


def _column(entry: Mapping[str, Any]) -> Column:
    # MLflow marks a column as not required when the data it was inferred from had missing values.
    nullable = entry.get("required") is False
    return Column(str(entry["name"]), _TYPES.get(str(entry.get("type")), "any"), nullable)


def _version(location: Location, data: Mapping[str, Any]) -> str:
    if "registered_model_meta" in location.files:
        meta = yaml.safe_load(location.read("registered_model_meta"))
        return f"{meta['model_name']}/{meta['model_version']}"
    return str(data.get("model_id") or data.get("model_uuid") or data.get("run_id") or "")


def _example(
    location: Location, info: Mapping[str, Any] | None, columns: tuple[Column, ...]
) -> tuple[Mapping[str, JSON], ...]:
    """Return the rows of the input example, where there is one that is a table with the signature's columns."""
    name = str((info or {}).get("artifact_path"))
    if not info or info.get("type") != "dataframe" or name not in location.files:
        return ()
    data = json.loads(location.read(name))
    if not isinstance(data, dict) or {column.name for column in columns} - set(data.get("columns", ())):
        return ()
    return tuple(dict(zip(data["columns"], row, strict=True)) for row in data["data"])
