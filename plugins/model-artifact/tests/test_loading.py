"""What is loaded, what is refused, and that it predicts what MLflow's own pyfunc predicts."""

from __future__ import annotations

import functools
import hashlib
import pickle
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrator_model_artifact.options import Output
from orchestrator_model_artifact.plugin import orchestrator_model_kinds

from orchestrator_core.errors import InvalidParam, SourceError
from orchestrator_core.plugin_api import Identity, ModelFacts

from .opening import loaded, refused

ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}
FULL = {**ROW, "region": "south"}
PICKLE = (
    "model.pkl is a pickle, which runs code when it is loaded: save the model with skops (in MLflow:"
    " serialization_format='skops'), or set trust: true if you know who made it"
)
PICKLED_SKOPS = (
    "model.skops is a pickle and not a skops file: it would run code when it is loaded: look where it comes from"
)
OWN_CODE = (
    "the model brings Python code of its own ('code'), which runs when it is loaded:"
    " set trust: true if you know who made it"
)
FEATURES = ["credit_score", "annual_income", "debt"]

numbers = st.fixed_dictionaries(
    {
        "credit_score": st.integers(300, 850),
        "annual_income": st.floats(1_000, 200_000),
        "debt": st.integers(0, 50_000) | st.floats(0, 50_000),
    }
)
full = st.builds(lambda row, region: {**row, "region": region}, numbers, st.sampled_from(["north", "south", "west"]))
equality = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pyfunc(models: Path, path: str, rows: list[dict[str, Any]]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow, on packages that differ
        return pyfunc_model(models / path).predict(pd.DataFrame(rows).astype({"debt": float}))


@functools.cache
def pyfunc_model(path: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(path))


def test_the_plugin_provides_the_kind_artifact_and_its_alias() -> None:
    assert [(kind.name, kind.aliases) for kind in orchestrator_model_kinds()] == [("artifact", ("local_artifact",))]


# --- what is predicted -----------------------------------------------------------------------------------------------


@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_a_pipeline_predicts_what_pyfunc_predicts(models: Path, rows: list[dict[str, Any]]) -> None:
    results: list[Any] = loaded(models, "logistic").score(rows)
    probabilities = pyfunc(models, "proba", rows)
    assert [result["label"] for result in results] == pyfunc(models, "logistic", rows).tolist()
    # A DataFrame's columns lie the other way round in memory, and BLAS sums in another order: the last bit may differ.
    assert [result["probability"] for result in results] == pytest.approx(probabilities[:, 1].tolist(), rel=1e-12)
    assert [list(result["probabilities"].values()) for result in results] == [
        pytest.approx(row, rel=1e-12) for row in probabilities.tolist()
    ]


@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_a_forest_predicts_what_pyfunc_predicts(models: Path, rows: list[dict[str, Any]]) -> None:
    results: list[Any] = loaded(models, "forest", trust=True).score(rows)
    assert [result["label"] for result in results] == pyfunc(models, "forest", rows).tolist()


@given(rows=st.lists(full, min_size=1, max_size=5))
@equality
def test_a_model_that_looks_columns_up_by_name_predicts_what_pyfunc_predicts(
    models: Path, rows: list[dict[str, Any]]
) -> None:
    results: list[Any] = loaded(models, "columns").score(rows)
    assert [result["label"] for result in results] == pyfunc(models, "columns", rows).tolist()


@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_a_regressor_predicts_what_pyfunc_predicts(models: Path, rows: list[dict[str, Any]]) -> None:
    results: list[Any] = loaded(models, "regressor").score(rows)
    # Of the same product the last bit depends on how the rows lie in memory, on some processors.
    values = pyfunc(models, "regressor", rows).tolist()
    assert [result["value"] for result in results] == pytest.approx(values, rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("matrix.onnx", {"features": FEATURES}),
        ("zipped.onnx", {"features": FEATURES}),
        ("described.onnx", {}),
        ("mlflow_onnx", {}),
    ],
)
@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_onnx_predicts_what_the_sklearn_model_predicts(
    models: Path, path: str, options: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    results: list[Any] = loaded(models, path, **options).score(rows)
    expected: list[Any] = loaded(models, "logistic").score(rows)
    assert [result["probability"] for result in results] == pytest.approx(
        [result["probability"] for result in expected], abs=1e-5
    )


def test_rows_and_results_have_the_same_order(models: Path) -> None:
    model = loaded(models, "columns", outputs={"score": "probability"})
    rows = [{**FULL, "debt": 100.0 * index} for index in range(50)]
    one_by_one: list[Any] = [model.score([row])[0] for row in rows]
    assert model.score(rows) == [pytest.approx(result, rel=1e-12) for result in one_by_one]


def test_onnx_with_an_input_for_each_feature_takes_numbers_and_strings(models: Path) -> None:
    model = loaded(models, "by_name.onnx")
    assert model.facts.inputs == ("credit_score", "annual_income", "debt", "region")
    (result,) = model.score([FULL])
    assert set(result) == {"label", "probability", "probabilities"}  # type: ignore[arg-type]
    with pytest.raises(InvalidParam) as caught:
        model.score([{**FULL, "region": 3}])
    assert str(caught.value) == "feature 'region' must be a string, got 3"


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_a_classifier_gives_label_and_probabilities_as_plain_json_values(models: Path) -> None:
    model = loaded(models, "logistic")
    (result,) = model.score([ROW])
    assert model.facts == ModelFacts(tuple(FEATURES), ("label", "probability", "probabilities"))
    assert isinstance(result, dict)
    assert type(result["label"]) is int
    assert type(result["probability"]) is float
    assert result["probabilities"] == {"0": pytest.approx(1 - result["probability"]), "1": result["probability"]}


def test_the_example_of_the_readme_has_score_and_risk_tier(models: Path) -> None:
    tiers = Output(tiers={"low": 0.2, "medium": 0.5, "high": 1.0})
    model = loaded(models, "logistic", outputs={"score": "probability", "risk_tier": tiers})
    rows = [{**ROW, "debt": debt} for debt in range(0, 40_000, 500)]
    for result in model.score(rows):
        assert isinstance(result, dict)
        score = result["score"]
        assert isinstance(score, float)
        assert result == {"score": score, "risk_tier": "low" if score <= 0.2 else "medium" if score <= 0.5 else "high"}


def test_the_signatures_output_names_the_field(models: Path) -> None:
    model = loaded(models, "named")
    assert model.facts.outputs == ("is_bad",)
    assert model.score([ROW]) == [{"is_bad": pyfunc(models, "named", [ROW])[0]}]


def test_outputs_pick_a_class_a_list_and_a_column(models: Path) -> None:
    good = Output(take="probability", label="good")
    model = loaded(models, "words", outputs={"p": good, "word": "label", "all": "probabilities", "predicted": "list"})
    (result,) = model.score([{"credit_score": 1.0 * 1, "annual_income": 0.1, "debt": -0.3}])
    assert isinstance(result, dict)
    assert isinstance(result["all"], dict)
    assert result["p"] == result["all"]["good"]
    assert result["predicted"] == [result["word"]]
    (two,) = loaded(models, "two_values").score([ROW])
    assert two == {"value": [pytest.approx(24_001.0), pytest.approx(100_000.0)]}
    second = loaded(models, "two_values", outputs={"income": Output(output="predict", index=1)}).score([ROW])
    assert second == [{"income": pytest.approx(100_000.0)}]


@pytest.mark.parametrize(
    ("path", "outputs", "message"),
    [
        (
            "regressor",
            {"score": "probability"},
            "outputs.score: probability: the model predicts no probabilities, it has 'predict'",
        ),
        (
            "regressor",
            {"score": "label"},
            "outputs.score: label: the model predicts no label, it has 'predict'",
        ),
        (
            "words",
            {"score": Output(take="probability", label="ugly")},
            "outputs.score: the model has no class 'ugly': it has bad, good",
        ),
        (
            "two_values",
            {"score": "value"},
            "outputs.score: value: 'predict' has 2 numbers a row: use list, or output with index",
        ),
        (
            "logistic",
            {"score": Output(output="predict_probs")},
            "outputs.score: the model has no output 'predict_probs': did you mean 'predict_proba'?",
        ),
        (
            "logistic",
            {"score": Output(output="predict_proba", index=2)},
            "outputs.score: 'predict_proba' has 2 columns, counted from 0: 2 is none",
        ),
    ],
)
def test_an_output_that_the_model_does_not_have_is_refused(
    models: Path, path: str, outputs: dict[str, Any], message: str
) -> None:
    assert refused(models, path, outputs=outputs) == message


def test_onnx_without_named_classes_asks_for_the_classes_place(models: Path) -> None:
    by_label = {"score": Output(take="probability", label=1)}
    assert refused(models, "matrix.onnx", features=FEATURES, outputs=by_label) == (
        "outputs.score: the model does not name its classes:"
        " write {output: probabilities, index: …} with the class's place"
    )
    by_place = {"score": Output(output="probabilities", index=1)}
    (result,) = loaded(models, "matrix.onnx", features=FEATURES, outputs=by_place).score([ROW])
    (expected,) = loaded(models, "described.onnx", outputs=by_label).score([ROW])
    assert result == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"take": "value", "output": "x"}, "take and output exclude each other"),
        ({"take": "label", "tiers": {"a": 1.0}}, "tiers needs a number: take: label is none"),
        ({"index": 1, "take": "value"}, "index needs output"),
        ({"take": "value", "label": "x"}, "label needs take: probability"),
        ({}, "expected one of take, output, tiers"),
        ({"tiers": {"low": 0.5, "high": 0.2}}, "tiers: 'high' (0.2) must reach higher than 'low' (0.5)"),
    ],
)
def test_an_output_that_contradicts_itself_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Output(**options)


