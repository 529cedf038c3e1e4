"""The ``MLmodel`` file of an MLflow model folder, read without importing MLflow.

The file is YAML and MLflow's documented format (https://mlflow.org/docs/latest/ml/model/#mlmodel-file). Importing
``mlflow`` to parse it would cost seconds and more memory than the model; see docs/decisions/0003.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import field, frozen

from orchestrator_core.plugin_api import JSON, SourceError
from orchestrator_model_artifact.features import Column, FeatureType

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
    """What an ``MLmodel`` file says. ``columns`` and ``outputs`` are empty where the signature has no names."""

    flavors: Mapping[str, Mapping[str, Any]]
    columns: tuple[Column, ...] = ()
    outputs: tuple[str, ...] = ()
    version: str = ""
    example: tuple[Mapping[str, JSON], ...] = field(default=(), repr=False)


def read_mlmodel(folder: Path) -> MLmodel:
    """Read the folder's ``MLmodel`` and input example. Raises :class:`SourceError` when it is not a model folder."""
    try:
        data = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{folder} is no MLflow model: it has no file 'MLmodel'") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SourceError(f"{folder / 'MLmodel'} cannot be read: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("flavors"), dict):
        raise SourceError(f"{folder / 'MLmodel'} names no flavors")
    signature = data.get("signature") or {}
    columns = tuple(_column(entry) for entry in _schema(signature.get("inputs")))
    return MLmodel(
        flavors=data["flavors"],
        columns=columns,
        outputs=tuple(str(entry["name"]) for entry in _schema(signature.get("outputs"))),
        version=_version(folder, data),
        example=_example(folder, data.get("saved_input_example_info"), columns),
    )


def _schema(text: str | None) -> list[dict[str, Any]]:
    """Return the entries of a signature's half, or nothing for one without names, such as a bare tensor."""
    entries: list[dict[str, Any]] = json.loads(text) if text else []
    return entries if all("name" in entry for entry in entries) else []


def _column(entry: Mapping[str, Any]) -> Column:
    kind = entry.get("type")
    if kind not in _TYPES:
        shown = "tensor" if kind == "tensor" else f"type '{kind}'"
        raise SourceError(
            f"the signature's column '{entry['name']}' is a {shown}:"
            " an artifact model takes numbers, booleans and strings"
        )
    # MLflow marks a column as not required when the data it was inferred from had missing values.
    return Column(str(entry["name"]), _TYPES[kind], nullable=entry.get("required") is False)


def _version(folder: Path, data: Mapping[str, Any]) -> str:
    registered = folder / "registered_model_meta"
    if registered.is_file():
        meta = yaml.safe_load(registered.read_text(encoding="utf-8"))
        return f"{meta['model_name']}/{meta['model_version']}"
    return str(data.get("model_id") or data.get("model_uuid") or data.get("run_id") or "")


def _example(
    folder: Path, info: Mapping[str, Any] | None, columns: tuple[Column, ...]
) -> tuple[Mapping[str, JSON], ...]:
    """Return the rows of the input example, where there is one that is a table with the signature's columns."""
    path = folder / str((info or {}).get("artifact_path"))
    if not info or info.get("type") != "dataframe" or not path.is_file():
        return ()
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict) or {column.name for column in columns} - set(data.get("columns", ())):
        return ()
    return tuple(dict(zip(data["columns"], row, strict=True)) for row in data["data"])
