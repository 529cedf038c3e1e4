"""Twice, then ten times the load that one worker can serve: what is accepted, what is refused, and how it is after."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Literal

from attrs import frozen

from orchestrator_core.testing import free_port
from orchestrator_core.testing.service import write_files
from tests.bench.load import Measured, fetch, request
from tests.bench.load import measure as closed_loop
from tests.bench.process import Process, divide_cores, started
from tests.chaos.open_loop import Seen, Wanted, run

PLUGIN = """
from contextlib import asynccontextmanager
from attrs import frozen
from orchestrator_core.plugin_api import SourceKind, hookimpl, option
from tests.chaos.work import Work

@frozen
class Options:
    work: float = option(0.0015, help="Seconds of CPU that a call takes while the core is at its best.")

class Busy:
    def __init__(self, options):
        self._work = Work(options.work)

    async def fetch(self, operation, params):
        return {"total": self._work.compute()}

@asynccontextmanager
async def opened(options, context):
    yield Busy(options)

@hookimpl
def orchestrator_source_kinds():
    return [SourceKind("busy", "Takes CPU.", Options, opened)]
"""
DOMAIN = """
endpoints:
  plain:
    response_mapping: {fine: true, x: "$request.x ?? 1", header: "$request.headers['x-test'] ?? null"}
  large:
    response_mapping: {text: "%s"}
  cpu:
    data_sources:
      - {name: work, type: busy, operation: compute}
    response_mapping: {total: "$work.total"}
  api:
    data_sources:
      - {name: partner, type: api, operation: get}
      - {name: work, type: busy, source_id: lighter, operation: compute, depends_on: [partner]}
    response_mapping: {score: "$partner.score", total: "$work.total"}
"""
DOMAIN %= "x" * 100_000
CONFIG = """
admin: {enabled: false}
"""
SOURCES = """
busy: {{sources: {{default: {{work: {work}}}, lighter: {{work: 0.001}}}}}}
api:
  sources:
    default: {{base_url: "http://127.0.0.1:{port}", timeout: 5s, max_connections: 2000}}
  operations:
    get: {{path: /}}
"""
PARTNER_SECONDS = 0.01
WORK_SECONDS = 0.0015


@frozen
class Step:
    """What was seen at a multiple of the peak, and how it compares with the peak.

    That is the mean of the peaks before and after it: the machine is faster in one half minute than in the next.
    """

    times: float
    seen: Seen
    peak: float
    peak_p99: float
    cpu_share: float
    """The share by the worker's CPU time, which other processes of the machine do not touch."""

    @property
    def share(self) -> float:
        return self.seen.goodput / self.peak

    @property
    def p99_ratio(self) -> float:
        return self.seen.accepted_p99 / self.peak_p99


@frozen
class Found:
    flow: str
    steps: tuple[Step, ...]
    after_seconds: float


