"""Traces: the ids of each request, chosen when it begins, and its spans, made after it has ended in another thread."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from random import Random

from orchestrator_core.plugin_api import (
    EndpointInfo,
    Finished,
    FinishedRun,
    TelemetryContext,
    Trace,
    TraceParent,
    parse_traceparent,
    trace_lines,
)
from orchestrator_telemetry.export import Export, open_export
from orchestrator_telemetry.options import TracesOptions
from orchestrator_telemetry.recorded import Recorded

ID_MASK = 2**64 - 1


class RequestTrace:
    """The trace of one request: ids only, so that one that is not recorded costs next to nothing.

    A step's id is the request's plus its place in the plan: it need not be kept to be known when its span is made.
    """

    __slots__ = ("parent", "sampled", "span_id", "trace_id")

    def __init__(self, trace_id: str, span_id: int, sampled: bool, parent: TraceParent | None) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.sampled = sampled
        self.parent = parent

    @property
    def lines(self) -> bytes:
        return self.lines_of(self.span_id)

    def lines_of(self, span_id: int) -> bytes:
        parent = self.parent
        if parent is None:
            return trace_lines(f"00-{self.trace_id}-{span_id:016x}-{'01' if self.sampled else '00'}", "")
        return trace_lines(f"00-{self.trace_id}-{span_id:016x}-{parent.flags:02x}", parent.state)

    def step_id(self, index: int) -> int:
        return (self.span_id + index + 1) & ID_MASK or 1

    def of_step(self, index: int) -> Trace:
        return StepTrace(self, self.step_id(index)) if self.sampled else self


class StepTrace:
    """The trace as a step's calls carry it outward."""

    __slots__ = ("_request", "_span_id")

    def __init__(self, request: RequestTrace, span_id: int) -> None:
        self._request = request
        self._span_id = span_id

    @property
    def trace_id(self) -> str:
        return self._request.trace_id

    @property
    def lines(self) -> bytes:
        return self._request.lines_of(self._span_id)

    def of_step(self, index: int) -> Trace:
        return self


class Tracer:
    """Begins the traces of requests, and hands those that are recorded to the export."""

    def __init__(self, ratio: float, export: Export | None) -> None:
        self._export = export
        self._random = Random(os.urandom(32))  # one for each process: two must not choose the same ids
        self._bound = round(ratio * 2**64)

    @property
    def exported(self) -> int:
        return 0 if self._export is None else self._export.exported

    @property
    def dropped(self) -> int:
        return 0 if self._export is None else self._export.dropped

    def begin(self, headers: Mapping[str, str]) -> RequestTrace:
        """Return the request's trace: the caller's, recorded if the caller says so, or a new one."""
        bits = self._random.getrandbits
        parent = parse_traceparent(headers)
        if parent is not None:
            return RequestTrace(parent.trace_id, bits(64) or 1, parent.sampled, parent)
        trace_id = bits(128) or 1
        return RequestTrace(f"{trace_id:032x}", bits(64) or 1, (trace_id & ID_MASK) < self._bound, None)

    def observe(self, endpoint: EndpointInfo) -> Finished:
        export = self._export

        def finished(run: FinishedRun, method: str, trace: Trace | None) -> None:
            if export is not None and isinstance(trace, RequestTrace) and trace.sampled:
                export.put(Recorded(endpoint, run, method, trace))

        return finished


@asynccontextmanager
async def open_tracer(options: TracesOptions, context: TelemetryContext) -> AsyncIterator[Tracer]:
    if options.exporter == "none":
        yield Tracer(options.sample_ratio, None)
        return
    async with open_export(options, context) as export:
        yield Tracer(options.sample_ratio, export)
