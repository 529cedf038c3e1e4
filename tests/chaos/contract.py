"""The OpenAPI document that is served, held against what is answered, by schemathesis."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
import schemathesis
from aiohttp import web
from attrs import frozen
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orchestrator_core.testing import service

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
SOURCES = """
database:
  sources: {{default: {{connection_string: "sqlite:///{folder}/customers.db"}}}}
  operations:
    get_customer:
      query: "SELECT id, name, income FROM customers WHERE id = :id"
      params: {{id: integer}}
    find_customers: {{query: "SELECT id, name FROM customers WHERE name = :name", params: [name], result: many}}
    by_income: {{query: "SELECT id FROM customers WHERE income > :income", params: {{income: number}}, result: many}}
api:
  sources:
    bureau: {{base_url: "{url}", timeout: 5s}}
  operations:
    get_report: {{path: "/reports/{{customer_id}}", query: {{region: "$params.region"}}}}
    post_report: {{method: POST, path: /reports, body: "$params.report", headers: {{X-Tag: "$params.tag"}}}}
ml:
  sources:
    risk:
      base_url: "{url}"
      models: {{default: {{endpoint: /predict, timeout: 5s}}}}
"""
DOMAIN = """
description: What the document promises.
endpoints:
  plain:
    description: No schema at all.
    response_mapping: {id: "$request.path_params.entity_id", body: "$request.body ?? null", q: "$request.q ?? null"}
  greet:
    path: "/{name}"
    input_schema:
      type: object
      properties:
        name: {type: string, minLength: 1}
        times: {type: integer, minimum: 1, maximum: 5, default: 1}
        loud: {type: boolean}
        ratio: {type: number}
        tags: {type: array, items: {type: string}, maxItems: 3}
      required: [name]
    output_schema:
      type: object
      properties: {text: {type: string}, times: {type: integer}, ratio: {type: number}, tags: {type: array}}
      required: [text, times]
      additionalProperties: false
    response_mapping:
      text: "hello {{ $request.name }}"
      times: "$request.times"
      ratio: "$request.ratio ?? 1"
      tags: "$request.tags ?? []"
  customer:
    methods: [GET]
    input_schema: {type: object, properties: {entity_id: {type: integer}}, required: [entity_id]}
    data_sources:
      - {name: customer, type: database, operation: get_customer, params: {id: "$request.path_params.entity_id"}}
    response_mapping: {id: "$customer.id", name: "$customer.name", income: "$customer.income"}
  search:
    input_schema:
      type: object
      properties: {name: {type: string}, income: {type: number}}
      required: [name]
    data_sources:
      - {name: found, type: database, operation: find_customers, params: {name: "$request.name"}}
      - {name: rich, type: database, operation: by_income, params: {income: "$request.income ?? 0"}}
    response_mapping: {found: "$found", rich: "$rich"}
  untyped:
    data_sources:
      - {name: found, type: database, operation: find_customers, params: {name: "$request.query_params.name"}}
    response_mapping: {found: "$found"}
  report:
    data_sources:
      - name: report
        type: api
        source_id: bureau
        operation: get_report
        params: {customer_id: "$request.path_params.entity_id", region: "$request.query_params.region ?? 'eu'"}
    response_mapping: {customer: "$report.customer", region: "$report.region"}
  send:
    methods: [POST]
    data_sources:
      - name: sent
        type: api
        source_id: bureau
        operation: post_report
        params: {report: "$request.body.report", tag: "$request.headers['x-tag'] ?? 'none'"}
    response_mapping: {sent: "$sent.got"}
  score:
    methods: [POST]
    input_schema:
      type: object
      properties: {age: {type: integer, minimum: 0, maximum: 150}, income: {type: number}}
      required: [age, income]
      additionalProperties: false
    output_schema: {type: object, properties: {score: {type: number}}, required: [score]}
    data_sources:
      - name: risk
        type: ml
        source_id: risk
        operation: predict
        params: {features: {age: "$request.body.age", income: "$request.body.income"}}
    response_mapping: {score: "$risk.score"}
  rows:
    methods: [POST]
    input_schema:
      type: object
      properties: {ids: {type: array, items: {type: integer}, maxItems: 5}}
      required: [ids]
    data_sources:
      - name: each
        for_each: "$request.body.ids"
        type: database
        operation: get_customer
        params: {id: "$item"}
        default: {id: 0, name: nobody, income: 0}
    response_mapping: {names: "$each"}
