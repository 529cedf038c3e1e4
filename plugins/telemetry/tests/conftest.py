"""The fixtures of the testing kit, and the metrics of a service as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator_core.testing.pytest_plugin import run, serve

__all__ = ["run", "serve"]

Labels = tuple[tuple[str, str], ...]


def parsed(text: str) -> dict[str, dict[Labels, float]]:
    """The samples by name and labels, as Prometheus's own parser has them."""
    found: dict[str, dict[Labels, float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series = found.setdefault(sample.name, {})
            labels = tuple(sorted(sample.labels.items()))
            assert labels not in series, f"{sample.name}{labels} is there twice"
            series[labels] = sample.value
    return found


@pytest.fixture
def scrape() -> Callable[[Any], Mapping[str, Mapping[Labels, float]]]:
    """Read all metrics of a service that ``serve`` has started."""

    def read(served: Any) -> Mapping[str, Mapping[Labels, float]]:
        answer = served.admin("GET", "/metrics")
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return parsed(answer.json)

    return read
