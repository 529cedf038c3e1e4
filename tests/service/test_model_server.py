"""A model behind HTTP that stops, hangs and comes back, as a service sees it with the defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Any

from aiohttp import web

from orchestrator_core.testing import RunningService, service
from tests.service.scripted_models import state

RunFixture = Callable[..., Any]

NOTICED_WITHIN_SECONDS = 2.0


class ModelServer:
    """A model server on one port that can be stopped and started again, and that can hang."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: set[str] = set()
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self._runner: web.AppRunner | None = None

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.add(f"{request.method} {request.path}")
        body = await request.json() if request.method == "POST" else {"x": 0}
        await self.may_answer.wait()
        return web.json_response({"y": body["x"] * 3})

    async def start(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


def files(port: int) -> dict[str, str]:
    return {
        "integrations/ml.yaml": f"""
            ml:
              sources:
                m:
                  base_url: "http://127.0.0.1:{port}"
                  models: {{default: {{health: /health, timeout: 1s, circuit_breaker: false}}}}
        """,
        "domains/d.yaml": """
            endpoints:
              other: {response_mapping: 1}
              score:
                data_sources:
                  - {name: s, type: ml, source_id: m, operation: predict, params: {features: {x: "$request.body.x"}}}
        """,
    }


async def until_refused(shop: RunningService) -> float:
    """Ask until the service refuses at once, and return how long that took. Before, calls fail by themselves."""
    started = monotonic()
    while True:
        answer = await shop.post("/orchestrator/d/score", {"x": 1})
        if answer.status == 503:
            assert answer.headers["Retry-After"] == "1"
            assert answer.json["detail"].startswith("step 's': the model ml.m is unhealthy: ")
            return monotonic() - started
        assert answer.status in (502, 504)
        await asyncio.sleep(0.02)
        assert monotonic() - started < 10


def test_a_server_that_is_gone_is_noticed_and_used_again_when_it_is_back(run: RunFixture) -> None:
    async def main() -> None:
        server = ModelServer()
        await server.start()
        try:
            async with service(files(server.port)) as shop:
                assert (await shop.post("/orchestrator/d/score", {"x": 1})).json == {"y": 3}
                await server.stop()
                assert await until_refused(shop) < NOTICED_WITHIN_SECONDS
                assert (await shop.get("/orchestrator/d/other")).json == 1
                assert (await shop.get("/health/ready")).status == 200
                await server.start()
                await state(shop, "ready", within_seconds=NOTICED_WITHIN_SECONDS)
                assert (await shop.post("/orchestrator/d/score", {"x": 2})).json == {"y": 6}
                assert server.asked == {"GET /health", "POST /predict"}
        finally:
            await server.stop()

    run(main())


def test_a_server_that_hangs_is_noticed_too(run: RunFixture) -> None:
    async def main() -> None:
        server = ModelServer()
        await server.start()
        try:
            async with service(files(server.port)) as shop:
                server.may_answer.clear()
                assert await until_refused(shop) < NOTICED_WITHIN_SECONDS + 1  # the last call takes its timeout
                server.may_answer.set()
                await state(shop, "ready", within_seconds=NOTICED_WITHIN_SECONDS)
        finally:
            server.may_answer.set()
            await server.stop()

    run(main())


def test_a_server_that_is_not_there_at_the_start_is_a_warning_and_used_when_it_comes(run: RunFixture) -> None:
    async def main() -> None:
        server = ModelServer()
        await server.start()
        await server.stop()
        try:
            async with service(files(server.port)) as shop:
                assert [problem.code for problem in shop.running.live.snapshot.problems] == ["ORC604"]
                assert (await shop.get("/orchestrator/d/other")).json == 1
                assert (await shop.get("/health/ready")).json["models"] == {"ml.m": "unhealthy"}
                await server.start()
                await state(shop, "ready", within_seconds=NOTICED_WITHIN_SECONDS)
                assert (await shop.post("/orchestrator/d/score", {"x": 2})).json == {"y": 6}
                assert (await shop.get("/health/ready")).status == 200
        finally:
            await server.stop()

    run(main())
