"""One execution under way: the request it answers, its times and its failures.

The generated code of a plan works on these. What it does per request is kept to storing numbers; everything that a
person reads is made from them afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter, time
from typing import Any, NamedTuple, Protocol

import structlog

from orchestrator_core.blame import BROKEN_OFF, culprit, describe, request_error
from orchestrator_core.capture import Capture, Taken
from orchestrator_core.errors import (
    DeadlineExceeded,
    ExpressionError,
    InvalidParam,
    InvalidRequest,
    MissingReference,
    NotLetThrough,
    OrchestratorError,
)
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.plugin_api import (
    JSON,
    Captured,
    Degraded,
    Execution,
    ExecutionStatus,
    FailedAttempt,
    Identity,
    RunPlan,
    StepRecord,
    StepStatus,
)
from orchestrator_core.policies.notes import HIT, Cached, StepNote
from orchestrator_core.tasks import fault_of
from orchestrator_core.time_limits import NO_DEADLINE, NoDeadline, Timer
from orchestrator_core.turns import NO_TURNS, Turns

log = structlog.get_logger("orchestrator.engine")

OK: StepStatus = "ok"
SKIPPED: StepStatus = "skipped"
DEFAULT: StepStatus = "default"
FAILED: StepStatus = "failed"
CANCELLED: StepStatus = "cancelled"
CACHED: StepStatus = "cached"

clock = perf_counter

CLIENT_CLOSED_REQUEST = 499
"""The status that is noted for a request whose client has gone; nobody is answered with it."""


class Request:
    """What an expression sees of a request. ``body`` is ``MISSING`` when there was none."""

    __slots__ = ("body", "headers", "path_params", "query_params")

    def __init__(
        self,
        path_params: Mapping[str, Any],
        query_params: Mapping[str, Any],
        headers: Mapping[str, str],
        body: JSON | Missing = MISSING,
    ) -> None:
        self.path_params = path_params
        self.query_params = query_params
        self.headers = headers
        self.body = body


class CalledModel(Protocol):
    """What a run needs to know of a model that a step calls."""

    failures: int

    @property
    def fallback(self) -> CalledModel | None: ...

    def answered_by(self, start: float, end: float) -> Identity | None: ...


class Running(RunPlan, Protocol):
    """What a run needs to know of the plan it executes."""

    @property
    def sequential(self) -> bool: ...
    @property
    def models(self) -> Mapping[str, CalledModel]: ...
    @property
    def request_only(self) -> Mapping[str, Mapping[str, str]]: ...
    @property
    def on_request_only(self) -> frozenset[str]: ...
    @property
    def capture(self) -> Capture | None: ...
    @property
    def redact(self) -> Callable[[str], str]: ...


_NOT_THE_MODELS = (InvalidParam, InvalidRequest, MissingReference, ExpressionError, NotLetThrough)

LONGEST_ATTEMPT_ERROR = 500
"""Characters that are kept of the message of an attempt that failed."""

StepTimes = tuple[StepStatus, float, float, str]
"""Status, start and end on the clock, and the error's message."""


class Items:
    """The items of a step with ``for_each``: how many there are and have failed, and the first failure's message."""

    __slots__ = ("count", "defect", "error", "failed")

    def __init__(self, count: int) -> None:
        self.count = count
        self.failed = 0
        self.error = ""
        self.defect = False


class PastPlan:
    """What the record of an execution needs of its plan, when that has been replaced: a plan holds its whole files."""

    __slots__ = (
        "capture",
        "domain",
        "generation",
        "models",
        "name",
        "on_request_only",
        "redact",
        "request_only",
        "sequential",
        "step_names",
    )

    def __init__(self, plan: Running) -> None:
        self.domain = plan.domain
        self.name = plan.name
        self.generation = plan.generation
        self.sequential = plan.sequential
        self.step_names = plan.step_names
        self.models = plan.models
        self.request_only = plan.request_only
        self.on_request_only = plan.on_request_only
        self.capture = plan.capture
        self.redact = plan.redact


class _FirstHits(dict[int, Mapping[int, StepNote]]):
    """The notes of a run of which there is nothing to note but a hit, by the step's place: made once, and shared."""

    def __missing__(self, index: int) -> Mapping[int, StepNote]:
        self[index] = notes = {index: HIT}
        return notes


_FIRST_HIT = _FirstHits()


class KeptAnswer(NamedTuple):
    """Where the answer of a run is from that executed nothing: how the cache had it, whose it is, and since when.

    ``made_at`` is a Unix time in seconds.
    """

    how: Cached
    execution_id: str
    made_at: float


