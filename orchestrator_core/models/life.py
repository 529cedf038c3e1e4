"""One life of a model: opened, checked, warmed up, in use and watched, and closed."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic
from typing import Any, TypeVar

import structlog

from orchestrator_core.blame import is_defect
from orchestrator_core.errors import ConfigError, SourceTimeout
from orchestrator_core.models.batching import Batcher, Row, predict_rows
from orchestrator_core.models.options import ModelSpec
from orchestrator_core.models.slot import PredictOne, PredictRows, Slot, one_row
from orchestrator_core.plugin_api import (
    JSON,
    Describes,
    Endable,
    EndedByOthers,
    Ends,
    Identified,
    Identity,
    Model,
    ModelFacts,
    OpenContext,
    ReadyCheck,
    SourceError,
    SourceUnavailable,
)
from orchestrator_core.tasks import exit_asked_for, fault_of

log = structlog.get_logger("orchestrator.models")

T = TypeVar("T")

CONFIRM_SECONDS = 0.1
DRAIN_SECONDS = 10.0
LINGER_SECONDS = 1.0
_IDLE_LOOKS = 4

HANGS_SECONDS = 60.0
"""How long the health checks of a model may get no answer, while it has no call to work on, before it is ended."""


class ModelEnded(Exception):
    """A model that was open has ended; the message says how."""

    def __init__(self, message: str, *, by_others: bool) -> None:
        super().__init__(message)
        self.by_others = by_others


class ModelHangs(ModelEnded):
    """A model that is open answers nothing any more, and is to be ended."""

    def __init__(self, message: str) -> None:
        super().__init__(message, by_others=False)


class WarmUpFailed(SourceError):
    """A row of ``warm_up`` that the model could not score; ``index`` counts from 0."""

    def __init__(self, index: int, message: str, *, transient: bool) -> None:
        super().__init__(f"row {index + 1} of warm_up: {message}", transient=transient)
        self.index = index


class Outcome:
    """What came of the latest start: ``failure`` is None once the model is in use. ``first`` is done when one is known.

    ``reported`` says that somebody waits for the first one, and tells of it if it is a failure.
    """

    def __init__(self) -> None:
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: Exception | None = None
        self.reported = False

    def note(self, failure: Exception | None) -> None:
        self.failure = failure
        self.reported = False
        if not self.first.done():
            self.first.set_result(None)


class Life:
    """One life of a model in its slot. ``cause`` is what went wrong in it, ``ready_at`` when it was first in use.

    ``model`` is there while it is open; ``kept`` is what its opening has noted for the next one. ``unused`` says that
    it ended because nobody had used it for long enough.
    """

    def __init__(self, spec: ModelSpec, slot: Slot, context: OpenContext, outcome: Outcome) -> None:
        self.spec = spec
        self.slot = slot
        self.model: Model | None = None
        self.cause: Exception | None = None
        self.ready_at: float | None = None
        self.kept = context.kept
        self.unused = False
        self._heard_at = monotonic()
        self._context = context
        self._outcome = outcome
        self._leaving = asyncio.Event()
        self._under_way: int | None = None
        self._suspicion: asyncio.Task[Exception | None] | None = None
        self._task = asyncio.create_task(self._live(), name=f"model {slot.label}: open")

    def leave(self) -> None:
        """End it: at once while the model is being opened, else when the calls under way have ended."""
        if self.model is None:
            self._task.cancel()
        self._leaving.set()

    def lasted(self) -> float | None:
        """Return for how many seconds it was of use, None if it was never ready. While it hung it was of none."""
        if self.ready_at is None:
            return None
        until = self._heard_at if isinstance(self.cause, ModelHangs) else monotonic()
        return max(0.0, until - self.ready_at)

    async def over(self) -> BaseException | None:
        """Wait until the model is closed. Return what closing it raised, or opening it."""
        try:
            await asyncio.wait([self._task])
        except asyncio.CancelledError:
            self._task.cancel()
            await asyncio.wait([self._task])
            raise
        finally:
            self.model = None
            self.slot.gone()
        return None if self._task.cancelled() else self._task.exception()

    async def _live(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                async with loading(self.spec, "it was not loaded"):
                    model = await stack.enter_async_context(self.spec.kind.open(self.spec.options, self._context))
            except SystemExit as error:
                raise SourceError(exit_asked_for(error)) from error
            self.model = model
            self.slot.opened(model)
            if isinstance(model, Describes):
                self.slot.facts = told("facts", model.facts(), ModelFacts)
            if isinstance(model, Identified):
                told("identity", model.identity(), Identity)
            try:
                self.cause = await self._until_over(model, stack)
            finally:
                self.slot.gone()
            if isinstance(self.cause, ModelHangs) and isinstance(model, Endable):
                said = await model.end_for_all(str(self.cause))
                self.cause = ModelHangs(told("end_for_all", said, str) or str(self.cause))
            if self.cause is None and not self.slot.closed:
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
        self.unused, self.slot.wanted = True, False  # somebody may want it again before it is closed
        return None

    async def _serve(self, model: Model, stack: AsyncExitStack) -> None:
        await self._healthy_at_first(model)
        async with loading(self.spec, "its rows of warm_up were not scored"):
            for index, row in enumerate(self.spec.common.warm_up):
                await _warm_up(model, index, row)
        calls = self._bind(model, stack)
        self.ready_at = monotonic()
        self.slot.serve(calls)
        self._outcome.note(None)
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
            batcher = Batcher(model, batch, self.slot.called)
            stack.push_async_callback(batcher.close)
            predict_one = batcher.predict_one
        else:
            predict_one = one_row(model)

        def predict_all(rows: Any) -> Any:
            return predict_rows(model, rows)

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
        self._heard_at = monotonic()
        while error := await self._check(model):
            self._end_if_hanging(model)
            self.slot.blame(words_of(error))
            self._unhealthy()
            self._outcome.note(SourceUnavailable(words_of(error)))
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
            if slot.state == "unhealthy":
                self._end_if_hanging(model)
            slot.blame(words_of(error))
            if failures >= health.failures and slot.state == "ready":
                self._unhealthy()

    def _unhealthy(self) -> None:
        if self.slot.state != "unhealthy":
            self.slot.enter("unhealthy")
            tell = log.debug if self._outcome.reported else log.warning
            tell("model unhealthy", model=self.slot.label, error=self.slot.last_error)

    async def _check(self, model: ReadyCheck) -> Exception | None:
        seconds = self.spec.common.health_check.timeout
        error: Exception | None = None
        try:
            async with asyncio.timeout(seconds):
                await model.check_ready()
        except (TimeoutError, SourceTimeout) as raised:
            if self._under_way:  # it may be at work, and answer afterwards
                self._heard_at = monotonic()
            if isinstance(raised, SourceTimeout):
                return raised
            return SourceUnavailable(f"the health check got no answer within {seconds:g} s")
        except SystemExit as raised:
            error = fault_of(raised)
        except Exception as raised:  # whatever it is, nobody should rely on this model now
            error = raised
        self._heard_at = monotonic()
        return error

    def _end_if_hanging(self, model: Model | ReadyCheck) -> None:
        """Raise :class:`ModelHangs` for a model that can be ended when nothing was heard of it for too long."""
        silent = monotonic() - self._heard_at
        if isinstance(model, Endable) and silent >= HANGS_SECONDS:
            raise ModelHangs(f"it hangs: its health checks got no answer for {silent:.0f} s")

    async def _is_down(self, model: Model) -> bool:
        """Return whether the model is gone, after a call that failed: what is known, or what a check says now."""
        if not isinstance(model, ReadyCheck):
            return self.slot.state != "ready" or self.model is not model
        joined = True
        while joined and self.slot.state == "ready" and self.model is model:
            check = self._suspicion
            joined = check is not None and not check.done()  # such a check may have begun while all was well
            if check is None or check.done():
                check = self._suspicion = asyncio.create_task(self._check(model))
            await asyncio.wait([check])
            if check.cancelled():
                return True  # which happens when the model is over
            error = check.result()
            if error is not None and self.slot.state == "ready" and self.model is model:
                self.slot.blame(words_of(error))
                self._unhealthy()
        return self.slot.state != "ready" or self.model is not model

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


@asynccontextmanager
async def loading(spec: ModelSpec, failed: str) -> AsyncIterator[None]:
    """Hold what loads a model to its time. Raises :class:`SourceUnavailable` when that is over."""
    seconds = spec.load_seconds
    timer = asyncio.timeout(seconds)
    try:
        async with timer:
            yield
    except TimeoutError as error:
        if not timer.expired():
            raise
        raise SourceUnavailable(f"{failed} within {seconds:g} s (load_timeout)", started=True) from error


async def _ended(model: Ends) -> None:
    try:
        how = await model.ended()
    except SystemExit as error:
        raise fault_of(error) from error
    raise ModelEnded(f"it ended: {how}" if how else "it ended", by_others=isinstance(how, EndedByOthers))


def told(method: str, value: Any, expected: type[T]) -> T | None:
    """Return what a model's method told. Pages and records rely on it, and would fail long after."""
    if value is None or isinstance(value, expected):
        return value
    raise TypeError(f"{method} returned {type(value).__name__}, expected {expected.__name__}")


async def _warm_up(model: Model, index: int, row: Row) -> None:
    try:
        await predict_rows(model, (row,))
    except SourceUnavailable:
        raise
    except (Exception, SystemExit) as error:  # a model that fails on what it was to practise is not to be relied on
        transient = isinstance(error, SourceError) and error.transient
        raise WarmUpFailed(index, words_of(error), transient=transient) from error


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def words_of(error: BaseException) -> str:
    if isinstance(error, ModelEnded | ConfigError) or not is_defect(error):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1:]
    at = "".join(f" (in {frame.name}, line {frame.lineno})" for frame in where)
    return f"{type(error).__name__}: {error}{at}"


__all__ = ["Life", "ModelEnded", "Outcome", "WarmUpFailed", "loading", "told", "words_of"]
