"""Micro-batching on against off: the same sklearn model behind the same endpoint, asked by many clients at once.

    python -m tests.bench.batching [--clients 64] [--rounds 5] [--seconds 3] [--max-wait 2ms]

Both servers run the real command, on the first core alone, and take turns. Before anything is measured, both have to
give the same bytes for the same requests; so has every answer under load. Scores are written with nine decimals: the
last bits of a sum that BLAS makes depend on how many rows it is given, whoever calls it.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from orchestrator_core.testing import free_port
from tests.bench.load import Measured, fetch, measure, request
from tests.bench.process import Process, Unusable, divide_cores, run_to_the_end, started
from tests.bench.task import FEATURES

REQUESTS = 500
WARM_UP_SECONDS = 0.7
BATCH = {"off": "", "on": ", batch: {{max_wait: {max_wait}}}"}

MODEL = """\
ml:
  sources:
    risk:
      source: {{type: artifact, path: risk, model_root: ., trust: true, outputs: {{score: probability}}{batch}}}
"""
ENDPOINT = """\
endpoints:
  score:
    path: "/{entity_id}"
    input_schema: {type: object, properties: {entity_id: {type: integer}}}
    data_sources:
      - name: risk
        type: ml
        source_id: risk
        operation: predict
        params:
          features:
            age: "$request.path_params.entity_id % 62 + 18"
            annual_income: "$request.path_params.entity_id * 37.5 % 90000 + 12000"
            credit_score: "$request.path_params.entity_id * 7 % 550 + 300"
            debt_ratio: "$request.path_params.entity_id % 90 / 100"
            loan_amount: "$request.path_params.entity_id * 500.0 % 59000 + 1000"
            months_employed: "$request.path_params.entity_id % 420"
            open_accounts: "$request.path_params.entity_id % 20"
            late_payments: "$request.path_params.entity_id % 12"
    response_mapping: {score: "{{ round($risk.score, 9) }}"}
"""


def make_model(folder: Path) -> None:
    """Fit a scaled logistic regression and write it as an MLflow folder."""
    import numpy as np
    import sklearn
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    chance = np.random.default_rng(7)
    table = chance.normal(size=(2_000, len(FEATURES))) * [15, 20_000, 120, 0.3, 15_000, 120, 5, 2] + 1
    target = (table[:, 3] + table[:, 7] / 4 - table[:, 2] / 400 > 0.2).astype(int)
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(table, target)
    folder.mkdir()
    (folder / "model.pkl").write_bytes(pickle.dumps(model))
    columns = ", ".join(f'{{"type": "double", "name": "{name}", "required": true}}' for name in FEATURES)
    (folder / "MLmodel").write_text(
        "flavors:\n  sklearn:\n    pickled_model: model.pkl\n    serialization_format: pickle\n"
        f"    sklearn_version: {sklearn.__version__}\n"
        f'signature:\n  inputs: \'[{columns}]\'\n  outputs: \'[{{"type": "long", "required": true}}]\'\n'
    )


def write_configuration(folder: Path, model: Path, batch: str) -> None:
    (folder / "domains").mkdir(parents=True)
    (folder / "integrations").mkdir()
    shutil.copytree(model, folder / "risk")
    (folder / "domains" / "bench.yaml").write_text(ENDPOINT)
    (folder / "integrations" / "ml.yaml").write_text(MODEL.format(batch=batch))


async def run(options: argparse.Namespace) -> None:
    cores = divide_cores()
    os.sched_setaffinity(0, cores.load)
    folder = Path(tempfile.mkdtemp(prefix="orchestrator-bench-"))
    try:
        make_model(folder / "model")
        async with AsyncExitStack() as stack:
            servers: dict[str, Process] = {}
            for name, batch in BATCH.items():
                config, port = folder / name, free_port()
                write_configuration(config, folder / "model", batch.format(max_wait=options.max_wait))
                command = [sys.executable, "-m", "orchestrator_core", "serve", "--config", str(config)]
                command += ["--port", str(port), "--admin-port", "0"]
                servers[name] = await stack.enter_async_context(
                    started(name, command, port, cores.server, folder / f"{name}.log")
                )
            rounds = await compare(servers, options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(rounds, options.clients)


async def compare(servers: dict[str, Process], options: argparse.Namespace) -> dict[str, list[Measured]]:
    targets = [f"/orchestrator/bench/score/{random.Random(n).randrange(10**6)}" for n in range(REQUESTS)]
    answers: list[bytes] = []
    for name, server in servers.items():
        got = await fetch(server, targets)
        if wrong := next((answer for answer in got if answer.status != 200), None):
            raise Unusable(f"{name} answers {wrong.status}: {wrong.body!r}")
        answers = answers or [answer.body for answer in got]
        if [answer.body for answer in got] != answers:
            raise Unusable("batching changes the answers")
    rounds: dict[str, list[Measured]] = {name: [] for name in servers}
    for number in range(options.rounds):
        for name, server in servers.items():
            rounds[name].append(
                await measure(
                    server,
                    [request(target) for target in targets],
                    answers,
                    connections=options.clients,
                    warm_up_seconds=WARM_UP_SECONDS,
                    seconds=options.seconds,
                    seed=number,
                )
            )
    return rounds


def report(rounds: dict[str, list[Measured]], clients: int) -> None:
    print(f"sklearn model, {clients} clients, every answer compared with the one that was asked for alone")
    for name, measured in rounds.items():
        milliseconds = [(one.p50_seconds * 1000, one.p99_seconds * 1000) for one in measured]
        rate = statistics.median(one.requests_per_second for one in measured)
        p50, p99 = map(statistics.median, zip(*milliseconds, strict=True))
        cpu = statistics.median(one.cpu_micros for one in measured)
        times = f"p50 {p50:6.2f} ms  p99 {p99:6.2f} ms  {cpu:5.0f} µs CPU each"
        print(f"  batching {name:3}  {rate:8,.0f} requests/s  {times}")
    ratios = [
        on.requests_per_second / off.requests_per_second for on, off in zip(rounds["on"], rounds["off"], strict=True)
    ]
    print(f"  on / off      {statistics.median(ratios):.2f} times")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m tests.bench.batching", description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of load for each in each round")
    parser.add_argument("--max-wait", default="2ms")
    return run_to_the_end(run(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
