"""One client that asks at exact times: a process of its own, without an event loop.

    python -m tests.chaos.probe '{"port": 8000, "target": "/health/live", "rate": 200, "seconds": 10}'

An event loop's timers are no finer than a millisecond, which is more than a quick request takes.
"""

from __future__ import annotations

import socket
import sys
from time import perf_counter, sleep

import orjson
from attrs import asdict, frozen

from tests.chaos.open_loop import HEAD_END, Wanted, in_a_process

WATCHED_SECONDS = 0.0005
"""The last of a pause is spent with an eye on the clock: sleeping is not exact."""


@frozen
class Answered:
    """How long answers took from when they were due, in seconds, and how many were none of status 200."""

    p50: float
    p99: float
    failed: int


def ask(wanted: Wanted) -> Answered:
    """Ask on one connection, one request after the other."""
    request = f"GET {wanted.target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    times, failed = [], 0
    with socket.create_connection(("127.0.0.1", wanted.port), timeout=10) as connection:
        begun = perf_counter()
        for number in range(int(wanted.rate * wanted.seconds)):
            due = begun + number / wanted.rate
            while (left := due - perf_counter()) > 0:
                if left > WATCHED_SECONDS:
                    sleep(left - WATCHED_SECONDS)
            connection.sendall(request)
            status = _status(connection)
            if due - begun >= wanted.warm_up:
                times.append(perf_counter() - due)
                failed += status != b"200"
    times.sort()
    return Answered(times[len(times) // 2], times[int(len(times) * 0.99)], failed)


def _status(connection: socket.socket) -> bytes:
    """Read an answer to its end, and return its status."""
    data = b""
    while (end := data.find(HEAD_END)) < 0 or len(data) < end + len(HEAD_END) + _length(data):
        received = connection.recv(65536)
        if not received:
            raise ConnectionError("the connection was closed")
        data += received
    return data[9:12]


def _length(head: bytes) -> int:
    return int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0])


async def run(wanted: Wanted) -> Answered:
    """Ask from a process of its own."""
    return Answered(**await in_a_process("tests.chaos.probe", wanted))


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(asdict(ask(Wanted(**orjson.loads(sys.argv[1]))))).decode())
