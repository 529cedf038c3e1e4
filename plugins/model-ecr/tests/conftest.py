"""ECR of moto and a real registry, before a real Docker engine."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# For the kits: pytest's importlib mode adds no folder.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2] / "model-docker" / "tests")]

from docker_kit import Engine, Process, Registry, connect, registry, serving
from ecr_kit import PASSWORD, Api, Ecr, Gate, in_front
from moto.server import ThreadedMotoServer

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
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def private(machine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with registry(tmp_path_factory.mktemp("registry"), "AWS", PASSWORD) as running:
        yield running


@pytest.fixture
def ecr(
    machine: Engine, private: Registry, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Ecr]:
    """A repository of the test's own. A test has to leave no container behind."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("orchestrator_model_ecr.aws.LOGINS._known", {})
    with in_front(Api(moto)) as api, in_front(Gate(f"http://{private.host}")) as gate:
        made = Ecr(api, gate, private, machine, f"models/{machine.prefix}-{uuid.uuid4().hex[:6]}")
        yield made
        left = machine.containers()
        for container in left:
            container.remove(force=True, v=True)
        made.forget()
    assert [f"{container.name} ({container.status})" for container in left] == []


@pytest.fixture
def start(ecr: Ecr) -> Iterator[Callable[..., Process]]:
    """Start ``orchestrator serve`` on a folder, as a process; all of them end with the test."""
    with serving() as start:
        yield start
