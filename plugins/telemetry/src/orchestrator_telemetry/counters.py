"""What is counted while requests run: numbers in lists and dictionaries that are found once, at load."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

import structlog

from orchestrator_core.plugin_api import EndpointInfo, Finished, FinishedRun, Trace
from orchestrator_telemetry.methods import METHODS

log = structlog.get_logger("orchestrator.telemetry")

Count: TypeAlias = Callable[[FinishedRun, str], None]

OTHER_METHOD = "other"
SKIPPED = "skipped"
CACHED = "cached"
CANCELLED = "cancelled"

COUNTED_TOGETHER = 64
"""So many finished runs wait to be counted: what that takes in instructions and memory is then fetched once for all of
them, and not again and again between requests that need other things."""


class Histogram:
    """How many values fell into each bucket, the last of which has no bound, and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self, bounds: int) -> None:
        self.buckets = [0] * (bounds + 1)
        self.sum = 0.0


class StepCounter:
    """One step of one endpoint. ``attempts`` counts the calls that were made, retries included.

    Each number only ever grows: whoever reads them in between must not see one fall.
    """

    __slots__ = ("attempts", "by_status", "name", "seconds")

    def __init__(self, name: str, bounds: int) -> None:
        self.name = name
        self.by_status: dict[str, int] = {}
        self.seconds = Histogram(bounds)
        self.attempts = 0


class EndpointCounter:
    """One endpoint, over all generations that have it. ``steps`` is keyed by step and source."""

    __slots__ = ("answers", "degraded", "seconds", "steps")

    def __init__(self, bounds: int) -> None:
        self.answers: dict[tuple[str, int], int] = {}
        self.seconds = Histogram(bounds)
        self.degraded = 0
        self.steps: dict[tuple[str, str], StepCounter] = {}


class Counters:
    """The counters of all endpoints and of the service's own pages."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.endpoints: dict[tuple[str, str], EndpointCounter] = {}
        self.pages: dict[tuple[str, str, int], int] = {}
        self._waiting: list[tuple[Count, FinishedRun, str]] = []

    def answered(self, page: str, method: str, status: int, seconds: float) -> None:
        """Count an answer of a page of the service's own, or one that there is no such page."""
        key = (page, method if method in METHODS else OTHER_METHOD, status)
        self.pages[key] = self.pages.get(key, 0) + 1

    def observe(self, endpoint: EndpointInfo) -> Finished:
        """Return what takes a finished run of the endpoint, to count it soon."""
        size = len(self.bounds)
        counter = self.endpoints.setdefault((endpoint.domain, endpoint.endpoint), EndpointCounter(size))
        steps = tuple(
            counter.steps.setdefault((step.name, step.source), StepCounter(step.name, size)) for step in endpoint.steps
        )
        count = _counting(counter, steps, self.bounds)
        waiting, count_waiting = self._waiting, self.count_waiting

        def finished(run: FinishedRun, method: str, trace: Trace | None) -> None:
            waiting.append((count, run, method))
            if len(waiting) >= COUNTED_TOGETHER:
                count_waiting()

        return finished

    def count_waiting(self) -> None:
        """Count the runs that wait for it. Whoever reads the numbers calls this before."""
        waiting = self._waiting
        for count, run, method in waiting:
            try:
                count(run, method)
            except Exception:  # it is no fault of the run that has just ended, or of whoever reads the numbers
                log.exception("an execution is not counted", execution_id=run.id)
        waiting.clear()


def _counting(counter: EndpointCounter, steps: tuple[StepCounter, ...], bounds: tuple[float, ...]) -> Count:
    answers, seconds, buckets = counter.answers, counter.seconds, counter.seconds.buckets
    parts = tuple((step, step.by_status, step.seconds, step.seconds.buckets) for step in steps)

    def count(run: FinishedRun, method: str) -> None:
        try:
            answers[method, run.http_status] += 1
        except KeyError:
            _count_new(answers, method, run.http_status)
        taken = run.ended - run.started
        buckets[bisect_left(bounds, taken)] += 1
        seconds.sum += taken
        if run.degraded_steps:
            counter.degraded += 1
        if not parts:
            return
        status: str
        notes = run.notes
        for index, (step, by_status, step_seconds, step_buckets) in enumerate(parts):
            outcome = run.steps[index]
            if isinstance(outcome, tuple):
                status, start, end, _ = outcome
                if status == SKIPPED:
                    by_status[status] = by_status.get(status, 0) + 1
                    continue
            elif outcome is not None:
                status, start, end = CANCELLED, outcome, run.ended
            else:
                continue
            if notes is None or (note := notes.get(index)) is None:
                step.attempts += 1
            else:
                step.attempts += note.attempts
                if run.is_cached(index):
                    status = CACHED
            try:
                by_status[status] += 1
            except KeyError:
                by_status[status] = 1
            taken = end - start
            step_buckets[bisect_left(bounds, taken)] += 1
            step_seconds.sum += taken

    return count


def _count_new(answers: dict[tuple[str, int], int], method: str, status: int) -> None:
    key = (method if method in METHODS else OTHER_METHOD, status)
    answers[key] = answers.get(key, 0) + 1
