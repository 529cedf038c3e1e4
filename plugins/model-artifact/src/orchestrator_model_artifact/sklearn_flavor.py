"""MLflow's sklearn flavor, predicted without MLflow: the estimator itself, on numpy where that is exact.

MLflow's pyfunc builds a DataFrame and enforces the schema for each call, about 1.2 ms a row; the estimator on numpy
answers in a tenth of that. A DataFrame is still made for models that look their columns up by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from attrs import evolve, frozen

from orchestrator_core.plugin_api import SourceError
from orchestrator_model_artifact.features import Array, Column, Frame, Matrix, ObjectMatrix, Row
from orchestrator_model_artifact.fields import Head
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.packages import needs
from orchestrator_model_artifact.serialized import Trust, load_object

EXTRA = "sklearn"


@frozen
class SklearnModel:
    """A fitted estimator, its features in the order it wants them, and what it predicts."""

    estimator: Any
    columns: tuple[Column, ...]
    heads: tuple[Head, ...]
    gather: Callable[[Sequence[Row]], Any]

    def bind(self, heads: Sequence[Head]) -> Callable[[Sequence[Row]], list[Array]]:
        """Return the function from rows to the arrays of these heads."""
        gather = self.gather
        transforms, final = _stages(self.estimator)
        methods = [getattr(final, head.name) for head in heads]

        def each(rows: Sequence[Row]) -> list[Array]:
            features = gather(rows)
            for transform in transforms:
                features = transform(features)
            return [np.asarray(method(features)) for method in methods]

        if len(methods) < 2 or not _predicts_by_probability(final):
            return each
        proba = [head.kind for head in heads].index("probabilities")
        methods = [methods[proba]]

        def both(rows: Sequence[Row]) -> list[Array]:
            (probabilities,) = each(rows)
            arrays = [final.classes_.take(np.argmax(probabilities, axis=1)), probabilities]
            return arrays if proba else arrays[::-1]

        return both


def load_estimator(location: Location, flavor: Mapping[str, Any], trust: Trust) -> Any:
    """Load the flavor's estimator. Raises :class:`SourceError` when that would run code and is not trusted."""
    name = location.inside(str(flavor.get("pickled_model") or "model.pkl"))
    serialization = str(flavor.get("serialization_format") or "pickle")
    return load_estimator_file(location, name, serialization, trust)


def load_estimator_file(location: Location, name: str, serialization: str, trust: Trust) -> Any:
    """Load an estimator from one file. Raises as :func:`load_estimator` does."""
    with needs(EXTRA, f"the model in {location.name_of(name)}"):
        import sklearn  # noqa: F401  # before what is loaded asks for it: a missing package is named by its extra
    estimator = load_object(location.name_of(name), location.read(name), serialization, trust, EXTRA)
    single_threaded(estimator)
    return estimator


def single_threaded(estimator: Any) -> None:
    """Have each prediction take one thread: what is concurrent in a service is requests."""
    for part in _estimators(estimator):
        if "n_jobs" in vars(part):
            # A pool of joblib's per call costs sklearn more than it saves; to the others None means every CPU.
            part.n_jobs = None if type(part).__module__.startswith("sklearn.") else 1
        if "_Booster" in vars(part) and hasattr(part, "get_booster"):
            part.get_booster().set_param({"nthread": 1})


def sklearn_model(
    estimator: Any, columns: Sequence[Column], features: Sequence[str] | None, nullable: bool = False
) -> SklearnModel:
    """Work out in which form and order the estimator takes its features, and what it predicts."""
    if not hasattr(estimator, "predict"):
        raise SourceError(f"{type(estimator).__name__} has no predict: it is not a model but a step of one")
    parts = list(_estimators(estimator))
    fitted_names = getattr(estimator, "feature_names_in_", None)
    columns = ordered(tuple(columns), features, fitted_names, getattr(estimator, "n_features_in_", None))
    columns = tuple(evolve(column, nullable=column.nullable or nullable) for column in columns)
    has_strings = any(column.type == "string" for column in columns)
    by_name = any(map(_looks_up_names, parts)) or any(not _is_sklearn(part) for part in parts)
    gather: Callable[[Sequence[Row]], Any]
    if by_name or (has_strings and fitted_names is not None):
        with needs(EXTRA, "a model that looks its columns up by name"):
            gather = Frame(columns)
    elif has_strings:
        gather = ObjectMatrix(columns)
    else:
        gather = Matrix(columns, "d")
        for part in parts:
            # Fitted on a DataFrame, but its columns are taken by place: without the names sklearn does not warn
            # about an array on each call.
            vars(part).pop("feature_names_in_", None)
    return SklearnModel(estimator, columns, _heads(estimator), gather)


