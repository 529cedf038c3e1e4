"""The open model: where predictions run, what runs beside them, and what is left when it is closed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orchestrator_model_artifact.cost import LOOP_LIMIT_SECONDS, Cost, gil_wait_seconds, measure
from orchestrator_model_artifact.loading import Request, load
from orchestrator_model_artifact.location import Location, locate
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.plugin import ARTIFACT
from orchestrator_model_artifact.pools import MOST_LEFT, Processes, Threads, thread_pool
from orchestrator_model_artifact.runners import SLOW_CALLS, InThreads, Measured, OnLoop, measured
from orchestrator_model_artifact.worker import Worker, start_worker

from orchestrator_core.errors import InvalidParam, SourceError, SourceUnavailable
from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import Describes, Ends, Identified, OpenContext

from .opening import opened

Run = Callable[[Callable[[], Awaitable[None]]], None]

FEATURES = ["credit_score", "annual_income", "debt"]
ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}
SCORE: dict[str, Any] = {"outputs": {"score": "probability"}}
MATRIX: dict[str, Any] = {"features": FEATURES, **SCORE}


def customers(count: int) -> list[dict[str, Any]]:
    return [{"credit_score": 300 + 5 * index, "annual_income": 50_000, "debt": 300 * index} for index in range(count)]


async def ticks_during(work: Awaitable[Any]) -> tuple[int, Any]:
    """Return how often another task had its turn while the work was done, and the work's result."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    result = await work
    ticker.cancel()
    return ticks, result


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("run_in", ["auto", "loop", "thread", "process"])
def test_every_place_gives_the_same_results_in_order_and_leaves_nothing_behind(
    models: Path, run: Run, run_in: str
) -> None:
    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in="loop", **MATRIX) as plain:
            expected = [(await plain.predict([row]))[0] for row in customers(20)]
        async with opened(models, "matrix.onnx", run_in=run_in, workers=2, **MATRIX) as model:
            assert list(await model.predict(customers(20))) == [pytest.approx(result, rel=1e-5) for result in expected]
            assert await model.predict([]) == []
            assert isinstance(model, Describes)
            assert isinstance(model, Identified)
            assert model.facts().inputs == tuple(FEATURES)
            assert model.identity().name == "credit_model"

    run(test)


