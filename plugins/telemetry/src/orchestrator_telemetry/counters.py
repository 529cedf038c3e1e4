"""What is counted while requests run: numbers in lists and dictionaries that are found once, at load."""

from __future__ import annotations

from bisect import bisect_left

from orchestrator_core.plugin_api import EndpointInfo, Finished, FinishedRun, Trace

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER_METHOD = "other"
NOT_CALLED = ("skipped", "cached")
CANCELLED = "cancelled"


class Histogram:
    """How many values fell into each bucket, the last of which has no bound, and their sum."""

    __slots__ = ("buckets", "sum")

    def __init__(self, bounds: int) -> None:
        self.buckets = [0] * (bounds + 1)
        self.sum = 0.0


class StepCounter:
    """One step of one endpoint. ``retries`` counts the attempts after the first."""

    __slots__ = ("by_status", "retries", "seconds", "source")

    def __init__(self, source: str, bounds: int) -> None:
        self.source = source
        self.by_status: dict[str, int] = {}
        self.seconds = Histogram(bounds)
        self.retries = 0

    @property
    def attempts(self) -> int:
        """Return how many calls were made."""
        called = sum(count for status, count in self.by_status.items() if status not in NOT_CALLED)
        return called + self.retries


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

    def answered(self, page: str, method: str, status: int, seconds: float) -> None:
        """Count an answer of a page of the service's own, or one that there is no such page."""
        key = (page, method if method in METHODS else OTHER_METHOD, status)
        self.pages[key] = self.pages.get(key, 0) + 1

    def observe(self, endpoint: EndpointInfo) -> Finished:
        """Return what counts a finished run of the endpoint."""
        size = len(self.bounds)
        counter = self.endpoints.setdefault((endpoint.domain, endpoint.endpoint), EndpointCounter(size))
        steps = tuple(
            counter.steps.setdefault((step.name, step.source), StepCounter(step.source, size))
            for step in endpoint.steps
        )
        return _counting(counter, steps, self.bounds)


def _counting(counter: EndpointCounter, steps: tuple[StepCounter, ...], bounds: tuple[float, ...]) -> Finished:
    answers, seconds, buckets = counter.answers, counter.seconds, counter.seconds.buckets
    parts = tuple((step.by_status, step.seconds, step.seconds.buckets) for step in steps)

    def finished(run: FinishedRun, method: str, trace: Trace | None) -> None:
        key = (method, run.http_status)
        if key in answers:
            answers[key] += 1
        else:
            _count_new(answers, method, run.http_status)
        taken = run.ended - run.started
        buckets[bisect_left(bounds, taken)] += 1
        seconds.sum += taken
        if run.degraded_steps:
            counter.degraded += 1
        for (by_status, step_seconds, step_buckets), outcome in zip(parts, run.steps, strict=True):
            if isinstance(outcome, tuple):
                status, start, end, _ = outcome
                try:
                    by_status[status] += 1
                except KeyError:
                    by_status[status] = 1
                if status != "skipped":
                    taken = end - start
                    step_buckets[bisect_left(bounds, taken)] += 1
                    step_seconds.sum += taken
            elif outcome is not None:
                by_status[CANCELLED] = by_status.get(CANCELLED, 0) + 1
                taken = run.ended - outcome
                step_buckets[bisect_left(bounds, taken)] += 1
                step_seconds.sum += taken

    return finished


def _count_new(answers: dict[tuple[str, int], int], method: str, status: int) -> None:
    key = (method if method in METHODS else OTHER_METHOD, status)
    answers[key] = answers.get(key, 0) + 1
