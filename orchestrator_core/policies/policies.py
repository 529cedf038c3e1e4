"""The policies in force around one step's call: what the source and the step say, already made one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from attrs import frozen

from orchestrator_core.policies.notes import StepNote
from orchestrator_core.policies.options import BreakerOptions, CacheOptions, ConcurrencyOptions, RetryOptions

__all__ = ["Capture", "GuardedRun", "Policies", "RequestDeadline"]


class RequestDeadline(Protocol):
    """The one deadline of a request."""

    @property
    def passed(self) -> bool:
        """Tell whether it has passed: then the cancellation of the request's task is the deadline's."""
        ...

    def remaining(self) -> float:
        """Return how many seconds are left; ``inf`` where there is no deadline."""
        ...


class GuardedRun(Protocol):
    """What a guard needs to know of the run that it works for."""

    @property
    def id(self) -> str:
        """The execution's id; ``""`` where no request waits for the call."""
        ...

    @property
    def deadline(self) -> RequestDeadline: ...

    def note(self, index: int) -> StepNote:
        """Return the note of the step with that index, made when it is first asked for."""
        ...

    def note_hit(self, index: int) -> None:
        """Note that a cache answered the one call of the step with that index: nothing else will be noted of it."""
        ...


Capture: TypeAlias = Callable[[Any, int, Sequence[Any]], Callable[[Any, BaseException | None], None]]
"""``ended = capture(run, index, values)`` is told of each call when it begins, and ``ended(result, error)`` of its end.

That is of what the step got, whoever gave it: the source at the first or a later attempt, or a cache; ``result`` can be
:class:`Degraded`. Of a call that failed, ``error`` says why and ``result`` is None. A call for all items of a
``for_each`` is told item by item. It must not raise.
"""


@frozen
class Policies:
    """What applies to the calls of one step. None is off; times are in seconds.

    ``timeout`` is for one attempt, ``step_timeout`` for all of them with the waiting in between. ``cache_key`` makes of
    a call's values what tells its result apart, where that is neither all of them nor a choice by name
    (``cache.key``); it returns a JSON value.
    """

    timeout: float | None = None
    step_timeout: float | None = None
    retry: RetryOptions | None = None
    circuit_breaker: BreakerOptions | None = None
    concurrency: ConcurrencyOptions | None = None
    cache: CacheOptions | None = None
    cache_key: Callable[[Sequence[Any]], Any] | None = None
    capture: Capture | None = None