def test_a_model_that_is_looked_at_is_not_measured(models: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it would seem slow, and a process would be started for it."""

    def measured(*_: object) -> Cost:
        raise AssertionError("it serves nothing")

    monkeypatch.setattr("orchestrator_model_artifact.model.measure", measured)

    async def test() -> None:
        assert ARTIFACT.look is not None
        (models / "config").mkdir(exist_ok=True)
        async with HttpClient() as http:
            given = ArtifactOptions(path="../matrix.onnx", **MATRIX)
            facts = await ARTIFACT.look(given, OpenContext("m", models / "config", http))
        assert facts is not None
        assert facts.inputs == tuple(FEATURES)

    run(test)


@given(order=st.permutations(range(12)), run_in=st.sampled_from(["auto", "thread"]))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_concurrent_callers_each_get_their_own_rows_answer(
    models: Path, run: Run, order: Sequence[int], run_in: str
) -> None:
    rows = customers(12)

    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in=run_in, workers=3, **MATRIX) as model:
            expected = [(await model.predict([row]))[0] for row in rows]
            answers = await asyncio.gather(*(model.predict([rows[index]]) for index in order))
        assert answers == [[expected[index]] for index in order]

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_concurrent_callers_of_processes_each_get_their_own_rows_answer(models: Path, run: Run) -> None:
    rows = customers(40)

    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in="process", workers=2, **MATRIX) as model:
            expected = [(await model.predict([row]))[0] for row in rows]
            answers = await asyncio.gather(*(model.predict([row]) for row in rows))
        assert answers == [[result] for result in expected]

    run(test)


def test_a_quick_model_runs_on_the_loop(models: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(models, "matrix.onnx", **MATRIX) as model:
            assert isinstance(model.runner, Measured)

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("run_in", ["auto", "thread"])
def test_the_loop_goes_on_while_a_model_takes_50_ms(models: Path, run: Run, run_in: str) -> None:
    async def test() -> None:
        async with opened(models, "slow", trust=True, run_in=run_in, workers=2) as model:
            if isinstance(model.runner, Measured):  # in threads, as long as it is slow
                assert model.runner.cost.expected(1) > LOOP_LIMIT_SECONDS
            else:
                assert isinstance(model.runner, InThreads | Processes)
            ticks, results = await ticks_during(asyncio.gather(*(model.predict([ROW]) for _ in range(4))))
        assert results == [[{"label": 1}]] * 4
        assert ticks > 10

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_model_that_computes_in_python_for_50_ms_runs_in_processes_and_the_loop_goes_on(
    models: Path, run: Run
) -> None:
    async def test() -> None:
        async with opened(models, "busy", trust=True, workers=1) as model:
            assert isinstance(model.runner, Processes)
            ticks, results = await ticks_during(asyncio.gather(*(model.predict([ROW]) for _ in range(3))))
        assert results == [[{"label": 1}]] * 3
        assert ticks > 10

    run(test)


def test_a_large_batch_of_a_quick_model_leaves_the_loop(models: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(models, "matrix.onnx", **MATRIX) as model:
            assert isinstance(model.runner, Measured)
            rows = customers(100) * 300
            assert model.runner.cost.expected(len(rows)) > LOOP_LIMIT_SECONDS
            ticks, results = await ticks_during(model.predict(rows))
        assert len(results) == len(rows)
        assert ticks > 0

    run(test)


def test_a_model_that_becomes_slow_leaves_the_loop_and_comes_back() -> None:
    cost = Cost(fixed_seconds=10e-6, per_row_seconds=1e-6)
    for _ in range(30):
        cost.observe(1, 0.050)
    assert cost.expected(1) > LOOP_LIMIT_SECONDS
    for _ in range(300):
        cost.observe(1, 11e-6)
    assert cost.expected(1) == pytest.approx(11e-6, rel=0.6)


def test_one_slow_call_moves_no_model() -> None:
    cost = Cost(fixed_seconds=100e-6, per_row_seconds=1e-6)
    cost.observe(1, 0.100)
    assert cost.expected(1) < LOOP_LIMIT_SECONDS


def test_a_slow_call_is_seen_where_it_happens(run: Run) -> None:
    async def test() -> None:
        calls = 0

        def score(rows: Sequence[Any]) -> list[Any]:
            nonlocal calls
            calls += 1
            if calls > 5:
                time.sleep(0.002)
            return list(rows)

        async with thread_pool("m", 1) as threads:
            request = Request("m", ArtifactOptions(path="x"), Location(Path("x"), Path("x"), ""))
            runner = Measured(request, score, threads, Cost(10e-6, 0.0), 1)
            for _ in range(SLOW_CALLS - 1):
                await runner.run([ROW])
            ticks, _ = await ticks_during(runner.run([ROW]))
            assert ticks > 0

    run(test)


@asynccontextmanager
async def seemingly_quick(models: Path) -> AsyncIterator[Measured]:
    """Open a model that holds the interpreter's lock for 50 ms, and was measured when it did not."""
    options = ArtifactOptions(path="../busy", trust=True)
    request = Request("m", options, locate(options, models / "config"))
    async with thread_pool("m", 1) as threads:
        loaded = await threads.run(load, request)
        async with measured(request, loaded.score, threads, Cost(10e-6, 0.0), 1) as runner:
            yield runner


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_model_that_turns_out_to_hold_others_up_moves_to_processes(models: Path, run: Run) -> None:
    async def test() -> None:
        async with seemingly_quick(models) as runner:
            async with asyncio.timeout(60):
                while runner.processes is None:
                    assert await runner.run([ROW]) == [{"label": 1}]
            ticks, results = await ticks_during(asyncio.gather(*(runner.run([ROW]) for _ in range(3))))
        assert results == [[{"label": 1}]] * 3
        assert ticks > 10

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_model_that_is_closed_while_it_moves_leaves_nothing_behind(models: Path, run: Run) -> None:
    async def test() -> None:
        async with seemingly_quick(models) as runner:
            for _ in range(SLOW_CALLS + 1):
                await runner.run([ROW])

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_model_with_code_of_its_own_runs_in_processes(
    boosted: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "own_rules", raising=False)  # what other tests compare with loads it here

    async def test() -> None:
        async with opened(boosted, "ratio", trust=True, workers=1) as model:
            assert isinstance(model.runner, Processes)
            assert model.facts().outputs == ("ratio", "tier")
            assert await model.predict([ROW]) == [{"ratio": pytest.approx(0.24001), "tier": "low"}]
        assert "own_rules" not in sys.modules

    run(test)


def test_a_slow_model_does_not_hold_up_a_quick_one(models: Path, run: Run) -> None:
    async def test() -> None:
        async with (
            opened(models, "busy", trust=True, workers=1) as slow,
            opened(models, "matrix.onnx", **MATRIX) as quick,
        ):
            behind = [asyncio.ensure_future(slow.predict([ROW])) for _ in range(4)]
            answered = 0
            while not all(call.done() for call in behind):
                await quick.predict([ROW])
                answered += 1
                await asyncio.sleep(0)
            assert answered > 100  # in at least 200 ms

    run(test)


# --- what lies at the path changes -----------------------------------------------------------------------------------


def test_other_content_at_the_path_is_a_change_and_other_times_are_none(models: Path, tmp_path: Path, run: Run) -> None:
    async def test() -> None:
        (tmp_path / "config").mkdir()
        shutil.copy(models / "matrix.onnx", tmp_path / "m.onnx")
        shutil.copytree(models / "logistic", tmp_path / "folder")
        for path, options in (("m.onnx", MATRIX), ("folder", {})):
            async with opened(tmp_path, path, **options) as model:
                assert not await model.changed()
                changing = tmp_path / path if path == "m.onnx" else tmp_path / "folder" / "MLmodel"
                os.utime(changing, (1, 1))
                assert not await model.changed()
                before = changing.read_bytes()
                changing.write_bytes(before + b"\n")
                assert await model.changed()
                changing.write_bytes(before)
                assert not await model.changed()
                (tmp_path / path).rename(tmp_path / "away")
                assert await model.changed()
                (tmp_path / "away").rename(tmp_path / path)

    run(test)


def test_a_change_is_told_while_the_model_hangs_in_all_its_threads(models: Path, run: Run) -> None:
    """A reload asks for it, and would wait for good."""
    awake = threading.Event()

    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in="thread", workers=1, **MATRIX) as model:
            assert isinstance(model.runner, InThreads)
            hanging = asyncio.create_task(model.runner._threads.run(awake.wait, 20))
            await asyncio.sleep(0)
            try:
                async with asyncio.timeout(10):
                    assert not await model.changed()
            finally:
                awake.set()
                await hanging

    run(test)


