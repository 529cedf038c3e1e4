"""XGBoost's and LightGBM's native flavors, and pyfunc: they predict what MLflow's own pyfunc predicts."""

from __future__ import annotations

import functools
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrator_model_artifact.pyfunc_flavor import _named

from orchestrator_core.errors import InvalidParam, SourceError

from .opening import loaded as load
from .opening import refused

ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}
numbers = st.fixed_dictionaries(
    {
        "credit_score": st.integers(300, 850),
        "annual_income": st.floats(1_000, 200_000),
        "debt": st.floats(0, 50_000),
    }
)
equality = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


loaded = functools.cache(load)


@functools.cache
def pyfunc_model(path: Path) -> Any:
    import mlflow.pyfunc

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow, on packages that differ
        return mlflow.pyfunc.load_model(str(path))


def pyfunc(folder: Path, path: str, rows: list[dict[str, Any]]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pyfunc_model(folder / path).predict(pd.DataFrame(rows))


@pytest.mark.parametrize("path", ["xgb_booster", "xgb_regressor", "lgb_booster"])
@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_trees_of_numbers_predict_what_pyfunc_predicts(boosted: Path, path: str, rows: list[dict[str, Any]]) -> None:
    assert loaded(boosted, path).score(rows) == [{"value": value} for value in pyfunc(boosted, path, rows).tolist()]


@pytest.mark.parametrize(
    ("path", "trust"), [("xgb_classifier", False), ("lgb_classifier", True), ("lgb_three", True), ("lgb_pickled", True)]
)
@given(rows=st.lists(numbers, min_size=1, max_size=5))
@equality
def test_classifiers_predict_what_pyfunc_and_the_class_predict(
    boosted: Path, path: str, trust: bool, rows: list[dict[str, Any]]
) -> None:
    results: list[Any] = loaded(boosted, path, trust=trust).score(rows)
    raw = pyfunc_model(boosted / path).get_raw_model()
    assert [result["label"] for result in results] == pyfunc(boosted, path, rows).tolist()
    expected = raw.predict_proba(pd.DataFrame(rows)[list(ROW)])
    assert [list(result["probabilities"].values()) for result in results] == [
        pytest.approx(row, rel=1e-6) for row in expected.tolist()
    ]


def test_null_is_a_missing_value_to_trees_where_the_options_say_so(boosted: Path) -> None:
    row = {**ROW, "debt": None}
    with pytest.raises(InvalidParam):
        loaded(boosted, "xgb_booster").score([row])
    (result,) = loaded(boosted, "xgb_booster", nulls="nan").score([row])
    assert result == {"value": pyfunc(boosted, "xgb_booster", [{**row, "debt": float("nan")}])[0]}


def test_a_boosters_own_names_are_held_against_the_features(boosted: Path) -> None:
    assert loaded(boosted, "xgb_booster").facts.inputs == ("credit_score", "annual_income", "debt")
    assert refused(boosted, "lgb_booster", features=("debt",)) == (
        "the features debt are not the model's signature: credit_score, annual_income, debt"
    )


def test_lightgbm_classes_in_a_pickle_need_trust(boosted: Path) -> None:
    assert refused(boosted, "lgb_pickled").startswith("model.pkl is a pickle, which runs code when it is loaded")
    assert refused(boosted, "lgb_classifier").startswith("model.skops holds types that skops does not know")


@pytest.mark.parametrize(
    ("path", "words"), [("xgb_booster", "XGBoost's JSON or UBJSON"), ("lgb_booster", "LightGBM's text")]
)
def test_a_damaged_file_of_trees_is_refused_in_words(boosted: Path, tmp_path: Path, path: str, words: str) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "m").mkdir()
    written = yaml.safe_load((boosted / path / "MLmodel").read_text())
    (tmp_path / "m" / "MLmodel").write_text(yaml.safe_dump(written))
    (flavor,) = {"xgboost", "lightgbm"} & set(written["flavors"])
    (tmp_path / "m" / written["flavors"][flavor]["data"]).write_bytes(b"tree\nnonsense")
    assert f"cannot be loaded as {words}" in refused(tmp_path, "m")


