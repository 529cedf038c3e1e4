"""ECR of moto and a real registry, before a real Docker engine."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# For the kits: pytest's importlib mode adds no folder.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "model-docker" / "tests")]

from docker_kit import Engine, Registry, connect, registry
from ecr_kit import PASSWORD, Ecr, repository, running_moto

from orchestrator_core.testing.pytest_plugin import run

__all__ = ["run"]


@pytest.fixture(scope="session")
def machine() -> Iterator[Engine]:
    engine = connect()
    yield engine
    engine.take_down()
    engine.client.close()


@pytest.fixture(scope="session")
def score_image(machine: Engine) -> str:
    return machine.image("score")


@pytest.fixture(scope="session")
def moto() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture(scope="session")
def private(machine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry"), "AWS", PASSWORD) as running:
        yield running


@pytest.fixture
def ecr(
    machine: Engine, private: Registry, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ecr]:
    """A repository of the test's own. A test has to leave no container behind."""
    with repository(machine, private, moto, tmp_path, monkeypatch) as made:
        yield made
