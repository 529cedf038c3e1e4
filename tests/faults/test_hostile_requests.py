"""Requests that are made to break something are refused in a problem document, and cost next to nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from orchestrator_core.testing.pytest_plugin import Served, serving
from tests.chaos.hostile import ask, complaint, requests

DOMAIN = """
    endpoints:
      typed:
        path: "/{id}"
        input_schema:
          properties: {x: {type: number}}
        response_mapping:
          x: "$request.x ?? null"
          id: "$request.path_params.id"
          header: "$request.headers['x-test'] ?? null"
          whole: "$request.body ?? null"
"""


@pytest.fixture(scope="module")
def shop() -> Iterator[Served]:
    with serving() as start:
        yield start({"domains/shop.yaml": DOMAIN})


@pytest.mark.parametrize("name", requests("/"))
def test_a_hostile_request_is_refused(shop: Served, name: str) -> None:
    answer = shop.run(ask(shop.service.running.public[1], *requests("/orchestrator/shop/typed/7")[name]))
    assert complaint(name, answer) == ""
