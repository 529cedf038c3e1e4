"""ONNX models, run by onnxruntime with one thread each: the service's concurrency is requests, not operators."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from attrs import evolve, field, frozen

from orchestrator_core.plugin_api import JSON, SourceError
from orchestrator_model_artifact.features import (
    Array,
    ByName,
    Column,
    FeatureType,
    Layout,
    Matrix,
    ObjectMatrix,
    Row,
    Typecode,
    made_up_rows,
)
from orchestrator_model_artifact.fields import Head
from orchestrator_model_artifact.formats import check_content
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.onnx_files import external_files
from orchestrator_model_artifact.packages import needs

_TYPECODES: dict[str, Typecode] = {
    "tensor(float)": "f",
    "tensor(double)": "d",
    "tensor(int32)": "i",
    "tensor(int64)": "q",
}
_TYPES: dict[str, FeatureType] = {
    "tensor(float)": "number",
    "tensor(double)": "number",
    "tensor(int32)": "integer",
    "tensor(int64)": "integer",
    "tensor(bool)": "boolean",
    "tensor(string)": "string",
}
_LABELS = ("label", "output_label")
_PROBABILITIES = ("probabilities", "output_probability")


@frozen
class OnnxModel:
    """An open session, its features in its order, and what it predicts.

    ``layout`` is how one row lies in a buffer, or None where it is not all numbers.
    """

    session: Any
    columns: tuple[Column, ...]
    heads: tuple[Head, ...]
    version: str
    layout: Layout | None
    _feed: Callable[[Sequence[Row]], Mapping[str, Any]]

    def bind(self, heads: Sequence[Head]) -> Callable[[Sequence[Row]], list[Array]]:
        """Return the function from rows to the arrays of these heads."""
        run, feed = self.session.run, self._feed
        names = [head.name for head in heads]
        zipped = {i: head for i, head in enumerate(heads) if _is_zipped(self.session, head.name)}
        if not zipped:
            return lambda rows: run(names, feed(rows))

        def unzipped(rows: Sequence[Row]) -> list[Array]:
            arrays = run(names, feed(rows))
            for i, head in zipped.items():
                arrays[i] = np.array([[row[label] for label in head.classes or ()] for row in arrays[i]])
            return list(arrays)

        return unzipped


@frozen
class OnnxFile:
    """A model's bytes, with those of the files that it keeps weights in, by the names it has for them."""

    name: str
    data: bytes
    others: Mapping[str, bytes] = field(factory=dict)


def onnx_file(location: Location, name: str) -> OnnxFile:
    """Read the model and what it refers to. Raises :class:`SourceError` when that is not beside it."""
    data = location.read(name)
    shown = location.name_of(name)
    check_content(shown, "onnx", data)
    folder = PurePosixPath(name).parent
    others = {other: location.read(location.inside(str(folder / other))) for other in external_files(data)}
    return OnnxFile(shown, data, others)


def onnx_model(
    model: OnnxFile, columns: Sequence[Column] = (), features: Sequence[str] | None = None, nullable: bool = False
) -> OnnxModel:
    """Open an ONNX model.

    The names of its features are the inputs' own where each input is one feature; for a single ``[N, F]`` input they
    come from ``features``, from ``columns`` (an MLflow signature) or from the model's metadata, ``feature_names``.
    Raises :class:`SourceError` when the file is not ONNX, when they are not known or when they do not fit.
    """
    session = _session(model)
    metadata = session.get_modelmeta()
    known = {column.name: column for column in columns}
    said = tuple(features or known or _json_list(metadata.custom_metadata_map, "feature_names"))
    inputs = session.get_inputs()
    feed: Callable[[Sequence[Row]], Mapping[str, Any]]
    if len(inputs) == 1 and not (_is_one_feature(inputs[0]) and len(said) <= 1):
        found, layout, feed = _one_input(inputs[0], said, known, nullable)
    else:
        found, layout, feed = _input_each(inputs, said, known, nullable)
    heads = _heads(session, found, feed, _json_list(metadata.custom_metadata_map, "classes"))
    return OnnxModel(session, found, heads, str(metadata.version or ""), layout, feed)


def _session(model: OnnxFile) -> Any:
    with needs("onnx", "an ONNX model"):
        import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # its errors are raised; it would also print them
    if model.others:
        contents = list(model.others.values())
        options.add_external_initializers_from_files_in_memory(list(model.others), contents, list(map(len, contents)))
    try:
        return onnxruntime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each of its status codes, without a common base
        raise SourceError(f"{model.name} cannot be loaded as ONNX: {error}") from error


def _json_list(metadata: Mapping[str, str], key: str) -> list[Any]:
    try:
        value = json.loads(metadata.get(key, "[]"))
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, list):
        raise SourceError(f"the ONNX model's metadata '{key}' is not a JSON list: {metadata[key]}")
    return value


# --- inputs --------------------------------------------------------------------------------------------------------


