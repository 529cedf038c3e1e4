"""The life of one model: started, checked, warmed up, watched, started again with growing pauses, and closed.

Each model has one task that holds it open, so that models load side by side and none takes another down.
"""

from __future__ import annotations

import asyncio
import random
import traceback
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from time import monotonic, time
from typing import Any, Literal, TypeVar

import structlog
from attrs import evolve

from orchestrator_core.errors import ConfigError
from orchestrator_core.models.batching import Batcher, Row, predict_rows
from orchestrator_core.models.options import ModelSpec
from orchestrator_core.models.slot import PredictOne, PredictRows, Slot, one_row
from orchestrator_core.plugin_api import (
    JSON,
    Changes,
    Describes,
    EndedByOthers,
    Ends,
    KeepsLogs,
    Model,
    ModelFacts,
    OpenContext,
    OrchestratorError,
    ReadyCheck,
    SourceError,
    SourceUnavailable,
)

log = structlog.get_logger("orchestrator.models")

T = TypeVar("T")
CONFIRM_SECONDS = 0.1
DRAIN_SECONDS = 10.0
LINGER_SECONDS = 1.0
SOON_SECONDS = 4.0
"""The longest pause before the next start of a model that somebody else has ended."""

_IDLE_LOOKS = 4

_random = random.Random()


class ModelEnded(Exception):
    """A model that was open has ended; the message says how."""

    def __init__(self, message: str, *, by_others: bool) -> None:
        super().__init__(message)
        self.by_others = by_others


class WarmUpFailed(SourceError):
    """A row of ``warm_up`` that the model could not score; ``index`` counts from 0."""

    def __init__(self, index: int, message: str, *, transient: bool) -> None:
        super().__init__(f"row {index + 1} of warm_up: {message}", transient=transient)
        self.index = index


