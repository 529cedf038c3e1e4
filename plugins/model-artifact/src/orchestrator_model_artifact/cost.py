"""How long predictions take, and whether they let other threads run: what decides where they run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Thread

from attrs import define

from orchestrator_model_artifact.features import Row, Score

LOOP_LIMIT_SECONDS = 0.0005
"""A call that is expected to take longer than this leaves the event loop: half of the millisecond that is allowed."""

GIL_LIMIT_SECONDS = 0.001
"""A model that keeps other threads waiting for longer than this gets a process."""

_BUDGET_SECONDS = 0.3
_MANY = 32
_TRIES = 5


@define
class Cost:
    """What a call of N rows is expected to take: ``slowness * (fixed + per_row * N)``.

    ``slowness`` follows what calls really take. It rises by half for a call that took longer than expected and falls
    by a twentieth for one that did not, which settles near the 89th percentile: one pause of the garbage collector
    moves no model off the loop, twenty slow calls in a row move any.
    """

    fixed_seconds: float
    per_row_seconds: float
    slowness: float = 1.0

    def expected(self, rows: int) -> float:
        return self.slowness * (self.fixed_seconds + self.per_row_seconds * rows)

    def slowness_of(self, seconds: float) -> float:
        """Return the slowness at which one row is expected to take as long."""
        return seconds / max(self.fixed_seconds + self.per_row_seconds, 1e-9)

    def observe(self, rows: int, seconds: float) -> None:
        if seconds > self.expected(rows):
            self.slowness *= 1.5
        else:
            self.slowness = max(0.1, self.slowness * 0.95)


def measure(score: Score, sample: Sequence[Row]) -> Cost | None:
    """Return the cost of the model, or None when it fails on the sample, so that nothing is known."""
    many = [sample[i % len(sample)] for i in range(_MANY)]
    try:
        score(sample[:1])  # the first call allocates and imports
        one, all_of_them = _slow_one(score, sample[:1]), _slow_one(score, many)
    except Exception:  # made-up rows need not fit the model: it is then treated as a slow one
        return None
    per_row = max(0.0, (all_of_them - one) / (_MANY - 1))
    return Cost(max(0.0, one - per_row), per_row)


def gil_wait_seconds(score: Score, rows: Sequence[Row]) -> float:
    """Return how long another thread may wait for its turn while the model predicts.

    Code that holds the interpreter's lock gives it up every 5 ms only, and a thread's event loop stands still until
    then. A model that does so now and then counts as one that does: it is the second longest of several tries, and
    the longest may be the machine's noise.
    """
    return sorted(_longest_wait(score, rows) for _ in range(_TRIES))[-2]


def _slow_one(score: Score, rows: Sequence[Row]) -> float:
    """Return what nine of ten calls take at most."""
    times: list[float] = []
    until = time.perf_counter() + _BUDGET_SECONDS / 2
    while len(times) < 5 or (len(times) < 50 and time.perf_counter() < until):
        before = time.perf_counter()
        score(rows)
        times.append(time.perf_counter() - before)
    return sorted(times)[len(times) * 9 // 10 - 1]


def _longest_wait(score: Score, rows: Sequence[Row]) -> float:
    def predict() -> None:
        for _ in range(3):
            score(rows)
            time.sleep(0)  # between two calls the thread gives way in any case

    nap = 0.0001
    thread = Thread(target=predict)
    before = time.perf_counter()
    thread.start()  # the new thread runs first: this waits as any other would
    longest = time.perf_counter() - before
    while thread.is_alive():
        before = time.perf_counter()
        time.sleep(nap)
        longest = max(longest, time.perf_counter() - before - nap)
    return longest
