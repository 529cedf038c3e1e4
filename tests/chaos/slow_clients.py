"""Clients that take their time: heads and bodies of which a byte comes each second."""

from __future__ import annotations

import asyncio
import select
import socket
from collections import Counter
from collections.abc import Mapping
from time import perf_counter
from typing import Literal

from attrs import define, frozen

from tests.chaos import probe
from tests.chaos.hostile import reset_peak
from tests.chaos.open_loop import Wanted
from tests.memory import resident_bytes

RATE = 200.0
DRIPS = 500
WARM_UP_SECONDS = 2.0
"""The clients connect meanwhile."""


@frozen
class Found:
    """What became of the slow clients, and of a quick one beside them. Times are in seconds."""

    clients: int
    closed: Mapping[str, int]
    """How many the service closed, by kind."""
    longest_seconds: float
    before: probe.Answered
    beside: probe.Answered
    grown_bytes: int

    @property
    def left_open(self) -> int:
        return self.clients - sum(self.closed.values())


@define(eq=False)
class _Slow:
    kind: Literal["head", "body"]
    connection: socket.socket
    opened: float
    closed: float = 0.0

    def drip(self) -> None:
        if not self.closed:
            try:
                self.connection.send(b"1")
            except OSError:
                self.end()

    def read(self) -> None:
        """Read what has come: what the service says of it, or that it has closed the connection."""
        try:
            more = self.connection.recv(65536)
        except OSError:
            more = b""
        if not more:
            self.end()

    def end(self) -> None:
        self.closed = self.closed or perf_counter()
        self.connection.close()


def _connect(kind: Literal["head", "body"], port: int, target: str) -> _Slow:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setblocking(False)
    opened = perf_counter()
    if kind == "head":
        connection.send(f"GET {target} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode())
    else:
        head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.send(f"{head}Content-Length: 100000\r\n\r\n".encode())
    return _Slow(kind, connection, opened)


async def measure(port: int, pid: int, target: str, clients: int = 2000, seconds: float = 12.0) -> Found:
    """Open so many slow clients, half of them with a head and half with a body, and ask for ``target`` beside them.

    ``target`` takes GET and POST.
    """
    before = await probe.run(Wanted(port, target, RATE, seconds, WARM_UP_SECONDS))
    memory = reset_peak(pid)
    asking = asyncio.create_task(probe.run(Wanted(port, target, RATE, seconds, WARM_UP_SECONDS)))
    slow: dict[int, _Slow] = {}
    with select.epoll() as readable:
        while len(slow) < clients:
            one = _connect("body" if len(slow) % 2 else "head", port, target)
            slow[one.connection.fileno()] = one
            readable.register(one.connection, select.EPOLLIN)
            if len(slow) % 100 == 0:
                await asyncio.sleep(0.02)
        everyone, part = list(slow.values()), 0
        while not asking.done():
            for one in everyone[part::DRIPS]:
                one.drip()
            for descriptor, _ in readable.poll(0):
                slow[descriptor].read()
            part = (part + 1) % DRIPS
            await asyncio.sleep(1 / DRIPS)
    beside = await asking
    grown = resident_bytes(pid, peak=True) - memory
    closed = Counter(one.kind for one in everyone if one.closed)
    longest = max((one.closed - one.opened for one in everyone if one.closed), default=0.0)
    for one in everyone:
        one.end()
    return Found(clients, closed, longest, before, beside, grown)


if __name__ == "__main__":
    import sys

    import uvloop

    from tests.chaos.overload import worker

    async def main() -> None:
        async with worker() as process:
            print(await measure(process.port, process.pid, "/orchestrator/load/plain", int(sys.argv[1])))

    uvloop.run(main())
