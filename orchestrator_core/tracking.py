"""Execution records: the latest ones in memory, and the observers that are told of each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import structlog
from attrs import frozen

from orchestrator_core.plugin_api import Execution
from orchestrator_core.plugins import Observer, Provided
from orchestrator_core.run import OK, CalledModel, Run

log = structlog.get_logger("orchestrator.tracking")

MAX_PAGE = 1000


@frozen
class Query:
    """Which executions to return: the newest first. ``since`` and ``until`` are Unix times in seconds.

    ``cursor`` is the id of the last execution of the page before; the page starts after it.
    """

    domain: str | None = None
    endpoint: str | None = None
    status: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50
    cursor: str | None = None

    def matches(self, run: Run) -> bool:
        return (
            (self.domain is None or run.plan.domain == self.domain)
            and (self.endpoint is None or run.plan.name == self.endpoint)
            and (self.status is None or run.status() == self.status)
            and (self.since is None or run.started_at >= self.since)
            and (self.until is None or run.started_at < self.until)
        )


@frozen
class Page:
    """Executions and the cursor of the next page, or None after the last."""

    executions: tuple[Execution, ...]
    cursor: str | None


class ExecutionLog:
    """The ring of the latest executions. Records are made from runs only when somebody reads them."""

    def __init__(self, capacity: int, observers: Sequence[Provided[Observer]] = ()) -> None:
        self._ring: deque[Run] = deque(maxlen=capacity)
        self._observers = tuple(observers)

    def add(self, run: Run) -> None:
        """Keep a finished run, and tell the observers."""
        self._ring.append(run)
        if self._observers:
            execution = run.record()
            for observer in self._observers:
                try:
                    observer.kind(execution)
                except Exception:  # an observer must not fail a request, nor silence the other observers
                    log.exception("observer failed", plugin=str(observer.plugin), execution_id=run.id)

    def resize(self, capacity: int) -> None:
        if capacity != self._ring.maxlen:
            self._ring = deque(self._ring, maxlen=capacity)

    def get(self, execution_id: str) -> Execution | None:
        return next((run.record() for run in reversed(self._ring) if run.id == execution_id), None)

    def find(self, query: Query) -> Page:
        found = list(islice(self._matching(query), query.limit + 1))
        page = tuple(run.record() for run in found[: query.limit])
        return Page(page, page[-1].id if len(found) > query.limit and page else None)

    def call_seconds(self, model: CalledModel) -> list[float]:
        """Return how long the latest successful calls of a model took, as far as their executions are kept."""
        return [
            step[2] - step[1]
            for run in self._ring
            for name, called in run.plan.models.items()
            if called is model
            and isinstance(step := run.steps[run.plan.step_names.index(name)], tuple)
            and step[0] is OK
        ]

    def _matching(self, query: Query) -> Iterator[Run]:
        started = query.cursor is None
        for run in reversed(self._ring):
            if started and query.matches(run):
                yield run
            started = started or run.id == query.cursor
