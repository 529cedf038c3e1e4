"""One database per test module and engine, made and dropped here; the same tests run on each engine."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncmy
import pytest

sys.path.append(str(Path(__file__).parent))  # for the kit: pytest's importlib mode adds no folder

from database_kit import Database, absent, drop, make, run


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Database]]:
    """Make the database of an engine once for the module."""
    databases: dict[str, tuple[str, Database]] = {}

    def get(engine: str) -> Database:
        if engine not in databases:
            name = f"orchestrator_test_{uuid.uuid4().hex[:12]}"
            try:
                databases[engine] = name, run(make(engine, name, tmp_path_factory.mktemp(engine)))
            except (OSError, asyncmy.errors.OperationalError) as error:
                absent(engine, error)
        return databases[engine][1]

    yield get
    for engine, (name, _) in databases.items():
        run(drop(engine, name))


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest, made: Callable[[str], Database]) -> Database:
    """Each engine in turn, with the accounts emptied."""
    database = made(request.param)
    run(database.sql("DELETE FROM accounts"))
    return database


@pytest.fixture(params=["postgresql", "mysql"])
def server(request: pytest.FixtureRequest, made: Callable[[str], Database]) -> Database:
    database = made(request.param)
    run(database.sql("DELETE FROM accounts"))
    return database


@pytest.fixture
def sqlite(made: Callable[[str], Database]) -> Database:
    return made("sqlite")


@pytest.fixture
def postgresql(made: Callable[[str], Database]) -> Database:
    return made("postgresql")


@pytest.fixture
def mysql(made: Callable[[str], Database]) -> Database:
    return made("mysql")
