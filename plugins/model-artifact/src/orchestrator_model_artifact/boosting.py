"""MLflow's xgboost and lightgbm flavors, predicted without MLflow: the library's own model on numpy.

Both libraries' own formats hold trees and numbers and run no code. MLflow saves LightGBM's sklearn classes with skops
or as a pickle, which are held to the same trust as any other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve

from orchestrator_core.plugin_api import SourceError
from orchestrator_model_artifact.array_model import ArrayModel
from orchestrator_model_artifact.features import Array, Column, Matrix
from orchestrator_model_artifact.fields import Head
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.packages import needs
from orchestrator_model_artifact.serialized import Trust, load_object
from orchestrator_model_artifact.sklearn_flavor import SklearnModel, ordered, single_threaded, sklearn_model

_XGBOOST_CLASSES = ("XGBClassifier", "XGBRegressor", "XGBRanker", "XGBRFClassifier", "XGBRFRegressor")


def xgboost_model(
    location: Location,
    flavor: Mapping[str, Any],
    columns: Sequence[Column],
    features: Sequence[str] | None,
    nullable: bool,
) -> ArrayModel | SklearnModel:
    """Load MLflow's xgboost flavor: a Booster, or one of the classes that follow sklearn."""
    name = location.inside(str(flavor.get("data") or "model.xgb"))
    module, _, class_name = str(flavor.get("model_class") or "xgboost.core.Booster").rpartition(".")
    # The name comes from the model: only what is known here is made from it.
    if module.partition(".")[0] != "xgboost" or class_name not in ("Booster", *_XGBOOST_CLASSES):
        raise SourceError(
            f"model_class '{module}.{class_name}' is none of XGBoost's: Booster, {', '.join(_XGBOOST_CLASSES)}"
        )
    with needs("xgboost", "an MLflow model with the xgboost flavor"):
        import xgboost
    model = getattr(xgboost, class_name)()
    try:
        model.load_model(bytearray(location.read(name)))
    except xgboost.core.XGBoostError as error:
        reason = str(error).partition("\n")[0]
        raise SourceError(f"{location.name_of(name)} cannot be loaded as XGBoost's JSON or UBJSON: {reason}") from error
    single_threaded(model)
    if class_name != "Booster":
        return sklearn_model(model, columns, features, nullable)
    model.set_param({"nthread": 1})
    found = _numbers(ordered(columns, features, model.feature_names, model.num_features()), nullable)

    def predict(matrix: Any) -> list[Array]:
        return [np.asarray(model.inplace_predict(matrix, validate_features=False))]

    return ArrayModel(found, (Head("predict", "value"),), Matrix(found, "d"), predict)


def lightgbm_model(
    location: Location,
    flavor: Mapping[str, Any],
    columns: Sequence[Column],
    features: Sequence[str] | None,
    nullable: bool,
    trust: Trust,
) -> ArrayModel | SklearnModel:
    """Load MLflow's lightgbm flavor: a Booster, or one of the classes that follow sklearn."""
    name = location.inside(str(flavor.get("data") or "model.lgb"))
    class_name = str(flavor.get("model_class") or "lightgbm.basic.Booster")
    with needs("lightgbm", "an MLflow model with the lightgbm flavor"):
        import lightgbm
    data = location.read(name)
    classes: Array | None = None
    if class_name == "lightgbm.basic.Booster":
        try:
            booster = lightgbm.Booster(model_str=data.decode("utf-8"))
        except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
            raise SourceError(f"{location.name_of(name)} cannot be loaded as LightGBM's text: {error}") from error
    else:
        serialization = str(flavor.get("serialization_format") or "cloudpickle")
        estimator = load_object(location.name_of(name), data, serialization, trust, "lightgbm")
        if not isinstance(estimator, lightgbm.LGBMModel):
            raise SourceError(f"{location.name_of(name)} holds a {type(estimator).__name__}, expected {class_name}")
        if callable(estimator.objective_):  # what the trees add up to then means what only its author knows
            single_threaded(estimator)
            return sklearn_model(estimator, columns, features, nullable)
        booster = estimator.booster_
        classes = getattr(estimator, "classes_", None)
    fitted: Sequence[str] | None = booster.feature_name()
    assert fitted is not None
    if all(name == f"Column_{index}" for index, name in enumerate(fitted)):
        fitted = None  # it was fitted on an array
    found = _numbers(
        ordered(columns, features, _unsanitized(fitted, columns, features), booster.num_feature()), nullable
    )
    if classes is None:
        return ArrayModel(
            found,
            (Head("predict", "value"),),
            Matrix(found, "d"),
            lambda matrix: [np.asarray(booster.predict(matrix, num_threads=1))],
        )
    known = classes

    def predict(matrix: Any) -> list[Array]:
        raw = np.asarray(booster.predict(matrix, num_threads=1))
        probabilities = raw if raw.ndim > 1 else np.column_stack([1.0 - raw, raw])
        return [known.take(np.argmax(probabilities, axis=1)), probabilities]

    heads = (Head("predict", "label"), Head("predict_proba", "probabilities", len(known), tuple(known.tolist())))
    return ArrayModel(found, heads, Matrix(found, "d"), predict)


def _numbers(columns: Sequence[Column], nullable: bool) -> tuple[Column, ...]:
    for column in columns:
        if column.type == "string":
            raise SourceError(
                f"the signature's column '{column.name}' is a string, and the native flavor takes numbers:"
                " set flavor: pyfunc with trust: true"
            )
    return tuple(evolve(column, nullable=column.nullable or nullable) for column in columns)


def _unsanitized(
    fitted: Sequence[str] | None, columns: Sequence[Column], features: Sequence[str] | None
) -> Sequence[str] | None:
    """Return the names as they were given to LightGBM, which writes spaces as underscores."""
    said = features or [column.name for column in columns]
    by_written = {name.replace(" ", "_"): name for name in said}
    return None if fitted is None else [by_written.get(name, name) for name in fitted]
