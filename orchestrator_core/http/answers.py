"""What is written back: JSON bodies, problem details (RFC 9457) and the headers that every answer carries."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from aiohttp import web
from multidict import CIMultiDict

from orchestrator_core.engine import Failure
from orchestrator_core.errors import SourceError
from orchestrator_core.run import Run, clock

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"
MILLI = 1000.0


def encode(value: Any) -> bytes:
    """Return the JSON of an answer. Raises :class:`SourceError` for what JSON cannot hold, naming the place.

    orjson writes NaN and infinities as null, without a word. So where the text has a null at all, the value is looked
    through for numbers that are none.
    """
    try:
        body = orjson.dumps(value)
    except TypeError as error:
        raise SourceError(f"the answer holds a value that JSON cannot: {error}") from error
    if b"null" in body and (place := _not_finite(value, "")):
        raise SourceError(f"the answer holds a number that JSON cannot (NaN or infinite) at {place}")
    return body


def _not_finite(value: Any, place: str) -> str:
    """Return the JSON Pointer of the first number that is not finite, or an empty string."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else place or "/"
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return next((found for key, item in items if (found := _not_finite(item, f"{place}/{key}"))), "")


def answer(status: int, body: bytes, content_type: str, headers: CIMultiDict[str]) -> web.Response:
    headers["Content-Type"] = content_type
    return web.Response(status=status, body=body, headers=headers)


def common_headers(execution_id: str, timing: str) -> CIMultiDict[str]:
    return CIMultiDict((("X-Execution-Id", execution_id), ("Server-Timing", timing)))


def run_headers(run: Run) -> CIMultiDict[str]:
    """Return the headers of a finished run: its id, its step timings in milliseconds, and what is degraded."""
    headers = common_headers(run.id, server_timing(run))
    if run.degraded_steps:
        headers["X-Orchestrator-Degraded"] = ", ".join(run.degraded_steps)
    return headers


def server_timing(run: Run) -> str:
    """Return ``customer_data;dur=1.234, engine;dur=0.056``: a metric per step and one for the engine's own time."""
    metrics = []
    for name, step in zip(run.plan.step_names, run.steps, strict=True):
        if step is None:
            continue
        if isinstance(step, float):
            metrics.append(f"{name};dur={(run.ended - step) * MILLI:.3f};desc=cancelled")
            continue
        status, start, stop, _ = step
        suffix = "" if status == "ok" else f";desc={status}"
        metrics.append(f"{name};dur={(stop - start) * MILLI:.3f}{suffix}")
    metrics.append(f"engine;dur={run.engine_seconds() * MILLI:.3f}")
    return ", ".join(metrics)


def own_timing(started: float) -> str:
    """Return the ``Server-Timing`` of an answer that no endpoint made."""
    return f"engine;dur={(clock() - started) * MILLI:.3f}"


def problem(failure: Failure, execution_id: str, headers: CIMultiDict[str], instance: str = "") -> web.Response:
    if failure.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, math.ceil(failure.retry_after_seconds)))
    headers.update(failure.headers)
    body = orjson.dumps(failure.problem(execution_id, instance))
    return answer(failure.status, body, PROBLEM_TYPE, headers)
