"""The open model that is scored inside the service, and how it is decided where."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from attrs import evolve

from orchestrator_core.plugin_api import JSON, Identity, ModelFacts, OpenContext, SourceError
from orchestrator_model_artifact.cost import GIL_LIMIT_SECONDS, LOOP_LIMIT_SECONDS, Cost, gil_wait_seconds, measure
from orchestrator_model_artifact.features import Row
from orchestrator_model_artifact.loading import LoadedModel, Request, convert, load, look
from orchestrator_model_artifact.one_row import PredictOne
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.pools import Processes, Threads, process_pool, thread_pool
from orchestrator_model_artifact.preparing import Watch, prepare
from orchestrator_model_artifact.runners import InThreads, Measured, OnLoop, Runner, measured
from orchestrator_model_artifact.worker import WorkerDied, worker

log = logging.getLogger(__name__)


class ArtifactModel:
    """A loaded model. ``runner`` says where its predictions run, ``predict_one`` scores a single row."""

    def __init__(
        self,
        runner: Runner,
        facts: ModelFacts,
        identity: Identity,
        watch: Watch,
        predict_one: PredictOne | None = None,
    ) -> None:
        self.runner = runner
        self.predict_one = predict_one or _through(runner)
        self._facts = facts
        self._identity = identity
        self._watch = watch

    async def predict(self, rows: Sequence[Row]) -> Sequence[JSON]:
        """Score N rows.

        Raises ``InvalidParam`` for a feature that does not fit, ``SourceError`` when the model fails.
        """
        return await self.runner.run(rows) if rows else []

    def facts(self) -> ModelFacts:
        return self._facts

    def identity(self) -> Identity:
        return self._identity

    async def changed(self) -> bool:
        """Return whether other content lies at the path now, or an alias means another version.

        The files are read only when their times or sizes differ.
        """
        return await self._watch()


class PooledModel(ArtifactModel):
    """One whose predictions run in threads or processes. What is under way is waited for when it is closed."""

    def __init__(
        self,
        pool: Threads | Processes,
        runner: Runner,
        facts: ModelFacts,
        identity: Identity,
        watch: Watch,
        predict_one: PredictOne | None = None,
    ) -> None:
        super().__init__(runner, facts, identity, watch, predict_one)
        self._pool = pool

    async def ended(self) -> str:
        """Wait until it hangs in all of its threads, so that nobody is answered any more."""
        return await self._pool.lost()


def _through(runner: Runner) -> PredictOne:
    async def predict_one(row: Row) -> JSON:
        (result,) = await runner.run((row,))
        return result

    return predict_one


@asynccontextmanager
async def open_loaded(
    options: ArtifactOptions, context: OpenContext, *, to_serve: bool = True
) -> AsyncIterator[ArtifactModel]:
    """Load the model and decide where it runs, which is measured where it is to serve.

    Raises :class:`SourceError` when it cannot or must not be loaded.
    """
    workers = options.workers or min(4, len(os.sched_getaffinity(0)))
    async with AsyncExitStack() as stack:
        threads = await stack.enter_async_context(thread_pool(context.name, workers))
        request, watch = await prepare(options, context, stack, threads)
        if options.accelerate == "onnx":
            request = evolve(request, onnx=await _converted(request))
        found = await threads.run(look, options, request.location)
        # Modules that two models bring by the same name must not meet in one process.
        if options.run_in == "process" or (options.run_in == "auto" and found.runs_own_code and request.onnx is None):
            yield await _in_processes(stack, request, workers, watch)
            return
        loaded = await threads.run(load, request)
        runner = (
            await _chosen_runner(stack, request, loaded, threads, workers)
            if to_serve
            else InThreads(loaded.score, threads)
        )
        if runner is None:
            del loaded
            yield await _in_processes(stack, request, workers, watch)
        else:
            _tell(request.name, loaded.doubts)
            told = (runner, loaded.facts, loaded.identity, watch, _quick_row(runner, loaded))
            yield ArtifactModel(*told) if _is_quick(runner) else PooledModel(threads, *told)


async def _converted(request: Request) -> bytes:
    try:
        async with worker() as converter:
            return await converter.call(convert, request)
    except WorkerDied as error:
        raise SourceError(f"accelerate: onnx: {error} while it converted the model") from error


async def _chosen_runner(
    stack: AsyncExitStack, request: Request, loaded: LoadedModel, threads: Threads, workers: int
) -> Runner | None:
    """Return the runner that was asked for or that the measured cost asks for; None for processes."""
    if request.options.run_in == "loop":
        return OnLoop(loaded.score)
    if request.options.run_in == "thread":
        return InThreads(loaded.score, threads)
    cost = await threads.run(measure, loaded.score, loaded.sample)
    if cost is None:  # nothing is known of it: it begins in threads, and what its calls take tells the rest
        cost = Cost(2 * LOOP_LIMIT_SECONDS, 0.0)
    elif cost.expected(1) > GIL_LIMIT_SECONDS:
        wait = await threads.run(gil_wait_seconds, loaded.score, loaded.sample[:1])
        if wait > GIL_LIMIT_SECONDS:
            return None
    return await stack.enter_async_context(measured(request, loaded.score, threads, cost, workers))


def _is_quick(runner: Runner) -> bool:
    """Return whether a row is scored on the event loop, where counting the calls would cost much of what they take."""
    if isinstance(runner, Measured):
        return runner.cost.expected(1) <= LOOP_LIMIT_SECONDS
    return isinstance(runner, OnLoop)


def _quick_row(runner: Runner, loaded: LoadedModel) -> PredictOne | None:
    """Return the model's own way for one row, where it has one and the runner is on the event loop."""
    if loaded.one_row is None or isinstance(runner, InThreads):
        return None
    return loaded.one_row.bind(_through(runner), runner.cost if isinstance(runner, Measured) else None)


async def _in_processes(stack: AsyncExitStack, request: Request, workers: int, watch: Watch) -> ArtifactModel:
    try:
        processes = await stack.enter_async_context(process_pool(request, workers))
    except WorkerDied as error:
        raise SourceError(f"{error} while it loaded the model") from error
    _tell(request.name, processes.doubts)
    return PooledModel(processes, processes, processes.facts, processes.identity, watch)


def _tell(name: str, doubts: Sequence[str]) -> None:
    for doubt in doubts:
        log.warning("%s: %s: it may predict something else, or fail", name, doubt)
