"""Models from files, served: ONNX beside `mlflow models serve`, and a forest with and without `accelerate: onnx`.

    python -m tests.bench.models [--rounds 5] [--seconds 3]

Each server runs on the first core alone, the load on the others; the contestants take turns. A request posts one row
of features and gets one prediction. Before anything is measured all have to predict the same for the same rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from attrs import frozen

from orchestrator_core.testing import free_port
from tests.bench.load import Measured, measure
from tests.bench.process import Cores, Process, Unusable, divide_cores, run_to_the_end, started
from tests.bench.report import Target, throughput

FEATURES = ("age", "annual_income", "credit_score", "debt_ratio", "loan_amount", "months_employed")
ROWS = 200
CONNECTIONS = 32
WARM_UP_SECONDS = 0.5
TOLERANCE = 1e-5

MODEL = """\
ml:
  sources:
    risk:
      source: {{type: artifact, path: "{path}", model_root: "/", trust: true, outputs: {{score: {output}}}, {more}}}
"""
ENDPOINT = """\
domain_id: bench
endpoints:
  score:
    methods: [POST]
    path: "/row"
    data_sources:
      - {name: risk, type: ml, source_id: risk, operation: predict, params: {features: "$request.body"}}
"""


@frozen
class Contestant:
    """A server: how it is started, what a row is posted as, and how its answer is read."""

    name: str
    command: Callable[[Path, int], Sequence[str]]
    target: str
    body: Callable[[Mapping[str, float]], Any]
    score: Callable[[Any], float]


@frozen
class Comparison:
    """``first`` is to have at least ``bound`` times the requests a second of ``second``."""

    title: str
    first: Contestant
    second: Contestant
    bound: float


def ours(name: str, model: Path, more: str, output: str) -> Contestant:
    def command(folder: Path, port: int) -> Sequence[str]:
        (folder / "domains").mkdir(parents=True)
        (folder / "integrations").mkdir()
        (folder / "config.yaml").write_text("server: {}\n")
        (folder / "integrations" / "ml.yaml").write_text(MODEL.format(path=model, more=more, output=output))
        (folder / "domains" / "bench.yaml").write_text(ENDPOINT)
        serve = ("-m", "orchestrator_core", "serve", "--config", str(folder), "--port", str(port), "--admin-port", "0")
        return [sys.executable, *serve]

    return Contestant(name, command, "/orchestrator/bench/score/row", dict, lambda answer: float(answer["score"]))


def mlflow_serve(model: Path) -> Contestant:
    def command(folder: Path, port: int) -> Sequence[str]:
        options = ("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
        return [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), *options]

    def body(row: Mapping[str, float]) -> Any:
        return {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}

    def score(answer: Any) -> float:
        (prediction,) = answer["predictions"]
        return float(prediction["variable"] if isinstance(prediction, dict) else prediction)

    return Contestant("mlflow", command, "/invocations", body, score)


# --- the models ------------------------------------------------------------------------------------------------------


def make_models(folder: Path) -> tuple[Path, Path, list[dict[str, float]]]:
    """Return an MLflow folder with an ONNX model, one with a forest of 100 trees, and rows to score."""
    import mlflow.onnx
    import mlflow.sklearn
    import numpy as np
    import pandas as pd
    from mlflow.models import infer_signature
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier

    random = np.random.default_rng(7)
    data = pd.DataFrame({name: random.normal(size=2_000).round(3) for name in FEATURES}).astype("float32")
    target = data.debt_ratio * 2 + data.loan_amount - data.annual_income
    regressor = GradientBoostingRegressor(n_estimators=60, max_depth=3, random_state=0).fit(data.to_numpy(), target)
    proto = convert_sklearn(regressor, initial_types=[("features", FloatTensorType([None, len(FEATURES)]))])
    forest = RandomForestClassifier(100, max_depth=8, random_state=0).fit(data, target > 0)
    rows = [{name: float(value) for name, value in row.items()} for row in data.head(ROWS).to_dict("records")]
    signature = infer_signature(data, np.zeros(len(data), "float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow, on types
        mlflow.onnx.save_model(proto, str(folder / "onnx"), signature=signature, pip_requirements=[])
        mlflow.sklearn.save_model(
            forest,
            str(folder / "forest"),
            signature=infer_signature(data, forest.predict(data)),
            input_example=data.head(20),
            pip_requirements=[],
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )
    return folder / "onnx", folder / "forest", rows


# --- one comparison --------------------------------------------------------------------------------------------------


def request_of(contestant: Contestant, row: Mapping[str, float]) -> bytes:
    body = json.dumps(contestant.body(row)).encode()
    head = f"POST {contestant.target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def running(contestant: Contestant, folder: Path, cores: Cores) -> AsyncIterator[Process]:
    port = free_port()
    command = contestant.command(folder / contestant.name, port)
    async with started(contestant.name, command, port, cores.server, folder / f"{contestant.name}.log") as server:
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):  # mlflow's server is a child of its command
                os.killpg(server.pid, signal.SIGTERM)


async def bodies_of(server: Process, requests: Sequence[bytes]) -> list[bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    found = []
    try:
        for request in requests:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.partition("content-length:")[2].partition("\r\n")[0])
            found.append(await reader.readexactly(length))
            if " 200 " not in head.partition("\r\n")[0]:
                raise Unusable(f"{server.name} answered {head.splitlines()[0]}: {found[-1][:300]!r}")
    finally:
        writer.close()
    return found


async def compare(
    comparison: Comparison, rows: Sequence[Mapping[str, float]], rounds: int, seconds: float, folder: Path, cores: Cores
) -> Target:
    both = (comparison.first, comparison.second)
    results: dict[str, list[Measured]] = {contestant.name: [] for contestant in both}
    async with running(both[0], folder, cores) as one, running(both[1], folder, cores) as two:
        servers = (one, two)
        requests = [[request_of(contestant, row) for row in rows] for contestant in both]
        bodies = [await bodies_of(server, sent) for server, sent in zip(servers, requests, strict=True)]
        scores = [[c.score(json.loads(body)) for body in got] for c, got in zip(both, bodies, strict=True)]
        apart = max(abs(a - b) for a, b in zip(*scores, strict=True))
        if apart > TOLERANCE:
            raise Unusable(f"{both[0].name} and {both[1].name} predict {apart:g} apart")
        for number in range(rounds):
            for contestant, server, sent, got in zip(both, servers, requests, bodies, strict=True):
                measured = await measure(
                    server,
                    sent,
                    got,
                    connections=CONNECTIONS,
                    warm_up_seconds=WARM_UP_SECONDS,
                    seconds=seconds,
                    seed=number,
                )
                results[contestant.name].append(measured)
    print(f"\n{comparison.title}", flush=True)
    for name, measurements in results.items():
        rate = median(map(throughput, measurements))
        p50, p99 = (median(getattr(m, f"{p}_seconds") for m in measurements) * 1e3 for p in ("p50", "p99"))
        print(f"  {name:<12} {rate:>9,.0f} req/s   p50 {p50:>7.2f} ms   p99 {p99:>7.2f} ms", flush=True)
    pairs = zip(results[both[0].name], results[both[1].name], strict=True)
    ratio = median(throughput(first) / throughput(second) for first, second in pairs)
    return Target(f"{comparison.title}, requests a second", comparison.bound, True, "x", ratio)


async def run(rounds: int, seconds: float) -> list[Target]:
    cores = divide_cores()
    os.sched_setaffinity(0, cores.load)
    # mlflow starts uvicorn by its name, which need not be the one of this environment.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-models-"))
    try:
        onnx, forest, rows = await asyncio.to_thread(make_models, folder)
        comparisons = (
            Comparison(
                "an ONNX model, ours over mlflow models serve",
                ours("ours", onnx, "", "value"),
                mlflow_serve(onnx),
                15.0,
            ),
            Comparison(
                "a forest of 100 trees, accelerate: onnx over none",
                ours("accelerated", forest, "accelerate: onnx", "probability"),
                ours("sklearn", forest, "run_in: auto", "probability"),
                20.0,
            ),
        )
        return [await compare(each, rows, rounds, seconds, folder, cores) for each in comparisons]
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.models", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each contestant in each round")
    parser.add_argument("--with-all", action="store_true", help="do nothing when the arguments choose other flows")
    given, others = parser.parse_known_args(arguments)
    if others and given.with_all:
        return 0
    if others:
        parser.error(f"unknown: {' '.join(others)}")
    return run_to_the_end(report(given.rounds, given.seconds))


async def report(rounds: int, seconds: float) -> None:
    found = await run(rounds, seconds)
    print("\ntargets")
    for target in found:
        print(target.line())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
