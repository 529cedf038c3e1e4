"""One credit model, brought in four ways, gives one score: behind HTTP, from its files, in a container, from ECR."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.testing import free_port

# For the plugins' kits: pytest's importlib mode adds no folder.
sys.path += [str(Path(__file__).parents[1] / "plugins" / plugin / "tests") for plugin in ("model-docker", "model-ecr")]

from docker_kit import FEATURES, SERVER, answers, credit_model, python_image, python_options, wait_until
from ecr_kit import Ecr, made_ecr

ROWS = [
    {"credit_score": score, "annual_income": income, "debt": debt}
    for score in (310, 555, 640.5, 849)
    for income in (18_000.25, 61_000, 240_000)
    for debt in (0, 9_999.99, 41_000)
]
WAYS = ("http", "artifact", "docker", "ecr")


@pytest.fixture
def ecr(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ecr]:
    with made_ecr(tmp_path, monkeypatch) as ecr:
        yield ecr


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The model behind a server that somebody runs."""
    import joblib

    port, path = free_port(), tmp_path / "credit.joblib"
    joblib.dump((FEATURES, credit_model()), path)
    with subprocess.Popen([sys.executable, SERVER, str(port), path], stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), 60, "the server's first answer")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def save(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mlflow, on types and on its packages
        import pandas as pd
        from mlflow.models import infer_signature
        from mlflow.sklearn import save_model

        rows = pd.DataFrame(ROWS, columns=list(FEATURES)).astype(float)
        model = credit_model()
        signature = infer_signature(rows, model.predict(rows.to_numpy()))
        save_model(model, str(folder), signature=signature, pip_requirements=[])


def files(ecr: Ecr, image: str, served: str) -> dict[str, str]:
    called = {"endpoint": "/predict", "rows": "list", "timeout": 10}
    container = {"container_port": 8080, "stop_timeout": 0, **python_options()}
    models = {
        "http": {"type": "http", "base_url": served, **called},
        "artifact": {"type": "artifact", "path": "../credit", "outputs": {"probability": "probability"}},
        "docker": {"type": "docker", "image": image, **container},
        "ecr": {"type": "ecr", "tag": "v1", **ecr.options, **container},
    }
    params = {"features": "$request.body.rows"}
    steps = [{"name": way, "type": "ml", "source_id": way, "operation": "predict", "params": params} for way in WAYS]
    endpoints = {"compare": {"methods": ["POST"], "timeout": "20s", "data_sources": steps}}
    return {
        "integrations/models.yaml": json.dumps({"ml": {"sources": {way: {"source": models[way]} for way in WAYS}}}),
        "domains/credit.yaml": json.dumps({"endpoints": endpoints}),
    }


def states(running: Any) -> list[str]:
    return [model["state"] for model in running.admin("GET", "/models").json["models"]]


def test_four_ways_to_bring_the_credit_model_give_the_same_score(
    ecr: Ecr, served: str, tmp_path: Path, serve: Callable[..., Any]
) -> None:
    save(tmp_path / "credit")
    image = python_image(ecr.engine, credit_model())
    digest = ecr.push(image, "v1")
    running = serve(files(ecr, image, served), folder=tmp_path / "config")
    wait_until(lambda: states(running) == ["ready"] * 4, 60, "four models that are ready")
    answer = running.post("/orchestrator/credit/compare", {"rows": ROWS})
    assert answer.status == 200, answer.json
    at_home = credit_model().predict_proba([[row[name] for name in FEATURES] for row in ROWS])[:, 1]
    assert min(at_home) < 0.1 < 0.9 < max(at_home)
    furthest = max(
        abs(result["probability"] - expected)
        for way in WAYS
        for result, expected in zip(answer.json[way], at_home, strict=True)
    )
    print(f"furthest apart: {furthest:.1e}")
    assert furthest < 1e-9, furthest
    (execution,) = running.executions()
    digests = {model["name"]: model["digest"] for model in execution["models"]}
    assert digests[f"{ecr.host}/{ecr.repository}"] == digest
    assert len(ecr.engine.containers(status="running")) == 2
