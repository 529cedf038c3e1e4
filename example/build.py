"""What the example serves: customers in their databases and the feature store, and the models. The same each time.

`python -m example` builds it when it is not there. By hand: `python -m example.build`, or `… FOLDER` for another place.

All is made in a folder beside the final places and moved there at the end, so that a build that is interrupted leaves
nothing half-made.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from example import tables
from example.people import CUSTOMERS, customers
from example.places import (
    CHURN_MODEL,
    CREDIT_MODEL,
    CREDIT_WEIGHTS,
    DATABASE,
    FEATURE_REPO,
    FEATURES,
    FOLDER,
    LOAN_MODEL,
    PARTNER,
    PARTS,
    RECOMMENDER,
    STAMP,
)
from example.tables import People

SOURCES = ("build.py", "people.py", "places.py", "tables.py", "features.py", "training.py")
REPOSITORY = ("feature_store.yaml", "definitions.py")
DECIDING_PACKAGES = ("scikit-learn", "skops", "feast", "onnx")


class NotInstalled(Exception):
    """A package that builds the example is missing."""


def recipe() -> str:
    """Return the hash of what decides the result: what builds, and the versions that stored things depend on."""
    decides = hashlib.sha256()
    for path in (*(FOLDER / name for name in SOURCES), *(FOLDER / FEATURE_REPO / name for name in REPOSITORY)):
        decides.update(path.read_bytes())
    for package in DECIDING_PACKAGES:
        try:
            decides.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError:
            decides.update(f"no {package}\n".encode())
    return decides.hexdigest()


def is_built(folder: Path) -> bool:
    """Return whether everything is there, and as it would be made today."""
    stamp = folder / STAMP
    return stamp.is_file() and stamp.read_text() == recipe() and all((folder / part).exists() for part in PARTS)


def build(folder: Path) -> None:
    """Make databases, feature store and models, replacing what is there. Raises :class:`NotInstalled`."""
    made_by = recipe()
    unfinished = folder / ".building"
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / FEATURE_REPO).mkdir(parents=True)
    for part in PARTS:
        (unfinished / part).parent.mkdir(exist_ok=True)
    for name in REPOSITORY:
        shutil.copy(FOLDER / FEATURE_REPO / name, unfinished / FEATURE_REPO)
    try:
        make(unfinished, made_by)
        (folder / STAMP).unlink(missing_ok=True)
        for part in PARTS:
            move(unfinished / part, folder / part, unfinished)
        (unfinished / STAMP).write_text(made_by)
        move(unfinished / STAMP, folder / STAMP, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def make(folder: Path, made_by: str) -> None:
    columns = (TextColumn("{task.description:<38}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"writing {CUSTOMERS:,} customers", total=CUSTOMERS)
        people: People = list(customers())
        tables.write_lender(folder / DATABASE, people, lambda: progress.advance(task))
        tables.write_partner(folder / PARTNER, people)
        with step(progress, "importing Feast, MLflow, scikit-learn"):
            features, training, mlflow, pandas = _imports()
        with step(progress, "materialising the feature store"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tables.write_features(folder / FEATURES, people, pandas)
            features.materialise(folder / FEATURE_REPO)
        with step(progress, "training the models"):
            training.export_loan_model(people, folder / LOAN_MODEL)
            training.write_churn_model(people, folder / CHURN_MODEL)
            training.write_recommender(people, folder / RECOMMENDER)
        with step(progress, "logging the credit model with MLflow"):
            model = training.log_credit_model(people, folder / CREDIT_MODEL, mlflow, pandas, made_by)
            training.write_credit_weights(model, folder / CREDIT_WEIGHTS)


@contextmanager
def step(progress: Progress, description: str) -> Iterator[None]:
    """Show that something is under way of which nobody knows how far it is."""
    task = progress.add_task(description, total=None)
    yield
    progress.update(task, total=1, completed=1)


def move(made: Path, place: Path, aside: Path) -> None:
    """Put what was made in its place; what stood there goes aside, to be removed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(aside / f"old {place.name}")
    made.rename(place)


def _imports() -> tuple[Any, Any, Any, Any]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # MLflow looks for git, and the example needs none
    for name in ("mlflow", "feast"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import feast  # noqa: F401
            import mlflow.sklearn
            import onnx  # noqa: F401
            import pandas
            import skops.io  # noqa: F401  # what MLflow stores the model with

            from example import features, training
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"building the example needs the package '{error.name}', which is not installed\n"
            "  = `make demo` installs what it needs into an environment of its own\n"
            "  = or, by hand, from the repository's folder:\n"
            "    pip install --group example -e . -e plugins/source-database -e plugins/source-api"
            " -e plugins/source-feast \\\n"
            "      -e 'plugins/model-artifact[sklearn,onnx]' -e plugins/model-http -e plugins/model-docker \\\n"
            "      -e plugins/model-ecr -e plugins/transform-standard -e plugins/tracking-sql"
        ) from error
    return features, training, mlflow, pandas


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    except NotInstalled as missing:
        sys.exit(f"error: {missing}")
    except KeyboardInterrupt:
        sys.exit(130)
