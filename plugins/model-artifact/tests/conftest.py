"""Real models, small and trained once: MLflow folders of sklearn and ONNX models, and bare ONNX files."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import enumerate as threads
from typing import Any

import numpy as np
import pandas as pd
import pytest

from orchestrator_core.testing.pytest_plugin import run_on_each_loop

__all__ = ["run_on_each_loop"]

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

NUMBERS = ["credit_score", "annual_income", "debt"]


def frame() -> pd.DataFrame:
    random = np.random.default_rng(7)
    count = 300
    return pd.DataFrame(
        {
            "credit_score": random.integers(300, 850, count),
            "annual_income": random.normal(60_000, 15_000, count),
            "debt": random.normal(10_000, 4_000, count),
            "region": random.choice(["north", "south", "west"], count),
        }
    )


def bad(data: pd.DataFrame) -> np.ndarray:
    return (data.debt / data.annual_income > data.credit_score / 4_000).astype(int).to_numpy()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one model for each of the names below."""
    root = tmp_path_factory.mktemp("models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow, on types and on pickles
        _make_mlflow_models(root)
        _make_onnx_models(root)
    return root


def _make_mlflow_models(root: Path) -> None:
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.sklearn import save_model
    from mlflow.types import ColSpec, Schema
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.compose import make_column_transformer
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    data = frame()
    numbers, target = data[NUMBERS], bad(data)

    def save(name: str, model: Any, inputs: pd.DataFrame, outputs: Any = None, **options: Any) -> None:
        signature = infer_signature(inputs, model.predict(inputs) if outputs is None else outputs)
        save_model(model, str(root / name), signature=signature, pip_requirements=[], **options)

    logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers, target)
    save("logistic", logistic, numbers)
    save("proba", logistic, numbers, pyfunc_predict_fn="predict_proba")
    save("pickled", logistic, numbers, serialization_format="cloudpickle")
    save("named", logistic, numbers, pd.DataFrame({"is_bad": target}))

    words = np.where(target == 1, "bad", "good")
    save("words", LogisticRegression(max_iter=2000).fit(StandardScaler().fit_transform(numbers), words), numbers)

    forest = RandomForestClassifier(25, max_depth=6, random_state=0, n_jobs=2).fit(numbers, target)
    save("forest", forest, numbers, input_example=numbers.head(3), skops_trusted_types=["sklearn.tree._tree.Tree"])

    save("regressor", LinearRegression().fit(numbers, numbers.debt * 2), numbers)
    two = numbers[["debt", "annual_income"]] * 2
    save("two_values", LinearRegression().fit(numbers, two), numbers)

    by_name = make_pipeline(
        make_column_transformer((OneHotEncoder(), ["region"]), (StandardScaler(), NUMBERS)), LogisticRegression()
    ).fit(data, target)
    save("columns", by_name, data, input_example=data.head(5))

    class Slow(ClassifierMixin, BaseEstimator):
        """Predicts in 50 ms: asleep, or busy with Python code that holds the interpreter's lock."""

        def __init__(self, busy: bool = False, exits: bool = False) -> None:
            self.busy, self.exits = busy, exits

        def fit(self, _: Any, __: Any) -> Slow:
            self.classes_ = np.array([0, 1])
            return self

        def predict(self, features: Any) -> Any:
            import os
            import time

            if self.exits and features.iloc[0, 0] < -1:
                time.sleep(3600)
            if self.exits and features.iloc[0, 0] < 0:
                os._exit(3)
            until = time.perf_counter() + 0.05
            while time.perf_counter() < until:
                if not self.busy:
                    time.sleep(0.01)
            return (features.iloc[:, 0] > 600).to_numpy().astype(int)

    for name, slow in (("slow", Slow()), ("busy", Slow(busy=True)), ("exits", Slow(exits=True))):
        save(name, slow.fit(numbers, target), numbers, serialization_format="cloudpickle")

    class Odd(BaseEstimator):
        """Predicts what cannot be answered."""

        def fit(self, *_: Any) -> Odd:
            return self

        def predict(self, features: Any) -> Any:
            class Silent(Exception):
                def __str__(self) -> str:
                    raise RuntimeError("it cannot say")

            if (features.debt > 1e6).any():
                others = {2e7: GeneratorExit("gone"), 3e7: Silent()}
                raise others.get(features.debt.iloc[0], ValueError("debt out of range"))
            shapes = {-1.0: None, -2.0: [1.0, 2.0, 3.0], -3.0: "high", -4.0: {"score": [1.0]}}
            if features.debt.iloc[0] in shapes:
                return shapes[features.debt.iloc[0]]
            return features.debt.to_numpy() * np.nan

    signature = ModelSignature(inputs=Schema([ColSpec("double", "debt")]))
    save_model(
        Odd().fit(), str(root / "odd"), signature=signature, serialization_format="cloudpickle", pip_requirements=[]
    )