def test_a_prediction_that_is_not_finite_is_an_error_that_names_the_output(models: Path) -> None:
    model = loaded(models, "odd", trust=True, outputs={"rate": "value"})
    with pytest.raises(SourceError) as caught:
        model.score([{"debt": 1}])
    assert str(caught.value) == "the model predicted a number for 'rate' that is not finite"


@pytest.mark.parametrize(
    ("debt", "message"), [(1e7, "ValueError: debt out of range"), (2e7, "GeneratorExit: gone"), (3e7, "Silent")]
)
def test_whatever_a_model_raises_is_a_source_error(models: Path, debt: float, message: str) -> None:
    """What is no ``Exception`` too, such as the panic of a library that is written in Rust."""
    model = loaded(models, "odd", trust=True)
    with pytest.raises(SourceError) as caught:
        model.score([{"debt": debt}])
    assert str(caught.value) == f"the model failed: {message}"


@pytest.mark.parametrize(
    ("debt", "message"),
    [
        (-1, "the model failed: it predicted a single value, array(None, dtype=object) for 1 rows"),
        (-2, "the model failed: it predicted an array of shape (3,) for 1 rows"),
        (-3, "the model failed: it predicted a single value, array('high', dtype='<U4') for 1 rows"),
        (-4, "the model failed: it predicted a single value, array({'score': [1.0]}, dtype=object) for 1 rows"),
    ],
)
def test_predictions_that_are_not_one_for_each_row_are_a_source_error(models: Path, debt: int, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        loaded(models, "odd", trust=True).score([{"debt": debt}])
    assert str(caught.value) == message


# --- features --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["logistic", "columns", "described.onnx"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"debt": None}, "feature 'debt' must be a number, got null"),
        ({"debt": "12"}, "feature 'debt' must be a number, got '12'"),
        ({"debt": float("nan")}, "feature 'debt' must be a number, got NaN"),
        ({"debt": float("inf")}, "feature 'debt' is too large for the model: inf"),
        ({"debt": [1]}, "feature 'debt' must be a number, got [1]"),
        ({"debt": ...}, "feature 'debt' is missing"),
        ({"debt": ..., "credit_score": ...}, "features 'credit_score', 'debt' are missing"),
    ],
)
def test_a_feature_that_does_not_fit_is_named(models: Path, path: str, change: dict[str, Any], message: str) -> None:
    row = {name: value for name, value in {**FULL, **change}.items() if value is not ...}
    with pytest.raises(InvalidParam) as caught:
        loaded(models, path).score([FULL, row])
    assert str(caught.value) == message
    assert caught.value.param == "features"


