"""What the service costs with everything on: policies, telemetry and SQL tracking, against the same without them.

    python -m tests.bench.whole [--flows noop,sqlite] [--rounds 5] [--seconds 3] [--parts flows,cache,workers]

``lean`` has no policies, no telemetry and keeps its records in memory only; ``full`` has the policies' defaults,
Prometheus metrics and every execution in a SQLite file. A cache hit is held against the no-op on the same server, and
two workers against one, with both cores for server and load. Rounds and ratios are those of :mod:`tests.bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median

from attrs import evolve, frozen

from orchestrator_core.testing import free_port
from tests.bench import ours
from tests.bench.__main__ import CONNECTIONS, IDS, WARM_UP_SECONDS, Backends, Options, backends, keep_off, parse, say
from tests.bench.backends import CUSTOMERS
from tests.bench.load import Measured, fetch, measure, request
from tests.bench.process import Cores, Process, Unusable, divide_cores, run_to_the_end, started
from tests.bench.report import FLOWS, per_cpu_second, throughput
from tests.bench.task import Settings, path

PARTS = ("flows", "cache", "workers")
WHOLE_FLOWS = ("noop", "sqlite", "postgresql", "http", "multi", "loan")
KEEPS = 0.85
CACHE_HIT = 0.8
TWO_WORKERS = 1.4
TURN_SECONDS = 0.5


@frozen
class Outcome:
    """One ratio and what it is to reach."""

    name: str
    bound: float
    ratio: float
    detail: str

    def line(self) -> str:
        verdict = "reached" if self.ratio >= self.bound else "NOT REACHED"
        return f"  {verdict:<12} {self.ratio:5.2f}x  at least {self.bound:g}x: {self.name} ({self.detail})"


async def answers_of(server: Process, paths: Sequence[str]) -> list[bytes]:
    """Verify that the paths are answered, each time with the same bytes, which are returned."""
    answers = await fetch(server, paths)
    for asked, answer in zip(paths, answers, strict=True):
        if answer.status != 200:
            raise Unusable(f"{server.name} answers {answer.status} for {asked}: {answer.body!r}")
    return [answer.body for answer in answers]


async def load_on(
    server: Process,
    paths: Sequence[str],
    answers: Sequence[bytes],
    seconds: float,
    seed: int,
    warm_up_seconds: float = WARM_UP_SECONDS,
) -> Measured:
    return await measure(
        server,
        [request(asked) for asked in paths],
        answers,
        connections=CONNECTIONS,
        warm_up_seconds=warm_up_seconds,
        seconds=seconds,
        seed=seed,
    )


def asked_ids(flow: str) -> list[int]:
    return random.Random(flow).sample(range(1, CUSTOMERS + 1), IDS)


async def flow_kept(flow: str, options: Options, there: Backends, folder: Path, cores: Cores) -> Outcome:
    """Measure how much of the requests a CPU second is left with everything on.

    Each round has processes of its own: two of the same configuration differ by a tenth, by where their memory lies.
    """
    settings, _ = there.of(flow)
    paths = [f"{path(flow)}{number}" for number in asked_ids(flow)]
    rounds: dict[str, list[float]] = {"lean": [], "full": []}
    for number in range(options.rounds):
        async with AsyncExitStack() as stack:
            servers = []
            for name in rounds:
                given = evolve(settings, port=free_port())
                own = folder / f"{name}-{flow}-{number}"
                command = ours.command(own / "config", given, extras=name)  # beside it is the store
                log = folder / f"{own.name}.log"
                servers.append(await stack.enter_async_context(started(name, command, given.port, cores.server, log)))
            if settings.postgresql:
                await keep_off(settings.postgresql, cores)
            for name, micros in (await cpu_micros_in_turns(servers, paths, options.seconds)).items():
                rounds[name].append(micros)
    kept = [lean / full for lean, full in zip(*rounds.values(), strict=True)]
    detail = ", ".join(f"{name} {median(micros):.0f} µs" for name, micros in rounds.items())
    detail += f", rounds {min(kept):.2f} to {max(kept):.2f}"
    return Outcome(f"{FLOWS[flow]}: requests a CPU second with everything on over without", KEEPS, median(kept), detail)


async def cpu_micros_in_turns(servers: Sequence[Process], paths: Sequence[str], seconds: float) -> dict[str, float]:
    """Return the CPU time of each server over its requests, of so many seconds for each.

    They take turns of half a second, as the machine's speed changes from one second to the next. All counts that a
    process does from the first turn to the last: what it still has to write when its turn is over, too.
    """
    answers: list[bytes] = []
    for server in servers:
        answers = await answers_of(server, paths)
        await load_on(server, paths, answers, TURN_SECONDS, 0)
    before = {server.name: server.cpu_seconds() for server in servers}
    requests = dict.fromkeys(before, 0)
    for turn in range(max(1, round(seconds / TURN_SECONDS))):
        for server in servers if turn % 2 == 0 else reversed(servers):
            measured = await load_on(server, paths, answers, TURN_SECONDS, turn, warm_up_seconds=0.0)
            requests[server.name] += measured.requests
    await asyncio.sleep(TURN_SECONDS)
    cpu = {server.name: server.cpu_seconds() - before[server.name] for server in servers}
    return {name: seconds / requests[name] * 1e6 for name, seconds in cpu.items()}


async def cache_hits(options: Options, folder: Path, cores: Cores, settings: Settings) -> list[Outcome]:
    """Measure an endpoint whose step a cache answers and one whose answer is kept, beside the no-op of the same server.

    All is on, as for the flows.
    """
    given = evolve(settings, flow="cached", port=free_port())
    command = ours.command(folder / "cached" / "config", given, extras="full")  # beside it is the store
    met: dict[str, list[Measured]] = {"cached": [], "kept": [], "noop": []}
    async with started("cached", command, given.port, cores.server, folder / "cached" / "log") as server:
        ids = asked_ids("cached")
        asked = {flow: [f"{path(flow)}{one}" for one in ids] for flow in met}
        answers = {flow: await answers_of(server, paths) for flow, paths in asked.items()}
        for flow, paths in asked.items():
            await load_on(server, paths, answers[flow], TURN_SECONDS, 0)
        for turn in range(round(options.rounds * options.seconds / TURN_SECONDS)):
            for flow, measured in met.items():
                measured.append(
                    await load_on(server, asked[flow], answers[flow], TURN_SECONDS, turn, warm_up_seconds=0.0)
                )
    outcomes = []
    for what, flow in (("a cache hit", "cached"), ("a kept answer", "kept")):
        hits, noops = met[flow], met["noop"]
        over = median(per_cpu_second(hit) / per_cpu_second(noop) for hit, noop in zip(hits, noops, strict=True))
        detail = ", ".join(
            f"{name} {median(map(throughput, measured)):,.0f}/s and"
            f" {1e6 / median(map(per_cpu_second, measured)):.1f} µs"
            for name, measured in (("hit", hits), ("no-op", noops))
        )
        outcomes.append(Outcome(f"{what} over the no-op, requests a CPU second", CACHE_HIT, over, detail))
    return outcomes


async def two_workers(options: Options, folder: Path, cores: Cores, settings: Settings) -> Outcome:
    """Measure one and two workers with both cores for them and the load."""
    both = cores.server | cores.load
    rounds: dict[int, list[Measured]] = {1: [], 2: []}
    paths = [f"{path('sqlite')}{number}" for number in asked_ids("sqlite")]
    async with AsyncExitStack() as stack:
        servers = {}
        for workers in rounds:
            given = evolve(settings, flow="sqlite", port=free_port())
            command = [*ours.command(folder / f"workers-{workers}", given), "--workers", str(workers)]
            log = folder / f"workers-{workers}.log"
            servers[workers] = await stack.enter_async_context(started(f"{workers}", command, given.port, both, log))
        for number in range(options.rounds):
            for workers, server in servers.items():
                answers = await answers_of(server, paths)
                rounds[workers].append(await load_on(server, paths, answers, options.seconds, number))
    over = median(throughput(two) / throughput(one) for one, two in zip(*rounds.values(), strict=True))
    detail = ", ".join(f"{count}: {median(map(throughput, measured)):,.0f}/s" for count, measured in rounds.items())
    return Outcome(
        "two workers over one, database (SQLite) to ONNX model, requests a second", TWO_WORKERS, over, detail
    )


async def run(options: Options, parts: Sequence[str]) -> None:
    cores = divide_cores()
    os.sched_setaffinity(0, cores.load)
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    try:
        flows = options.flows if "flows" in parts else ()
        needed = evolve(options, flows=tuple(dict.fromkeys((*flows, "sqlite"))))
        async with backends(needed, folder, cores) as there:
            for flow in flows:
                if why := there.missing.get(flow):
                    say(f"  left out: {FLOWS[flow]}. {why}")
                else:
                    say((await flow_kept(flow, options, there, folder, cores)).line())
            if "cache" in parts:
                for outcome in await cache_hits(options, folder, cores, there.settings):
                    say(outcome.line())
            if "workers" in parts:
                os.sched_setaffinity(0, cores.server | cores.load)
                say((await two_workers(options, folder, cores, there.settings)).line())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.whole", add_help=False)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--with-all", action="store_true", help="do nothing when the arguments choose other flows")
    own, rest = parser.parse_known_args(arguments)
    if own.with_all and rest:
        return 0
    parts = own.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts: {unknown.pop()} is none of {', '.join(PARTS)}")
    options = parse(
        rest if any(one.startswith("--flows") for one in rest) else [*rest, "--flows", ",".join(WHOLE_FLOWS)]
    )
    return run_to_the_end(run(options, parts))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
