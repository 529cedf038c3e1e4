"""What is kept of a request until its spans are made."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from orchestrator_core.plugin_api import EndpointInfo, FinishedRun


class Ids(Protocol):
    """The ids of a request's spans."""

    @property
    def trace_id(self) -> str: ...
    @property
    def span_id(self) -> int: ...
    @property
    def parent(self) -> Any: ...
    def step_id(self, index: int) -> int: ...


class Recorded(NamedTuple):
    """A finished run of which spans are to be made."""

    endpoint: EndpointInfo
    run: FinishedRun
    method: str
    trace: Ids

    @property
    def spans(self) -> int:
        """Return how many spans are made of it."""
        return 1 + sum(map(has_span, self.run.steps))


def has_span(outcome: Any) -> bool:
    """Return whether a step was begun, by its entry in ``FinishedRun.steps``."""
    return outcome is not None and not (isinstance(outcome, tuple) and outcome[0] == "skipped")
