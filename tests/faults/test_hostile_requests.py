"""Requests that are made to break something are refused in a problem document, and cost next to nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator_core.testing.pytest_plugin import Served, serving
from tests.chaos.hostile import ask, complaint, requests
from tests.chaos.pools import POSTGRESQL_URL
from tests.faults.kit import skip_without

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


odd_texts = st.text(st.characters(exclude_categories=()), max_size=20) | st.sampled_from(
    ["\0", "\ud800", "\udfff\ud800", "1e400", "NaN", "-0", "1" * 60, "٣", "\u2028", "\ufffe", "%00", "%", "\\u0000"]
)
odd_numbers = st.sampled_from(
    ["NaN", "-Infinity", "1e400", "-0", "-0.0", "1" * 60, "1e-400", "9223372036854775808", "1E+2"]
)
odd_json = st.recursive(
    odd_numbers | st.just("null") | st.just("true") | odd_texts.map(json.dumps),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(odd_texts, inner), max_size=4).map(
            lambda items: f"{{{','.join(f'{json.dumps(key)}:{value}' for key, value in items)}}}"
        )
    ),
    max_leaves=8,
).map(lambda text: text.encode("utf-8", "surrogatepass"))
odd_bytes = st.binary(max_size=30) | odd_texts.map(lambda text: text.encode("utf-8", "surrogatepass"))


def percent_encoded(value: bytes) -> str:
    return "".join(f"%{byte:02X}" for byte in value)


@pytest.fixture(scope="module")
def bank() -> Iterator[Served]:
    """A service whose endpoints hand what they are given to a database, an API and a model."""
    skip_without("127.0.0.1", 5432, "PostgreSQL")
    with serving() as start:
        yield start({"database.yaml": DATABASE, "domains/bank.yaml": BANK})


DATABASE = f"""
    database:
      sources:
        default: {{connection_string: "{POSTGRESQL_URL}/postgres", pool_size: 2}}
        file: {{connection_string: "sqlite://", pool_size: 1}}
      operations:
        typed: {{query: "SELECT CAST(:n AS bigint) AS n", params: {{n: integer}}}}
        number: {{query: "SELECT CAST(:n AS float8) AS n", params: {{n: number}}}}
        text: {{query: "SELECT CAST(:n AS text) AS n", params: [n]}}
"""
BANK = "endpoints:\n" + "".join(
    f"""
      {source}_{operation}:
        methods: [POST]
        data_sources:
          - name: asked
            type: database
            source_id: {source}
            operation: {operation}
            params: {{n: "$request.body.n"}}
        response_mapping: {{n: "$asked.n", header: "$request.headers['x-test'] ?? null", q: "$request.q ?? null"}}
"""
    for source in ("default", "file")
    for operation in ("typed", "number", "text")
)
TARGETS = [
    f"/orchestrator/bank/{source}_{operation}"
    for source in ("default", "file")
    for operation in ("typed", "number", "text")
]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    target=st.sampled_from(TARGETS),
    value=odd_json,
    query=st.none() | odd_bytes.map(percent_encoded) | odd_bytes.map(lambda raw: raw.hex()),
    header=st.none() | odd_bytes,
)
def test_whatever_is_sent_is_answered_with_json_and_never_a_defect(
    bank: Served, target: str, value: bytes, query: str | None, header: bytes | None
) -> None:
    body = b'{"n": ' + value + b"}"
    lines = b"" if header is None else b"X-Test: " + header.translate(None, b"\r\n") + b"\r\n"
    question = "" if query is None else f"?q={query}"
    head = f"POST {target}{question} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n".encode() + lines + b"\r\n"
    answer = bank.run(ask(bank.service.running.public[1], head, body))
    assert answer.is_json, answer
    assert answer.status in (200, 400, 422), answer