@asynccontextmanager
async def partner() -> AsyncIterator[int]:
    """A partner API in this process that answers after 10 ms."""
    answer = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{"score": 7}'

    class Peer(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            asyncio.get_running_loop().call_later(PARTNER_SECONDS, self.transport.write, answer)  # type: ignore[attr-defined]

    server = await asyncio.get_running_loop().create_server(Peer, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def worker() -> AsyncIterator[Process]:
    """One worker with the flows, on a core of its own where there are several."""
    async with partner() as port:
        files = {
            "config/config.yaml": CONFIG,
            "config/integrations/sources.yaml": SOURCES.format(port=port, work=WORK_SECONDS),
            "config/domains/load.yaml": DOMAIN,
            "plugins/busy.py": PLUGIN,
        }
        async with serving(files) as process:
            yield process


@asynccontextmanager
async def serving(files: Mapping[str, str]) -> AsyncIterator[Process]:
    """Start the service by its command, from files below ``config`` and ``plugins``."""
    with TemporaryDirectory(prefix="orchestrator-chaos-") as folder:
        write_files(Path(folder), files)
        port = free_port()
        command = [sys.executable, "-m", "orchestrator_core", "serve", "--config", f"{folder}/config"]
        command += ["--port", str(port)]
        if any(name.startswith("plugins/") for name in files):
            command += ["--plugins-dir", f"{folder}/plugins"]
        async with started("service", command, port, divide_cores().server, Path(folder) / "log") as process:
            yield process


@asynccontextmanager
async def bare() -> AsyncIterator[Process]:
    """The least that can compute as much as the flow ``cpu``, on the same core."""
    with TemporaryDirectory(prefix="orchestrator-chaos-") as folder:
        port = free_port()
        command = [sys.executable, "-m", "tests.chaos.bare", str(port), str(WORK_SECONDS)]
        async with started("bare loop", command, port, divide_cores().server, Path(folder) / "log") as process:
            yield process


async def peak_of(process: Process, target: str, seconds: float, connections: int) -> Measured:
    """Return what the worker serves when it is asked by so many clients one request after the other."""
    (answer,) = await fetch(process, [target])
    return await closed_loop(
        process, [request(target)], [answer.body], connections=connections, warm_up_seconds=1, seconds=seconds, seed=1
    )


async def measure(
    flow: Literal["cpu", "api"] = "cpu",
    times: tuple[float, ...] = (2, 10),
    seconds: float = 10.0,
    connections: int = 32,
    service: Callable[[], AbstractAsyncContextManager[Process]] = worker,
) -> Found:
    """Measure the peak and the multiples of it in turns, and after each of those how soon all is as before."""
    target = f"/orchestrator/load/{flow}"
    async with service() as process:
        steps: list[Step] = []
        after_seconds = 0.0
        peak = await peak_of(process, target, seconds / 2, connections)
        for factor in times:
            wanted = Wanted(process.port, target, peak.requests_per_second * factor, seconds, beside="/health/live")
            cpu = process.cpu_seconds()
            seen = await run(wanted)
            cpu = process.cpu_seconds() - cpu
            after_seconds = max(after_seconds, await _calm_again(process, target, peak))
            before, peak = peak, await peak_of(process, target, seconds / 2, connections)
            rate, p99, micros = (
                fmean(getattr(one, name) for one in (before, peak))
                for name in ("requests_per_second", "p99_seconds", "cpu_micros")
            )
            steps.append(Step(factor, seen, rate, p99, seen.accepted / cpu * micros / 1e6))
        return Found(flow, tuple(steps), after_seconds)


async def _calm_again(process: Process, target: str, peak: Measured) -> float:
    """Return after how many seconds half of the peak is served as before; 30 when it is not."""
    ended = perf_counter()
    calm = Wanted(process.port, target, peak.requests_per_second / 2, 0.5)
    while perf_counter() - ended < 30:
        seen = await run(calm)
        if not seen.refused and not seen.other and seen.accepted_p99 < 2 * peak.p99_seconds:
            break
    return perf_counter() - ended


def shown(found: Found) -> str:
    lines = [f"{found.flow}: normal {found.after_seconds:.1f} s after"]
    for step in found.steps:
        seen = step.seen
        lines.append(
            f"x{step.times:g}: {seen.goodput:.0f} of {step.peak:.0f}/s, {step.share:.0%}, by CPU {step.cpu_share:.0%}; "
            f"p50 {_ms(seen.accepted_p50)}, p99 {_ms(seen.accepted_p99)}, {step.p99_ratio:.2f} of the peak's"
        )
        lines.append(
            f"    refused {seen.refused}: p50 {_ms(seen.refused_p50)}, p99 {_ms(seen.refused_p99)}, most "
            f"{_ms(seen.refused_max)}; health p99 {_ms(seen.beside_p99)}, failed {seen.beside_failed}"
        )
        lines.append(f"    unsent {seen.unsent}, others {dict(seen.other)}; sent late by {_ms(seen.late_p99)}")
    return "\n".join(lines)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


if __name__ == "__main__":
    import uvloop

    flow, times, seconds = sys.argv[1], tuple(map(float, sys.argv[2].split(","))), float(sys.argv[3])
    if flow == "bare":
        print(shown(uvloop.run(measure("cpu", times, seconds, service=bare))))
    else:
        print(shown(uvloop.run(measure(flow, times, seconds))))