def _make_onnx_models(root: Path) -> None:
    from mlflow.models import infer_signature
    from mlflow.onnx import save_model
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType
    from sklearn.compose import make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    data = frame()
    numbers, target = data[NUMBERS], bad(data)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(numbers.to_numpy(), target)
    matrix = [("features", FloatTensorType([None, 3]))]
    for name, zipmap in (("matrix", False), ("zipped", True)):
        proto = convert_sklearn(model, initial_types=matrix, options={id(model): {"zipmap": zipmap}})
        (root / f"{name}.onnx").write_bytes(proto.SerializeToString())
    proto = convert_sklearn(model, initial_types=matrix, options={id(model): {"zipmap": False}})
    save_model(proto, str(root / "mlflow_onnx"), signature=infer_signature(numbers, target), pip_requirements=[])
    for key, value in (("feature_names", '["credit_score", "annual_income", "debt"]'), ("classes", "[0, 1]")):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    proto.model_version = 4
    (root / "described.onnx").write_bytes(proto.SerializeToString())

    flagged = numbers.assign(owner=data.region == "north")
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(flagged.to_numpy(dtype=float), target)
    matrix = [("features", FloatTensorType([None, 4]))]
    proto = convert_sklearn(model, initial_types=matrix, options={id(model): {"zipmap": False}})
    save_model(proto, str(root / "flagged"), signature=infer_signature(flagged, target), pip_requirements=[])

    single = LogisticRegression(max_iter=2000).fit(numbers[["debt"]].to_numpy(), target)
    proto = convert_sklearn(
        single, initial_types=[("debt", FloatTensorType([None, 1]))], options={id(single): {"zipmap": False}}
    )
    (root / "single.onnx").write_bytes(proto.SerializeToString())

    each = make_pipeline(make_column_transformer((StandardScaler(), NUMBERS)), LogisticRegression()).fit(data, target)
    inputs = [("credit_score", Int64TensorType([None, 1])), *((n, FloatTensorType([None, 1])) for n in NUMBERS[1:])]
    proto = convert_sklearn(each, initial_types=inputs, options={id(each): {"zipmap": False}})
    (root / "each.onnx").write_bytes(proto.SerializeToString())

    by_name = make_pipeline(
        make_column_transformer((OneHotEncoder(handle_unknown="ignore"), ["region"]), (StandardScaler(), NUMBERS)),
        LogisticRegression(),
    ).fit(data, target)
    types = [(name, FloatTensorType([None, 1])) for name in NUMBERS[1:]]
    inputs = [("credit_score", Int64TensorType([None, 1])), *types, ("region", StringTensorType([None, 1]))]
    proto = convert_sklearn(by_name, initial_types=inputs, options={id(by_name): {"zipmap": False}})
    (root / "by_name.onnx").write_bytes(proto.SerializeToString())


@pytest.fixture
def nothing_left_behind() -> Iterator[None]:
    """Compare open files, threads and child processes before and after the test."""

    def seen() -> tuple[int, set[str], str]:
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
        return len(os.listdir("/proc/self/fd")), {thread.name for thread in threads()}, children

    before = seen()
    yield
    # asyncio's thread that waited for a child process ends a moment after it has told the loop.
    deadline = time.monotonic() + 5
    while seen() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert seen() == before


@pytest.fixture(scope="session")
def run() -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Return the function that runs a test's coroutine on a loop of its own."""
    import asyncio

    def run(test: Callable[[], Awaitable[None]]) -> None:
        async def main() -> None:
            await test()

        with asyncio.Runner() as runner:
            runner.run(main())

    return run


