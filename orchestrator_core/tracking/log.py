"""The latest executions in memory, the observers that are told of each, and the store where there is one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import structlog
from attrs import evolve, frozen

from orchestrator_core.errors import SourceUnavailable
from orchestrator_core.plugin_api import Execution, Page, Query
from orchestrator_core.plugins import Observer, Provided
from orchestrator_core.run import OK, CalledModel, PastPlan, Run, Running
from orchestrator_core.tracking.writer import Writer

log = structlog.get_logger("orchestrator.tracking")

MAX_PAGE = 1000


class Unrecorded(SourceUnavailable):
    """503: the execution of a durable request cannot be stored."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the execution cannot be recorded: {reason}")


@frozen
class Found:
    """What was found. ``incomplete`` says why executions may be missing: the store fails, or takes none."""

    page: Page
    incomplete: str = ""


class ExecutionLog:
    """The ring of the latest executions, and the way to the store.

    In memory, records are made from runs only when somebody reads them.
    """

    def __init__(
        self, capacity: int, observers: Sequence[Provided[Observer]] = (), writer: Writer | None = None
    ) -> None:
        self._ring: deque[Run] = deque(maxlen=capacity)
        self._observers = tuple(observers)
        self.writer = writer

    @property
    def durable(self) -> bool:
        """Return whether an answer waits until its execution is stored."""
        return self.writer is not None and self.writer.durable

    def refuse(self) -> None:
        """Raise :class:`Unrecorded` when no execution can be made durable now."""
        if self.writer is not None and (reason := self.writer.refuses):
            raise Unrecorded(reason)

    def add(self, run: Run) -> bool:
        """Keep a finished run, hand it to the store, and tell the observers. Return whether the store will have it."""
        if run.taken is not None:
            run.seal()  # before it is kept: the values themselves may be large
        self._ring.append(run)
        taken = self.writer is None or self.writer.put(run)
        if self._observers:
            execution = run.record()
            for observer in self._observers:
                try:
                    observer.kind(execution)
                except (Exception, SystemExit):  # it must not fail a request, nor silence the other observers
                    log.exception("observer failed", plugin=str(observer.plugin), execution_id=run.id)
        return taken

    async def stored(self, run: Run) -> None:
        """Wait until the store has a run that :meth:`add` took. Raise :class:`Unrecorded` if that cannot be."""
        if self.writer is not None and (lost := await self.writer.stored(run)):
            raise Unrecorded(lost)

    def resize(self, capacity: int) -> None:
        if capacity != self._ring.maxlen:
            self._ring = deque(self._ring, maxlen=capacity)

    def settle(self, plans: Iterable[Running]) -> None:
        """Let go of every plan but these: executions of a configuration that was replaced keep their records only."""
        current = {id(plan) for plan in plans}
        past: dict[int, PastPlan] = {}
        for run in self._ring:
            plan = run.plan
            if id(plan) not in current and not isinstance(plan, PastPlan):
                if id(plan) not in past:
                    past[id(plan)] = PastPlan(plan)
                run.plan = past[id(plan)]

    async def get(self, execution_id: str) -> tuple[Execution | None, str]:
        """Return the execution, if it is known, and why it may be one that the store does not tell of."""
        for run in reversed(self._ring):
            if run.id == execution_id:
                return run.record(), ""
        if self.writer is None:
            return None, ""
        late = await self.writer.flush()
        execution, failed = await self.writer.get(execution_id)
        return execution, late or failed

    async def find(self, query: Query) -> Found:
        """Return executions from the store, else from memory; from both while the store does not take any."""
        if self.writer is None:
            return Found(self._find(query))
        late = await self.writer.flush()
        stored, failed = await self.writer.find(query)
        if stored is None:
            return Found(self._find(query), late or failed)
        return Found(_merged(self._find(query), stored, query.limit), late) if late else Found(stored)

    def _find(self, query: Query) -> Page:
        # In the order of the store, so that a page of one can follow on a page of the other.
        found = sorted((run for run in self._ring if matches(query, run)), key=attrgetter("id"), reverse=True)
        page = tuple(evolve(run.record(), captured=None) for run in found[: query.limit])
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


def _merged(one: Page, other: Page, limit: int) -> Page:
    """Return the first executions of two pages that begin at the same place; both are in the order of the ids."""
    by_id = {execution.id: execution for execution in (*one.executions, *other.executions)}
    found = [by_id[id_] for id_ in sorted(by_id, reverse=True)]
    more = len(found) > limit or one.cursor or other.cursor
    return Page(tuple(found[:limit]), found[:limit][-1].id if more else None)


def matches(query: Query, run: Run) -> bool:
    return (
        (query.domain is None or run.plan.domain == query.domain)
        and (query.endpoint is None or run.plan.name == query.endpoint)
        and (query.status is None or run.status() == query.status)
        and (query.since is None or run.started_at >= query.since)
        and (query.until is None or run.started_at < query.until)
        and (query.cursor is None or run.id < query.cursor)
    )


def tracking_json(executions: ExecutionLog) -> dict[str, Any] | None:
    """Return what became of the executions that were to be stored, or None where there is no store."""
    writer = executions.writer
    if writer is None:
        return None
    counts = writer.counts
    return {
        "store": writer.spec.kind.name,
        "mode": "durable" if writer.durable else "buffered",
        "finished": counts.finished,
        "written": counts.written,
        "waiting": counts.waiting,
        "dropped": counts.reasons,
        "outage": writer.outage.error if writer.outage else "",
    }