@pytest.mark.parametrize("path", ["logistic", "columns"])
def test_a_column_of_integers_takes_whole_numbers_only(models: Path, path: str) -> None:
    model = loaded(models, path)
    assert model.score([{**FULL, "credit_score": 700.0}]) == model.score([FULL])
    with pytest.raises(InvalidParam) as caught:
        model.score([{**FULL, "credit_score": 700.5}])
    assert str(caught.value) == "feature 'credit_score' must be a whole number, got 700.5"


def test_a_number_beyond_32_bits_is_refused_by_a_32_bit_input(models: Path) -> None:
    with pytest.raises(InvalidParam) as caught:
        loaded(models, "described.onnx").score([{**ROW, "debt": 1e300}])
    assert str(caught.value) == "feature 'debt' is too large for the model: 1e+300"


def test_other_features_are_not_looked_at(models: Path) -> None:
    model = loaded(models, "logistic")
    assert model.score([{**FULL, "extra": object()}]) == model.score([ROW])  # type: ignore[dict-item]


def test_null_is_nan_where_the_options_say_so(models: Path) -> None:
    with pytest.raises(SourceError) as caught:
        loaded(models, "logistic", nulls="nan").score([{**ROW, "debt": None}])
    assert str(caught.value).startswith("the model failed: ValueError: Input X contains NaN.")


