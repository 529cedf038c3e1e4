"""Model servers for the tests: a stub whose answer is given, and processes of servers that are not ours."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web
from attrs import frozen
from orchestrator_model_http.options import HttpModelOptions
from orchestrator_model_http.plugin import HTTP

from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import OpenContext, OrchestratorError

READY_SECONDS = 90
ROWS = [{"credit_score": 702.0, "income": 81_000.5}, {"credit_score": 430.0, "income": 23_000.0}]


def train() -> tuple[Any, list[float]]:
    """Return a logistic regression on a data frame of the features of ``ROWS``, and its scores for them."""
    import pandas
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen = pandas.DataFrame(
        {"credit_score": [350.0, 480.0, 610.0, 690.0, 800.0, 555.0], "income": [2e4, 9e4, 3e4, 7e4, 6e4, 4e4]}
    )
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(seen, [1, 1, 0, 0, 0, 1])
    return model, model.predict_proba(pandas.DataFrame(ROWS))[:, 1].tolist()


@frozen
class Peer:
    """A server process that answers at ``url``; ``expected`` are the scores of ``ROWS``."""

    url: str
    process: subprocess.Popen[bytes]
    expected: Sequence[float] = ()

    @classmethod
    @contextmanager
    def started(
        cls, command: Sequence[str], port: int, ready: str, folder: Path, env: Mapping[str, str] | None = None
    ) -> Iterator[Peer]:
        """Start the server in a process group of its own, wait until ``GET`` of ``ready`` answers 200, and end it."""
        url = f"http://127.0.0.1:{port}"
        with (folder / "server.log").open("wb") as output:
            process = subprocess.Popen(
                command, cwd=folder, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                _wait(f"{url}{ready}", process, folder / "server.log")
                yield cls(url, process)
            finally:
                os.killpg(process.pid, signal.SIGTERM)
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            with opener.open(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} did not answer 200 within {READY_SECONDS} s:\n{log.read_text()[-2000:]}")


class Stub:
    """Answers every POST with ``answer`` and every GET with ``metadata``; keeps what it was sent."""

    def __init__(self, answer: Any, metadata: Any, ready: int) -> None:
        self.answer, self.metadata, self.ready = answer, metadata, ready
        self.url = ""
        self.paths: list[str] = []
        self.bodies: list[Any] = []

    async def handle(self, request: web.Request) -> web.Response:
        if request.method == "GET":
            if request.path.endswith(("/ready", "/ping")):
                return web.Response(status=self.ready)
            return web.json_response(self.metadata)
        self.paths.append(request.path)
        self.bodies.append(await request.json())
        return web.json_response(self.answer)


@asynccontextmanager
async def stub(answer: Any, metadata: Any = None, ready: int = 200) -> AsyncIterator[Stub]:
    server = Stub(answer, metadata, ready)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[Any]:
    async with HttpClient() as http:
        context = OpenContext(name="credit_model", config_dir=Path(__file__).parent, http=http)
        async with HTTP.open(HttpModelOptions(**{"timeout": 20.0, **options}), context) as model:
            yield model


async def predicting(rows: Sequence[Mapping[str, Any]], *, ready: bool = False, **options: Any) -> Any:
    """Open the model, and return what it predicts; if ``ready``, ask first whether it is."""
    async with opened(**options) as model:
        if ready:
            await model.check_ready()
        return await model.predict(rows)


async def failure(rows: Sequence[Mapping[str, Any]], **options: Any) -> Exception:
    """Return what opening the model or predicting raises."""
    try:
        results = await predicting(rows, **options)
    except (OrchestratorError, ValueError) as error:
        return error
    raise AssertionError(f"expected an error, got {results!r}")
