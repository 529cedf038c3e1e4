"""A partner API for tests of policies: a real server that counts its calls and does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from aiohttp.test_utils import unused_port
from attrs import define, field

from orchestrator_core.testing import Answer, RunningService


@define
class Partner:
    """``GET`` and ``POST /<word>`` answer the next of ``statuses``, then 200 with the number of the call.

    Whatever is not 200 has ``retry_after`` as its header, if there is one.
    """

    port: int
    statuses: list[int] = field(factory=list)
    calls: list[str] = field(factory=list)
    at_once: int = 0
    most_at_once: int = 0
    hold: asyncio.Event | None = None
    retry_after: str = ""
    arrived: asyncio.Event = field(factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def answer(self, request: web.Request) -> web.Response:
        self.calls.append(request.path_qs)
        number = len(self.calls)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.arrived.set()
        try:
            if self.hold is not None:
                await self.hold.wait()
        finally:
            self.at_once -= 1
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            return web.json_response({"call": number})
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return web.json_response({"detail": "told to"}, status=status, headers=headers)

    async def asked(self, count: int) -> None:
        """Wait until so many calls have arrived."""
        async with asyncio.timeout(10):
            while len(self.calls) < count:
                self.arrived.clear()
                await self.arrived.wait()


@asynccontextmanager
async def partner() -> AsyncIterator[Partner]:
    told = Partner(unused_port())
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", told.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", told.port).start()
    try:
        yield told
    finally:
        if told.hold is not None:
            told.hold.set()
        await runner.cleanup()


async def execution_of(served: RunningService, answer: Answer) -> dict[str, object]:
    shown = await served.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}")
    document: dict[str, object] = shown.json
    return document