class Supervisor:
    """Keeps one model in its :class:`Slot`. Several snapshots may use it; the last to give it up closes it."""

    def __init__(self, spec: ModelSpec, label: str, context: OpenContext) -> None:
        self.spec = spec
        self.slot = Slot(spec, label)
        self.users = 1
        self.failure: Exception | None = None
        self.reported = False
        """Whether somebody waits for the first outcome, and tells of it if it is a failure."""
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._life: asyncio.Task[None] | None = None
        self._phase: Literal["closed", "opening", "open", "closing"] = "closed"
        self._leaving = asyncio.Event()
        self._interrupted = False
        self._cause: Exception | None = None
        self._ready_at: float | None = None
        self._tries = 0
        self._misses = 0
        self._under_way: int | None = None
        self._suspicion: asyncio.Task[Exception | None] | None = None
        self._model: Model | None = None
        self.fallback: Supervisor | None = None
        if spec.fallback is not None:
            self.fallback = Supervisor(spec.fallback, f"{label} fallback", context.named(f"{context.name}.fallback"))
            self.slot.fallback = self.fallback.slot

    # --- for snapshots and the admin listener ------------------------------------------------------------------------

    def start(self, *, load: bool, fallback: bool = True) -> None:
        """Start the task. ``load`` says whether to load the model now or on first use, ``fallback`` the same of it."""
        if self.fallback is not None:
            self.fallback.start(load=fallback)
        self.slot.wanted = load
        self._task = asyncio.create_task(self._supervise(), name=f"model {self.slot.label}")

    async def release(self) -> None:
        """Give the model up; the last user closes it and waits until it is closed."""
        self.users -= 1
        if self.users <= 0:
            await self.close()

    async def close(self) -> None:
        self.slot.closed = True
        self.slot.wanted = False
        self._interrupt()
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.fallback is not None:
            await self.fallback.close()

    def load(self) -> None:
        """Load the model if it is not, or try a failed one again."""
        if self.slot.state == "failed":
            self.restart()
        else:
            self.slot.want(on_demand=True)

    def restart(self) -> None:
        """Close the model and start it anew, with its failures forgotten."""
        self.slot.wanted = self.slot.is_enabled
        self._interrupt()

    def unload(self) -> None:
        """Close the model until a request or somebody asks for it."""
        self.slot.wanted = False
        self._interrupt()

    async def changed(self) -> bool:
        """Return whether opening the model anew would give another one, as far as it can tell."""
        model = self._model
        if not isinstance(model, Changes):
            return False
        try:
            return await model.changed()
        except Exception as error:  # whatever it is, opening the model anew will tell it better
            log.warning("cannot tell whether the model has changed", model=self.slot.label, error=_words(error))
            return True

    async def look(self) -> ModelFacts | None:
        """Return what can be told of the model without starting it. Raises what opening it would raise."""
        look = self.spec.kind.look
        return await look(self.spec.options, self._context) if look is not None else None

    def keeps_logs(self) -> bool | None:
        """Return whether its output can be read, None while it is not open."""
        return isinstance(self._model, KeepsLogs) if self._model is not None else None

    async def logs(self, lines: int) -> str:
        model = self._model
        assert isinstance(model, KeepsLogs)
        return await model.logs(lines)

    # --- the task ----------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        self._interrupted = True
        if self._phase == "opening" and self._life is not None:
            self._life.cancel()
        self._leaving.set()
        self.slot.nudged.set()

    async def _supervise(self) -> None:
        slot = self.slot
        try:
            while not slot.closed:
                slot.nudged.clear()
                if self._interrupted:
                    self._interrupted, self._tries, self._misses, slot.next_try = False, 0, 0, 0.0
                    if slot.wanted and slot.state == "failed":
                        slot.enter("restarting")
                if not slot.wanted:
                    slot.enter("stopped")
                    await slot.nudged.wait()
                elif slot.state == "failed":
                    await slot.nudged.wait()
                elif await self._pause():
                    await self._live_once()
        finally:
            slot.closed = True
            slot.enter("stopped")
            slot.tell()
            if not self.first.done():
                self._outcome(SourceUnavailable(f"the model {slot.label} was closed"))

    async def _pause(self) -> bool:
        """Wait for the moment of the next start. Return whether nothing came between."""
        left = self.slot.next_try - time()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self.slot.nudged.wait()
            except TimeoutError:
                return True
            return False
        return True

    async def _live_once(self) -> None:
        """Start the model, and return when it is over: closed on request, failed to start, or ended."""
        slot = self.slot
        self._leaving.clear()
        self._cause, self._ready_at = None, None
        slot.begin(again=self._misses > 0 or slot.state == "restarting")
        self._phase = "opening"
        self._life = asyncio.create_task(self._live(), name=f"model {slot.label}: open")
        try:
            await asyncio.wait([self._life])
        except asyncio.CancelledError:
            self._life.cancel()
            await asyncio.wait([self._life])
            raise
        finally:
            life, self._life, self._phase, self._model = self._life, None, "closed", None
            slot.gone()
        error = None if life.cancelled() else life.exception()
        cause = self._cause or (error if isinstance(error, Exception) else None)
        if error is not None and error is not cause:
            log.error("the model was not closed cleanly", model=slot.label, error=_words(error))
        if cause is not None and not self._interrupted:
            self._missed(cause)
            slot.tell()
        elif not slot.wanted:
            slot.enter("stopped")
            slot.tell()

    def _missed(self, error: Exception) -> None:
        """Note that a start failed, or that the model ended, and decide what follows."""
        slot, restart = self.slot, self.spec.common.restart
        longest: float = restart.max_backoff
        if self._ready_at is None:
            self._tries += _counts(error, slot.was_ready)
        elif monotonic() - self._ready_at >= restart.reset_after:
            self._tries = self._misses = 0
        elif isinstance(error, ModelEnded) and error.by_others:
            self._tries, longest = 0, min(longest, SOON_SECONDS)
        else:
            self._tries += 1
        self._misses += 1
        slot.blame(_words(error))
        if self._tries >= restart.max_starts or (not slot.was_ready and is_definite(error)):
            slot.enter("failed")
            tell = log.debug if self.reported else log.error
            tell("model failed", model=slot.label, starts=slot.starts, error=slot.last_error)
        else:
            pause = min(longest, restart.backoff * 2.0 ** min(self._misses - 1, 40))
            pause *= _random.uniform(0.5, 1.0)
            slot.next_try = time() + pause
            slot.enter("restarting")
            tell = log.debug if self.reported else log.warning
            tell("model down", model=slot.label, next_try_in=round(pause, 3), error=slot.last_error)
        self._outcome(error)

    def _outcome(self, failure: Exception | None) -> None:
        self.failure = failure
        self.reported = False
        if not self.first.done():
            self.first.set_result(None)

    # --- one life ----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        spec = self.spec
        async with AsyncExitStack() as stack:
            context = evolve(self._context, failed_starts=self._misses, max_starts=spec.common.restart.max_starts)
            model = await stack.enter_async_context(spec.kind.open(spec.options, context))
            self._model, self._phase = model, "open"
            self.slot.opened(model)
            if isinstance(model, Describes):
                self.slot.facts = model.facts()
            try:
                self._cause = await self._until_over(model, stack)
            finally:
                self._phase = "closing"
                self.slot.gone()
            if self._cause is None and not self.slot.closed:
                await self._drained()

    async def _until_over(self, model: Model, stack: AsyncExitStack) -> Exception | None:
        """Serve until the model ends or is to be closed. Return what went wrong, if something did."""
        serving = asyncio.create_task(self._serve(model, stack))
        leaving = asyncio.create_task(self._leaving.wait())
        over: list[asyncio.Task[Any]] = [serving, leaving]
        if isinstance(model, Ends):
            over.append(asyncio.create_task(_ended(model)))
        try:
            await asyncio.wait(over, return_when=asyncio.FIRST_COMPLETED)
        finally:
            done = [task for task in over if task.done()]
            await _cancelled(*over, *([self._suspicion] if self._suspicion else []))
        if leaving in done:
            return None
        for task in reversed(done):  # how it ended tells more than what a call saw of it
            error = task.exception()
            if isinstance(error, Exception):
                return error
        self.slot.wanted = False  # nobody has used it for long enough
        return None

    async def _serve(self, model: Model, stack: AsyncExitStack) -> None:
        await self._healthy_at_first(model)
        for index, row in enumerate(self.spec.common.warm_up):
            await _warm_up(model, index, row)
        calls = self._bind(model, stack)
        self._ready_at = monotonic()
        self.slot.serve(calls)
        self._outcome(None)
        log.info("model ready", model=self.slot.label, starts=self.slot.starts)
        watchers: list[Coroutine[Any, Any, None]] = []
        if self.spec.common.health_check.interval and isinstance(model, ReadyCheck):
            watchers.append(self._keep_healthy(model))
        if self.spec.common.unload_after is not None:
            watchers.append(self._until_idle(self.spec.common.unload_after))
        if not watchers:
            await asyncio.Event().wait()
        tasks = [asyncio.create_task(watcher) for watcher in watchers]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            await _cancelled(*tasks)

    def _bind(self, model: Model, stack: AsyncExitStack) -> tuple[PredictOne, PredictRows]:
        predict_one: Callable[[Row], Awaitable[JSON]]
        if batch := self.spec.common.batch:
            batcher = Batcher(model, batch)
            stack.push_async_callback(batcher.close)
            predict_one = batcher.predict_one
        else:
            predict_one = one_row(model)

        def predict_all(rows: Any) -> Any:
            return predict_rows(model, rows)

        self._under_way = None
        if self.spec.common.unload_after is None and not isinstance(model, Ends):
            return predict_one, predict_all
        self._under_way = 0
        slot = self.slot
        return (
            self._noted(predict_one, model, lambda row: slot.predict_one(row)),
            self._noted(predict_all, model, lambda rows: slot.predict_rows(rows)),
        )

    def _noted(
        self,
        call: Callable[[Any], Awaitable[Any]],
        model: Model,
        otherwise: Callable[[Any], Awaitable[Any]],
    ) -> Callable[[Any], Awaitable[Any]]:
        """Return the call for a model that can end or be unloaded under it: counted, and looked into when it fails.

        A call that failed because the model is gone is one that nothing was tried for: it goes where calls go now.
        """

        async def predict(rows: Any) -> Any:
            assert self._under_way is not None
            self._under_way += 1
            try:
                return await call(rows)
            except SourceError:
                if not await self._is_down(model):
                    raise
            finally:
                self._under_way -= 1
            return await otherwise(rows)

        return predict

    # --- health ------------------------------------------------------------------------------------------------------

    async def _healthy_at_first(self, model: Model) -> None:
        """Return when the model answers its first health check."""
        if not isinstance(model, ReadyCheck) or not self.spec.common.health_check.interval:
            return
        while error := await self._check(model):
            self.slot.blame(_words(error))
            self._unhealthy()
            self._outcome(SourceUnavailable(_words(error)))
            self.slot.tell()
            await asyncio.sleep(self.spec.common.health_check.interval)

    async def _keep_healthy(self, model: ReadyCheck) -> None:
        health, slot, failures = self.spec.common.health_check, self.slot, 0
        while True:
            confirming = failures and slot.state == "ready"
            await asyncio.sleep(min(CONFIRM_SECONDS, health.interval) if confirming else health.interval)
            error = await self._check(model)
            if error is None:
                failures = 0
                if slot.state == "unhealthy":
                    slot.enter("ready")
                    log.info("model healthy again", model=slot.label)
                continue
            failures += 1
            slot.blame(_words(error))
            if failures >= health.failures and slot.state == "ready":
                self._unhealthy()

    def _unhealthy(self) -> None:
        if self.slot.state != "unhealthy":
            self.slot.enter("unhealthy")
            tell = log.debug if self.reported else log.warning
            tell("model unhealthy", model=self.slot.label, error=self.slot.last_error)

    async def _check(self, model: ReadyCheck) -> Exception | None:
        seconds = self.spec.common.health_check.timeout
        try:
            async with asyncio.timeout(seconds):
                await model.check_ready()
        except TimeoutError:
            return SourceUnavailable(f"the health check got no answer within {seconds:g} s")
        except Exception as error:  # whatever it is, nobody should rely on this model now
            return error
        return None

    async def _is_down(self, model: Model) -> bool:
        """Return whether the model is gone, after a call that failed: what is known, or what a check says now."""
        if not isinstance(model, ReadyCheck):
            return self.slot.state != "ready" or self._model is not model
        joined = True
        while joined and self.slot.state == "ready" and self._model is model:
            check = self._suspicion
            joined = check is not None and not check.done()  # such a check may have begun while all was well
            if check is None or check.done():
                check = self._suspicion = asyncio.create_task(self._check(model))
            await asyncio.wait([check])
            if check.cancelled():
                return True  # which happens when the model is over
            error = check.result()
            if error is not None and self.slot.state == "ready" and self._model is model:
                self.slot.blame(_words(error))
                self._unhealthy()
        return self.slot.state != "ready" or self._model is not model

    # --- idleness ----------------------------------------------------------------------------------------------------

    async def _until_idle(self, seconds: float) -> None:
        quiet, before = 0, self.slot.requests
        while quiet < _IDLE_LOOKS:
            await asyncio.sleep(seconds / _IDLE_LOOKS)
            idle = self.slot.requests == before and not self._under_way
            quiet, before = (quiet + 1 if idle else 0), self.slot.requests

    async def _drained(self) -> None:
        """Let the calls that are under way end, as far as they are counted; for the others there is a moment."""
        if self._under_way is None:
            await asyncio.sleep(LINGER_SECONDS if self.slot.requests else 0)
            return
        deadline = monotonic() + DRAIN_SECONDS
        while self._under_way and monotonic() < deadline and not self.slot.closed:  # noqa: ASYNC110  # a counter tells nobody
            await asyncio.sleep(0.01)


