"""This service beside hand-written handlers, on the same backends.

    python -m tests.bench [--flows noop,http] [--rounds 5] [--seconds 3] [--contestants ours,hand] [--json FILE]
    python -m tests.bench --profile noop

Each server runs on the first core alone; the load, the database and the model server have the others. The contestants
take turns, A B C A B C, and each number is the median of the rounds; ratios are taken within a round. Before anything
is measured, every contestant has to give the same bytes for the same ids, and the same status for a bad one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import pstats
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import orjson
from attrs import evolve, frozen

from orchestrator_core.testing import free_port
from tests.bench import ours
from tests.bench.backends import (
    CUSTOMERS,
    make_customers,
    make_model,
    make_sqlite,
    postgresql_database,
    predict,
    report_of,
)
from tests.bench.features import feature_repository, redis_server
from tests.bench.load import Measured, fetch, measure, request
from tests.bench.process import ROOT, Cores, Process, Unusable, divide_cores, move_backends, run_to_the_end, started
from tests.bench.report import ALONE, FLOOR, FLOOR_SECONDS, FLOWS, Contestant, as_json, doubts, table, targets
from tests.bench.task import SLOW_API_SECONDS, SLOW_MODEL_SECONDS, Settings, path

MODULES = {
    "hand": "tests.bench.contestants.hand",
    "tricks": "tests.bench.contestants.tricks",
    "fastapi": "tests.bench.contestants.with_fastapi",
    "bare": "tests.bench.contestants.bare",
}
CONTESTANTS = ("ours", "hand", "tricks", "fastapi")
FIELDS = {
    "multi": ("ours", "hand", "fastapi"),
    "loan": ("ours", "hand", "fastapi"),
    "multi_slow": ("ours", "hand"),
    "loan_slow": ("ours", "hand"),
}
"""Who takes part in a flow, where that is not everybody."""
ON_POSTGRESQL = frozenset({"postgresql", "http", *FIELDS})
ON_REDIS = frozenset({"loan", "loan_slow"})
ON_API = frozenset({"http", *FIELDS})
FEAST = ROOT / "plugins" / "source-feast" / "tests" / "bench_feast.py"
CONNECTIONS = 32
IDS = 2_000
SLOW_IDS = 200
WARM_UP_SECONDS = 0.5
PROFILED_ROWS = 35


def say(text: str) -> None:
    print(text, flush=True)


@frozen
class Options:
    flows: tuple[str, ...]
    contestants: tuple[str, ...]
    rounds: int
    seconds: float
    ids: int
    postgresql: str
    redis: str
    json: Path | None
    profile: str | None


def parse(arguments: Sequence[str]) -> Options:
    def names(known: Sequence[str], text: str) -> tuple[str, ...]:
        given = tuple(name.strip() for name in text.split(","))
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return given

    def at_least_one(text: str) -> int:
        if int(text) < 1:
            raise argparse.ArgumentTypeError("expected at least 1")
        return int(text)

    flows, contestants = tuple(FLOWS), CONTESTANTS
    parser = argparse.ArgumentParser(
        "python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flows", type=lambda text: names(flows, text), default=flows, help=", ".join(flows))
    parser.add_argument(
        "--contestants",
        type=lambda text: names(contestants, text),
        default=contestants,
        help=", ".join(contestants) + "; the flow engine has its own, and tricks only the older ones",
    )
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each contestant in each round")
    parser.add_argument("--ids", type=at_least_one, default=IDS, help="how many customers are asked for")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to a file too")
    parser.add_argument(
        "--postgresql", default="postgresql://postgres@127.0.0.1:5432/postgres", metavar="URL", help="of the server"
    )
    parser.add_argument(
        "--redis",
        default="",
        metavar="ADDRESS",
        help="of a server as Feast takes it, 127.0.0.1:6379,db=3; by default one is started, if it is installed",
    )
    parser.add_argument(
        "--profile",
        choices=[flow for flow in flows if flow != "feast"],
        metavar="FLOW",
        help="run ours under cProfile instead",
    )
    return Options(**vars(parser.parse_args(arguments)))


# --- the backends ------------------------------------------------------------------------------------------------


@frozen
class Backends:
    settings: Settings
    missing: Mapping[str, str]
    """Why flows cannot run, by flow."""
    servers: Mapping[bool, Process]
    """The API and model server: the quick one, and under True the one that takes its time."""
    redis: str
    redis_pid: int | None

    def of(self, flow: str) -> tuple[Settings, list[int]]:
        """Return the settings of a flow, and the process ids of the backends that are its alone or known."""
        server = self.servers.get(flow in ALONE)
        if server is None or flow not in ON_API:
            return evolve(self.settings, flow=flow), []
        url = f"http://127.0.0.1:{server.port}"
        pids = [server.pid] + ([self.redis_pid] if self.redis_pid and flow in ON_REDIS else [])
        return evolve(self.settings, flow=flow, model_url=url, api_url=url), pids


@asynccontextmanager
async def backends(options: Options, folder: Path, cores: Cores) -> AsyncIterator[Backends]:
    import asyncpg

    flows = set(options.flows)
    settings, missing = Settings("", 0), dict[str, str]()
    async with AsyncExitStack() as stack:
        customers = make_customers()
        if "sqlite" in flows:
            settings = evolve(settings, sqlite=str(folder / "customers.db"))
            make_sqlite(Path(settings.sqlite), customers)
        if flows & {"sqlite", "postgresql"}:
            say("training the model")
            settings = evolve(settings, model=str(folder / "model.onnx"))
            make_model(Path(settings.model), customers)
        if flows & ON_POSTGRESQL:
            try:
                url = await stack.enter_async_context(postgresql_database(options.postgresql, customers))
                settings = evolve(settings, postgresql=url)
            except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                why = f"PostgreSQL does not answer: {error or type(error).__name__} (--postgresql URL names another)"
                missing = dict.fromkeys(ON_POSTGRESQL, why)
        redis, redis_pid = options.redis, None
        if flows & {*ON_REDIS, "feast"}:
            try:
                redis, redis_pid = await stack.enter_async_context(redis_server(options.redis, folder, cores.load))
            except (OSError, ValueError) as error:
                why = f"Redis does not answer: {error or type(error).__name__} (--redis ADDRESS names another)"
                missing = {**dict.fromkeys((*ON_REDIS, "feast"), why), **missing}
        if flows & ON_REDIS - set(missing):
            say("filling the feature store")
            repository = feature_repository(folder / "features", redis, CUSTOMERS)
            settings = evolve(settings, feast=await stack.enter_async_context(repository))
        servers = {}
        for slow in (False, True):
            if any((flow in ALONE) == slow for flow in flows & ON_API - set(missing)):
                port, delays = free_port(), (SLOW_API_SECONDS, SLOW_MODEL_SECONDS) if slow else (0, 0)
                command = [sys.executable, "-m", "tests.bench.backends", str(port), *map(str, delays)]
                log = folder / f"model-server-{port}.log"
                servers[slow] = await stack.enter_async_context(started("model server", command, port, cores.load, log))
        yield Backends(settings, missing, servers, redis, redis_pid)


# --- one flow ----------------------------------------------------------------------------------------------------


async def run_flow(
    flow: str, options: Options, there: Backends, folder: Path, cores: Cores
) -> dict[str, dict[str, Contestant]]:
    """Start the flow's contestants, verify them and measure them round by round. The results are by load."""
    settings, backend_pids = there.of(flow)
    say(f"\n{FLOWS[flow]}")
    count = 1 if flow == "engine" else min(SLOW_IDS, options.ids) if flow in ALONE else options.ids
    ids = random.Random(flow).sample(range(1, CUSTOMERS + 1), count)
    async with AsyncExitStack() as stack:
        servers: dict[str, Process] = {}
        expected: list[bytes] = []
        names = [name for name in options.contestants if name in FIELDS.get(flow, CONTESTANTS)]
        for name in ("ours", "bare") if flow == "engine" else names:
            given = evolve(settings, port=free_port())
            if name == "ours":
                command = ours.command(folder / f"config-{flow}", given)
            else:
                constant = [expected[0].decode()] if name == "bare" else []
                command = [sys.executable, "-m", MODULES[name], given.to_argument(), *constant]
            server = await stack.enter_async_context(
                started(name, command, given.port, cores.server, folder / f"{flow}-{name}.log")
            )
            bodies = await verify(flow, server, ids)
            for number, one, other in zip(ids, bodies, expected, strict=bool(expected)):
                if one != other:
                    raise Unusable(f"{name} answers {one!r} for {number}, {next(iter(servers))} {other!r}")
            expected = expected or bodies
            servers[name] = server
        say(f"  {', '.join(servers)}: the same {len(ids)} answers")
        requests = [request(f"{path(flow)}{number}") for number in ids]
        loads = {flow: CONNECTIONS, f"{flow}_alone": 1} if flow in ALONE else {flow: CONNECTIONS}
        rounds: dict[str, dict[str, list[Measured]]] = {load: {name: [] for name in servers} for load in loads}
        for number, (load, connections) in product(range(options.rounds), loads.items()):
            shown = []
            for name, server in servers.items():
                pids = list(backend_pids)
                if flow in ON_POSTGRESQL:
                    pids += await keep_off(settings.postgresql, cores)
                measured = await measure(
                    server,
                    requests,
                    expected,
                    connections=connections,
                    warm_up_seconds=WARM_UP_SECONDS,
                    seconds=options.seconds,
                    seed=number,
                    backends=pids,
                    spread_seconds=FLOOR_SECONDS if flow in ALONE else 0.0,
                )
                rounds[load][name].append(measured)
                cost = f"{measured.cpu_micros:.1f} µs"
                if connections == 1:
                    cost = f"p50 {measured.p50_seconds * 1e3:.2f} ms"
                shown.append(f"{name} {measured.requests_per_second:,.0f}/s {cost}")
            if connections == 1:
                floor = await measure_floor(there.servers[True], options.seconds, ids)
                rounds[load].setdefault(FLOOR, []).append(floor)
                shown.append(f"floor p50 {floor.p50_seconds * 1e3:.2f} ms")
            say(f"  round {number + 1} of {options.rounds}: {', '.join(shown)}")
        peaks = {name: server.peak_bytes() for name, server in servers.items()}
        return {
            load: {name: Contestant(tuple(measured), peaks.get(name, 0)) for name, measured in by_name.items()}
            for load, by_name in rounds.items()
        }


