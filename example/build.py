"""What the example serves: customers in SQLite, and the credit model that MLflow logs. The same each time.

`python -m example` builds it when it is not there. By hand: `python -m example.build`, or `… FOLDER` for another place.

The customers come from a seeded generator, and the clock is never read. All is made in a folder beside the final
places and moved there at the end, so that a build that is interrupted leaves nothing half-made.
"""

from __future__ import annotations

import hashlib
import logging
import os
import random
import shutil
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

FOLDER = Path(__file__).parent
CONFIG = FOLDER / "config"
DATABASE = Path("data", "customers.db")
MODEL = Path("models", "credit_risk")
STAMP = Path("data", ".built")

SEED = 20260101
CUSTOMERS = 10_000
CREATED = "2026-01-01 00:00:00"  # what the model says of itself: it is the same whenever it is built

SCHEMA = """
CREATE TABLE customers (
    customer_id   INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    credit_score  INTEGER NOT NULL,   -- 300 to 850
    annual_income INTEGER             -- null: not known
);
CREATE TABLE loans (                  -- how earlier loans ended: what the model learns from
    customer_id INTEGER PRIMARY KEY REFERENCES customers,
    defaulted   INTEGER NOT NULL
);
"""


class NotInstalled(Exception):
    """A package that builds the example is missing."""


class Customer(NamedTuple):
    customer_id: int
    name: str
    credit_score: int
    annual_income: int | None


NAMED = (
    Customer(1001, "Amara Okafor", 815, 142_000),  # low
    Customer(1002, "Bruno Keller", 720, 61_000),  # low, less clearly
    Customer(1003, "Chloe Martin", 630, 44_000),  # medium
    Customer(1004, "Dev Patel", 560, 39_000),  # high
    Customer(1005, "Elif Kaya", 480, 21_000),  # high, almost certainly
    Customer(1006, "Farid Haddad", 702, None),  # no score: the income is not known
)


def recipe() -> str:
    """Return the hash of what decides the result: this file, and the versions that a stored model depends on."""
    decides = hashlib.sha256(Path(__file__).read_bytes())
    for package in ("scikit-learn", "skops"):
        try:
            decides.update(f"{package}=={version(package)}\n".encode())
        except PackageNotFoundError:
            decides.update(f"no {package}\n".encode())
    return decides.hexdigest()


def is_built(folder: Path) -> bool:
    """Return whether everything is there, and as this file would make it."""
    stamp = folder / STAMP
    return (
        stamp.is_file()
        and stamp.read_text() == recipe()
        and (folder / DATABASE).is_file()
        and (folder / MODEL / "MLmodel").is_file()
    )


def build(folder: Path) -> None:
    """Make the database and the model, replacing what is there. Raises :class:`NotInstalled`."""
    made_by = recipe()
    unfinished = folder / ".building"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeElapsedColumn())
    try:
        with Progress(*columns, console=Console(stderr=True)) as progress:
            make_database(unfinished / "customers.db", progress)
            train_and_log(unfinished / "customers.db", unfinished / "credit_risk", made_by, progress)
        (folder / STAMP).unlink(missing_ok=True)
        move(unfinished / "customers.db", folder / DATABASE, unfinished)
        move(unfinished / "credit_risk", folder / MODEL, unfinished)
        (unfinished / "stamp").write_text(made_by)
        move(unfinished / "stamp", folder / STAMP, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def move(made: Path, place: Path, aside: Path) -> None:
    """Put what was made in its place; what stood there goes aside, to be removed."""
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(aside / f"old {place.name}")
    made.rename(place)


# --- the customers -----------------------------------------------------------------------------------------------


def customers() -> Iterator[tuple[Customer, int | None]]:
    """Yield each customer, with whether an earlier loan was not paid back; the named ones never had a loan."""
    for customer in NAMED:
        yield customer, None
    chance = random.Random(SEED)
    for customer_id in range(NAMED[-1].customer_id + 1, NAMED[0].customer_id + CUSTOMERS):
        credit_score = min(850, max(300, round(chance.gauss(665, 85))))
        income = min(400_000, max(12_000, round(chance.lognormvariate(10.85, 0.45), -2)))
        odds = 2.718281828 ** (-1.2 - 0.017 * (credit_score - 640) - 0.000_02 * (income - 50_000))
        defaulted = int(chance.random() < odds / (1 + odds))
        yield Customer(customer_id, f"Customer {customer_id}", credit_score, int(income)), defaulted


def make_database(path: Path, progress: Progress) -> None:
    task = progress.add_task(f"writing {CUSTOMERS:,} customers", total=CUSTOMERS)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(SCHEMA)
        with database:
            for customer, defaulted in customers():
                database.execute("INSERT INTO customers VALUES (?, ?, ?, ?)", customer)
                if defaulted is not None:
                    database.execute("INSERT INTO loans VALUES (?, ?)", (customer.customer_id, defaulted))
                progress.advance(task)


# --- the model ---------------------------------------------------------------------------------------------------


def train_and_log(database: Path, folder: Path, made_by: str, progress: Progress) -> None:
    task = progress.add_task("importing MLflow and scikit-learn", total=3)
    mlflow, pandas = _imports()
    progress.update(task, completed=1, description="training the credit model")
    with closing(sqlite3.connect(database)) as connection:
        query = "SELECT credit_score, annual_income, defaulted FROM customers JOIN loans USING (customer_id)"
        rows = connection.execute(f"{query} ORDER BY customer_id").fetchall()
    history = pandas.DataFrame(rows, columns=["credit_score", "income", "defaulted"]).astype({"income": float})
    features = history[["credit_score", "income"]]
    model = trained(features, history["defaulted"])
    progress.update(task, completed=2, description="logging it as an MLflow model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own type hints
        mlflow.sklearn.save_model(
            model,
            folder,
            serialization_format="skops",  # loads without running code, unlike a pickle
            signature=_signature(),
            input_example=features.head(5),
            pip_requirements=[f"{package}=={version(package)}" for package in ("scikit-learn", "skops")],
            mlflow_model=mlflow.models.Model(utc_time_created=CREATED, model_uuid=made_by[:32]),
        )
    progress.update(task, completed=3, description="logged the credit model")


def trained(features: Any, defaulted: Any) -> Pipeline:
    """Return the probability of a default as a function of the credit score and the income."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, defaulted)


def _signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("long", "credit_score"), ColSpec("double", "income")])
    return ModelSignature(inputs, Schema([ColSpec("long", "defaulted")]))


def _imports() -> tuple[Any, Any]:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")  # MLflow looks for git, and the example needs none
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import mlflow.sklearn
            import pandas
            import skops.io  # noqa: F401  # what MLflow stores the model with
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"building the example needs the package '{error.name}', which is not installed\n"
            "  = `make demo` installs what it needs into an environment of its own\n"
            "  = or, by hand, from the repository's folder:\n"
            "    pip install --group example -e . -e plugins/source-database -e 'plugins/model-artifact[sklearn]'"
        ) from error
    return mlflow, pandas


if __name__ == "__main__":
    try:
        build(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
    except NotInstalled as missing:
        sys.exit(f"error: {missing}")
    except KeyboardInterrupt:
        sys.exit(130)