def test_a_pinned_model_stays_what_it_was_whatever_lies_at_its_path(models: Path, tmp_path: Path, run: Run) -> None:
    async def test() -> None:
        (tmp_path / "config").mkdir()
        shutil.copytree(models / "exits", tmp_path / "m")
        async with opened(tmp_path, "m", trust=True) as model:
            digest = model.identity().digest
        async with opened(tmp_path, "m", trust=True, sha256=digest, run_in="process", workers=1) as model:
            shutil.rmtree(tmp_path / "m")
            assert not await model.changed()
            with pytest.raises(SourceUnavailable):
                await model.predict([{**ROW, "credit_score": -1}])
            assert await model.predict([ROW]) == [{"label": 1}]  # a new process, of the same content

    run(test)


def test_the_cost_of_a_model_that_fails_on_made_up_rows_is_not_known() -> None:
    def score(_: Sequence[Any]) -> list[Any]:
        raise SourceError("unknown category")

    assert measure(score, [ROW]) is None


def test_measuring_tells_sleep_from_work() -> None:
    def sleeps(_: Sequence[Any]) -> list[Any]:
        time.sleep(0.02)
        return []

    def works(_: Sequence[Any]) -> list[Any]:
        until = time.perf_counter() + 0.05
        while time.perf_counter() < until:
            sum(range(1000))
        return []

    assert gil_wait_seconds(works, [ROW]) > 0.002
    assert gil_wait_seconds(sleeps, [ROW]) < gil_wait_seconds(works, [ROW])
    cost = measure(sleeps, [ROW])
    assert cost is not None
    assert cost.expected(1) == pytest.approx(0.02, rel=1.0)


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_a_cancelled_prediction_leaves_the_model_usable(models: Path, run: Run, run_in: str) -> None:
    async def test() -> None:
        async with opened(models, "slow", trust=True, run_in=run_in, workers=1) as model:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01):
                        await model.predict([ROW])
            assert await model.predict([{**ROW, "credit_score": 500}]) == [{"label": 0}]
            waiting = asyncio.create_task(model.predict([ROW]))
            await asyncio.sleep(0.01)
            waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(test)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Worker]:
    """The worker processes that were started, in their order."""
    workers: list[Worker] = []

    async def start() -> Worker:
        workers.append(await start_worker())
        return workers[-1]

    monkeypatch.setattr("orchestrator_model_artifact.pools.start_worker", start)
    return workers


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_worker_process_that_dies_fails_its_call_and_is_replaced(
    models: Path, run: Run, started: list[Worker]
) -> None:
    async def test() -> None:
        async with opened(models, "exits", trust=True, run_in="process", workers=1) as model:
            with pytest.raises(SourceUnavailable) as caught:
                await model.predict([{**ROW, "credit_score": -1}])
            assert str(caught.value) == "the worker process ended with code 3: another one is started"
            assert await model.predict([ROW]) == [{"label": 1}]
            started[-1].kill()
            while not started[-1].has_ended:  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.01)
            assert await model.predict([ROW]) == [{"label": 1}]  # it was at no call, so none has failed
            assert len(started) == 3

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_worker_process_is_replaced_while_the_others_answer(models: Path, run: Run, started: list[Worker]) -> None:
    async def test() -> None:
        async with opened(models, "exits", trust=True, run_in="process", workers=2) as model:
            with pytest.raises(SourceUnavailable):
                await model.predict([{**ROW, "credit_score": -1}])
            assert await model.predict([ROW]) == [{"label": 1}]
            assert len(started) <= 3  # the third has not loaded the model yet, nor has anybody waited for that

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_worker_process_that_cannot_be_replaced_leaves_its_place_to_the_next_call(
    models: Path, run: Run, started: list[Worker], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        shutil.copytree(models / "exits", models / "going")
        async with opened(models, "going", trust=True, run_in="process", workers=1) as model:
            (models / "going").rename(models / "elsewhere")
            with pytest.raises(SourceUnavailable):
                await model.predict([{**ROW, "credit_score": -1}])
            with pytest.raises(SourceError, match="MLmodel cannot be read"):
                await model.predict([ROW])
            assert "a worker process that died cannot be replaced: " in caplog.text
            (models / "elsewhere").rename(models / "going")
            assert await model.predict([ROW]) == [{"label": 1}]
            assert [worker.has_ended for worker in started] == [True, True, True, False]

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_worker_process_that_hangs_is_replaced_when_nobody_waits_for_it(
    models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place would be lost for good otherwise: with the last of them the model would never answer again."""
    monkeypatch.setattr("orchestrator_model_artifact.pools.GIVEN_UP_SECONDS", 0.01)

    async def test() -> None:
        async with opened(models, "exits", trust=True, run_in="process", workers=1) as model:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await model.predict([{**ROW, "credit_score": -2}])
            assert await model.predict([ROW]) == [{"label": 1}]

    run(test)


@pytest.mark.usefixtures("hang_quickly")
def test_a_model_that_hangs_in_a_thread_does_not_keep_the_service_from_closing_it(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    awake = threading.Event()

    async def test() -> None:
        async with thread_pool("ml.m", 1) as threads:
            await hang(threads, awake)
        assert caplog.messages == ["ml.m: a thread of the model still runs; it is left to itself"]

    try:
        run(test)
    finally:
        awake.set()


@pytest.fixture
def hang_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator_model_artifact.pools.CLOSE_SECONDS", 0.01)
    monkeypatch.setattr("orchestrator_model_artifact.pools.GIVEN_UP_SECONDS", 0.01)


async def hang(threads: Threads, awake: threading.Event) -> None:
    """Give up a call that ends when ``awake`` is set."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.run(awake.wait)


async def logged(caplog: pytest.LogCaptureFixture, lines: int) -> None:
    async with asyncio.timeout(30):
        while len(caplog.messages) < lines:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("nothing_left_behind", "hang_quickly")
def test_a_model_has_ended_when_it_hangs_in_all_its_threads(
    models: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """The core opens it anew then. It would answer 504 for good."""
    awake = threading.Event()

    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in="thread", workers=2, **MATRIX) as model:
            assert isinstance(model, Ends)
            assert isinstance(model.runner, InThreads)
            ended = asyncio.create_task(model.ended())
            await hang(model.runner._threads, awake)
            assert len(await model.predict([ROW])) == 1
            await logged(caplog, 1)
            assert not ended.done()
            await hang(model.runner._threads, awake)
            assert await ended == "2 of 2 threads hang in a prediction"
            assert caplog.messages == [f"credit_model: {n} of 2 threads hang in a prediction" for n in (1, 2)]
            awake.set()

    try:
        run(test)
    finally:
        awake.set()


@pytest.mark.usefixtures("hang_quickly")
def test_a_thread_that_goes_on_after_all_does_not_hang(
    models: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = threading.Event(), threading.Event()

    async def test() -> None:
        async with thread_pool("ml.m", 2) as threads:
            ended = asyncio.create_task(threads.lost())
            await hang(threads, first)
            await logged(caplog, 1)
            first.set()
            await threads.run(time.sleep, 0)
            await hang(threads, second)
            await logged(caplog, 2)
            assert caplog.messages == ["ml.m: 1 of 2 threads hang in a prediction"] * 2
            assert not ended.done()
            second.set()
            ended.cancel()

    run(test)


@pytest.mark.usefixtures("hang_quickly")
def test_a_model_that_hangs_time_and_again_is_not_opened_for_ever(run: Run) -> None:
    """Each time leaves a thread and a copy of the model."""
    awake = threading.Event()

    async def test() -> None:
        for _ in range(MOST_LEFT):
            async with thread_pool("ml.often", 1) as threads:
                await hang(threads, awake)
        with pytest.raises(SourceError) as caught:
            async with thread_pool("ml.often", 1):
                pass
        assert str(caught.value) == "it hangs in 5 threads already that were left to themselves: restart the service"
        awake.set()
        for thread in [thread for thread in threading.enumerate() if thread.name.startswith("model-ml.often")]:
            await asyncio.to_thread(thread.join)
        async with thread_pool("ml.often", 1) as threads:
            await threads.run(time.sleep, 0)

    try:
        run(test)
    finally:
        awake.set()


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_calls_that_wait_for_a_model_that_is_closed_are_told_so(
    models: Path, run: Run, monkeypatch: pytest.MonkeyPatch, run_in: str
) -> None:
    """They were internal errors of a process that has gone, and cancelled by nobody where there were threads."""
    monkeypatch.setattr("orchestrator_model_artifact.pools.CLOSE_SECONDS", 5)

    async def test() -> None:
        async with opened(models, "slow", trust=True, run_in=run_in, workers=1) as model:
            calls = [asyncio.create_task(model.predict([ROW])) for _ in range(4)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        told = {str(answer) for answer in answers if answer != [{"label": 1}]}
        assert told == {"the model was taken out of service during the call"}

    run(test)


def test_no_worker_process_outlives_a_service_that_is_killed(models: Path) -> None:
    (models / "config").mkdir(exist_ok=True)
    code = f"""
import asyncio, os, signal
from pathlib import Path
from orchestrator_model_artifact.plugin import open_artifact
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_core.plugin_api import OpenContext

async def main():
    options = ArtifactOptions(path={str(models / "described.onnx")!r}, run_in="process", workers=2)
    async with open_artifact(options, OpenContext(name="m", config_dir=Path({str(models / "config")!r}), http=None)):
        print(Path(f"/proc/{{os.getpid()}}/task/{{os.getpid()}}/children").read_text(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    workers = [Path("/proc", pid) for pid in ended.stdout.split()]
    assert len(workers) == 2, ended.stderr
    deadline = time.monotonic() + 10
    while any(path.exists() for path in workers) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [path for path in workers if path.exists()] == []


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.usefixtures("nothing_left_behind")
def test_errors_come_out_of_a_worker_process_as_they_are(models: Path, run: Run) -> None:
    async def test() -> None:
        with pytest.raises(SourceError) as caught:
            async with opened(models, "nothing", run_in="process"):
                pass
        assert str(caught.value) == f"path '../nothing' does not exist: looked for {models / 'nothing'}"
        async with opened(models, "odd", trust=True, run_in="process", workers=1) as model:
            with pytest.raises(SourceError) as caught:
                await model.predict([{"debt": 1e7}])
            assert str(caught.value) == "the model failed: ValueError: debt out of range"
            with pytest.raises(InvalidParam) as unfit:
                await model.predict([{}])
            assert (unfit.value.param, str(unfit.value)) == ("features", "feature 'debt' is missing")

    run(test)


@pytest.mark.usefixtures("nothing_left_behind")
def test_a_model_that_cannot_be_loaded_leaves_nothing_behind(models: Path, run: Run) -> None:
    async def test() -> None:
        with pytest.raises(SourceError, match="is a pickle"):
            async with opened(models, "pickled"):
                pass

    run(test)


# --- accelerate ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize(
    ("path", "options", "tolerance"),
    [("logistic", {}, 1e-9), ("forest", {"trust": True}, 1e-5), ("columns", {}, 1e-6)],
)
def test_an_accelerated_model_predicts_what_the_model_predicts(
    models: Path, run: Run, path: str, options: dict[str, Any], tolerance: float
) -> None:
    rows = [{**row, "region": "north"} for row in customers(60)]

    async def test() -> None:
        async with opened(models, path, **options) as model:
            expected: Sequence[Any] = await model.predict(rows)
        async with opened(models, path, accelerate="onnx", **options) as model:
            results: Sequence[Any] = await model.predict(rows)
            assert isinstance(model.runner, Measured)
            assert model.facts().outputs == ("label", "probability", "probabilities")
        assert [result["label"] for result in results] == [result["label"] for result in expected]
        assert [result["probabilities"] for result in results] == [
            pytest.approx(result["probabilities"], abs=tolerance) for result in expected
        ]

    run(test)


def test_a_regressor_is_accelerated_too(models: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(models, "regressor", accelerate="onnx") as model:
            assert await model.predict([ROW]) == [{"value": pytest.approx(24_001.0)}]

    run(test)


def test_a_conversion_that_is_not_exact_enough_is_refused_with_the_row(models: Path, run: Run) -> None:
    async def test() -> None:
        with pytest.raises(SourceError) as caught:
            async with opened(models, "forest", trust=True, accelerate="onnx", tolerance=1e-13):
                pass
        assert str(caught.value).startswith("accelerate: onnx: with 64-bit floats, the converted model predicts [")
        assert "more than the tolerance 1e-13 apart, on {" in str(caught.value)
        assert str(caught.value).endswith(": set accelerate: none")

    run(test)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("described.onnx", "accelerate: onnx is for sklearn models: this one is ONNX already"),
        ("slow", "accelerate: onnx: with 64-bit floats, Slow cannot be converted: "),
    ],
)
def test_what_cannot_be_accelerated_says_why(models: Path, run: Run, path: str, message: str) -> None:
    async def test() -> None:
        with pytest.raises(SourceError) as caught:
            async with opened(models, path, trust=True, accelerate="onnx"):
                pass
        assert str(caught.value).startswith(message)

    run(test)


def test_only_the_loop_is_used_when_that_is_asked_for(models: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(models, "matrix.onnx", run_in="loop", **MATRIX) as model:
            assert isinstance(model.runner, OnLoop)

    run(test)