# --- looking at the estimator ------------------------------------------------------------------------------------


def _estimators(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield the estimator and every estimator inside it."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inner: Sequence[Any] = list(value.values())
    elif isinstance(value, list | tuple):
        inner = value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        inner = value.ravel().tolist()
    elif hasattr(value, "get_params") and not isinstance(value, type):
        yield value
        inner = list(vars(value).values())
    else:
        return
    for item in inner:
        yield from _estimators(item, seen)


def _is_sklearn(part: Any) -> bool:
    """Return whether it takes an array for what it was fitted on, a DataFrame too."""
    module = type(part).__module__
    return module.startswith(("sklearn.", "xgboost.")) and type(part).__name__ != "FunctionTransformer"


def _looks_up_names(part: Any) -> bool:
    if "_sklearn_output_config" in vars(part):
        return True  # set_output(transform="pandas"): a later step may use the names
    if type(part).__name__ != "ColumnTransformer":
        return False
    picked = [columns for _, _, columns in part.transformers_]
    return any(
        callable(columns)
        or isinstance(columns, str)
        or (isinstance(columns, list | np.ndarray) and any(isinstance(column, str) for column in columns))
        or (isinstance(columns, slice) and isinstance(columns.start or columns.stop, str))
        for columns in picked
    )


def ordered(
    columns: Sequence[Column], features: Sequence[str] | None, fitted: Sequence[str] | None, count: int | None
) -> tuple[Column, ...]:
    """Return the columns in the order in which the model was fitted, from all that is said about them."""
    signature = [column.name for column in columns]
    fitted_names = [str(name) for name in fitted] if fitted is not None else []
    names = list(features or fitted_names or signature)
    if not names:
        raise SourceError("the model does not say its features: log it with a signature, or list them in `features`")
    for said, known in (("signature", signature), ("fitted feature names", fitted_names)):
        if known and set(known) != set(names):
            raise SourceError(f"the features {', '.join(names)} are not the model's {said}: {', '.join(known)}")
    if count is not None and count != len(names):
        raise SourceError(f"the model takes {count} features, {len(names)} are named: {', '.join(names)}")
    by_name = {column.name: column for column in columns}
    return tuple(by_name.get(name) or Column(name) for name in (fitted_names or names))


def _heads(estimator: Any) -> tuple[Head, ...]:
    classes = getattr(estimator, "classes_", None)
    if not isinstance(classes, np.ndarray) or classes.ndim != 1:
        return (Head("predict", "value"),)
    label = Head("predict", "label")
    if not hasattr(estimator, "predict_proba"):
        return (label,)
    return (label, Head("predict_proba", "probabilities", len(classes), tuple(classes.tolist())))


def _stages(estimator: Any) -> tuple[list[Callable[[Any], Any]], Any]:
    """Return a pipeline's transforms and its last step, so that two methods of that share the work before it."""
    from sklearn.pipeline import Pipeline

    if type(estimator) is not Pipeline:
        return [], estimator
    *steps, final = (step for _, step in estimator.steps)
    transforms = [step.transform for step in steps if step is not None and step != "passthrough"]
    inner, last = _stages(final)
    return [*transforms, *inner], last


def _predicts_by_probability(estimator: Any) -> bool:
    """Return whether predict is, by definition, the argmax of predict_proba, so that one call gives both."""
    from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier

    return type(estimator) in (RandomForestClassifier, ExtraTreesClassifier)
