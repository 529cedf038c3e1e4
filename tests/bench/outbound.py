"""CPU per outbound call of three HTTP clients against one local server, in processes of their own.

    python tests/bench/outbound.py [--calls 10000] [--runs 5] [--concurrency 16]

Prints the median CPU microseconds of the client's process per call, user and system time together, and the median
of the ratios to our client in the same round. The runs take turns, so that a drift of the machine meets all of them.
``raw`` is the floor: the bytes of one prepared request written to a socket and whatever comes back taken for the
answer, without reading it as HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection as Pipe

import uvloop

BODY = json.dumps({"features": {f"feature_{number}": number * 1.5 for number in range(20)}}).encode()
ANSWER = json.dumps({"score": 0.25, "model_version": "credit_risk:7", "reasons": ["income", "age"]}).encode()
ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\nDate: Sat, 01 Jan 2028 00:00:00 GMT\r\n"
    b"Server: bench\r\nContent-Length: %d\r\n\r\n"
)
JSON_HEADERS = {"Content-Type": "application/json"}

Call = Callable[[], Awaitable[bytes]]
Measure = Callable[[Call], Awaitable[float]]


class Server(asyncio.Protocol):
    """Answers every request that has arrived whole with the same JSON; reads just enough of it to know its length."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) >= length:
            self._received = body[length:]
            self._transport.write(ANSWER_HEAD % len(ANSWER) + ANSWER)  # type: ignore[attr-defined]


def serve(pipe: Pipe) -> None:
    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    uvloop.run(run())


async def with_ours(url: str, measure: Measure) -> float:
    from orchestrator_core.http_client import HttpClient

    async with HttpClient() as client, client.origin(url) as origin:
        predict = origin.prepare("POST", "/predict", headers=JSON_HEADERS)

        async def call() -> bytes:
            return (await predict(BODY)).body

        return await measure(call)


async def with_ours_unprepared(url: str, measure: Measure) -> float:
    from orchestrator_core.http_client import HttpClient

    async with HttpClient() as client, client.origin(url) as origin:

        async def call() -> bytes:
            return (await origin.request("POST", "/predict?n=1", headers=JSON_HEADERS, body=BODY)).body

        return await measure(call)


async def with_our_route(url: str, measure: Measure) -> float:
    from orchestrator_core.http_client import HttpClient

    async with HttpClient() as client, client.origin(url) as origin:
        predict = origin.route("POST", headers=JSON_HEADERS)

        async def call() -> bytes:
            return (await predict("/predict?n=1", BODY)).body

        return await measure(call)


async def with_aiohttp(url: str, measure: Measure) -> float:
    import aiohttp

    async with aiohttp.ClientSession(headers=JSON_HEADERS, timeout=aiohttp.ClientTimeout(total=10)) as session:

        async def call() -> bytes:
            async with session.post(f"{url}/predict", data=BODY, allow_redirects=False) as answer:
                return await answer.read()

        return await measure(call)


async def with_pyreqwest(url: str, measure: Measure) -> float:
    from datetime import timedelta

    from pyreqwest.client import ClientBuilder

    builder = ClientBuilder().timeout(timedelta(seconds=10)).default_headers(JSON_HEADERS)
    async with builder.build() as client:
        target = f"{url}/predict"

        async def call() -> bytes:
            answer = await client.post(target).body_bytes(BODY).build().send()
            return bytes(await answer.bytes())

        return await measure(call)


async def with_raw(url: str, measure: Measure) -> float:
    """One write and one read per call on connections of its own: what no client can undercut on this loop."""
    host, _, port = url.removeprefix("http://").partition(":")
    request = b"POST /predict HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
    loop = asyncio.get_running_loop()
    free: list[Raw] = []

    async def call() -> bytes:
        connection = free.pop() if free else (await loop.create_connection(Raw, host, int(port)))[1]
        data = await connection.exchange(request)
        free.append(connection)
        return data.partition(b"\r\n\r\n")[2]

    return await measure(call)


class Raw(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._answer: asyncio.Future[bytes]

    def exchange(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)  # type: ignore[attr-defined]
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._answer.set_result(data)


CLIENTS = {
    "ours, prepared": with_ours,
    "ours, route": with_our_route,
    "ours, request": with_ours_unprepared,
    "aiohttp": with_aiohttp,
    "pyreqwest": with_pyreqwest,
    "raw": with_raw,
}


def measure_one(name: str, url: str, calls: int, concurrency: int) -> float:
    """Run one client in this process and return its CPU microseconds per call, after a warm-up."""

    async def measure(call: Call) -> float:
        async def many(count: int) -> None:
            for _ in range(count):
                if await call() != ANSWER:
                    raise SystemExit(f"{name}: wrong answer")

        async def all_at_once(count: int) -> None:
            await asyncio.gather(*(many(count // concurrency) for _ in range(concurrency)))

        await all_at_once(max(concurrency, calls // 10))
        before = time.process_time()
        await all_at_once(calls)
        return (time.process_time() - before) / (calls // concurrency * concurrency) * 1e6

    return uvloop.run(CLIENTS[name](url, measure))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--one", nargs=2, metavar=("CLIENT", "URL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, url = options.one
        print(measure_one(name, url, options.calls, options.concurrency))
        return
    here, there = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(there,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{here.recv()}"
    measured: dict[str, list[float]] = {name: [] for name in CLIENTS}
    sizes = ["--calls", str(options.calls), "--concurrency", str(options.concurrency)]
    for _ in range(options.runs):
        for name, values in measured.items():
            command = [sys.executable, __file__, *sizes, "--one", name, url]
            values.append(float(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    server.terminate()
    base = measured["ours, prepared"]
    print(f"CPU per call, concurrency {options.concurrency}, median of {options.runs} runs of {options.calls} calls")
    for name, values in measured.items():
        ratio = statistics.median(value / ours for value, ours in zip(values, base, strict=True))
        print(f"{name:<16} {statistics.median(values):7.1f} µs   {min(values):6.1f}..{max(values):.1f}   x{ratio:.2f}")


if __name__ == "__main__":
    main()