def test_the_models_own_order_of_features_wins_over_the_options(models: Path) -> None:
    model = loaded(models, "logistic", features=FEATURES[::-1])
    assert model.facts.inputs == tuple(FEATURES)
    assert refused(models, "logistic", features=["credit_score", "debt"]) == (
        "the features credit_score, debt are not the model's signature: credit_score, annual_income, debt"
    )


def test_onnx_with_one_input_needs_the_features_names(models: Path) -> None:
    assert refused(models, "matrix.onnx") == (
        "the ONNX model does not say what the 3 columns of its input 'features' are: list their names in `features`"
    )
    assert refused(models, "matrix.onnx", features=["a", "b"]) == (
        "the ONNX model's input 'features' has 3 columns, 2 are named: a, b"
    )


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_path_that_does_not_exist_or_lies_outside_model_root(models: Path, tmp_path: Path) -> None:
    assert refused(models, "nothing") == f"path '../nothing' does not exist: looked for {models / 'nothing'}"
    (models / "link.onnx").unlink(missing_ok=True)
    (models / "link.onnx").symlink_to(tmp_path / "x.onnx")
    for path, target in (("../x", models.parent / "x"), ("link.onnx", tmp_path / "x.onnx")):
        assert refused(models, path) == (
            f"path '../{path}' is {target}, outside model_root {models}: move the model there or set model_root"
        )


def test_a_folder_or_file_of_an_unknown_format(models: Path) -> None:
    (models / "empty").mkdir(exist_ok=True)
    (models / "model.h5").write_bytes(b"")
    assert refused(models, "empty") == f"{models / 'empty'} is no MLflow model: it has no file 'MLmodel'"
    assert refused(models, "model.h5") == (
        "nothing here can load model.h5: its name has no suffix that is known: expected an MLflow model folder,"
        " an ONNX, skops, joblib or pickle file, or an MLflow URI"
    )
    assert refused(models, "model.h5", format="mlflow") == (
        f"{models / 'model.h5'} is a file: format 'mlflow' is a folder with a file 'MLmodel'"
    )
    assert refused(models, "logistic", format="onnx") == f"{models / 'logistic'} is a folder: format 'onnx' is a file"


