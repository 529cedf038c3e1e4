"""Trying again: how long to pause, and how many attempts a source can be asked to bear beyond its calls."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from orchestrator_core.policies.options import RetryOptions

__all__ = ["BUDGET", "BUDGET_WINDOW_SECONDS", "RetryBudget", "pause_seconds"]

BUDGET = 0.2
"""How many further attempts there may be for each call."""

BUDGET_WINDOW_SECONDS = 10.0

_random = random.Random()


def pause_seconds(options: RetryOptions, failed_attempts: int, asked_seconds: float | None = None) -> float | None:
    """Return how long to pause after that many attempts have failed, the last one just now.

    It is random, so that clients which failed together do not come back together: between 0 and ``backoff``, doubled
    with each failed attempt and never more than ``max_backoff`` ("full jitter", see
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/). Where the source has asked to wait so
    many seconds it is no shorter than that, and None where that is longer than ``max_backoff``.
    """
    longest = min(options.max_backoff, options.backoff * 2.0 ** min(failed_attempts - 1, 60))
    pause = _random.random() * longest
    if not asked_seconds:
        return pause
    return None if asked_seconds > options.max_backoff else min(asked_seconds + pause, options.max_backoff)


class RetryBudget:
    """How many further attempts a source has been, and may be, asked for.

    Within the window there are never more than one for each five calls, or one if there were fewer: a source that fails
    because it has too much to do must not be given three times as much. The window is of the last 10 seconds at least,
    and of 30 at most: it has two halves, and the calls of the older one are forgotten together.

    Each call that is made does ``if clock() >= ends_at: renew()`` and ``calls += 1``, which is :meth:`count`. One that
    an open breaker refuses is none: the source has not seen it, and bears no attempts for it.
    """

    __slots__ = (
        "_again",
        "_calls_before",
        "_older",
        "_retries_before",
        "calls",
        "clock",
        "ends_at",
        "refused",
        "retries",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.calls = 0
        self.retries = 0
        self.refused = 0
        self.ends_at = clock() + BUDGET_WINDOW_SECONDS
        self._calls_before = self._retries_before = 0
        self._older = (0, 0)
        self._again = 0

    def count(self) -> None:
        """Note that a call is made."""
        if self.clock() >= self.ends_at:
            self.renew()
        if self._again:
            self._again -= 1
        else:
            self.calls += 1

    def owe(self) -> None:
        """Note that one of the next calls that are counted is a further attempt, which earns none itself."""
        self._again += 1

    def renew(self) -> None:
        """Begin another half of the window. Counts are totals: a half is what there were more than at its start."""
        now = self.clock()
        if now >= self.ends_at + BUDGET_WINDOW_SECONDS:
            self._older = (self.calls, self.retries)
        else:
            self._older = (self._calls_before, self._retries_before)
        self._calls_before, self._retries_before = self.calls, self.retries
        self._again = 0  # what has not been made by now never will be: nobody waits for it any more
        self.ends_at = now + BUDGET_WINDOW_SECONDS

    def take(self) -> bool:
        """Return whether there may be one more attempt; it is counted then."""
        if self.clock() >= self.ends_at:
            self.renew()
        calls, retries = self.calls - self._older[0], self.retries - self._older[1]
        if retries + 1 > max(1.0, BUDGET * calls):
            self.refused += 1
            return False
        self.retries += 1
        return True

    def describe(self) -> dict[str, Any]:
        return {"calls": self.calls, "retries": self.retries, "refused_by_budget": self.refused}