"""


@asynccontextmanager
async def partner() -> AsyncIterator[str]:
    """A partner API and a model server."""

    async def report(request: web.Request) -> web.Response:
        answer = {"customer": request.match_info["id"], "region": request.query.get("region", "")}
        return web.json_response(answer)

    async def posted(request: web.Request) -> web.Response:
        return web.json_response({"got": await request.json()})

    async def predict(request: web.Request) -> web.Response:
        row = await request.json()
        return web.json_response({"score": row["age"] / 200})

    app = web.Application()
    app.router.add_get("/reports/{id}", report)
    app.router.add_post("/reports", posted)
    app.router.add_post("/predict", predict)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextmanager
def served() -> Iterator[str]:
    """Serve the configuration from a thread of its own, for clients that block; the value is the service's URL."""
    started = threading.Event()
    told: dict[str, Any] = {}

    async def serve(folder: str) -> None:
        connection = sqlite3.connect(f"{folder}/customers.db")
        with connection:
            connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, income REAL)")
            connection.executemany("INSERT INTO customers VALUES (?, ?, ?)", [(1, "Ada", 1e5), (2, "Bo", None)])
        connection.close()
        async with partner() as url:
            files = {"integrations/sources.yaml": SOURCES.format(folder=folder, url=url), "domains/shop.yaml": DOMAIN}
            async with service(files) as running:
                told.update(url=running.url, loop=asyncio.get_running_loop(), stop=asyncio.Event())
                started.set()
                await told["stop"].wait()

    def run() -> None:
        try:
            with TemporaryDirectory(prefix="orchestrator-contract-") as folder:
                asyncio.run(serve(str(Path(folder))))
        finally:
            started.set()

    thread = threading.Thread(target=run)
    thread.start()
    started.wait()
    try:
        yield told["url"]
    finally:
        if "loop" in told:
            told["loop"].call_soon_threadsafe(told["stop"].set)
        thread.join()


ROUNDS = 20


@frozen
class Found:
    """How many cases there were, which statuses they were answered with, and what broke the contract."""

    cases: int
    statuses: Mapping[int, int]
    failures: tuple[str, ...]


def measure(cases: int = 10_000, url: str = "", first_seed: int = 1) -> Found:
    """Send so many cases, good ones and bad ones, to a service; to one of our own without a ``url``."""
    if not url:
        with served() as ours:
            return measure(cases, ours, first_seed)
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    modes = list(product(operations, (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)))
    statuses: Counter[int] = Counter()
    failures: dict[str, str] = {}

    def ask(session: requests.Session, case: Any) -> None:
        response = case.call(session=session, timeout=30)
        statuses[response.status_code] += 1
        try:
            case.validate_response(response, checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                key = f"{case.method} {case.operation.path}: {failure.title}: {response.status_code}"
                failures.setdefault(key, f"{key}: {failure}\n{case.as_curl_command()}\n{response.text}")

    with requests.Session() as session:
        for again in range(ROUNDS):  # of some operations there are a few cases in all, so that others make up for them
            left = cases - statuses.total()
            if left <= 0:
                break
            for number, (operation, mode) in enumerate(modes):

                @seed(first_seed + number // 2 + again * len(operations))
                @settings(
                    max_examples=max(1, left // len(modes)),
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(mode))
                def test(case: Any) -> None:
                    ask(session, case)

                try:
                    test()
                except Exception as error:
                    if "unsatisfiable" not in repr(error).lower():
                        raise
    return Found(sum(statuses.values()), dict(sorted(statuses.items())), tuple(failures.values()))


if __name__ == "__main__":
    import sys

    found = measure(int(sys.argv[1]))
    print(f"{found.cases} cases, {found.statuses}, {len(found.failures)} failures")
    for failure in found.failures:
        print(f"\n{failure}")
