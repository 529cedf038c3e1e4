"""The open model: where each prediction runs, and the life of what it runs in."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import perf_counter
from typing import Protocol

from attrs import evolve

from orchestrator_core.plugin_api import JSON, Identity, ModelFacts, OpenContext, SourceError
from orchestrator_model_artifact.cost import (
    GIL_LIMIT_SECONDS,
    LOOP_LIMIT_SECONDS,
    Cost,
    gil_wait_seconds,
    measure,
)
from orchestrator_model_artifact.features import Row, Score
from orchestrator_model_artifact.loading import LoadedModel, Request, convert, load
from orchestrator_model_artifact.one_row import PredictOne
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.pools import Threads, process_pool, thread_pool
from orchestrator_model_artifact.worker import WorkerDied, worker


class Runner(Protocol):
    """Where predictions run."""

    async def run(self, rows: Sequence[Row]) -> list[JSON]: ...


class OnLoop:
    """On the event loop, whatever it costs."""

    def __init__(self, score: Score) -> None:
        self._score = score

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        return self._score(rows)


class InThreads:
    """In the thread pool."""

    def __init__(self, score: Score, threads: Threads) -> None:
        self._score = score
        self._threads = threads

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        return await self._threads.run(self._score, rows)


class OnLoopWhileQuick:
    """On the event loop while a call is expected to be quick, in the thread pool when it is not."""

    def __init__(self, score: Score, threads: Threads, cost: Cost) -> None:
        self._score = score
        self._threads = threads
        self.cost = cost

    async def run(self, rows: Sequence[Row]) -> list[JSON]:
        if self.cost.expected(len(rows)) > LOOP_LIMIT_SECONDS:
            return await self._threads.run(self._timed, rows)
        return self._timed(rows)

    def _timed(self, rows: Sequence[Row]) -> list[JSON]:
        before = perf_counter()
        results = self._score(rows)
        self.cost.observe(len(rows), perf_counter() - before)
        return results


class ArtifactModel:
    """A loaded model. ``runner`` says where its predictions run, ``predict_one`` scores a single row."""

    def __init__(
        self, runner: Runner, facts: ModelFacts, identity: Identity, predict_one: PredictOne | None = None
    ) -> None:
        self.runner = runner
        self.predict_one = predict_one or _through(runner)
        self._facts = facts
        self._identity = identity

    async def predict(self, rows: Sequence[Row]) -> Sequence[JSON]:
        """Score N rows.

        Raises ``InvalidParam`` for a feature that does not fit, ``SourceError`` when the model fails.
        """
        return await self.runner.run(rows) if rows else []

    def facts(self) -> ModelFacts:
        return self._facts

    def identity(self) -> Identity:
        return self._identity


def _through(runner: Runner) -> PredictOne:
    async def predict_one(row: Row) -> JSON:
        (result,) = await runner.run((row,))
        return result

    return predict_one


@asynccontextmanager
async def open_artifact(options: ArtifactOptions, context: OpenContext) -> AsyncIterator[ArtifactModel]:
    """Load the model and decide where it runs. Raises :class:`SourceError` when it cannot or must not be loaded."""
    request = Request(context.name, options, context.config_dir)
    workers = options.workers or min(4, len(os.sched_getaffinity(0)))
    async with AsyncExitStack() as stack:
        if options.accelerate == "onnx":
            request = evolve(request, onnx=await _converted(request))
        if options.run_in == "process":
            yield await _in_processes(stack, request, workers)
            return
        threads = await stack.enter_async_context(thread_pool(context.name, workers))
        loaded = await threads.run(load, request)
        runner = await _chosen_runner(options, loaded, threads)
        if runner is None:
            del loaded
            yield await _in_processes(stack, request, workers)
        else:
            yield ArtifactModel(runner, loaded.facts, loaded.identity, _quick_row(runner, loaded))


async def _converted(request: Request) -> bytes:
    try:
        async with worker() as converter:
            return await converter.call(convert, request)
    except WorkerDied as error:
        raise SourceError(f"accelerate: onnx: {error} while it converted the model") from error


async def _chosen_runner(options: ArtifactOptions, loaded: LoadedModel, threads: Threads) -> Runner | None:
    """Return the runner that was asked for or that the measured cost asks for; None for processes."""
    if options.run_in == "loop":
        return OnLoop(loaded.score)
    if options.run_in == "thread":
        return InThreads(loaded.score, threads)
    cost = await threads.run(measure, loaded.score, loaded.sample)
    if cost is None:
        return InThreads(loaded.score, threads)
    if cost.expected(1) <= GIL_LIMIT_SECONDS:
        return OnLoopWhileQuick(loaded.score, threads, cost)
    wait = await threads.run(gil_wait_seconds, loaded.score, loaded.sample[:1])
    return None if wait > GIL_LIMIT_SECONDS else InThreads(loaded.score, threads)


def _quick_row(runner: Runner, loaded: LoadedModel) -> PredictOne | None:
    """Return the model's own way for one row, where it has one and the runner is on the event loop."""
    if loaded.one_row is None or isinstance(runner, InThreads):
        return None
    return loaded.one_row.bind(_through(runner), runner.cost if isinstance(runner, OnLoopWhileQuick) else None)


async def _in_processes(stack: AsyncExitStack, request: Request, workers: int) -> ArtifactModel:
    try:
        processes = await stack.enter_async_context(process_pool(request, workers))
    except WorkerDied as error:
        raise SourceError(f"{error} while it loaded the model") from error
    return ArtifactModel(processes, processes.facts, processes.identity)