async def _ended(model: Ends) -> None:
    how = await model.ended()
    raise ModelEnded(f"it ended: {how}" if how else "it ended", by_others=isinstance(how, EndedByOthers))


async def _warm_up(model: Model, index: int, row: Row) -> None:
    try:
        await predict_rows(model, (row,))
    except SourceUnavailable:
        raise
    except Exception as error:  # a model that fails on what it was given to practise is not to be relied on
        transient = isinstance(error, SourceError) and error.transient
        raise WarmUpFailed(index, _words(error), transient=transient) from error


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def is_definite(error: Exception) -> bool:
    """Return whether a model that could not be opened never can be, as it is configured."""
    if isinstance(error, SourceError):
        return not error.transient
    return not isinstance(error, SourceUnavailable | ModelEnded | ConnectionError | TimeoutError)


def _counts(error: Exception, was_ready: bool) -> bool:
    """Return whether a failure is one of the starts that are limited."""
    if isinstance(error, SourceUnavailable):
        return not was_ready if error.started is None else error.started
    return True


def _words(error: BaseException) -> str:
    if isinstance(error, OrchestratorError | ModelEnded | ConfigError | ValueError | OSError):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" (in {frame.name}, line {frame.lineno})" for frame in where)
    return f"{type(error).__name__}: {error}{at}"


__all__ = ["ModelEnded", "Supervisor", "WarmUpFailed", "is_definite"]