async def measure_feast(redis: str, folder: Path, cores: Cores) -> dict[str, dict[str, float]]:
    """Let Feast's SDK and our source read in turns, in one process on the server's core. Returns CPU microseconds."""
    written = folder / "feast.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "ignore", str(FEAST), "--stores", "sqlite,redis", "--json", str(written)),
        cwd=FEAST.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT), "ORCHESTRATOR_TEST_REDIS": redis.partition(",")[0]},
        start_new_session=True,
    )
    try:
        os.sched_setaffinity(process.pid, cores.server)
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if status:
        raise Unusable(f"{FEAST.name} ended with status {status}")
    measured: dict[str, dict[str, float]] = json.loads(written.read_text())
    return measured


async def measure_floor(server: Process, seconds: float, ids: Sequence[int]) -> Measured:
    """Ask the API and the model themselves, one after the other: what a client waits for on this machine at least."""
    features = {"credit_score": 600, "debt_ratio": 0.5}
    reports = [request(f"/reports/{number}") for number in ids]
    answers = [orjson.dumps(report_of(number)) for number in ids]
    predictions, scores = [request("/predict", orjson.dumps(features))], [orjson.dumps(predict(features))]
    api, model = [
        await measure(
            server,
            requests,
            bodies,
            connections=1,
            warm_up_seconds=WARM_UP_SECONDS,
            seconds=seconds / 2,
            seed=0,
        )
        for requests, bodies in ((reports, answers), (predictions, scores))
    ]
    return evolve(api, p50_seconds=api.p50_seconds + model.p50_seconds, p99_seconds=api.p99_seconds + model.p99_seconds)


