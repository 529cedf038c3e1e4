"""What is told of an execution: the whole record, and the finished run of which one is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import orjson
from attrs import frozen

from orchestrator_core.plugin_api.abilities import Identity

StepStatus = Literal["ok", "cached", "default", "skipped", "failed", "cancelled"]
ExecutionStatus = Literal["ok", "degraded", "failed", "cancelled"]


@frozen
class FailedAttempt:
    """A call of a source that failed: when it began, counted from the start of the execution, and how long it took.

    ``error`` is the beginning of its failure's message.
    """

    start_seconds: float
    duration_seconds: float
    error: str


@frozen
class StepRecord:
    """What one step did. Times are seconds, ``start_seconds`` counted from the start of the execution.

    ``attempts`` is how often the source was called: 0 for a step that was not, or that a cache answered; the items of
    a ``for_each`` count as one attempt, and each further attempt of an item as one more. ``error`` is the message of
    its failure, or empty. ``items`` is how many items a step with ``for_each`` ran for, and ``items_failed`` how many
    of them have its default instead of a result; the error is then that of the first.

    ``cache`` says how a cache answered: ``hit``, ``stale``, ``shared`` with a call that was under way, or not at all:
    an empty string. ``breaker`` is ``open`` where the circuit breaker refused the call, ``half_open`` where the call
    was its probe. ``waited_seconds`` is how long the call waited for its turn.

    ``failed_attempts`` are the attempts that failed, in the order in which they did: the first 20, as the items of a
    ``for_each`` can be many, and ``failed_attempts_left_out`` is how many others did. Where there was one attempt, and
    its error is the step's, the step itself tells of it, and neither is noted. Nor is anything where both retries and
    the circuit breaker are off.
    """

    name: str
    status: StepStatus
    start_seconds: float = 0.0
    duration_seconds: float = 0.0
    attempts: int = 0
    error: str = ""
    items: int | None = None
    items_failed: int = 0
    cache: str = ""
    breaker: str = ""
    waited_seconds: float = 0.0
    failed_attempts: tuple[FailedAttempt, ...] = ()
    failed_attempts_left_out: int = 0


class Captured(Mapping[str, Any]):
    """The values that went through an execution: a JSON document, of which ``text`` is the text.

    It has ``request``, ``steps`` and ``answer``: see ``docs/tracking.md``. It is parsed when somebody looks inside.
    """

    __slots__ = ("_parsed", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._parsed: dict[str, Any] | None = None

    def _document(self) -> dict[str, Any]:
        if self._parsed is None:
            self._parsed = orjson.loads(self.text)
        return self._parsed

    def __getitem__(self, key: str) -> Any:
        return self._document()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._document())

    def __len__(self) -> int:
        return len(self._document())

    def __repr__(self) -> str:
        return f"<captured values, {len(self.text)} bytes>"


@frozen
class Execution:
    """One run of an endpoint. ``started_at`` is a Unix time in seconds; durations are seconds.

    ``engine_seconds`` is the part of the duration in which no step was under way. ``generation`` is the hash of
    the configuration that answered, ``models`` the identities of the models that were called. ``cache`` says how a
    cache gave the whole answer (``hit``, ``stale`` or ``shared``), ``cached_from`` is the execution that made it then.
    ``captured`` are the values that went through, or None where ``tracking.capture`` keeps none.
    """

    id: str
    domain: str
    endpoint: str
    generation: str
    status: ExecutionStatus
    http_status: int
    started_at: float
    duration_seconds: float
    engine_seconds: float
    trace_id: str
    degraded: tuple[str, ...]
    models: tuple[Identity, ...]
    steps: tuple[StepRecord, ...]
    error: str = ""
    cache: str = ""
    cached_from: str = ""
    captured: Captured | None = None


class Noted(Protocol):
    """What policies have noted of a step's calls: how many there were, and how a cache answered.

    ``is_hit`` says that there is no more to tell of a step that ended well than that a cache answered its one call:
    its record has the status ``cached``, no attempts and the cache ``hit``.
    """

    @property
    def attempts(self) -> int: ...
    @property
    def cached(self) -> str: ...
    @property
    def is_hit(self) -> bool: ...


class Kept(Protocol):
    """Where an answer is from that a cache had whole, as ``Execution.cache`` and ``Execution.cached_from`` say it."""

    @property
    def how(self) -> str: ...
    @property
    def execution_id(self) -> str: ...


class FinishedRun(Protocol):
    """A run after its answer was made: the raw times, of which an :class:`Execution` is only made when asked for.

    ``started`` and ``ended`` are moments of ``perf_counter``, ``started_at`` is ``started`` as a Unix time; all in
    seconds. ``steps`` has for each step ``None`` if it was never begun, its start if the run ended before it did, else
    its status, start, end and the message of its failure, which may hold secrets. ``error`` holds none. ``notes`` has
    what policies noted, by the step's place: None, or no entry, where a step was called once as usual. ``target`` is
    that of the HTTP request as the client has sent it, which may hold secrets; the route's template in its place where
    something of requests is redacted.
    """

    @property
    def id(self) -> str: ...
    @property
    def started_at(self) -> float: ...
    @property
    def started(self) -> float: ...
    @property
    def ended(self) -> float: ...
    @property
    def http_status(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def error(self) -> str: ...
    @property
    def degraded_steps(self) -> tuple[str, ...]: ...
    @property
    def steps(self) -> Sequence[tuple[StepStatus, float, float, str] | float | None]: ...
    @property
    def notes(self) -> Mapping[int, Noted] | None: ...
    def is_cached(self, index: int) -> bool:
        """Return whether a cache answered a step, by its place; of one with ``for_each``, all items."""
        ...

    def step_record(self, index: int) -> StepRecord:
        """Return all that is known of a step."""
        ...


class RunPlan(Protocol):
    """What a run executed: the endpoint, as the configuration of that generation has it."""

    @property
    def domain(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def generation(self) -> str: ...
    @property
    def step_names(self) -> tuple[str, ...]: ...


class StorableRun(FinishedRun, Protocol):
    """The same run as a store may read it instead of its :class:`Execution`, which ``record`` makes.

    A ``usual`` run is not degraded and has no error, and nothing is captured. Where its answer as a whole is from a
    cache, which ``kept`` says, nothing was executed: each step is ``cached`` in the same way. Otherwise ``steps`` hold
    all there is to tell of them: for each the status ``ok`` or ``skipped``, its start, its end and an empty text. Of
    those whose places are in ``notes`` there is more to tell, which ``step_record`` does.
    """

    @property
    def usual(self) -> bool: ...
    @property
    def kept(self) -> Kept | None: ...
    @property
    def plan(self) -> RunPlan: ...
    @property
    def trace_id(self) -> str: ...
    def engine_seconds(self) -> float: ...
    def identities(self) -> tuple[Identity, ...]:
        """Return the models that were called, as ``Execution.models`` has them."""
        ...

    def record(self) -> Execution:
        """Return the whole record."""
        ...


__all__ = [
    "Captured",
    "Execution",
    "ExecutionStatus",
    "FailedAttempt",
    "FinishedRun",
    "Kept",
    "Noted",
    "RunPlan",
    "StepRecord",
    "StepStatus",
    "StorableRun",
]
