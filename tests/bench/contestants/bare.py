"""aiohttp's server alone, answering the bytes of one ready answer: what is left when nothing is done."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web
from multidict import CIMultiDict, CIMultiDictProxy

from tests.bench.task import settings

JSON_HEADERS = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))


async def main() -> None:
    body = sys.argv[2].encode()

    async def handle(request: web.BaseRequest) -> web.Response:
        return web.Response(body=body, headers=JSON_HEADERS)

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", settings().port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
