"""The load: a process of its own that sends requests at a given rate, whatever becomes of them.

The loop is open: each request has its time, and its latency counts from then, so that a service that stands still is
charged with every request that would have come (Gil Tene's "coordinated omission"). A stream with rate 0 is a closed
loop: each connection sends the next request when it has its answer, which finds the most a service can do.

>>> async with load(port, [Stream("plain", "/orchestrator/shop/plain", rate=500)]) as driven:
...     await asyncio.sleep(2)
>>> driven["plain"].statuses()
{200: 1000}
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from array import array
from collections import Counter, deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

import attrs
from attrs import evolve, field, frozen

from tests.bench.process import ROOT

REFUSED, CLOSED, TIMED_OUT, GARBAGE = -1, -2, -3, -4
NAMES = {REFUSED: "refused", CLOSED: "closed unanswered", TIMED_OUT: "given up", GARBAGE: "not HTTP"}
TICK_SECONDS = 0.001
LATE_SECONDS = 0.003
SWEEP_SECONDS = 0.02
DISTINCT_BODIES = 20_000
FIRST_SECONDS = 0.02
MANY = 2**16
HEAD_END = b"\r\n\r\n"
EXECUTION_ID = b"X-Execution-Id: "


def named(status: int) -> str:
    """Return a status for people."""
    return NAMES.get(status) or str(status)


@frozen
class Stream:
    """Requests of one kind. ``{n}`` in the target runs from 1 to ``ids``; with ``more`` the targets take turns."""

    name: str
    target: str
    rate: float = 100.0
    connections: int = 64
    timeout_seconds: float = 30.0
    method: str = "GET"
    body: str = ""
    ids: int = 1
    more: Sequence[str] = ()
    keep_bodies: bool = False
    keep_ids: bool = False

    def requests(self) -> list[bytes]:
        body = self.body.encode()
        length = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        rest = f" HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n"
        turns = (self.target, *self.more)
        targets = [turn.replace("{n}", str(number)) for number in range(1, self.ids + 1) for turn in turns]
        return [f"{self.method} {target}{rest}".encode() + body for target in targets]


@frozen
class Traffic:
    """What a stream met. ``at`` is on the monotonic clock, which processes share; a status below 0 is no answer."""

    name: str
    at: Sequence[float]
    seconds: Sequence[float]
    status: Sequence[int]
    bodies: Counter[str] = field(factory=Counter)
    without_retry_after: int = 0
    closed_ports: Sequence[int] = ()
    """Our own ports of the connections that were closed with a request under way."""
    execution_ids: Sequence[str] = ()
    """Of each 200, where they are kept."""

    def between(self, start: float, end: float) -> Traffic:
        return self.during([(start, end)])

    def during(self, spans: Sequence[tuple[float, float]]) -> Traffic:
        return self._where([any(start <= at < end for start, end in spans) for at in self.at])

    def only(self, *statuses: int) -> Traffic:
        return self._where([status in statuses for status in self.status])

    def statuses(self) -> dict[int, int]:
        return dict(sorted(Counter(self.status).items()))

    def shown(self) -> str:
        """Return how many of each status there were, for people."""
        return ", ".join(f"{count:,} {named(status)}" for status, count in self.statuses().items()) or "none"

    def percentile(self, share: float) -> float:
        """Return the latency that this share of the requests stays below, in seconds; 0 of none."""
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0

    @property
    def worst(self) -> float:
        return max(self.seconds, default=0.0)

    def __len__(self) -> int:
        return len(self.at)

    def _where(self, chosen: list[bool]) -> Traffic:
        kept = [index for index, keep in enumerate(chosen) if keep]
        columns = {name: [getattr(self, name)[index] for index in kept] for name in ("at", "seconds", "status")}
        return evolve(self, **columns)


class Driven(dict[str, Traffic]):
    """What each stream met, by its name; filled when the block of :func:`load` is left."""

    pid: int = 0


@asynccontextmanager
async def load(port: int, streams: Sequence[Stream], cores: Collection[int] = ()) -> AsyncIterator[Driven]:
    """Send the streams' requests while the block runs; then wait for the answers that are still to come."""
    with TemporaryDirectory(prefix="orchestrator-load-") as folder:
        results = Path(folder) / "results"
        plan = {"port": port, "results": str(results), "streams": [attrs.asdict(stream) for stream in streams]}
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.chaos.load", json.dumps(plan)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is the parent's to answer
        )
        assert process.stdin is not None
        assert process.stdout is not None
        driven = Driven()
        driven.pid = process.pid
        try:
            if cores:
                os.sched_setaffinity(process.pid, cores)
            assert await process.stdout.readline() == b"started\n", "the load did not start"
            yield driven
            process.stdin.close()
            if await process.wait():
                raise RuntimeError(f"the load ended with status {process.returncode}")
            driven.update(_read(results))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _read(file: Path) -> Iterator[tuple[str, Traffic]]:
    with file.open("rb") as source:
        for head in json.loads(source.readline()):
            columns = [array(kind) for kind in "dfh"]
            for column in columns:
                column.fromfile(source, head["count"])
            yield head["name"], Traffic(head["name"], *columns, Counter(head["bodies"]), *head["rest"])