class Payload:
    """What must never run."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def altered(models: Path, tmp_path: Path, change: dict[str, Any]) -> Path:
    """Return a folder with a copy of the logistic model, whose sklearn flavor is changed."""
    folder = tmp_path / "models" / "altered"
    shutil.copytree(models / "logistic", folder)
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    mlmodel["flavors"]["sklearn"].update(change)
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    return folder


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "model.pkl",
            {"pickled_model": "model.pkl", "serialization_format": "cloudpickle"},
            PICKLE,
        ),
        (
            "model.pkl",
            {"pickled_model": "model.pkl", "serialization_format": None},
            PICKLE,
        ),
        (
            "model.skops",
            {},
            PICKLED_SKOPS,
        ),
        (
            "model.skops",
            {"code": "code"},
            OWN_CODE,
        ),
    ],
)
def test_what_would_run_code_is_not_loaded_without_trust(
    models: Path, tmp_path: Path, file: str, change: dict[str, Any], message: str
) -> None:
    marker = tmp_path / "has_run"
    folder = altered(models, tmp_path, change)
    (folder / file).write_bytes(pickle.dumps(Payload(marker)))
    assert refused(folder.parent, "altered") == message
    assert not marker.exists()


def test_a_pickle_that_is_called_onnx_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "has_run"
    (tmp_path / "model.onnx").write_bytes(pickle.dumps(Payload(marker)))
    assert refused(tmp_path, "model.onnx") == (
        "model.onnx is a pickle and not ONNX: it would run code when it is loaded: look where it comes from"
    )
    assert not marker.exists()


def test_skops_types_that_are_not_known_to_be_harmless_need_trust(models: Path) -> None:
    assert refused(models, "forest") == (
        "model.skops holds types that skops does not know to be harmless (sklearn.tree._tree.Tree):"
        " name those that you know in trusted_types, or set trust: true if you know who made it"
    )


def test_a_trusted_pickle_is_loaded(models: Path) -> None:
    assert loaded(models, "pickled", trust=True).score([ROW]) == loaded(models, "logistic").score([ROW])


def test_a_pickle_that_calls_sys_exit_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(b"csys\nexit\n(I7\ntR.")
    message = "m.pkl cannot be loaded: SystemExit: 7: it may have been saved with another version of a library"
    assert refused(tmp_path, "m.pkl", trust=True) == message


def test_a_model_file_outside_its_folder_is_refused(models: Path, tmp_path: Path) -> None:
    folder = altered(models, tmp_path, {"pickled_model": "../../model.skops"})
    assert refused(folder.parent, "altered") == (
        f"altered: '../../model.skops' leads outside the model's folder, to {tmp_path / 'model.skops'}"
    )


def test_a_flavor_that_cannot_be_loaded_is_named(models: Path, tmp_path: Path) -> None:
    folder = altered(models, tmp_path, {})
    mlmodel = yaml.safe_load((folder / "MLmodel").read_text())
    mlmodel["flavors"] = {"pytorch": {}}
    (folder / "MLmodel").write_text(yaml.safe_dump(mlmodel))
    assert refused(folder.parent, "altered") == (
        "the MLflow model has the flavors pytorch: only onnx, sklearn, xgboost, lightgbm, python_function can be loaded"
    )


# --- identity --------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_folder_is_what_the_documented_command_prints(models: Path) -> None:
    command = "find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    printed = subprocess.run(
        command, shell=True, cwd=models / "logistic", capture_output=True, text=True, check=True
    ).stdout.split()[0]
    version = yaml.safe_load((models / "logistic" / "MLmodel").read_text())["model_uuid"]
    assert loaded(models, "logistic", sha256=printed).identity == Identity("credit_model", version, f"sha256:{printed}")


def test_the_digest_and_version_of_a_file(models: Path) -> None:
    digest = hashlib.sha256((models / "described.onnx").read_bytes()).hexdigest()
    model = loaded(models, "described.onnx", sha256=f"sha256:{digest.upper()}")
    assert model.identity == Identity("credit_model", "4", f"sha256:{digest}")


def test_another_sha256_than_the_contents_is_refused(models: Path) -> None:
    digest = hashlib.sha256((models / "described.onnx").read_bytes()).hexdigest()
    assert refused(models, "described.onnx", sha256="0" * 64) == (
        f"the model's content has sha256 {digest}, expected {'0' * 64}"
    )


def test_a_registered_models_version_is_its_name_and_number(models: Path, tmp_path: Path) -> None:
    folder = altered(models, tmp_path, {})
    (folder / "registered_model_meta").write_text("model_name: credit_risk\nmodel_version: '3'\n")
    assert loaded(folder.parent, "altered").identity.version == "credit_risk/3"


def test_a_link_out_of_the_models_folder_is_refused(models: Path, tmp_path: Path) -> None:
    folder = altered(models, tmp_path, {})
    (tmp_path / "secret").write_text("x")
    (folder / "extra").symlink_to(tmp_path / "secret")
    assert refused(folder.parent, "altered") == (
        f"extra in the model's folder is a link to {tmp_path / 'secret'}, outside model_root {folder.parent}"
    )


def test_loading_does_not_import_mlflow(models: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from orchestrator_model_artifact.loading import Request, load\n"
        "from orchestrator_model_artifact.location import locate\n"
        "from orchestrator_model_artifact.options import ArtifactOptions\n"
        "def loaded(path):\n"
        "    given = ArtifactOptions(path=path)\n"
        f"    load(Request('m', given, locate(given, Path({str(models / 'config')!r}))))\n"
        f"loaded({str(models / 'mlflow_onnx')!r})\n"
        "print(sorted({'mlflow', 'pandas', 'sklearn', 'onnx'} & set(sys.modules)))\n"
        f"loaded({str(models / 'logistic')!r})\n"
        "print('mlflow' in sys.modules)"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert printed.stdout == "[]\nFalse\n", printed.stderr


@pytest.mark.parametrize(
    ("package", "path", "message"),
    [
        ("onnxruntime", "described.onnx", "an ONNX model needs the package 'onnxruntime'"),
        ("skops", "logistic", "model.skops, a skops file, needs the package 'skops'"),
        ("pandas", "columns", "a model that looks its columns up by name needs the package 'pandas'"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    models: Path, monkeypatch: pytest.MonkeyPatch, package: str, path: str, message: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    extra = "onnx" if package == "onnxruntime" else "sklearn"
    assert refused(models, path).startswith(message)
    assert refused(models, path).endswith(
        f"which is not installed: pip install 'orchestrator-api-model-artifact[{extra}]',"
        " or the package itself if it is the model's own"
    )


def test_numpy_values_of_a_row_are_numbers(models: Path) -> None:
    row: Any = {name: np.float64(value) for name, value in ROW.items()}
    assert loaded(models, "logistic").score([row]) == loaded(models, "logistic").score([ROW])
