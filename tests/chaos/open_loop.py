"""An open loop: requests leave at their times, whatever became of those before. Run as a process of its own.

A request that finds no idle connection opens one, up to ``connections``; beyond that it is counted as ``unsent``.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from array import array
from collections import deque
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import orjson
import uvloop
from attrs import asdict, define, field, frozen

HEAD_END = b"\r\n\r\n"
LATE_SECONDS = 5.0


@frozen
class Wanted:
    """What is sent: ``rate`` requests a second for ``seconds``; ``warm_up`` of them are not measured."""

    port: int
    target: str
    rate: float
    seconds: float
    warm_up: float = 0.0
    connections: int = 1000
    opened_before: int = 256
    beside: str = ""
    """A target that is asked for ten times a second beside the load."""


@frozen
class Seen:
    """What came of it. Times are in seconds from the moment at which a request was to leave."""

    sent: int
    unsent: int
    accepted: int
    refused: int
    other: Mapping[str, int]
    seconds: float
    accepted_p50: float
    accepted_p99: float
    refused_p50: float
    refused_p99: float
    refused_max: float
    beside_p99: float
    beside_failed: int
    late_p99: float
    """How much later than planned the generator itself sent."""

    @property
    def goodput(self) -> float:
        return self.accepted / self.seconds


@define(eq=False)
class _Load:
    wanted: Wanted
    request: bytes
    idle: deque[_Connection] = field(factory=deque)
    open: int = 0
    taken: dict[int, array[float]] = field(factory=dict)
    lost: int = 0
    under_way: int = 0

    def answered(self, status: int, seconds: float) -> None:
        self.under_way -= 1
        if status not in self.taken:
            self.taken[status] = array("d")
        self.taken[status].append(seconds)


class _Connection(asyncio.Protocol):
    def __init__(self, load: _Load) -> None:
        self.load = load
        self.planned = 0.0
        self.data = b""
        self.transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self.planned:
            self.send(self.planned)
        else:
            self.load.idle.append(self)

    def send(self, planned: float) -> None:
        assert self.transport is not None
        self.planned = planned
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.data = data = self.data + data if self.data else data
        end = data.find(HEAD_END)
        if end < 0:
            return
        start = data.find(b"Content-Length: ") + 16
        if len(data) < end + 4 + int(data[start : data.find(b"\r", start)]):
            return
        self.data = b""
        self.load.answered(int(data[9:12]), perf_counter() - self.planned)
        self.planned = 0.0
        if b"Connection: close" in data[:end]:
            assert self.transport is not None
            self.transport.close()
        else:
            self.load.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.open -= 1
        if self.planned:
            self.load.lost += 1
            self.load.under_way -= 1
        elif self in self.load.idle:
            self.load.idle.remove(self)


async def drive(wanted: Wanted) -> Seen:
    loop = asyncio.get_running_loop()
    request = f"GET {wanted.target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    load = _Load(wanted, request)
    dialling: set[asyncio.Task[Any]] = set()
    unsent = sent = 0
    late = array("d")

    async def dial(planned: float) -> None:
        def make() -> _Connection:
            connection = _Connection(load)
            connection.planned = planned
            return connection

        try:
            await loop.create_connection(make, "127.0.0.1", wanted.port)
        except OSError:
            load.open -= 1
            load.lost += 1
            load.under_way -= 1

    load.open = wanted.opened_before
    for _ in range(wanted.opened_before):
        await loop.create_connection(lambda: _Connection(load), "127.0.0.1", wanted.port)
    gc.disable()
    beside = asyncio.create_task(_ask_beside(wanted)) if wanted.beside else None
    start = perf_counter()
    measured_from = 0
    gap = 1 / wanted.rate
    count, planned = 0, start
    while planned < start + wanted.seconds:
        now = perf_counter()
        while planned <= now and planned < start + wanted.seconds:
            if not measured_from and planned - start >= wanted.warm_up:
                measured_from = 1
                load.taken, load.lost, sent, unsent = {}, 0, 0, 0
            late.append(now - planned)
            if load.idle:
                load.under_way += 1
                sent += 1
                load.idle.pop().send(planned)
            elif load.open < wanted.connections:
                load.open += 1
                load.under_way += 1
                sent += 1
                task = loop.create_task(dial(planned))
                dialling.add(task)
                task.add_done_callback(dialling.discard)
            else:
                unsent += 1
            count += 1
            planned = start + count * gap
        await asyncio.sleep(min(0.001, max(0.0, planned - perf_counter())))
    seconds = perf_counter() - start - wanted.warm_up
    patience = perf_counter() + LATE_SECONDS
    while load.under_way and perf_counter() < patience:  # noqa: ASYNC110  # nobody waits for this but us
        await asyncio.sleep(0.01)
    beside_times, beside_failed = [0.0], 0
    if beside is not None:
        beside.cancel()
        beside_times, beside_failed = await beside
    taken = {status: sorted(times) for status, times in load.taken.items()}
    good, refused = taken.pop(200, []), taken.pop(503, [])
    other = {str(status): len(times) for status, times in taken.items()}
    if load.lost:
        other["lost"] = load.lost
    if load.under_way:
        other["unanswered"] = load.under_way
    return Seen(
        sent,
        unsent,
        len(good),
        len(refused),
        other,
        seconds,
        _at(good, 0.5),
        _at(good, 0.99),
        _at(refused, 0.5),
        _at(refused, 0.99),
        _at(refused, 1.0),
        _at(sorted(beside_times), 0.99),
        beside_failed,
        _at(sorted(late), 0.99),
    )


def _at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


async def _ask_beside(wanted: Wanted) -> tuple[list[float], int]:
    times, failed = [], 0
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", wanted.port)
        while True:
            started = perf_counter()
            writer.write(f"GET {wanted.beside} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head = await reader.readuntil(HEAD_END)
            length = int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])
            await reader.readexactly(length)
            times.append(perf_counter() - started)
            failed += not head.startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        pass
    except (OSError, asyncio.IncompleteReadError):
        failed += 1
    return times or [0.0], failed


async def in_a_process(module: str, wanted: Wanted) -> dict[str, Any]:
    """Run a module with what is wanted, and return what it found."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, orjson.dumps(asdict(wanted)).decode(), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    found: dict[str, Any] = orjson.loads(output)
    return found


async def run(wanted: Wanted) -> Seen:
    """Drive a load from a process of its own."""
    return Seen(**await in_a_process("tests.chaos.open_loop", wanted))


if __name__ == "__main__":
    found = uvloop.run(drive(Wanted(**orjson.loads(sys.argv[1]))))
    sys.stdout.write(orjson.dumps(asdict(found)).decode())
