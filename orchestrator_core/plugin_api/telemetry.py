"""Telemetry: what is told of each endpoint's requests, and who counts and exports it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeAlias

from attrs import frozen

from orchestrator_core.plugin_api.executions import FinishedRun
from orchestrator_core.plugin_api.options import Options


@frozen
class StepInfo:
    """A step as the configuration has it. ``source`` is the source's label, such as ``database.default``.

    ``remote`` says that its calls may leave the process.
    """

    name: str
    source: str
    operation: str
    remote: bool


@frozen
class EndpointInfo:
    """An endpoint as the configuration has it. ``route`` is its template, such as ``/orchestrator/shop/cart/{id}``.

    ``steps`` stand in the order in which a :class:`FinishedRun` has their outcomes.
    """

    domain: str
    endpoint: str
    route: str
    generation: str
    steps: tuple[StepInfo, ...]


class Trace(Protocol):
    """The trace that a request or a step is part of. ``trace_id`` is 32 hexadecimal digits.

    ``lines`` are the header lines, each with its line end, that calls of the core's HTTP client carry outward.
    """

    @property
    def trace_id(self) -> str: ...
    @property
    def lines(self) -> bytes: ...
    def of_step(self, index: int) -> Trace:
        """Return the trace as the calls of a step carry it; that of a step returns itself."""
        ...


@frozen
class Exposition:
    """What ``GET /metrics`` answers. The text holds no secrets: nothing in it is masked any more."""

    content_type: str
    text: str


Finished: TypeAlias = Callable[[FinishedRun, str, "Trace | None"], None]


@frozen
class Telemetry:
    """What an open telemetry plugin does. A part that is ``None`` is off, and then costs a request nothing.

    ``observe`` is called for each endpoint of each configuration, and returns what is called on the event loop with
    every finished run of it, the request's method and its trace: it must take few microseconds. ``answered`` is called
    with the template of a page of the service's own (an empty string where there is no such route), the method, the
    status and the seconds. ``begin`` is called with the headers of each request of an endpoint and returns the trace
    that the request is part of. ``metrics`` renders the metrics, and may take its time.
    """

    observe: Callable[[EndpointInfo], Finished] | None = None
    answered: Callable[[str, str, int, float], None] | None = None
    begin: Callable[[Mapping[str, str]], Trace | None] | None = None
    metrics: Callable[[], Awaitable[Exposition]] | None = None


@frozen
class TelemetryContext:
    """What a telemetry plugin is given when it is opened.

    ``state`` returns the state of the service as JSON data; it is cheap, and for the event loop's thread only. A part
    that the service does not have is absent::

        {"generation": "0f3a…", "endpoints": 3, "requests": {"in_flight": 2, "limit": 100, "shed": 0},
         "connections": {"open": 5, "refused": 0}, "reloads": {"swapped": 1, "failed": 0},
         "tracking": {"written": 9, "dropped": 2, "dropped_by_reason": {"queue_full": 2, "refused": 0}, "queued": 0},
         "sources": [{"source": "database.default", "type": "database", "unreachable": false,
                      "circuit_breaker": {…}, "retry": {…}, "concurrency": {…}, "cache": {…}}],
         "answers": [{"endpoint": "shop.cart", "cache": {…}}],
         "models": [{"model": "ml.credit", "type": "artifact", "state": "ready", "requests": 5, "failures": 0,
                     "starts": 1, "restarts": 0, "falls_back": false}]}

    Each model of a source of models is an entry of ``sources``. The policies' parts are those that ``GET /sources``
    shows. ``redact`` masks every secret of the configuration in a text. ``version`` is the core's.
    """

    config_dir: Path
    version: str
    state: Callable[[], Mapping[str, Any]]
    redact: Callable[[str], str]


@frozen
class TelemetryKind(Generic[Options]):
    """Metrics and traces of the service. ``options`` is the attrs class of ``telemetry`` in ``config.yaml``.

    ``traces`` tells from the options whether calls outward are to carry the ids of their steps.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, TelemetryContext], AbstractAsyncContextManager[Telemetry]]
    traces: Callable[[Options], bool] = lambda options: False


__all__ = [
    "EndpointInfo",
    "Exposition",
    "Finished",
    "StepInfo",
    "Telemetry",
    "TelemetryContext",
    "TelemetryKind",
    "Trace",
]
