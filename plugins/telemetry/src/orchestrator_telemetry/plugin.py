"""The entry point: telemetry, opened with no more than is switched on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from orchestrator_core.plugin_api import (
    EndpointInfo,
    Finished,
    FinishedRun,
    Telemetry,
    TelemetryContext,
    TelemetryKind,
    Trace,
    hookimpl,
)
from orchestrator_telemetry.options import TelemetryOptions


@asynccontextmanager
async def open_telemetry(options: TelemetryOptions, context: TelemetryContext) -> AsyncIterator[Telemetry]:
    metrics = tracer = None
    async with AsyncExitStack() as stack:
        if options.traces is not None:
            from orchestrator_telemetry.traces import open_tracer

            tracer = await stack.enter_async_context(open_tracer(options.traces, context))
        if options.metrics.enabled:
            from orchestrator_telemetry.metrics import Metrics

            metrics = Metrics(options.metrics, context, tracer)
        observers = [part.observe for part in (metrics, tracer) if part is not None]

        def observe(endpoint: EndpointInfo) -> Finished:
            return _all([observer(endpoint) for observer in observers])

        yield Telemetry(
            observe=observe if observers else None,
            answered=metrics.answered if metrics else None,
            begin=tracer.begin if tracer else None,
            metrics=metrics.render if metrics else None,
        )


def _all(parts: list[Finished]) -> Finished:
    if len(parts) == 1:
        return parts[0]
    first, second = parts

    def finished(run: FinishedRun, method: str, trace: Trace | None) -> None:
        first(run, method, trace)
        second(run, method, trace)

    return finished


TELEMETRY = TelemetryKind(
    "telemetry",
    "Prometheus metrics at GET /metrics, and OpenTelemetry traces.",
    TelemetryOptions,
    open_telemetry,
    traces=lambda options: options.traces is not None,
)


@hookimpl
def orchestrator_telemetry() -> list[TelemetryKind[TelemetryOptions]]:
    return [TELEMETRY]