def _is_one_feature(node: Any) -> bool:
    return len(node.shape) == 1 or (len(node.shape) == 2 and node.shape[1] == 1)


def _one_input(
    node: Any, names: Sequence[str], known: Mapping[str, Column], nullable: bool
) -> tuple[tuple[Column, ...], Layout | None, Callable[[Sequence[Row]], Mapping[str, Any]]]:
    _check_type(node)
    if len(node.shape) != 2:
        raise SourceError(f"the input '{node.name}' has the shape {node.shape}: an artifact model takes rows, [N, F]")
    if not names:
        raise SourceError(
            f"the ONNX model does not say what the {node.shape[1]} columns of its input '{node.name}' are:"
            " list their names in `features`"
        )
    if isinstance(node.shape[1], int) and node.shape[1] != len(names):
        raise SourceError(
            f"the ONNX model's input '{node.name}' has {node.shape[1]} columns,"
            f" {len(names)} are named: {', '.join(names)}"
        )
    columns = tuple(_column(name, node, known, nullable) for name in names)
    name = node.name
    if node.type == "tensor(string)":
        strings = ObjectMatrix(columns)
        return columns, None, lambda rows: {name: strings(rows)}
    matrix = Matrix(columns, _TYPECODES[node.type])
    return columns, matrix.layout(name), lambda rows: {name: matrix(rows)}


def _input_each(
    nodes: Sequence[Any], names: Sequence[str], known: Mapping[str, Column], nullable: bool
) -> tuple[tuple[Column, ...], Layout | None, Callable[[Sequence[Row]], Mapping[str, Any]]]:
    for node in nodes:
        _check_type(node)
        if not _is_one_feature(node):
            raise SourceError(
                f"the input '{node.name}' has the shape {node.shape}:"
                " with several inputs each must be one feature, [N, 1]"
            )
    inputs = [node.name for node in nodes]
    if names and set(names) != set(inputs):
        raise SourceError(f"the features {', '.join(names)} are not the ONNX model's inputs: {', '.join(inputs)}")
    columns = tuple(_column(node.name, node, known, nullable) for node in nodes)
    typecodes = {node.name: _TYPECODES[node.type] for node in nodes if node.type in _TYPECODES}
    ranks = {len(node.shape) for node in nodes}
    if len(ranks) > 1:
        raise SourceError("the ONNX model's inputs are [N] and [N, 1] mixed: give all the same rank")
    feed = ByName(columns, typecodes, rank=ranks.pop())
    return columns, feed.layout(), feed


def _check_type(node: Any) -> None:
    if node.type not in _TYPES:
        raise SourceError(f"the input '{node.name}' is a {node.type}: expected one of {', '.join(_TYPES)}")


def _column(name: str, node: Any, known: Mapping[str, Column], nullable: bool) -> Column:
    column = known.get(name)
    if column is None or (column.type == "string") != (node.type == "tensor(string)"):
        column = Column(name, _TYPES[node.type])
    return evolve(column, nullable=column.nullable or nullable)


# --- outputs -------------------------------------------------------------------------------------------------------


def _is_zipped(session: Any, name: str) -> bool:
    """Return whether an output is a list of ``{class: probability}``, which skl2onnx's ZipMap makes."""
    return any(node.name == name and node.type.startswith("seq(map(") for node in session.get_outputs())


def _heads(
    session: Any,
    columns: Sequence[Column],
    feed: Callable[[Sequence[Row]], Mapping[str, Any]],
    classes: Sequence[JSON],
) -> tuple[Head, ...]:
    nodes = session.get_outputs()
    seen = _probe(session, feed, made_up_rows(columns, 1))
    heads = []
    for index, node in enumerate(nodes):
        zipped = _is_zipped(session, node.name)
        if zipped and seen is None:
            raise SourceError(
                f"the classes of the output '{node.name}' cannot be told, because the model fails on a made-up row:"
                " convert it with the option zipmap off"
            )
        if zipped and seen is not None:
            found = tuple(seen[index][0])
            heads.append(Head(node.name, "probabilities", len(found), found))
            continue
        width = _width(node, None if seen is None else seen[index])
        is_probabilities = node.name in _PROBABILITIES and width is not None
        kind = "label" if node.name in _LABELS else "probabilities" if is_probabilities else "value"
        named = tuple(classes) if is_probabilities and len(classes) == width else None
        heads.append(Head(node.name, kind, width, named))  # type: ignore[arg-type]  # mypy widens the literals
    return tuple(heads)


def _probe(session: Any, feed: Callable[[Sequence[Row]], Mapping[str, Any]], rows: Sequence[Row]) -> list[Any] | None:
    try:
        return list(session.run(None, feed(rows)))
    except Exception:  # a made-up row may hold a category that the model has never seen; the static shapes remain
        return None


def _width(node: Any, seen: Any) -> int | None:
    shape = seen.shape if seen is not None else node.shape
    if len(shape) < 2:
        return None
    return int(shape[1]) if isinstance(shape[1], int) else None