# --- the process -------------------------------------------------------------------------------------------------


class Sending:
    """A stream under way."""

    def __init__(self, spec: Stream, port: int) -> None:
        self.spec = spec
        self.loop = asyncio.get_running_loop()
        self.at, self.seconds, self.status = array("d"), array("f"), array("h")
        self.bodies: Counter[str] = Counter()
        self.without_retry_after = 0
        self.closed_ports: list[int] = []
        self.execution_ids: list[str] = []
        self.idle: list[Connection] = []
        self.open: set[Connection] = set()
        self.stopped = False
        self._address = ("127.0.0.1", port)
        self._requests = cycle(spec.requests())
        self._waiting: deque[float] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._started = 0.0
        self._sent = 0

    async def connect(self) -> None:
        """Open as many connections as are needed at once; one that is never used is closed by the service in time."""
        count = min(self.spec.connections, int(self.spec.rate * FIRST_SECONDS) + 1 if self.spec.rate else MANY)
        await asyncio.gather(*(self._new_connection() for _ in range(count)), return_exceptions=True)

    async def _new_connection(self) -> Connection:
        _, connection = await self.loop.create_connection(lambda: Connection(self), *self._address)
        return connection

    def start(self, shift: float) -> None:
        """Begin, by so much of the time between two requests later: streams of one rate are not to come in bursts."""
        self._started = monotonic() + (shift / self.spec.rate if self.spec.rate else 0.0)
        if not self.spec.rate:
            for _ in range(self.spec.connections):
                self.begin(self._started)

    def tick(self, now: float) -> None:
        if not self.spec.rate:
            return
        due = int((now - self._started) * self.spec.rate)
        while self._sent < due:
            self._sent += 1
            ideal = self._started + self._sent / self.spec.rate
            self.begin(now if now - ideal < LATE_SECONDS else ideal)

    def begin(self, scheduled: float) -> None:
        if self.idle:
            self.idle.pop().send(scheduled, next(self._requests))
        elif len(self.open) + len(self._connecting) < self.spec.connections:
            task = self.loop.create_task(self._begin_on_new(scheduled))
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)
        else:
            self._waiting.append(scheduled)

    async def _begin_on_new(self, scheduled: float) -> None:
        try:
            async with asyncio.timeout(self.spec.timeout_seconds):
                connection = await self._new_connection()
        except (OSError, TimeoutError):
            self.note(scheduled, REFUSED)
            if not self.spec.rate and not self.stopped:
                self.loop.call_later(0.01, self._again)
            return
        if connection in self.idle:
            self.idle.remove(connection)
            connection.send(scheduled, next(self._requests))
        else:
            self.begin(scheduled)

    def _again(self) -> None:
        if not self.stopped:
            self.begin(monotonic())

    def note(self, scheduled: float, status: int) -> None:
        self.at.append(scheduled)
        self.seconds.append(monotonic() - scheduled)
        self.status.append(status)

    def free(self, connection: Connection) -> None:
        """Give a connection that has had its answer the next request, if there is one."""
        if not self.spec.rate and not self.stopped:
            connection.send(monotonic(), next(self._requests))
        elif self._waiting:
            connection.send(self._waiting.popleft(), next(self._requests))
        else:
            self.idle.append(connection)

    def lost(self, connection: Connection) -> None:
        self.open.discard(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        if not self.spec.rate:
            self._again()
        elif self._waiting:
            self.begin(self._waiting.popleft())

    def sweep(self, now: float) -> None:
        """Give up what has waited for longer than the stream's timeout, as a client does: by hanging up."""
        oldest = now - self.spec.timeout_seconds
        while self._waiting and self._waiting[0] < oldest:
            self.note(self._waiting.popleft(), TIMED_OUT)
        for connection in [one for one in self.open if one.scheduled and one.scheduled < oldest]:
            connection.give_up()

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._connecting or any(connection.scheduled for connection in self.open))

    def head(self) -> dict[str, Any]:
        return {
            "name": self.spec.name,
            "count": len(self.at),
            "bodies": self.bodies,
            "rest": [self.without_retry_after, self.closed_ports, self.execution_ids],
        }


