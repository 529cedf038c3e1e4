"""A real model in a container: scikit-learn behind a server in Python, held to what every model must stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker_kit import FEATURES, HTTP, Engine, credit_model, opened, python_image, python_options
from orchestrator_model_docker.plugin import DOCKER

from orchestrator_core.testing import ModelConformance

ROWS = [
    {"credit_score": 640, "annual_income": 52_000.0, "debt": 9_500.0},
    {"credit_score": 390, "annual_income": 31_000.5, "debt": 14_000.0},
    {"credit_score": 810, "annual_income": 91_000.0, "debt": 2_000.25},
]


def expected() -> list[Any]:
    model = credit_model()
    matrix = [[row[name] for name in FEATURES] for row in ROWS]
    return [{"probability": float(value)} for value in model.predict_proba(matrix)[:, 1]]


def test_a_scikit_learn_model_scores_as_it_does_at_home(
    engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(python_image(machine, credit_model()), tmp_path, **python_options()) as model:
            assert await model.predict(ROWS) == [
                {"probability": pytest.approx(row["probability"], abs=1e-9)} for row in expected()
            ]
            assert await model.logs(10) == "serving Pipeline on 8080"

    run(main())


class TestConformance(ModelConformance):
    kind = DOCKER
    rows = ({"tenure": 12}, {"tenure": 40})
    results = ({"tenure": 12, "who": "me"}, {"tenure": 40, "who": "me"})
    models = (HTTP,)

    @pytest.fixture(autouse=True)
    def container(self, engine: Engine, score_image: str) -> None:
        self.options = {
            "image": score_image,
            "endpoint": "/cgi-bin/predict",
            "environment": {"WHO": "me"},
            "stop_timeout": 0,
            "timeout": 10,
            "max_connections": 16,
        }
