"""From options to a model that scores rows. Everything here blocks: it runs in a thread or a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attrs import field, frozen

from orchestrator_core.plugin_api import (
    JSON,
    Identity,
    ModelFacts,
    OrchestratorError,
    SourceError,
)
from orchestrator_model_artifact.accelerate import converted, sample_rows
from orchestrator_model_artifact.features import Row, Score
from orchestrator_model_artifact.fields import plan_fields
from orchestrator_model_artifact.location import Location, locate
from orchestrator_model_artifact.mlmodel import MLmodel, read_mlmodel
from orchestrator_model_artifact.one_row import OneRow, one_row
from orchestrator_model_artifact.onnx_flavor import OnnxModel, onnx_model
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.sklearn_flavor import SklearnModel, load_estimator, probed, sklearn_model


@frozen
class Request:
    """Which model to load: what a worker process is sent."""

    name: str
    options: ArtifactOptions
    config_dir: Path
    onnx: bytes | None = field(default=None, repr=False)


@frozen
class LoadedModel:
    """``score`` blocks for as long as the model takes. ``sample`` are rows to measure it with.

    ``one_row`` is a quicker way for a single row on the event loop, where the model has one.
    """

    score: Score
    facts: ModelFacts
    identity: Identity
    sample: Sequence[Row]
    one_row: OneRow | None = None


def load(request: Request) -> LoadedModel:
    """Find, check and load the model. Raises :class:`SourceError` that says in words what is wrong with it."""
    options = request.options
    location = locate(options, request.config_dir)
    mlmodel = _mlmodel(options, location)
    model: SklearnModel | OnnxModel
    if request.onnx is not None:
        model = onnx_model(request.onnx, mlmodel.columns if mlmodel else (), nullable=options.nulls == "nan")
    elif mlmodel is None or "onnx" in mlmodel.flavors:
        model = _load_onnx(options, location, mlmodel)
    else:
        model = _load_sklearn(options, location, mlmodel)
    sample = sample_rows(model.columns, mlmodel.example if mlmodel else ())
    if isinstance(model, SklearnModel):
        model = probed(model, sample)
    fields = plan_fields(options.outputs, model.heads, mlmodel.outputs if mlmodel else ())
    predict = model.bind(fields.heads)

    def score(rows: Sequence[Row]) -> list[JSON]:
        try:
            arrays = predict(rows)
        except OrchestratorError:
            raise
        except Exception as error:  # a model can raise anything; to the request it is a backend that failed
            raise SourceError(f"the model failed: {type(error).__name__}: {error}") from error
        return fields.rows(arrays)

    version = (mlmodel.version if mlmodel else "") or (model.version if isinstance(model, OnnxModel) else "")
    return LoadedModel(
        score=score,
        facts=ModelFacts(inputs=tuple(column.name for column in model.columns), outputs=fields.names),
        identity=Identity(request.name, version, f"sha256:{location.sha256}"),
        sample=sample,
        one_row=one_row(model, fields, score, sample) if isinstance(model, OnnxModel) else None,
    )


def convert(request: Request) -> bytes:
    """Load the model and return it as ONNX. Raises :class:`SourceError` as :func:`load` does."""
    location = locate(request.options, request.config_dir)
    mlmodel = _mlmodel(request.options, location)
    if mlmodel is None or "onnx" in mlmodel.flavors:
        raise SourceError("accelerate: onnx is for sklearn models: this one is ONNX already")
    model = _load_sklearn(request.options, location, mlmodel)
    return converted(model, mlmodel.example, request.options.tolerance)


def _mlmodel(options: ArtifactOptions, location: Location) -> MLmodel | None:
    """Return what the folder's MLmodel file says, or None for a bare ONNX file."""
    path = location.path
    if options.format == "mlflow" or (options.format == "auto" and path.is_dir()):
        if not path.is_dir():
            raise SourceError(f"{path} is a file: format 'mlflow' is a folder with a file 'MLmodel'")
        mlmodel = read_mlmodel(path)
        if not {"onnx", "sklearn"} & set(mlmodel.flavors):
            raise SourceError(
                f"the MLflow model has the flavors {', '.join(mlmodel.flavors)}: only sklearn and onnx can be loaded"
            )
        return mlmodel
    if path.is_dir():
        raise SourceError(f"{path} is a folder: format 'onnx' is a file")
    if options.format == "auto" and path.suffix != ".onnx":
        raise SourceError(
            f"the format of {path.name} cannot be told from its name: expected an MLflow model folder or an .onnx file"
        )
    return None


def _load_onnx(options: ArtifactOptions, location: Location, mlmodel: MLmodel | None) -> OnnxModel:
    if mlmodel is None:
        return onnx_model(location.path, (), options.features, options.nulls == "nan")
    path = location.inside(str(mlmodel.flavors["onnx"].get("data") or "model.onnx"))
    return onnx_model(path, mlmodel.columns, options.features, options.nulls == "nan")


def _load_sklearn(options: ArtifactOptions, location: Location, mlmodel: MLmodel) -> SklearnModel:
    estimator = load_estimator(location, mlmodel.flavors["sklearn"], options.trust)
    return sklearn_model(estimator, mlmodel.columns, options.features, options.nulls == "nan")