class Connection(asyncio.Protocol):
    """One kept-alive connection; ``scheduled`` is the time of the request under way, or 0."""

    def __init__(self, stream: Sending) -> None:
        self._stream = stream
        self._received = b""
        self.scheduled = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._port = transport.get_extra_info("sockname")[1]
        self._stream.open.add(self)
        self._stream.idle.append(self)

    def send(self, scheduled: float, request: bytes) -> None:
        self.scheduled = scheduled
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        head_end = data.find(HEAD_END)
        if head_end < 0:
            self._received = data
            return
        at = data.find(b"Content-Length: ", 0, head_end)
        length = int(data[at + 16 : data.find(b"\r\n", at)]) if at > 0 else 0
        if len(data) < head_end + 4 + length:
            self._received = data
            return
        self._received = b""
        stream = self._stream
        status = int(data[9:12]) if data.startswith(b"HTTP/1.1 ") else GARBAGE
        stream.note(self.scheduled, status)
        if status == 503 and b"retry-after" not in data[:head_end].lower():
            stream.without_retry_after += 1
        if status == 200 and stream.spec.keep_ids:
            at = data.index(EXECUTION_ID) + len(EXECUTION_ID)
            stream.execution_ids.append(data[at : data.index(b"\r", at)].decode())
        if stream.spec.keep_bodies and len(stream.bodies) < DISTINCT_BODIES:
            stream.bodies[f"{status} {data[head_end + 4 :].decode(errors='replace')}"] += 1
        self.scheduled = 0.0
        if b"\r\nConnection: close" in data[:head_end]:
            self._transport.close()
        else:
            stream.free(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.scheduled:
            self._stream.closed_ports.append(self._port)
            self._stream.note(self.scheduled, CLOSED)
            self.scheduled = 0.0
        self._stream.lost(self)

    def give_up(self) -> None:
        self._stream.note(self.scheduled, TIMED_OUT)
        self.scheduled = 0.0
        self._transport.abort()


async def main(plan: dict[str, Any]) -> None:
    loop = asyncio.get_running_loop()
    streams = [Sending(Stream(**given), plan["port"]) for given in plan["streams"]]
    for stream in streams:
        await stream.connect()
    gc.collect()
    gc.freeze()
    gc.disable()
    print("started", flush=True)
    for number, stream in enumerate(streams):
        stream.start(number / len(streams))
    over = loop.create_future()
    loop.add_reader(sys.stdin.fileno(), lambda: over.done() or over.set_result(None))
    swept = monotonic()
    while not over.done():
        await asyncio.sleep(TICK_SECONDS)
        now = monotonic()
        for stream in streams:
            stream.tick(now)
        if now - swept > SWEEP_SECONDS:
            swept = now
            for stream in streams:
                stream.sweep(now)
    loop.remove_reader(sys.stdin.fileno())
    for stream in streams:
        stream.stopped = True
    while any(stream.busy for stream in streams):
        await asyncio.sleep(SWEEP_SECONDS)
        for stream in streams:
            stream.sweep(monotonic())
    with Path(plan["results"]).open("wb") as file:  # noqa: ASYNC230  # nothing else is left to do
        file.write(json.dumps([stream.head() for stream in streams]).encode() + b"\n")
        for stream in streams:
            for column in (stream.at, stream.seconds, stream.status):
                column.tofile(file)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(json.loads(sys.argv[1])))
