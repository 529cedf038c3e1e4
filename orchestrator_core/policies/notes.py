"""What the policies around a step's call have to say of it, for the execution's record."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Literal, TypeAlias

from attrs import define, field, frozen

from orchestrator_core.blame import describe

Cached: TypeAlias = Literal["", "hit", "stale", "shared"]
"""How a cache answered: with a fresh result, with one past its time, or with one that another call was waiting for."""

BreakerState: TypeAlias = Literal["", "open", "half_open"]

MOST_FAILED_ATTEMPTS = 20
"""So many failed attempts of a step are noted, the first ones; of others only how many there were."""

FailedCall: TypeAlias = tuple[float, float, str]
"""When an attempt began, on ``perf_counter``, how many seconds it took, and its error's message."""


@define
class StepNote:
    """What is noted of a step's call, once something is out of the ordinary.

    ``attempts`` counts how often the source was called: 0 when it was not, as when a cache answered or a breaker was
    open. A step with ``for_each`` has one note: the first attempts of all its items are one, and each further attempt
    of an item is one more. ``cached_calls`` is how many of its calls a cache answered, ``uncalled`` for how many items
    the source was not called, ``waited_seconds`` the longest time that one of them waited for its turn. ``fell_back``
    says that a model's fallback answered in its place. ``failed`` are the attempts that failed, as far as there is room
    for them; ``more_failed`` is how many others did. ``is_hit`` says that there is no more to tell than that a cache
    answered the one call with a fresh result, as there is most often.
    """

    attempts: int = 1
    cached: Cached = ""
    breaker: BreakerState = ""
    waited_seconds: float = 0.0
    cached_calls: int = 0
    uncalled: int = 0
    fell_back: bool = False
    failed: list[FailedCall] | None = field(default=None, eq=False)  # moments: no two are the same
    more_failed: int = 0
    is_hit: bool = field(default=False, eq=False)

    def not_called(self, *, each: bool) -> None:
        """Note that the source was not called: for the step, or for one of its items."""
        if each:
            self.uncalled += 1
        else:
            self.attempts = 0

    def attempt_failed(self, seconds: float, error: BaseException) -> None:
        """Note an attempt that has just failed, after so many seconds."""
        if self.failed is None:
            self.failed = []
        if len(self.failed) < MOST_FAILED_ATTEMPTS:
            self.failed.append((perf_counter() - seconds, seconds, describe(error)))
        else:
            self.more_failed += 1


HIT = StepNote(attempts=0, cached="hit", cached_calls=1, is_hit=True)
"""What is noted of a step whose one call a cache answered with a fresh result. Shared: not to be changed."""


@frozen
class Guarded:
    """A call that knows the run and the step it is of: ``await call(run, index, *values)``.

    What has no policy and nothing to note is bound as the plain coroutine function, ``await call(*values)``.
    """

    call: Callable[..., Awaitable[Any]]


__all__ = ["HIT", "MOST_FAILED_ATTEMPTS", "BreakerState", "Cached", "FailedCall", "Guarded", "StepNote"]
