"""The record of an execution, for tests of what is shown of one."""

from __future__ import annotations

from orchestrator_core.plugin_api import Execution, StepRecord


def failed_execution(error: str, *steps: StepRecord) -> Execution:
    """Return one that was answered 502 for an error, in 20.5 ms, on 2023-11-14 at 22:13:20.125 UTC."""
    return Execution(
        id="01a205305f76d7db3b61b413c6a5cba9",
        domain="credit_risk",
        endpoint="predict",
        generation="0123456789ab",
        status="failed",
        http_status=502,
        started_at=1_700_000_000.125,
        duration_seconds=0.0205,
        engine_seconds=0.0005,
        trace_id="",
        degraded=(),
        models=(),
        steps=steps,
        error=error,
    )


__all__ = ["failed_execution"]
