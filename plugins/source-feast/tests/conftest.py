"""Real repositories, one for each online store, made once for all tests: applied, materialised, and taken down."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the kit: pytest's importlib mode adds no folder

with warnings.catch_warnings():  # Feast and what it imports warn of their own affairs
    warnings.simplefilter("ignore")
    from feast_kit import STORES, Made, make

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore", "error:::orchestrator_"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Made]]:
    """Make the repository of a store, once."""
    repositories: dict[str, Made] = {}

    def get(store: str) -> Made:
        if store not in repositories:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                repositories[store] = make(store, tmp_path_factory.mktemp(store))
        return repositories[store]

    yield get
    for repository in repositories.values():
        repository.take_down()


@pytest.fixture(params=STORES)
def repo(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Made:
    """The repository on each store in turn."""
    return made(request.param)


@pytest.fixture
def sqlite(made: Callable[[str], Made]) -> Made:
    return made("sqlite")


@pytest.fixture
def redis(made: Callable[[str], Made]) -> Made:
    return made("redis")


@pytest.fixture
def postgresql(made: Callable[[str], Made]) -> Made:
    return made("postgresql")
