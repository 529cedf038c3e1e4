"""The service as a process of its own: its log and its last spans, and that no secret is in any of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from orchestrator_core.testing import free_port
from orchestrator_core.testing.service import write_files

CANARY = "canary-5e8d1"
START_SECONDS = 60
STOP_SECONDS = 30

PLUGIN = """
    from contextlib import asynccontextmanager
    import logging

    from attrs import frozen
    from orchestrator_core.plugin_api import SourceError, SourceKind, hookimpl, option

    @frozen
    class Options:
        token: str = option(help="Its token.")

    class Source:
        def __init__(self, options):
            self.token = options.token

        async def fetch(self, operation, params):
            logging.getLogger("a.library").warning("refused: %s", self.token)
            if operation == "defect":
                raise ZeroDivisionError(self.token)
            raise SourceError(f"the partner refused {self.token}")

    @asynccontextmanager
    async def opened(options, context):
        yield Source(options)

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("partner", "A partner.", Options, opened)]
"""


@asynccontextmanager
async def collector(spans: list[Any]) -> AsyncIterator[str]:
    async def collect(request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest.FromString(await request.read())
        spans.extend(
            span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans
        )
        return web.Response()

    app = web.Application()
    app.router.add_post("/v1/traces", collect)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


def test_a_process_logs_each_request_sends_its_last_spans_and_tells_no_secret(run: Any, tmp_path: Path) -> None:
    async def main() -> None:
        spans: list[Any] = []
        port, admin_port = free_port(), free_port()
        async with collector(spans) as url, aiohttp.ClientSession() as client:
            write_files(
                tmp_path,
                {
                    "config/config.yaml": f"""
                        server: {{port: {port}}}
                        admin: {{port: {admin_port}}}
                        logging: {{format: json}}
                        telemetry: {{traces: {{endpoint: "{url}/v1/traces", interval: 1h}}}}
                        plugins_dir: ../plugins
                        """,
                    "config/integrations/partner.yaml": "partner: {sources: {default: {token: '${env:TOKEN}'}}}",
                    "config/domains/shop.yaml": """
                        endpoints:
                          refused: {data_sources: [{name: partner, type: partner, operation: any}]}
                          defect: {data_sources: [{name: partner, type: partner, operation: defect}]}
                        """,
                    "plugins/partner.py": PLUGIN,
                },
            )
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "orchestrator_core", "serve", "--config", tmp_path / "config"),
                stderr=asyncio.subprocess.PIPE,
                env={**os.environ, "TOKEN": CANARY},
            )
            assert process.stderr is not None
            log = asyncio.create_task(process.stderr.read())
            told = []
            try:
                await until_live(client, f"http://127.0.0.1:{port}/health/live")
                for endpoint in ("refused", "defect"):
                    async with client.get(f"http://127.0.0.1:{port}/orchestrator/shop/{endpoint}") as answer:
                        told.append((answer.status, answer.headers["X-Execution-Id"], await answer.text()))
                async with client.get(f"http://127.0.0.1:{admin_port}/metrics") as answer:
                    metrics = await answer.text()
                process.send_signal(signal.SIGTERM)
                async with asyncio.timeout(STOP_SECONDS):
                    assert await process.wait() == 0
            finally:
                if process.returncode is None:
                    process.kill()
                text = (await log).decode()
                await process.wait()
        assert [status for status, _, _ in told] == [502, 500]
        assert 'orchestrator_requests_total{domain="shop",endpoint="refused",method="GET",status="502"} 1.0' in metrics
        events = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        lines = [event for event in events if event["event"] == "request"]
        assert [(line["status"], line["execution_id"]) for line in lines] == [(status, id_) for status, id_, _ in told]
        assert [event["event"] for event in events if event.get("logger") == "a.library"] == ["refused: ***"] * 2
        (defect,) = [event for event in events if event["event"] == "defect"]
        assert defect["exception"].endswith("ZeroDivisionError: ***")
        assert sorted(span.name for span in spans) == [
            "GET /orchestrator/shop/defect",
            "GET /orchestrator/shop/refused",
            "partner",
            "partner",
        ]
        for shown in (text, metrics, str(spans), str(told)):
            assert CANARY not in shown

    run(main())


async def until_live(client: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            try:
                async with client.get(url) as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.05)