async def verify(flow: str, server: Process, ids: Sequence[int]) -> list[bytes]:
    """Return the body for each id. Raises :class:`Unusable` when a contestant does less than its duty."""
    answers = await fetch(server, [f"{path(flow)}{number}" for number in ids])
    for number, answer in zip(ids, answers, strict=True):
        if answer.status != 200:
            raise Unusable(f"{server.name} answers {answer.status} for {number}: {answer.body!r}")
        if server.name == "ours" and not {"x-execution-id", "server-timing"} <= answer.headers.keys():
            raise Unusable(f"ours answers without its headers: {answer.headers}")
    if flow not in ("noop", "engine"):
        for entity, status in ((CUSTOMERS + 1, 404), ("abc", 422)):
            (answer,) = await fetch(server, [f"{path(flow)}{entity}"])
            if answer.status != status:
                raise Unusable(f"{server.name} answers {answer.status} for {entity}, not {status}: {answer.body!r}")
    return [answer.body for answer in answers]


async def keep_off(url: str, cores: Cores) -> list[int]:
    """Move the database's own processes to the other cores, where we may, and return their ids."""
    import asyncpg

    connection = await asyncpg.connect(url)
    rows = await connection.fetch("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
    await connection.close()
    return move_backends(urlsplit(url).path[1:], [row["pid"] for row in rows], cores.load)


async def profile(flow: str, options: Options, there: Backends, folder: Path, cores: Cores) -> None:
    """Run ours under cProfile and print where the time goes."""
    given = evolve(there.of(flow)[0], port=free_port())
    written = folder / "profile"
    command = ours.command(folder / "config-profiled", given, written)
    async with started("ours", command, given.port, cores.server, folder / "profiled.log") as server:
        ids = random.Random(flow).sample(range(1, CUSTOMERS + 1), IDS)
        bodies = await verify(flow, server, ids)
        say(f"profiling {FLOWS[flow]} for {options.seconds:g} s")
        measured = await measure(
            server,
            [request(f"{path(flow)}{number}") for number in ids],
            bodies,
            connections=CONNECTIONS,
            warm_up_seconds=WARM_UP_SECONDS,
            seconds=options.seconds,
            seed=0,
        )
    say(f"{measured.cpu_micros:.0f} µs a request, of which cProfile itself is a good half\n")
    pstats.Stats(str(written)).sort_stats("tottime").print_stats(PROFILED_ROWS)


# --- the whole run -----------------------------------------------------------------------------------------------


def machine(cores: Cores) -> dict[str, str]:
    packages = ("aiohttp", "uvloop", "orjson", "asyncpg", "aiosqlite", "fastapi", "uvicorn", "onnxruntime")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"server {sorted(cores.server)}, load and backends {sorted(cores.load)}",
        **{name: found for name in packages if (found := _version(name))},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a contestant's that does not take part
        return ""


async def run(options: Options) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    cores = divide_cores()
    os.sched_setaffinity(0, cores.load)
    say("  ".join(f"{name} {value}" for name, value in machine(cores).items()))
    notes = [] if cores.apart else ["There is one core only: the load takes its share of it, and counts as ours."]
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    results: dict[str, dict[str, Contestant]] = {}
    feast: dict[str, dict[str, float]] = {}
    try:
        if options.profile:
            options = evolve(options, flows=(options.profile,))
        async with backends(options, folder, cores) as there:
            for flow in options.flows:
                if why := there.missing.get(flow):
                    say(f"\n{FLOWS[flow]}: left out. {why}")
                    notes.append(f"{flow} was left out. {why}")
                elif flow == "feast":
                    say(f"\n{FLOWS[flow]}")
                    feast = await measure_feast(there.redis, folder, cores)
                elif options.profile:
                    await profile(flow, options, there, folder, cores)
                else:
                    for load, measured in (await run_flow(flow, options, there, folder, cores)).items():
                        results[load] = measured
                        say("\n" + table(load, measured))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.profile:
        return
    say("\ntargets, ours in each")
    for target in targets(results, feast):
        say(target.line())
    notes += doubts(results)
    for note in notes:
        say(f"\n{note}")
    if options.json:
        options.json.write_text(json.dumps(as_json(results, feast, machine(cores), notes), indent=2) + "\n")
        say(f"\nall numbers: {options.json}")


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    return run_to_the_end(run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
