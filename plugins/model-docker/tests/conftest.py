"""A real Docker engine, with images that the tests make themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the kit: pytest's importlib mode adds no folder

from docker_kit import Engine, Process, connect, serving

from orchestrator_core.testing.pytest_plugin import run

__all__ = ["run"]


@pytest.fixture(scope="session")
def machine() -> Iterator[Engine]:
    """The engine for the whole session; what the tests made is taken away at its end."""
    engine = connect()
    yield engine
    engine.take_down()
    engine.client.close()


@pytest.fixture
def engine(machine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The engine, on which a test has to leave no container behind. The leases are the test's own."""
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    yield machine
    left = machine.containers()
    for container in left:
        container.remove(force=True, v=True)
    assert [f"{container.name} ({container.status})" for container in left] == []


@pytest.fixture(scope="session")
def score_image(machine: Engine) -> str:
    """The image of a model server that answers at once."""
    return machine.image("score")


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[..., Process]]:
    """Start ``orchestrator serve`` on a folder, as a process; all of them end with the test."""
    with serving() as start:
        yield start
