"""What the builder makes: the same each time, whole or not at all, and nothing that is committed."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from example import build, places
from example.people import CUSTOMERS, NAMED
from tests.example.workspace import ENVIRONMENT
from tests.example.workspace import build as build_by_hand

SAME_BYTES = (
    *(places.DATABASE, places.PARTNER, places.FEATURES),
    *(places.CREDIT_MODEL / "MLmodel", places.CREDIT_WEIGHTS, places.LOAN_MODEL),
    *(places.CHURN_MODEL, places.RECOMMENDER),
)


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt")
    build_by_hand(folder)
    return folder


@pytest.mark.parametrize("part", SAME_BYTES, ids=str)
def test_it_is_the_same_byte_for_byte_whenever_it_is_built(part: Path, workspace: Path, rebuilt: Path) -> None:
    first, second = (hashlib.sha256((at / part).read_bytes()) for at in (workspace / "example", rebuilt))
    assert first.hexdigest() == second.hexdigest()


def test_the_credit_model_predicts_the_same_whenever_it_is_built(workspace: Path, rebuilt: Path) -> None:
    first, second = (predictions(at / places.CREDIT_MODEL) for at in (workspace / "example", rebuilt))
    assert first == second
    assert len(set(first)) > 50


def predictions(model: Path) -> list[float]:
    import pandas
    import skops.io

    rows = [(score, income) for score in range(300, 851, 50) for income in range(12_000, 200_000, 20_000)]
    features = pandas.DataFrame(rows, columns=["credit_score", "income"])
    probabilities: list[float] = skops.io.load(model / "model.skops").predict_proba(features)[:, 1].tolist()
    return probabilities


def test_customers_have_the_same_numbers_everywhere_but_for_who_is_not_in_the_feature_store(workspace: Path) -> None:
    import pandas

    folder = workspace / "example"
    lender = numbers(folder / places.DATABASE, "SELECT customer_id FROM customers")
    features = set(pandas.read_parquet(folder / places.FEATURES)["customer_id"].tolist())
    assert lender == set(range(1001, 1001 + CUSTOMERS))
    assert numbers(folder / places.PARTNER, "SELECT customer_id FROM contracts") == lender
    assert numbers(folder / places.PARTNER, "SELECT customer_id FROM scores") == lender
    assert lender - features == {who.customer_id for who in NAMED if not who.has_features} == {1007}


def numbers(database: Path, query: str) -> set[int]:
    with closing(sqlite3.connect(database)) as connection:
        return {number for (number,) in connection.execute(query)}


def test_it_is_built_anew_when_what_builds_it_has_changed(workspace: Path, tmp_path: Path) -> None:
    folder = copied(workspace, tmp_path)
    assert build.is_built(folder)
    (folder / places.STAMP).write_text("another version")
    assert not build.is_built(folder)


@pytest.mark.parametrize("part", [places.STAMP, *places.PARTS], ids=str)
def test_it_is_built_anew_when_a_part_is_missing(part: Path, workspace: Path, tmp_path: Path) -> None:
    folder = copied(workspace, tmp_path)
    (folder / part).rename(tmp_path / "elsewhere")
    assert not build.is_built(folder)


def copied(workspace: Path, to: Path) -> Path:
    shutil.copytree(workspace / "example", to / "example")
    return to / "example"


def test_a_build_that_is_interrupted_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / places.DATABASE).write_text("as it was")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "_imports", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["data", "data/customers.db"]
    assert (tmp_path / places.DATABASE).read_text() == "as it was"


def test_what_is_built_is_ignored_by_git(workspace: Path, tmp_path: Path) -> None:
    copied(workspace, tmp_path)
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert not [name for name in listed.stdout.split() if name.startswith(("example/data", "example/models"))]
    assert "example/config/config.yaml" in listed.stdout
    assert "example/feature_repo/feature_store.yaml" in listed.stdout


def test_what_serves_imports_nothing_that_only_building_needs() -> None:
    modules = "example.__main__, example.partner, example.model_server"
    heavy = ("feast", "mlflow", "numpy", "onnx", "pandas", "sklearn")
    code = f"import sys, {modules}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stdout == "[]\n"
