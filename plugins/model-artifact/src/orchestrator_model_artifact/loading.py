"""From options to a model that scores rows. Everything here blocks: it runs in a thread or a process of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

from orchestrator_core.plugin_api import (
    JSON,
    Identity,
    ModelFacts,
    OrchestratorError,
    SourceError,
)
from orchestrator_model_artifact.accelerate import converted, sample_rows
from orchestrator_model_artifact.array_model import NativeModel, probed
from orchestrator_model_artifact.boosting import lightgbm_model, xgboost_model
from orchestrator_model_artifact.features import Row, Score
from orchestrator_model_artifact.fields import plan_fields
from orchestrator_model_artifact.formats import FileFormat, check_content, format_of
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.mlmodel import MLmodel, read_mlmodel
from orchestrator_model_artifact.one_row import OneRow, one_row
from orchestrator_model_artifact.onnx_flavor import OnnxFile, OnnxModel, onnx_file, onnx_model
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.pyfunc_flavor import pyfunc_model
from orchestrator_model_artifact.serialized import Trust, own_code
from orchestrator_model_artifact.sklearn_flavor import (
    SklearnModel,
    load_estimator,
    load_estimator_file,
    sklearn_model,
)
from orchestrator_model_artifact.versions import differences

FLAVORS = ("onnx", "sklearn", "xgboost", "lightgbm", "python_function")
"""MLflow's flavors that can be loaded, the quickest first."""


@frozen
class Request:
    """Which model to load: what a worker process is sent. ``version`` is what a registry calls it."""

    name: str
    options: ArtifactOptions
    location: Location
    version: str = ""
    onnx: bytes | None = field(default=None, repr=False)


@frozen
class LoadedModel:
    """``score`` blocks for as long as the model takes. ``sample`` are rows to measure it with.

    ``one_row`` is a quicker way for a single row on the event loop, where the model has one. ``doubts`` are sentences
    about what may not fit, such as another version of its library.
    """

    score: Score
    facts: ModelFacts
    identity: Identity
    sample: Sequence[Row]
    one_row: OneRow | None = None
    doubts: tuple[str, ...] = ()


@frozen
class Found:
    """What lies at a model's path: a file of a format, or an MLflow folder of which one flavor is used."""

    format: FileFormat | None = None
    mlmodel: MLmodel | None = None
    flavor: str = ""

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.mlmodel.flavors[self.flavor] if self.mlmodel else {}

    @property
    def code(self) -> str | None:
        """Return the folder of Python modules that the model brings and its flavor needs."""
        if self.mlmodel is None or self.flavor not in ("sklearn", "lightgbm"):
            return None
        of_pyfunc = self.mlmodel.flavors.get("python_function", {}).get("code")
        return str(self.settings.get("code") or of_pyfunc or "") or None

    @property
    def runs_own_code(self) -> bool:
        """Whether modules of the model's own are imported, which two models may have by the same names."""
        return self.flavor == "python_function" or self.code is not None


def look(options: ArtifactOptions, location: Location) -> Found:
    """Find out what lies there, without loading it. Raises :class:`SourceError` when nothing can load it."""
    if not location.is_file:
        if options.format not in ("auto", "mlflow"):
            raise SourceError(f"{location.path} is a folder: format '{options.format}' is a file")
        mlmodel = read_mlmodel(location)
        return Found(mlmodel=mlmodel, flavor=_flavor(options, mlmodel))
    if options.format == "mlflow":
        raise SourceError(f"{location.path} is a file: format 'mlflow' is a folder with a file 'MLmodel'")
    if options.flavor != "auto":
        raise SourceError(f"{location.path} is a file: flavor is for an MLflow model folder")
    name, data = location.name_of(location.main), location.read(location.main)
    if options.format == "auto":
        return Found(format_of(name, data))
    check_content(name, options.format, data)
    return Found(options.format)


