"""Spans as OpenTelemetry has them, made of a finished run and its times."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from orchestrator_core.plugin_api import StepRecord, TelemetryContext, TraceParent
from orchestrator_telemetry.methods import METHODS
from orchestrator_telemetry.options import TracesOptions
from orchestrator_telemetry.recorded import Recorded, has_span

STATE_LOGGER = "opentelemetry.trace.span"
NANO = 1_000_000_000
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_UNSET = Status(StatusCode.UNSET)


class SpanMaker:
    """Makes the spans of a run: the request's, and one of each step that was begun."""

    def __init__(self, options: TracesOptions, context: TelemetryContext) -> None:
        own = {name: context.redact(value) for name, value in options.resource.items()}
        named = context.redact(options.service_name or "")
        own["service.name"] = named or os.environ.get("OTEL_SERVICE_NAME") or "orchestrator"
        self._resource = Resource.create().merge(OTELResourceDetector().detect()).merge(Resource(own))
        self._scope = InstrumentationScope("orchestrator", context.version)
        self._redact = context.redact
        # It would warn of each tracestate that is not by the rules, in the words of whoever sent it.
        logging.getLogger(STATE_LOGGER).setLevel(logging.ERROR)

    def spans(self, recorded: Recorded) -> list[ReadableSpan]:
        endpoint, run, method, trace = recorded
        parent = trace.parent
        state = None if parent is None else self._state(parent.state)
        trace_id = int(trace.trace_id, 16)
        context = SpanContext(trace_id, trace.span_id, False, _SAMPLED, state)
        started = round(run.started_at * NANO)
        known = method in METHODS
        attributes: dict[str, Any] = {
            "http.request.method": method if known else "_OTHER",
            "http.route": endpoint.route,
            "http.response.status_code": run.http_status,
            "url.scheme": "http",
            "url.path": self._redact(_path(run.target)),
            "orchestrator.domain": endpoint.domain,
            "orchestrator.endpoint": endpoint.endpoint,
            "orchestrator.execution_id": run.id,
            "orchestrator.generation": endpoint.generation,
        }
        if not known:
            attributes["http.request.method_original"] = method
        if run.degraded_steps:
            attributes["orchestrator.degraded"] = run.degraded_steps
        failed = run.http_status >= 500
        if failed:
            attributes["error.type"] = str(run.http_status)
        spans = [
            ReadableSpan(
                f"{method if known else 'HTTP'} {endpoint.route}",
                context=context,
                parent=None if parent is None else _remote(parent, trace_id, state),
                resource=self._resource,
                attributes=attributes,
                kind=SpanKind.SERVER,
                status=Status(StatusCode.ERROR, self._redact(run.error)) if failed else _UNSET,
                start_time=started,
                end_time=started + round((run.ended - run.started) * NANO),
                instrumentation_scope=self._scope,
            )
        ]
        for index, (info, outcome) in enumerate(zip(endpoint.steps, run.steps, strict=True)):
            if not has_span(outcome):
                continue
            record = run.step_record(index)
            began = started + round(record.start_seconds * NANO)
            error = self._redact(record.error)
            spans.append(
                ReadableSpan(
                    info.name,
                    context=SpanContext(trace_id, trace.step_id(index), False, _SAMPLED, state),
                    parent=context,
                    resource=self._resource,
                    attributes={
                        "orchestrator.step": info.name,
                        "orchestrator.source": info.source,
                        "orchestrator.operation": info.operation,
                        **_outcome(record),
                    },
                    events=self._failures(record, started),
                    kind=SpanKind.CLIENT if info.remote else SpanKind.INTERNAL,
                    status=Status(StatusCode.ERROR, error) if error else _UNSET,
                    start_time=began,
                    end_time=began + round(record.duration_seconds * NANO),
                    instrumentation_scope=self._scope,
                )
            )
        return spans

    def _state(self, text: str) -> TraceState | None:
        return TraceState.from_header([self._redact(text)]) if text else None

    def _failures(self, record: StepRecord, started: int) -> list[Event]:
        """Return an event of each attempt that failed, at its end, so that one that was tried again is seen."""
        failed = record.failed_attempts
        times = [(attempt.start_seconds + attempt.duration_seconds, attempt.error) for attempt in failed]
        if not times and record.error:
            times = [(record.start_seconds + record.duration_seconds, record.error)]
        return [
            Event("exception", {"exception.message": self._redact(error)}, started + round(seconds * NANO))
            for seconds, error in times
        ]


def _outcome(record: StepRecord) -> Mapping[str, Any]:
    found: dict[str, Any] = {"orchestrator.status": record.status, "orchestrator.attempts": record.attempts}
    if record.cache:
        found["orchestrator.cache"] = record.cache
    if record.breaker:
        found["orchestrator.breaker"] = record.breaker
    if record.waited_seconds:
        found["orchestrator.waited_seconds"] = record.waited_seconds
    if record.items is not None:
        found["orchestrator.items"] = record.items
        found["orchestrator.items_failed"] = record.items_failed
    if record.error:
        found["error.type"] = record.status
    return found


def _path(target: str) -> str:
    """Return the path of a request's target, which a proxy sends with a scheme and a host."""
    path = target.partition("?")[0]
    return path if path[:1] == "/" else "/" + path.partition("://")[2].partition("/")[2]


def _remote(parent: TraceParent, trace_id: int, state: TraceState | None) -> SpanContext:
    return SpanContext(trace_id, int(parent.parent_id, 16), True, TraceFlags(parent.flags), state)
