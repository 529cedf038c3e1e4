"""Clients that take their time: heads and bodies that drip, answers that nobody reads, connections that say nothing."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from time import perf_counter

from attrs import frozen

from tests.chaos.hostile import reset_peak
from tests.chaos.open_loop import Wanted, run
from tests.memory import resident_bytes

RATE = 200.0
DRIPS = 500


@frozen
class Found:
    """What became of the slow clients, and of a quick one beside them. Times are in seconds."""

    clients: int
    closed: Mapping[str, int]
    """How many the service closed, by kind."""
    longest_seconds: float
    left_open: int
    p50_before: float
    p99_before: float
    p50_beside: float
    p99_beside: float
    failed_beside: int
    grown_bytes: int


class _Slow(asyncio.Protocol):
    def __init__(self, kind: str, target: str, large: str) -> None:
        self.kind, self.target, self.large = kind, target, large
        self.opened = self.closed = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.opened = perf_counter()
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        if self.kind == "head":
            transport.write(f"GET {self.target} HTTP/1.1\r\nHost: x\r\nX-Slow: ".encode())  # type: ignore[attr-defined]
        elif self.kind == "body":
            head = f"POST {self.target} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            transport.write(f"{head}Content-Length: 100000\r\n\r\n".encode())  # type: ignore[attr-defined]
        elif self.kind == "reader":
            transport.pause_reading()  # type: ignore[attr-defined]
            request = f"GET {self.large} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            transport.write(request * 30)  # type: ignore[attr-defined]

    def drip(self) -> None:
        if not self.closed and self.kind in ("head", "body"):
            self.transport.write(b"1")

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = perf_counter()


async def measure(
    port: int,
    pid: int,
    target: str,
    clients: int = 2000,
    seconds: float = 12.0,
    kinds: tuple[str, ...] = ("head", "body"),
    large: str = "",
) -> Found:
    """Open so many slow clients, of each kind in turn, and ask for ``target`` beside them, 200 times a second.

    The kinds are ``head``, ``body``, ``silent`` and ``reader``.

    ``target`` takes GET and POST; ``large`` is a target with a large answer, for the kind ``reader``.
    """
    loop = asyncio.get_running_loop()
    before = await run(Wanted(port, target, RATE, seconds / 2, warm_up=1, opened_before=20))
    memory = reset_peak(pid)
    slow = [_Slow(kinds[number % len(kinds)], target, large) for number in range(clients)]
    asking = asyncio.create_task(run(Wanted(port, target, RATE, seconds, warm_up=1, opened_before=20)))
    for start in range(0, clients, 100):
        await asyncio.gather(
            *(loop.create_connection(lambda one=one: one, "127.0.0.1", port) for one in slow[start : start + 100])
        )
        await asyncio.sleep(0.02)
    part = 0
    while not asking.done():
        for one in slow[part::DRIPS]:
            one.drip()
        part = (part + 1) % DRIPS
        await asyncio.sleep(1 / DRIPS)
    beside = await asking
    grown = resident_bytes(pid, peak=True) - memory
    closed = [one for one in slow if one.closed]
    for one in slow:
        one.transport.abort()
    return Found(
        clients,
        Counter(one.kind for one in closed),
        max((one.closed - one.opened for one in closed), default=0.0),
        clients - len(closed),
        before.accepted_p50,
        before.accepted_p99,
        beside.accepted_p50,
        beside.accepted_p99,
        beside.sent - beside.accepted,
        grown,
    )


if __name__ == "__main__":
    import sys

    import uvloop

    from tests.chaos.overload import worker

    async def main() -> None:
        async with worker() as process:
            target = "/orchestrator/load/plain"
            found = await measure(process.port, process.pid, target, int(sys.argv[1]))
            print(found)

    uvloop.run(main())