def load(request: Request) -> LoadedModel:
    """Load the model. Raises :class:`SourceError` that says in words what is wrong with it."""
    options, location = request.options, request.location
    found = look(options, location)
    mlmodel = found.mlmodel
    doubts = tuple(differences(mlmodel.flavors, found.flavor)) if mlmodel else ()
    try:
        model = _model(request, found)
    except SourceError as error:
        if not doubts:
            raise
        raise SourceError(f"{error} ({'; '.join(doubts)})") from error
    sample = sample_rows(model.columns, mlmodel.example if mlmodel else ())
    if not isinstance(model, OnnxModel):
        model = probed(model, sample)
    fields = plan_fields(options.outputs, model.heads, mlmodel.outputs if mlmodel else ())
    predict = model.bind(fields.heads)

    def score(rows: Sequence[Row]) -> list[JSON]:
        try:
            arrays = predict(rows)
            for array in arrays:
                if array.shape[:1] != (len(rows),):
                    found = f"an array of shape {array.shape}" if array.shape else f"a single value, {array!r:.80}"
                    raise SourceError(f"the model failed: it predicted {found} for {len(rows)} rows")
            return fields.rows(arrays)
        except OrchestratorError:
            raise
        except BaseException as error:  # a model can raise anything: it is a backend that failed
            raise SourceError(f"the model failed: {_words(error)}") from error

    version = request.version or (mlmodel.version if mlmodel else "")
    return LoadedModel(
        score=score,
        facts=ModelFacts(inputs=tuple(column.name for column in model.columns), outputs=fields.names),
        identity=Identity(
            request.name,
            version or (model.version if isinstance(model, OnnxModel) else ""),
            f"sha256:{location.sha256}",
        ),
        sample=sample,
        one_row=one_row(model, fields, score, sample) if isinstance(model, OnnxModel) else None,
        doubts=doubts,
    )


def convert(request: Request) -> bytes:
    """Load the model and return it as ONNX. Raises :class:`SourceError` as :func:`load` does."""
    found = look(request.options, request.location)
    if "onnx" in (found.flavor, found.format):
        raise SourceError("accelerate: onnx is for sklearn models: this one is ONNX already")
    model = _model(request, found)
    if not isinstance(model, SklearnModel):
        raise SourceError(f"accelerate: onnx is for sklearn models, and not for the flavor {found.flavor}")
    return converted(model, found.mlmodel.example if found.mlmodel else (), request.options.tolerance)


def _flavor(options: ArtifactOptions, mlmodel: MLmodel) -> str:
    has = [flavor for flavor in FLAVORS if flavor in mlmodel.flavors]
    if options.flavor != "auto":
        wanted = "python_function" if options.flavor == "pyfunc" else options.flavor
        if wanted not in has:
            raise SourceError(
                f"the MLflow model has the flavors {', '.join(mlmodel.flavors)}, and not {options.flavor}"
            )
        return wanted
    if not has:
        raise SourceError(
            f"the MLflow model has the flavors {', '.join(mlmodel.flavors)}: only {', '.join(FLAVORS)} can be loaded"
        )
    return has[0]


def _model(request: Request, found: Found) -> NativeModel:
    options, location, mlmodel = request.options, request.location, found.mlmodel
    trust, nullable = trust_of(options), options.nulls == "nan"
    if found.flavor == "python_function":
        assert mlmodel is not None
        return pyfunc_model(location, mlmodel, options.features, nullable, trust)
    columns = mlmodel.scalar_columns() if mlmodel else ()
    if request.onnx is not None:
        return onnx_model(OnnxFile("the converted model", request.onnx), columns, nullable=nullable)
    if "onnx" in (found.format, found.flavor):
        name = location.inside(str(found.settings.get("data") or "model.onnx")) if mlmodel else location.main
        return onnx_model(onnx_file(location, name), columns, options.features, nullable)
    if found.flavor == "xgboost":
        return xgboost_model(location, found.settings, columns, options.features, nullable)
    with own_code(location, found.code, trust):
        if found.flavor == "lightgbm":
            return lightgbm_model(location, found.settings, columns, options.features, nullable, trust)
        if mlmodel:
            estimator = load_estimator(location, found.settings, trust)
        else:
            estimator = load_estimator_file(location, location.main, str(found.format), trust)
    return sklearn_model(estimator, columns, options.features, nullable)


def _words(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:  # an error of the model's own can fail to say what it is
        return type(error).__name__


def trust_of(options: ArtifactOptions) -> Trust:
    return Trust(options.trust, tuple(options.trusted_types or ()))
