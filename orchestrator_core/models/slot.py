"""The place of one model as requests and pages see it: its state, what a call of it does, and which model that was."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter, time
from typing import Any, Literal

from orchestrator_core.errors import NotBegun, Refused, SourceTimeout
from orchestrator_core.models.batching import Row, predict_rows
from orchestrator_core.models.options import ModelSpec
from orchestrator_core.plugin_api import (
    JSON,
    Degraded,
    Identified,
    Identity,
    Model,
    ModelFacts,
    PredictsOne,
    SourceError,
    SourceUnavailable,
)

ModelState = Literal["loading", "ready", "unhealthy", "restarting", "failed", "stopped"]
PredictOne = Callable[[Row], Awaitable["JSON | Degraded"]]
PredictRows = Callable[[Sequence[Row]], Awaitable["Sequence[JSON] | Degraded"]]

RETRY_AFTER_FAILED_SECONDS = 60.0
SWITCHED_OFF = "it is switched off (enabled: false)"
_KEPT_IDENTITIES = 256


class History:
    """Who answered when, so that a record of an execution names the model of that moment and not of the present one.

    Times are those of ``perf_counter``, which a run notes for its steps.
    """

    def __init__(self) -> None:
        self._entries: deque[tuple[float, Identity | History | None]] = deque(maxlen=_KEPT_IDENTITIES)

    def note(self, identity: Identity | History | None) -> None:
        """Note who answers from now on: a model, whoever answers for it then, or None when nobody does."""
        if not self._entries or self._entries[-1][1] != identity:
            self._entries.append((perf_counter(), identity))

    def during(self, start: float, end: float) -> Identity | None:
        """Return who answered a call that was made at ``start``, or waited from then on."""
        first: Identity | None = None
        for at, entry in reversed(self._entries):
            if at <= end:
                identity = entry.during(start, end) if isinstance(entry, History) else entry
                first = identity or first
            if at <= start:
                break
        return first


def one_row(model: Model) -> Callable[[Row], Awaitable[JSON]]:
    """Return the shortest way of a single row through a model."""
    if isinstance(model, PredictsOne):
        return model.predict_one

    async def predict_one(row: Row) -> JSON:
        (result,) = await predict_rows(model, (row,))
        return result

    return predict_one


def identity_of(model: Model, spec: ModelSpec) -> Identity:
    return model.identity() if isinstance(model, Identified) else Identity(spec.name)


class Slot:
    """The place of one model. ``predict_one`` and ``predict_rows`` are exchanged when the state changes.

    So a call of a ready model costs what it would cost without a slot. ``requests`` counts the calls, ``failures``
    those of them that failed for a reason of the model's. ``since``, ``last_error_at`` and ``next_try`` are Unix
    times. ``on_ready`` is called whenever the model has become ready, ``on_call`` for each call of one that gets
    rows in batches.
    """

    def __init__(self, spec: ModelSpec, label: str) -> None:
        self.spec = spec
        self.label = label
        self.state: ModelState = "stopped"
        self.since = time()
        self.starts = 0
        self.restarts = 0
        self.is_enabled = spec.common.is_enabled
        self.last_error = "" if self.is_enabled else SWITCHED_OFF
        self.last_error_at = 0.0
        self.next_try = 0.0
        self.was_ready = False
        self.requests = 0
        self.failures = 0
        self.facts: ModelFacts | None = None
        self.history = History()
        self.wanted = False
        self.on_demand = False
        self.closed = False
        self.on_ready: Callable[[], None] | None = None
        self.on_call: Callable[[], None] | None = None
        self.predict_one: PredictOne = self._one_elsewhere
        self.predict_rows: PredictRows = self._rows_elsewhere
        self._model: Model | None = None
        self._calls: tuple[PredictOne, PredictRows] | None = None
        self.fallback: Slot | None = None
        self._attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._began = 0.0
        self._took = 0.0
        self.nudged = asyncio.Event()

    # --- what is seen ------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> Identity | None:
        """Return which model this is, None while there is none."""
        return identity_of(self._model, self.spec) if self._model is not None and self.state != "loading" else None

    @property
    def falls_back(self) -> bool:
        """Return whether calls are answered by the fallback now."""
        return self.fallback is not None and self.state != "ready" and not self._waits_for_load()

    @property
    def holds_up(self) -> bool:
        """Return whether the service should not take requests yet because of this model."""
        preloaded = self.spec.common.preload and self.is_enabled
        return preloaded and not self.was_ready and not (self.falls_back and self.last_error)

    def answered_by(self, start: float, end: float) -> Identity | None:
        """Return which model answered a call between two moments of ``perf_counter``."""
        return self.history.during(start, end)

    def not_ready(self) -> SourceUnavailable:
        """Return the 503 that says in which state the model is and why."""
        why, _, output = self.last_error.partition("\n")
        if output and why.endswith(":"):
            why = why.rpartition(";")[0] or why[:-1]  # the words that lead over to the lines that are not shown
        message = f"the model {self.label} is {self.state}{f': {why}' if why and self.state != 'loading' else ''}"
        return Refused(message, retry_after_seconds=self._retry_after())

    def _retry_after(self) -> float:
        if self.state == "failed" or not self.is_enabled:
            return RETRY_AFTER_FAILED_SECONDS
        if self.next_try:
            return max(0.0, self.next_try - time()) + self._took
        if self.state in ("loading", "restarting"):
            return self._took - (time() - self._began)
        return 1.0

    # --- a call while the model is not ready -------------------------------------------------------------------------

    def _waits_for_load(self) -> bool:
        may_load = self.is_enabled and not self.closed
        return may_load and (self.state == "stopped" or (self.state == "loading" and self.on_demand))

    async def _load(self) -> bool:
        """Have the model loaded, once for all who wait, if this is its first use. Return whether it is ready."""
        if self._waits_for_load():
            self.want(on_demand=True)
            try:
                await asyncio.shield(self._attempt)
            except asyncio.CancelledError:
                raise NotBegun from None
        return self.state == "ready"

    async def _one_elsewhere(self, row: Row) -> JSON | Degraded:
        if await self._load():
            return await self.predict_one(row)
        if self.fallback is None:
            raise self.not_ready()
        with _fallback_of(self.not_ready()):
            return Degraded(_plain(await self.fallback.predict_one(row)))

    async def _rows_elsewhere(self, rows: Sequence[Row]) -> Sequence[JSON] | Degraded:
        if await self._load():
            return await self.predict_rows(rows)
        if self.fallback is None:
            raise self.not_ready()
        with _fallback_of(self.not_ready()):
            return Degraded(_plain(await self.fallback.predict_rows(rows)))

    async def fall_back(self, features: Any, refused: Refused) -> Any:
        """Have the fallback answer a call that was refused before it came to the model, for a row or a list of rows."""
        assert self.fallback is not None, "there is one where this is called"
        with _fallback_of(refused):
            predict: Any = self.fallback.predict_one if type(features) is dict else self.fallback.predict_rows
            return Degraded(_plain(await predict(features)))

    def called(self) -> None:
        """Note a call of the model."""
        if self.on_call is not None:
            self.on_call()

    # --- what the supervisor says ------------------------------------------------------------------------------------

    def want(self, *, on_demand: bool = False) -> None:
        """Ask for the model to be loaded."""
        if self.is_enabled and not self.wanted:
            self.wanted, self.on_demand = True, on_demand
            if self._attempt.done():
                self._attempt = asyncio.get_running_loop().create_future()
            self.nudged.set()

    def begin(self, *, again: bool) -> None:
        """Note that the model is being started: for the first time, or once more after a failure."""
        self.starts += 1
        self.restarts += again
        self.next_try = 0.0
        self._began = time()
        if self._attempt.done():
            self._attempt = asyncio.get_running_loop().create_future()
        self.enter("restarting" if again else "loading")

    def opened(self, model: Model) -> None:
        self._model = model

    def serve(self, calls: tuple[PredictOne, PredictRows]) -> None:
        """Send calls to the model from now on."""
        self._calls = calls
        self._took = time() - self._began
        self.was_ready = True
        self.enter("ready")
        self.tell()

    def gone(self) -> None:
        """Note that there is no open model any more."""
        self._model = self._calls = None
        if self.state in ("ready", "unhealthy"):
            self.enter("restarting" if self.wanted and not self.closed else "stopped")

    def blame(self, error: str) -> None:
        self.last_error, self.last_error_at = error, time()

    def enter(self, state: ModelState) -> None:
        if state != self.state:
            self.state, self.since = state, time()
            if state == "ready" and self.on_ready is not None:
                self.on_ready()
        self._use()

    def tell(self) -> None:
        """Wake up those who wait for the load: it has succeeded or failed."""
        if not self._attempt.done():
            self._attempt.set_result(None)

    def _use(self) -> None:
        if self.state == "ready" and self._calls is not None:
            self.predict_one, self.predict_rows = self._calls
            self.history.note(self.identity)
            return
        self.predict_one, self.predict_rows = self._one_elsewhere, self._rows_elsewhere
        self.history.note(self.fallback.history if self.fallback is not None and self.falls_back else None)


@contextmanager
def _fallback_of(refused: SourceUnavailable) -> Iterator[None]:
    """Say of a failure of the fallback that it is the fallback's, and why it was asked."""
    try:
        yield
    except SourceError as error:
        message = f"{refused}, and its fallback failed: {error}"
        if error.status == SourceTimeout.status:
            raise SourceTimeout(message) from error
        wait = error.retry_after_seconds
        raise SourceError(
            message, transient=error.transient, answered=error.answered, busy=error.busy, retry_after_seconds=wait
        ) from error
    except SourceUnavailable as error:
        wait = min(refused.retry_after_seconds or 1.0, error.retry_after_seconds or 1.0)
        kind = Refused if isinstance(error, Refused) else SourceUnavailable
        raise kind(f"{refused}, and {error}", retry_after_seconds=wait) from error


def _plain(result: Any) -> Any:
    """Return the result; a fallback has no fallback of its own."""
    return result.result if isinstance(result, Degraded) else result