@pytest.mark.parametrize(
    ("package", "path"), [("xgboost", "xgb_booster"), ("lightgbm", "lgb_booster"), ("mlflow", "ratio")]
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    boosted: Path, monkeypatch: pytest.MonkeyPatch, package: str, path: str
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    loaded.cache_clear()
    message = refused(boosted, path, trust=True)
    assert f"needs the package '{package}', which is not installed" in message
    assert f"pip install 'orchestrator-api-model-artifact[{package}]'" in message


def test_a_model_of_another_version_of_its_library_is_loaded_with_doubts(boosted: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(boosted / "xgb_booster", tmp_path / "m")
    (tmp_path / "config").mkdir()
    written = yaml.safe_load((tmp_path / "m" / "MLmodel").read_text())
    written["flavors"]["xgboost"]["xgb_version"] = "1.7.3"
    (tmp_path / "m" / "MLmodel").write_text(yaml.safe_dump(written))
    import xgboost

    doubt = f"it was saved with xgboost 1.7.3, {xgboost.__version__} is installed"
    assert loaded(tmp_path, "m").doubts == (doubt,)
    (tmp_path / "m" / "model.ubj").write_bytes(b"nonsense")
    loaded.cache_clear()
    assert refused(tmp_path, "m").endswith(f"({doubt})")


# --- pyfunc ----------------------------------------------------------------------------------------------------------


def test_a_pyfunc_model_needs_trust(boosted: Path) -> None:
    assert refused(boosted, "ratio") == (
        "the model is a pyfunc: MLflow loads it by running its loader_module 'mlflow.pyfunc.model', and with that code"
        " of the model's: set trust: true if you know who made it"
    )


def test_a_pyfunc_model_with_code_of_its_own_gives_the_fields_of_its_table(boosted: Path) -> None:
    model = loaded(boosted, "ratio", trust=True)
    assert model.facts.outputs == ("ratio", "tier")
    assert model.score([ROW, {**ROW, "debt": 25_000}]) == [
        {"ratio": pytest.approx(0.24001), "tier": "low"},
        {"ratio": 0.5, "tier": "low"},
    ]


def test_a_pyfunc_model_is_given_the_types_of_its_signature(boosted: Path) -> None:
    model = loaded(boosted, "ratio", trust=True)
    with pytest.raises(InvalidParam) as caught:
        model.score([{**ROW, "credit_score": 2**40}])
    assert str(caught.value) == f"feature 'credit_score' is too large for the model: {2**40}"


def test_a_pyfunc_model_takes_lists_and_times(boosted: Path) -> None:
    model = loaded(boosted, "lists", trust=True)
    rows: list[Any] = [{"amounts": [1, 2.5], "at": "2026-03-04T05:06:07Z"}, {"amounts": [1, 1], "at": "2025-01-01"}]
    assert [model.score([row])[0] for row in rows] == [
        {"value": {"sum": 3.5, "year": 2026}},
        {"value": {"sum": 2.0, "year": 2025}},
    ]
    with pytest.raises(InvalidParam, match="feature 'at' must be a time as ISO 8601 writes it"):
        model.score([{"amounts": [], "at": "yesterday"}])


def test_a_time_that_a_pyfunc_model_predicts_is_no_number_of_nanoseconds() -> None:
    times = pd.to_datetime(["2026-03-04T05:06:07.5"])
    expected = [datetime(2026, 3, 4, 5, 6, 7, 500_000)]  # noqa: DTZ001  # it has no zone, and is given none
    for told in (pd.DataFrame({"at": times}), {"at": times.to_numpy()}):
        assert _named(told)["at"].tolist() == expected
    assert _named(pd.Series(times))["predict"].tolist() == expected


@pytest.mark.parametrize(
    "predicted",
    [
        pd.to_datetime(["2026-03-04", None]),
        pd.DataFrame({"at": pd.to_datetime([None])}),
        pd.Series([pd.NaT], dtype=object),
        {"at": [np.datetime64("NaT")]},
        [{"at": [pd.NaT]}],
        [np.timedelta64("NaT")],
    ],
)
def test_a_time_that_is_none_is_no_null(predicted: object) -> None:
    with pytest.raises(SourceError, match="the model predicted NaT, which is no time"):
        _named(predicted)


def test_the_pyfunc_flavor_can_be_asked_for(boosted: Path) -> None:
    native, general = loaded(boosted, "xgb_booster"), loaded(boosted, "xgb_booster", flavor="pyfunc", trust=True)
    assert general.score([ROW]) == native.score([ROW])
    assert refused(boosted, "xgb_booster", flavor="sklearn") == (
        "the MLflow model has the flavors python_function, xgboost, and not sklearn"
    )
