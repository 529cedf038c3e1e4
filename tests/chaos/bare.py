"""The least that can compute and refuse: a protocol on uvloop that reads of a request whether it is for health.

What it does under the same load is what this machine lets anybody do.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections import deque

from tests.chaos.work import Work

MOST_WAITING = 32
HEALTH = b"GET /health"


def answer(status: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


class Loop:
    """Those that wait for the loop, one of whom is computed for in each of its turns."""

    def __init__(self, work_seconds: float) -> None:
        self._work = Work(work_seconds)
        self._waiting: deque[asyncio.Transport] = deque()
        self._fine = answer("200 OK", b'{"total":%d}' % self._work.compute())
        self._refusal = answer("503 Service Unavailable", b'{"title":"not available"}', "Retry-After: 1\r\n")

    def take(self, transport: asyncio.Transport, data: bytes) -> None:
        if data.startswith(HEALTH):
            transport.write(self._fine)
        elif len(self._waiting) >= MOST_WAITING:
            transport.write(self._refusal)
        else:
            self._waiting.append(transport)
            if len(self._waiting) == 1:
                asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._work.compute()
        self._waiting.popleft().write(self._fine)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._turn)


class Connection(asyncio.Protocol):
    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._loop.take(self._transport, data)


async def serve(port: int, work_seconds: float) -> None:
    shared = Loop(work_seconds)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(shared), "127.0.0.1", port, backlog=1024)
    gc.freeze()
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1]), float(sys.argv[2])))