class Run:
    """One execution. ``steps`` has, by the plan's order, None, the start of a step under way, or its outcome.

    ``notes`` is what the policies around a step's call have to say of it, by the step's place in that order: None until
    there is something, and never changed in place; ``kept`` says the same of the whole answer. ``taken`` are its values
    where they are captured. ``deadline`` is the request's own while it is being executed: a call that is cancelled
    learns from ``deadline.passed`` whether time is up or the client has gone. ``turns`` are those of the loop that it
    runs on. ``target`` is that of its HTTP request, where telemetry is told of the run.
    """

    __slots__ = (
        "_engine_seconds",
        "deadline",
        "degraded_steps",
        "ended",
        "error",
        "failed_step",
        "failure",
        "http_status",
        "id",
        "items",
        "kept",
        "notes",
        "plan",
        "started",
        "started_at",
        "steps",
        "taken",
        "target",
        "trace_id",
        "turns",
    )

    def __init__(self, plan: Running, run_id: str, trace_id: str = "", turns: Turns = NO_TURNS) -> None:
        self.plan = plan
        self.id = run_id
        self.trace_id = trace_id
        self.turns = turns
        self.started_at = time()
        self.started = clock()
        self.ended = 0.0
        self._engine_seconds: float | None = None
        self.steps: list[StepTimes | float | None] = [None] * len(plan.step_names)
        self.degraded_steps: tuple[str, ...] = ()
        self.items: dict[int, Items] | None = None
        self.notes: Mapping[int, StepNote] | None = None
        self.kept: KeptAnswer | None = None
        self.taken: Taken | None = None
        self.deadline: Timer | NoDeadline = NO_DEADLINE
        self.failed_step = ""
        self.failure: Exception | None = None
        self.error = ""
        self.http_status = 200
        self.target = ""

    @property
    def degraded(self) -> bool:
        return bool(self.degraded_steps)

    @property
    def models(self) -> dict[str, dict[str, str]]:
        """Return ``$execution.models``: for each step that a model has answered, which model that was."""
        return {
            name: {"name": identity.name, "version": identity.version, "digest": identity.digest}
            for name, identity, status in self._called()
            if status is OK
        }

    def capture(self, method: str, request: Request) -> None:
        """Begin to note the values of the execution, if they are captured."""
        if self.plan.capture is not None:
            self.taken = Taken(method, request)

    def settle(self, index: int, result: JSON | Degraded) -> JSON:
        """Return the result of a step, and note if something lesser than its source gave it."""
        if type(result) is Degraded:
            self._degrade(index)
            return result.result
        return result  # type: ignore[return-value]  # mypy does not narrow by the exact type

    def failed(self, index: int, started: float, raised: BaseException) -> Exception:
        """Note that a required step failed, and return the exception to raise.

        When several steps fail in the same moment, each raises the first one's: the answer's error and the step
        that it blames belong together, whichever of them is heard of first.
        """
        name = self.plan.step_names[index]
        error = fault_of(raised)
        self.count_failure(name, error)
        self._note_uncalled(index, error)
        error = self.blamed(name, error)
        self.steps[index] = (FAILED, started, clock(), describe(error))
        if self.failure is None:
            self.failure = error
            self.failed_step = culprit(error, name)
        return self.failure

    def fallback(self, index: int, started: float, raised: BaseException, default: JSON) -> JSON:
        """Note that a step failed which the request can do without, and return its default."""
        name = self.plan.step_names[index]
        error = fault_of(raised)
        self.count_failure(name, error)
        self._note_uncalled(index, error)
        error = self.blamed(name, error)
        if not isinstance(error, OrchestratorError):
            log.error("defect behind a default", execution_id=self.id, step=name, exc_info=error)
        self.steps[index] = (DEFAULT, started, clock(), describe(error))
        self.degraded_steps += (name,)
        return default

    def count_failure(self, step: str, error: Exception) -> None:
        """Count a call that failed for a reason of the model's: not for what it was given, nor before it was called."""
        model = self.plan.models.get(step)
        if model is not None and not isinstance(error, _NOT_THE_MODELS):
            model.failures += 1

    def _note_uncalled(self, index: int, error: Exception) -> None:
        """Note that the source was not called where an expression failed, of which a call is made."""
        if isinstance(error, MissingReference | ExpressionError) and (self.notes is None or index not in self.notes):
            self.note(index).attempts = 0

    def _degrade(self, index: int) -> None:
        name = self.plan.step_names[index]
        if name not in self.degraded_steps:  # an item of it may have been there before
            self.degraded_steps += (name,)

    def note(self, index: int) -> StepNote:
        """Return what is noted of the call of a step, to note more."""
        notes = self.notes or {}
        note = notes.get(index)
        if note is None:
            note = StepNote()
            self.notes = {**notes, index: note}
        return note

    def note_hit(self, index: int) -> None:
        """Note that a cache answered the one call of a step, with a fresh result."""
        self.notes = _FIRST_HIT[index] if self.notes is None else {**self.notes, index: HIT}

    def note_items(self, index: int, count: int) -> None:
        """Note how many items a step with ``for_each`` runs for."""
        if self.items is None:
            self.items = {}
        self.items[index] = Items(count)

    def note_failed_items(self, index: int, error: Exception, count: int = 1) -> None:
        """Note that items failed which their step can do without."""
        assert self.items is not None, "the items are counted before one is called"
        items = self.items[index]
        self.count_failure(self.plan.step_names[index], error)
        if not isinstance(error, OrchestratorError) and not items.defect:
            items.defect = True  # the others are most probably the same
            log.error("defect behind a default", execution_id=self.id, step=self.plan.step_names[index], exc_info=error)
        items.failed += count
        items.error = items.error or describe(error)

    def ended_with_items(self, index: int, started: float) -> StepTimes:
        """Return the outcome of an optional step with ``for_each``: degraded if an item has the default."""
        items = self.items[index] if self.items else None
        if items is None or not items.failed:
            return (OK, started, clock(), "")
        self._degrade(index)
        return (DEFAULT, started, clock(), items.error)

    def blamed(self, step: str, error: Exception) -> Exception:
        """Return the error as the answer shows it: one that the caller's own values caused is the caller's."""
        if isinstance(error, InvalidParam):
            pointer = self.plan.request_only.get(step, {}).get(error.param)
            if pointer is not None:
                return InvalidRequest(f"step '{step}': {error}", [{"pointer": pointer, "message": str(error)}])
        if isinstance(error, MissingReference):
            return request_error(error)
        if isinstance(error, ExpressionError) and step in self.plan.on_request_only:
            return InvalidRequest(f"step '{step}': {error}")
        if isinstance(error, TimeoutError):
            return DeadlineExceeded(f"step '{step}' took longer than its timeout")
        return error

    # --- afterwards ----------------------------------------------------------------------------------------------

    def unfinished(self) -> list[str]:
        """Return the steps that were under way when the run ended."""
        return [name for name, step in zip(self.plan.step_names, self.steps, strict=True) if isinstance(step, float)]

    def engine_seconds(self) -> float:
        """Return how long no step was under way."""
        if self._engine_seconds is not None:
            return self._engine_seconds
        seconds = self._idle_seconds(self.ended or clock())
        if self.ended:  # the answer says it, and then the record
            self._engine_seconds = seconds
        return seconds

    def _idle_seconds(self, end: float) -> float:
        if self.plan.sequential:
            busy = 0.0
            for step in self.steps:
                if isinstance(step, tuple):
                    busy += step[2] - step[1]
                elif step is not None:
                    busy += end - step
            return end - self.started - busy
        busy, until = 0.0, self.started
        spans = [
            (step[1], step[2]) if isinstance(step, tuple) else (step, end) for step in self.steps if step is not None
        ]
        spans.sort()
        for start, stop in spans:
            if stop > until:
                busy += stop - (start if start > until else until)
                until = stop
        return max(0.0, end - self.started - busy)

    def status(self) -> ExecutionStatus:
        if self.http_status == CLIENT_CLOSED_REQUEST:
            return "cancelled"
        if self.http_status >= 400:
            return "failed"
        return "degraded" if self.degraded_steps else "ok"

    @property
    def usual(self) -> bool:
        """Return whether ``steps`` and ``notes`` hold all there is to tell, as ``plugin_api.StorableRun`` has it."""
        return (
            self.items is None
            and (self.kept is None or not any(self.steps))
            and self.taken is None
            and not self.degraded_steps
            and self.http_status < 400
        )

    def seal(self) -> Captured | None:
        """Return the document of what was captured, and let the values go: errors no longer name what is redacted."""
        capture, taken = self.plan.capture, self.taken
        if capture is None or taken is None:
            return None
        if taken.document is None:
            self._conceal(capture.hiding(taken))
        if not capture.values:
            self.taken = None
            return None
        return capture.seal(taken, failed=self.http_status >= 400, models=self.models if self.plan.models else None)

    def _conceal(self, hide: Callable[[str], str]) -> None:
        redact = self.plan.redact  # of secrets first: a part of one can be what is hidden
        self.error = hide(self.error)
        for index, step in enumerate(self.steps):
            if isinstance(step, tuple) and step[3]:
                self.steps[index] = (*step[:3], hide(redact(step[3])))
        for note in self.notes.values() if self.notes else ():
            if note.failed:
                note.failed = [(began, seconds, hide(redact(error))) for began, seconds, error in note.failed]

    def record(self) -> Execution:
        return Execution(
            id=self.id,
            domain=self.plan.domain,
            endpoint=self.plan.name,
            generation=self.plan.generation,
            status=self.status(),
            http_status=self.http_status,
            started_at=self.started_at,
            duration_seconds=self.ended - self.started,
            engine_seconds=self.engine_seconds(),
            trace_id=self.trace_id,
            degraded=self.degraded_steps,
            models=self.identities(),
            steps=tuple([self.step_record(index) for index in range(len(self.steps))]),
            error=self.error,
            cache=self.kept.how if self.kept else "",
            cached_from=self.kept.execution_id if self.kept else "",
            captured=self.seal(),
        )

    def identities(self) -> tuple[Identity, ...]:
        """Return the models that were called."""
        return tuple([identity for _, identity, _ in self._called()]) if self.plan.models else ()

    def _called(self) -> list[tuple[str, Identity, StepStatus]]:
        """Return which model each step called, where there was one to call, and how the step ended."""
        found, names, steps, notes = [], self.plan.step_names, self.steps, self.notes
        for name, model in self.plan.models.items():
            index = names.index(name)
            step = steps[index]
            if step is None:
                continue
            status, start, end, _ = step if isinstance(step, tuple) else (CANCELLED, step, self.ended or clock(), "")
            if status is SKIPPED:
                continue
            if notes is not None and (note := notes.get(index)):
                if note.fell_back and model.fallback is not None:
                    model = model.fallback
                elif not (note.attempts or note.cached or note.fell_back):
                    continue  # neither it nor a cache of what it said was asked
            if identity := model.answered_by(start, end):
                found.append((name, identity, status))
        return found

    def step_record(self, index: int) -> StepRecord:
        """Return what the record says of a step, by its place in the plan."""
        name, step = self.plan.step_names[index], self.steps[index]
        if step is None:
            return StepRecord(name, CACHED, cache=self.kept.how) if self.kept else StepRecord(name, CANCELLED)
        if self.notes is None and self.items is None and type(step) is tuple:  # nothing out of the ordinary
            status, start, stop, error = step
            attempts = 0 if status is SKIPPED else 1
            return StepRecord(
                name, status, start - self.started, stop - start, attempts, self.plan.redact(error) if error else ""
            )
        items = self.items.get(index) if self.items else None
        counts = (items.count, items.failed) if items else (None, 0)
        note = self.notes.get(index) if self.notes else None
        said = step[3] if isinstance(step, tuple) else BROKEN_OFF
        noted = (note.cached, note.breaker, note.waited_seconds, *self._failed_attempts(note, said)) if note else ()
        attempts = note.attempts if note else 1
        if isinstance(step, float):
            return StepRecord(name, CANCELLED, step - self.started, self.ended - step, attempts, "", *counts, *noted)
        status, start, stop, error = step
        if error:
            error = self.plan.redact(error)
        if status is SKIPPED:
            attempts = 0
        elif self.is_cached(index):
            status = CACHED
        return StepRecord(name, status, start - self.started, stop - start, attempts, error, *counts, *noted)

    def _failed_attempts(self, note: StepNote, said: str) -> tuple[tuple[FailedAttempt, ...], int]:
        """Return what the record says of them; nothing of an only one, of which the step says the same."""
        failed, redact = note.failed or (), self.plan.redact
        if note.attempts == 1 and [error for _, _, error in failed] == [said]:
            return (), 0
        told = (
            FailedAttempt(began - self.started, seconds, shortened(redact(error))) for began, seconds, error in failed
        )
        return tuple(told), note.more_failed

    def is_cached(self, index: int) -> bool:
        """Return whether a cache answered a step, by its place in the plan: of one with ``for_each``, all items."""
        note, step = self.notes.get(index) if self.notes else None, self.steps[index]
        if note is None or not isinstance(step, tuple) or step[0] is not OK:
            return False
        if note.is_hit:
            return True
        items = self.items.get(index) if self.items else None
        return 0 < items.count <= note.cached_calls if items else note.cached != ""


def shortened(message: str) -> str:
    return message if len(message) <= LONGEST_ATTEMPT_ERROR else f"{message[: LONGEST_ATTEMPT_ERROR - 1]}…"


__all__ = [
    "CACHED",
    "CANCELLED",
    "CLIENT_CLOSED_REQUEST",
    "DEFAULT",
    "FAILED",
    "OK",
    "SKIPPED",
    "Items",
    "KeptAnswer",
    "Request",
    "Run",
    "Running",
    "clock",
]
