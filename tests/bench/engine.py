"""Where a request's time goes inside this service, without a network: CPU microseconds of each part.

    python -m tests.bench.engine [sqlite]

By default a plan of two instant steps and a dozen mapped fields; with ``sqlite`` the flow from SQLite to an ONNX model.
Each number is the least of many short runs, which other processes disturb the least. What the sockets and aiohttp's
parser take is not in it: ``python -m tests.bench --flows engine`` compares whole servers.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import uvloop
from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.test_utils import make_mocked_request

from orchestrator_core.engine import execute, finish, make_request, new_execution_id
from orchestrator_core.garbage import freeze
from orchestrator_core.http.answers import encode, run_headers
from orchestrator_core.http.public import PublicApp
from orchestrator_core.http_client import parse_traceparent
from orchestrator_core.reload import open_live
from orchestrator_core.run import Run
from orchestrator_core.snapshot import ReadyPlan, bind
from orchestrator_core.tracking import ExecutionLog
from tests.bench import ours
from tests.bench.backends import make_customers, make_model, make_sqlite
from tests.bench.process import divide_cores
from tests.bench.task import Settings, path

CALLS = 500
RUNS = 60

Call = Callable[[], Any]


async def micros(call: Call, *, awaited: bool = False) -> float:
    """Return the CPU microseconds of one call, the loop around it taken off."""

    async def nothing() -> None:
        pass

    empty: Call = nothing if awaited else lambda: None
    return await _least(call, awaited) - await _least(empty, awaited)


async def _least(call: Call, awaited: bool) -> float:
    least = float("inf")
    for _ in range(RUNS):
        before = time.thread_time()
        if awaited:
            for _ in range(CALLS):
                await call()
        else:
            for _ in range(CALLS):
                call()
        least = min(least, time.thread_time() - before)
        await asyncio.sleep(0)
    return least / CALLS * 1e6


async def steps(ready: ReadyPlan, sources: Any, request: Any) -> dict[str, Callable[[], Awaitable[Any]]]:
    """Return each step's call, with the parameters it has in a request."""
    calls: dict[str, Callable[[], Awaitable[Any]]] = {}

    def noting(name: str, call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def noted(*values: Any) -> Awaitable[Any]:
            calls[name] = lambda: call(*values)
            return call(*values)

        return noted

    bound = {
        step.name: noting(
            step.name, bind(sources[step.spec.key].source, step.operation, [name for name, _ in step.params])
        )
        for step in ready.plan.steps
    }
    await ReadyPlan(ready.plan, ready.generation, bound).run(request, Run(ready, new_execution_id()))
    return calls


async def run(flow: str, folder: Path) -> None:
    given = Settings(flow, 0)
    if flow == "sqlite":
        given = Settings(flow, 0, sqlite=str(folder / "customers.db"), model=str(folder / "model.onnx"))
        customers = make_customers()
        make_sqlite(Path(given.sqlite), customers)
        make_model(Path(given.model), customers)
    ours.write_configuration(folder / "config", given)
    async with open_live(folder / "config") as live:
        freeze()
        ready = live.snapshot.plans["bench", flow]
        executions = ExecutionLog(1000)
        app = PublicApp(live, executions)
        http = make_mocked_request("GET", f"{path(flow)}42", payload=EMPTY_PAYLOAD, transport=Mock())
        http._protocol.odd = http._protocol.passed = http._protocol.refused = False  # as a connection of ours has it
        headers, params = http.headers, {"entity_id": "42"}
        request = make_request(ready, params, {}, headers)
        done = Run(ready, new_execution_id())
        result = await execute(ready, request, done)
        finish(done, 200, None, live.snapshot.configuration.redactor)
        body = encode(result, ready.plan)

        async def answer() -> web.Response:
            return web.Response(body=body, content_type="application/json")

        calls = await steps(ready, live.snapshot.sources, request)
        parts: list[tuple[str, Call, bool]] = [
            ("handler: request in, answer out", lambda: app.handle(http), True),
            ("  identifier, run, trace", lambda: (parse_traceparent(headers), Run(ready, new_execution_id())), False),
            ("  the request as expressions see it", lambda: make_request(ready, params, {}, headers), False),
            ("  deadline and generated code", lambda: execute(ready, request, Run(ready, "0" * 32)), True),
            ("    generated code", lambda: ready.run(request, Run(ready, "0" * 32)), True),
            *((f"      step '{name}'", call, True) for name, call in calls.items()),
            ("  JSON", lambda: encode(result, ready.plan), False),
            ("  header lines", lambda: run_headers(done), False),
            ("  the record kept", lambda: executions.add(done), False),
            ("for scale: a record made readable, when somebody looks", done.record, False),
            ("for scale: aiohttp's own answer object with a ready body", answer, True),
        ]
        print(f"{flow}: {len(ready.plan.steps)} steps, {len(result)} fields, {len(body)} bytes")
        for name, call, awaited in parts:
            print(f"  {await micros(call, awaited=awaited):7.2f} µs  {name}", flush=True)


def main() -> None:
    flow = sys.argv[1] if len(sys.argv) > 1 else "engine"
    if flow not in ("engine", "sqlite"):
        raise SystemExit(f"{flow} is none of engine, sqlite")
    os.sched_setaffinity(0, divide_cores().server)
    with tempfile.TemporaryDirectory(prefix="orchestrator-bench-") as folder:
        uvloop.run(run(flow, Path(folder)))


if __name__ == "__main__":
    main()
