"""The load: kept-alive connections that each send the next request when an answer is whole and right.

It is Python on uvloop, and light enough: prepared requests, and one comparison with the expected body that proves an
answer complete and correct at once. Most of what it takes are the system calls: about half of what the fastest
contestant takes, on another core. How busy the server's core was is measured with each run, so that a run which did
not saturate it shows.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import cycle
from time import perf_counter

from attrs import frozen

from tests.bench.process import Process, Unusable, cpu_seconds

OK = b"HTTP/1.1 200"
HEAD_END = b"\r\n\r\n"
ANSWER_SECONDS = 30.0


@frozen
class Measured:
    """One window of load on one contestant."""

    requests: int
    seconds: float
    cpu_seconds: float
    p50_seconds: float
    p99_seconds: float
    load_cpu_seconds: float
    backends_cpu_seconds: float

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_micros(self) -> float:
        return self.cpu_seconds / self.requests * 1e6

    @property
    def busy(self) -> float:
        """The share of the window in which the server's process had the core."""
        return self.cpu_seconds / self.seconds

    @property
    def load_micros(self) -> float:
        return self.load_cpu_seconds / self.requests * 1e6

    @property
    def backends_micros(self) -> float:
        return self.backends_cpu_seconds / self.requests * 1e6

    @property
    def beside_busy(self) -> float:
        """How many cores the load and the backends had."""
        return (self.load_cpu_seconds + self.backends_cpu_seconds) / self.seconds


class Drive:
    """What the connections of one run share."""

    def __init__(self, requests: Sequence[bytes], answers: Sequence[bytes], seed: int) -> None:
        order = list(range(len(requests)))
        random.Random(seed).shuffle(order)
        self.requests = requests
        self.answers = answers
        self.order: Iterator[int] = cycle(order)
        self.latencies = array("d")
        self.measuring = False
        self.stopped = False
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, why: str) -> None:
        if not self.failed.done():
            self.failed.set_exception(Unusable(why))


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, drive: Drive) -> None:
        self._drive = drive
        self._received = b""
        self._number = 0
        self._sent = 0.0
        self.idle = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._send(perf_counter())

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        drive = self._drive
        if not data.endswith(drive.answers[self._number]) or not data.startswith(OK):
            self._received = data
            if _is_whole(data):
                drive.fail(f"sent {drive.requests[self._number]!r}, got {data!r}")
            return
        now = perf_counter()
        if drive.measuring:
            drive.latencies.append(now - self._sent)
        self._received = b""
        if drive.stopped:
            self._stop()
        else:
            self._send(now)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._drive.stopped:
            self._drive.fail(f"the connection was closed under load: {exc or 'end of file'}")
        self._stop()

    def _send(self, now: float) -> None:
        self._number = number = next(self._drive.order)
        self._sent = now
        self.transport.write(self._drive.requests[number])

    def _stop(self) -> None:
        if not self.idle.done():
            self.idle.set_result(None)


def _is_whole(data: bytes) -> bool:
    head, end, body = data.partition(HEAD_END)
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0].strip()
    return bool(end) and length.isdigit() and len(body) >= int(length)


async def measure(
    server: Process,
    requests: Sequence[bytes],
    answers: Sequence[bytes],
    *,
    connections: int,
    warm_up_seconds: float,
    seconds: float,
    seed: int,
    backends: Collection[int] = (),
    spread_seconds: float = 0.0,
) -> Measured:
    """Load the server and measure it, and what the backends with these process ids take.

    The connections start within ``spread_seconds``: against slow backends those that start at once would stay together.
    Raises :class:`Unusable` at the first answer that is not the expected one.
    """
    loop = asyncio.get_running_loop()
    drive = Drive(requests, answers, seed)
    gc.collect()
    gc.disable()
    clients: list[Client] = []
    try:
        for _ in range(connections):
            _, client = await loop.create_connection(lambda: Client(drive), "127.0.0.1", server.port)
            clients.append(client)
            if spread_seconds:
                await asyncio.sleep(spread_seconds / connections)
        await _sleep(drive, warm_up_seconds)
        backends_cpu = sum(map(cpu_seconds, backends))
        cpu, load_cpu, started = server.cpu_seconds(), time.process_time(), perf_counter()
        drive.measuring = True
        await _sleep(drive, seconds)
        drive.measuring = False
        ended, load_ended, cpu_ended = perf_counter(), time.process_time(), server.cpu_seconds()
        backends_cpu = sum(map(cpu_seconds, backends)) - backends_cpu
        drive.stopped = True
        async with asyncio.timeout(ANSWER_SECONDS):
            await asyncio.gather(*(client.idle for client in clients))
    except TimeoutError:
        raise Unusable(f"{server.name} left requests unanswered for {ANSWER_SECONDS:g} s") from None
    finally:
        drive.stopped = True
        for client in clients:
            client.transport.close()
        gc.enable()
    taken = sorted(drive.latencies)
    if not taken:
        raise Unusable(f"{server.name} answered nothing")
    return Measured(
        requests=len(taken),
        seconds=ended - started,
        cpu_seconds=cpu_ended - cpu,
        p50_seconds=taken[len(taken) // 2],
        p99_seconds=taken[len(taken) * 99 // 100],
        load_cpu_seconds=load_ended - load_cpu,
        backends_cpu_seconds=backends_cpu,
    )


async def _sleep(drive: Drive, seconds: float) -> None:
    done, _ = await asyncio.wait([drive.failed], timeout=seconds)
    if done:
        drive.failed.result()


def request(target: str, body: bytes = b"") -> bytes:
    """Return a GET, or with a body a POST."""
    method, length = ("POST", f"Content-Length: {len(body)}\r\n") if body else ("GET", "")
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\n{length}\r\n"
    return head.encode() + body


@frozen
class Answer:
    """One answer, read with some care."""

    status: int
    headers: Mapping[str, str]
    body: bytes


async def fetch(server: Process, targets: Sequence[str]) -> list[Answer]:
    """Ask for each target in turn over one connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answers = []
    try:
        for target in targets:
            async with asyncio.timeout(ANSWER_SECONDS):
                writer.write(request(target))
                head = (await reader.readuntil(HEAD_END)).decode("latin-1").split("\r\n")
                headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
                body = await reader.readexactly(int(headers["content-length"]))
            answers.append(Answer(int(head[0].split()[1]), headers, body))
    except (TimeoutError, asyncio.IncompleteReadError, KeyError) as error:
        raise Unusable(f"{server.name}: no whole answer to {targets[len(answers)]}: {error!r}") from error
    finally:
        writer.close()
    return answers
