"""The domain `model_loading`: one credit model through all strategies, with the engine of this machine and without."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest

from example import containers
from tests.example.demo import READY, get, ports_of_its_own, read_until, started, wait_until, words
from tests.example.workspace import ENVIRONMENT

CUSTOMERS = (1001, 1002, 1003, 1004, 1005, 1007, 4711)
STRATEGIES = ("http", "artifact", "docker", "ecr")


def needs(condition: object, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{what} is not here")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    errors = pytest.importorskip("docker.errors")
    with ExitStack() as stack:
        try:
            engine = stack.enter_context(containers.connected_engine())
        except (containers.LeftOut, errors.DockerException) as error:
            needs(None, f"a Docker engine ({error})")
        yield engine


def asked(url: str) -> tuple[int, Any, Any]:
    """Return status, headers and content."""
    try:
        with urlopen(url, timeout=20) as answer:
            return answer.status, answer.headers, json.load(answer)
    except HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


def on_the_engine(engine: Any, folder: Path) -> tuple[list[Any], list[Any]]:
    """Return the containers and images of the example of a folder."""
    ours = {"label": f"{containers.LABEL}={containers._owner(folder / 'example')}"}
    return engine.containers.list(all=True, filters=ours, ignore_removed=True), engine.images.list(filters=ours)


def test_all_four_give_the_same_score_and_leave_nothing_but_the_image(engine: Any, workspace: Path) -> None:
    needs(shutil.which("docker-registry"), "docker-registry")
    needs(importlib.util.find_spec("moto"), "moto")
    ports = ports_of_its_own()
    base = f"http://127.0.0.1:{ports['--port']}/orchestrator/model_loading"
    environment = {"DOCKER_HOST": os.environ.get("DOCKER_HOST", "")}
    try:
        with started(workspace, *words(ports), **environment) as process:
            said = read_until(process, READY)
            assert "left out" not in said
            assert f"made       the image {containers.NAME}:" in said
            wait_until(lambda: asked(f"http://127.0.0.1:{ports['--port']}/health/ready")[0] == 200)
            for customer_id in CUSTOMERS:
                scores = {way: get(f"{base}/{way}/{customer_id}")["score"] for way in STRATEGIES}
                risk = get(f"{base.replace('model_loading', 'credit_risk')}/predict/{customer_id}")["risk_score"]
                assert scores == dict.fromkeys(STRATEGIES, pytest.approx(risk, rel=0, abs=1e-9))
                status, headers, compared = asked(f"{base}/compare/{customer_id}")
                assert (status, headers["X-Orchestrator-Degraded"]) == (200, None)
                assert list(compared) == ["customer_id", *STRATEGIES]
                assert compared == {"customer_id": customer_id, **scores}
            models = get(f"http://127.0.0.1:{ports['--admin-port']}/models")["models"]
            shown = {model["id"]: (model["type"], model["state"]) for model in models if model["id"] != "loan_model"}
            assert shown["credit_docker"] == ("docker", "ready")
            assert shown["credit_ecr"] == ("ecr", "ready")
            running, _ = on_the_engine(engine, workspace)
            assert len(running) == 2
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert process.stderr
            assert "Traceback" not in process.stderr.read()
        left, (image,) = on_the_engine(engine, workspace)
        assert left == []
        assert [tag.partition(":")[0] for tag in image.tags] == [containers.NAME]  # the registry's names are gone
    finally:
        cleaned(workspace)
    assert on_the_engine(engine, workspace) == ([], [])


def cleaned(folder: Path) -> str:
    where = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]])}
    done = subprocess.run(
        [sys.executable, "-m", "example", "--clean"], cwd=folder, env=where, capture_output=True, text=True, check=True
    )
    return done.stderr


def test_without_a_registry_only_ecr_is_left_out(
    engine: Any, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    folder = workspace / "example"
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("example.image._shared_libraries", lambda: iter(()))  # `ldd` is a program too
    try:
        with containers.offered(folder, said.append) as variables:
            assert set(variables) == {"CREDIT_DOCKER", "CREDIT_IMAGE"}
        assert said[-1].startswith(
            "left out   ecr: a registry like AWS's on this machine needs the program docker-registry"
            " (apt-get install docker-registry)"
        )
        with containers.offered(folder, said.append) as again:
            assert again == variables
        assert len([line for line in said if line.startswith("made ")]) == 1  # it is there the second time
    finally:
        containers.clean(folder, said.append)
    assert said[-1] == "removed    0 containers and 1 images of the example"


class Served(NamedTuple):
    """A demo that serves: where, and what it said before."""

    base: str
    said: str


@pytest.fixture(scope="module")
def without_engine(workspace: Path) -> Iterator[Served]:
    ports = ports_of_its_own()
    with started(workspace, *words(ports), DOCKER_HOST="unix:///nowhere/docker.sock") as process:
        said = read_until(process, READY)
        yield Served(f"http://127.0.0.1:{ports['--port']}", said)


def test_without_an_engine_the_reason_is_said_and_the_rest_is_served(without_engine: Served) -> None:
    base, said = without_engine
    why = (
        "left out   docker and ecr: no Docker engine answers at unix:///nowhere/docker.sock (No such file or directory)"
    )
    assert [line for line in said.splitlines() if "left out" in line] == [why]
    risk = get(f"{base}/orchestrator/credit_risk/predict/1003")["risk_score"]
    status, headers, compared = asked(f"{base}/orchestrator/model_loading/compare/1003")
    assert (status, headers["X-Orchestrator-Degraded"]) == (200, "docker, ecr")
    same = pytest.approx(risk, rel=0, abs=1e-9)
    assert compared == {"customer_id": 1003, "http": same, "artifact": same, "docker": None, "ecr": None}
    assert get(f"{base}/orchestrator/loan_approval/predict/1003")["decision"] == "approved"
    assert asked(f"{base}/health/ready")[0] == 200


@pytest.mark.parametrize("way", ["http", "artifact"])
def test_without_an_engine_what_needs_none_answers(way: str, without_engine: Served) -> None:
    risk = get(f"{without_engine.base}/orchestrator/credit_risk/predict/1005")["risk_score"]
    answer = get(f"{without_engine.base}/orchestrator/model_loading/{way}/1005")
    assert answer == {"customer_id": 1005, "score": pytest.approx(risk, rel=0, abs=1e-9)}


@pytest.mark.parametrize("way", ["docker", "ecr"])
def test_without_an_engine_what_needs_one_is_refused_in_words(way: str, without_engine: Served) -> None:
    status, headers, problem = asked(f"{without_engine.base}/orchestrator/model_loading/{way}/1003")
    assert (status, headers["Retry-After"], problem["detail"]) == (
        503,
        "60",
        f"step 'score': the model ml.credit_{way} is stopped: it is switched off (enabled: false)",
    )


def test_a_customer_whom_the_model_does_not_take_is_null_in_every_way(without_engine: Served) -> None:
    """Customer 1006 has no income, which no way of loading makes up for."""
    status, headers, compared = asked(f"{without_engine.base}/orchestrator/model_loading/compare/1006")
    assert (status, compared) == (200, {"customer_id": 1006, **dict.fromkeys(STRATEGIES)})
    assert set(headers["X-Orchestrator-Degraded"].split(", ")) == set(STRATEGIES)


def test_cleaning_without_an_engine_says_so(workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    said: list[str] = []
    containers.clean(workspace / "example", said.append)
    assert said == [
        f"nothing to remove: no Docker engine answers at unix://{tmp_path}/docker.sock (No such file or directory)"
    ]