@pytest.fixture(scope="session")
def boosted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with MLflow models of XGBoost and LightGBM, and pyfunc models."""
    import lightgbm
    import mlflow.lightgbm
    import mlflow.xgboost
    import xgboost
    from mlflow.models import infer_signature

    root = tmp_path_factory.mktemp("boosted")
    (root / "config").mkdir()
    data = frame()
    numbers, target = data[NUMBERS], bad(data)
    classifier = xgboost.XGBClassifier(n_estimators=10, max_depth=3).fit(numbers, target)
    light = lightgbm.LGBMClassifier(n_estimators=10, verbose=-1).fit(numbers, np.where(target == 1, "bad", "good"))
    three = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(numbers, data.region)
    saved: dict[str, tuple[Any, Any, dict[str, Any]]] = {
        "xgb_classifier": (mlflow.xgboost, classifier, {}),
        "xgb_booster": (mlflow.xgboost, classifier.get_booster(), {}),
        "xgb_regressor": (mlflow.xgboost, xgboost.XGBRegressor(n_estimators=10).fit(numbers, data.debt * 2), {}),
        "lgb_classifier": (mlflow.lightgbm, light, {}),
        "lgb_three": (mlflow.lightgbm, three, {}),
        "lgb_booster": (mlflow.lightgbm, light.booster_, {}),
        "lgb_pickled": (mlflow.lightgbm, light, {"serialization_format": "cloudpickle"}),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow, on types and on pickles
        signature = infer_signature(numbers, target)
        for name, (flavor, model, options) in saved.items():
            flavor.save_model(model, str(root / name), signature=signature, pip_requirements=[], **options)
        _make_pyfunc_models(root, numbers)
    return root


def _make_pyfunc_models(root: Path, numbers: pd.DataFrame) -> None:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature, infer_signature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    modules = root / "modules"
    modules.mkdir()
    (modules / "own_rules.py").write_text("def ratio(debt, income):\n    return debt / income\n")

    class Ratio(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads them
            from own_rules import ratio

            return pd.DataFrame({"ratio": ratio(model_input.debt, model_input.annual_income), "tier": "low"})

    class Lists(mlflow.pyfunc.PythonModel):
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # MLflow reads them
            assert str(model_input["at"].dtype).startswith("datetime64")
            return [
                {"sum": np.sum(values), "year": int(at.year)}
                for values, at in zip(model_input["amounts"], model_input["at"], strict=True)
            ]

    inputs = numbers.astype({"credit_score": "int32", "debt": "float32"})
    mlflow.pyfunc.save_model(
        str(root / "ratio"),
        python_model=Ratio(),
        code_paths=[str(modules / "own_rules.py")],
        signature=infer_signature(inputs, pd.DataFrame({"ratio": [0.5], "tier": ["low"]})),
        pip_requirements=[],
    )
    schema = Schema([ColSpec(Array(DataType.double), "amounts"), ColSpec("datetime", "at")])
    mlflow.pyfunc.save_model(
        str(root / "lists"), python_model=Lists(), signature=ModelSignature(inputs=schema), pip_requirements=[]
    )


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return a real tracking store and registry with the model ``credit_risk`` in two versions, and its ids."""
    import mlflow
    from mlflow.models import infer_signature
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    root = tmp_path_factory.mktemp("store")
    (root / "config").mkdir()
    uri = f"sqlite:///{root / 'mlflow.db'}"
    before = dict(os.environ)
    data = frame()
    numbers, target = data[NUMBERS], bad(data)
    runs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        try:
            client = mlflow.MlflowClient()
            experiment = client.create_experiment("credit", artifact_location=(root / "artifacts").as_uri())
            for penalty in (1.0, 0.01):
                model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty)).fit(numbers, target)
                with mlflow.start_run(experiment_id=experiment) as run:
                    info = mlflow.sklearn.log_model(
                        model,
                        name="model",
                        registered_model_name="credit_risk",
                        signature=infer_signature(numbers, target),
                        pip_requirements=[],
                    )
                runs.append((run.info.run_id, str(info.model_id)))
            client.set_registered_model_alias("credit_risk", "champion", "1")
            client.create_registered_model("empty")
        finally:
            mlflow.set_tracking_uri(None)
            mlflow.set_registry_uri(None)
            os.environ.clear()  # where MLflow keeps them too
            os.environ.update(before)
    return {
        "root": str(root),
        "uri": uri,
        **{f"run{number}": run for number, (run, _) in enumerate(runs, 1)},
        **{f"model{number}": model for number, (_, model) in enumerate(runs, 1)},
    }
