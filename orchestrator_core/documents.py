"""Executions, policies and problems as the JSON documents that the admin listener answers with, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import attrs
import orjson

from orchestrator_core.applied import Applied
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import Captured, Execution, FailedAttempt, Identity, StepRecord

LATEST = 253_402_300_800.0
"""The end of the year 9999, in Unix seconds: ISO 8601 times end there too."""


def moment_of(text: str) -> float:
    """Return the Unix time of a text that says one in seconds or as ISO 8601. Raises ``ValueError`` for any other."""
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        if abs(seconds) <= LATEST:
            return seconds
    try:
        # The + of an offset that is not escaped in a URL arrives as a space.
        moment = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        raise ValueError("expected Unix seconds or an ISO 8601 time") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


def execution_json(execution: Execution) -> dict[str, Any]:
    """Return the execution with times in milliseconds; ``started_at`` is ISO 8601 in UTC.

    It has ``cache`` and ``cached_from`` where a cache gave the whole answer, and ``captured`` where values are kept;
    ``truncated`` then has the paths of those in it that are not whole, if there are such.

    A step has ``items``, ``items_failed``, ``cache``, ``breaker``, ``waited_ms``, ``failed_attempts`` and
    ``failed_attempts_left_out`` where there is something to say; of an attempt that is
    ``{"start_ms": 1.2, "duration_ms": 30.4, "error": "…"}``.
    """
    return {
        "id": execution.id,
        "domain": execution.domain,
        "endpoint": execution.endpoint,
        "generation": execution.generation,
        "status": execution.status,
        "http_status": execution.http_status,
        "started_at": datetime.fromtimestamp(execution.started_at, UTC).isoformat(timespec="milliseconds"),
        "duration_ms": _milliseconds(execution.duration_seconds),
        "engine_ms": _milliseconds(execution.engine_seconds),
        "trace_id": execution.trace_id,
        "degraded": list(execution.degraded),
        "models": [identity_json(identity) for identity in execution.models],
        "error": execution.error,
        **({"cache": execution.cache, "cached_from": execution.cached_from} if execution.cache else {}),
        "steps": [_step_json(step) for step in execution.steps],
        **({} if execution.captured is None else _captured_json(execution.captured)),
    }


def _captured_json(captured: Captured) -> dict[str, Any]:
    truncated = [path for path, _ in truncated_values(captured)]
    return {"captured": dict(captured), **({"truncated": truncated} if truncated else {})}


def truncated_values(captured: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the path of each captured value that was too large to be kept whole, and how many bytes it had."""
    for path, value in _kept_values(captured):
        if isinstance(value, dict) and value.keys() == {"$degraded"}:
            value = value["$degraded"]
        if isinstance(value, dict) and value.keys() == {"$truncated"}:
            yield path, value["$truncated"]["bytes"]


def _kept_values(captured: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is kept or cut as one value. What is redacted is a text in the place of what would be in it."""
    yield from _parts("request", captured.get("request"))
    steps = captured.get("steps")
    for name, step in steps.items() if isinstance(steps, dict) else ():
        for number, call in enumerate(step["calls"] if isinstance(step, dict) else ()):
            for path, value in _parts(f"steps.{name}.calls[{number}]", call):
                yield from _parts(path, value) if path.endswith("].params") else ((path, value),)
    yield from ((name, captured[name]) for name in ("models", "answer") if name in captured)


def _parts(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"{path}.{name}", part) for name, part in value.items())


def _step_json(step: StepRecord) -> dict[str, Any]:
    items = {} if step.items is None else {"items": step.items, "items_failed": step.items_failed}
    return {
        "name": step.name,
        "status": step.status,
        "start_ms": _milliseconds(step.start_seconds),
        "duration_ms": _milliseconds(step.duration_seconds),
        "attempts": step.attempts,
        "error": step.error,
        **items,
        **({"cache": step.cache} if step.cache else {}),
        **({"breaker": step.breaker} if step.breaker else {}),
        **({"waited_ms": _milliseconds(step.waited_seconds)} if step.waited_seconds else {}),
        **({"failed_attempts": [_attempt_json(one) for one in step.failed_attempts]} if step.failed_attempts else {}),
        **({"failed_attempts_left_out": step.failed_attempts_left_out} if step.failed_attempts_left_out else {}),
    }


def _attempt_json(attempt: FailedAttempt) -> dict[str, Any]:
    return {
        "start_ms": _milliseconds(attempt.start_seconds),
        "duration_ms": _milliseconds(attempt.duration_seconds),
        "error": attempt.error,
    }


def execution_of(document: Mapping[str, Any]) -> Execution:
    """Return the execution that :func:`execution_json` made the document of."""
    return Execution(
        id=document["id"],
        domain=document["domain"],
        endpoint=document["endpoint"],
        generation=document["generation"],
        status=document["status"],
        http_status=document["http_status"],
        started_at=datetime.fromisoformat(document["started_at"]).timestamp(),
        duration_seconds=document["duration_ms"] / 1000,
        engine_seconds=document["engine_ms"] / 1000,
        trace_id=document["trace_id"],
        degraded=tuple(document["degraded"]),
        models=tuple(Identity(**model) for model in document["models"]),
        steps=tuple(_step_of(step) for step in document["steps"]),
        error=document["error"],
        cache=document.get("cache", ""),
        cached_from=document.get("cached_from", ""),
        captured=Captured(orjson.dumps(document["captured"])) if "captured" in document else None,
    )


def _step_of(document: Mapping[str, Any]) -> StepRecord:
    return StepRecord(
        name=document["name"],
        status=document["status"],
        start_seconds=document["start_ms"] / 1000,
        duration_seconds=document["duration_ms"] / 1000,
        attempts=document["attempts"],
        error=document["error"],
        items=document.get("items"),
        items_failed=document.get("items_failed", 0),
        cache=document.get("cache", ""),
        breaker=document.get("breaker", ""),
        waited_seconds=document.get("waited_ms", 0.0) / 1000,
        failed_attempts=tuple(
            FailedAttempt(attempt["start_ms"] / 1000, attempt["duration_ms"] / 1000, attempt["error"])
            for attempt in document.get("failed_attempts", ())
        ),
        failed_attempts_left_out=document.get("failed_attempts_left_out", 0),
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def identity_json(identity: Identity) -> dict[str, str]:
    return {"name": identity.name, "version": identity.version, "digest": identity.digest}


def policies_json(policies: Applied) -> dict[str, Any]:
    """Return for each policy ``{"options": …, "why": …, "at": ["database.yaml:7"]}``; null options are off."""
    return {
        name: {
            "options": _options_json(policy.options),
            "why": policy.why,
            "at": [f"{place.file}:{place.line}" for place in policy.places],
        }
        for name, policy in policies
    }


def _options_json(options: Any) -> Any:
    if attrs.has(type(options)):
        return {name: _options_json(value) for name, value in attrs.asdict(options, recurse=False).items()}
    return float(options) if isinstance(options, float) else options


def problem_json(problem: Problem) -> dict[str, Any]:
    """Return the problem's fields, and ``text``: the problem as people read it, with source line and caret.

    ``end_column`` is one after the last column of what the caret stands under.
    """
    return {
        "code": problem.code,
        "severity": problem.severity,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "end_column": problem.column + problem.length if problem.line else 0,
        "path": problem.path,
        "message": problem.message,
        "hint": problem.hint,
        "source_line": problem.source_line,
        "text": str(problem),
    }


def problem_of(document: Mapping[str, Any]) -> Problem:
    """Return the problem that :func:`problem_json` made the document of."""
    return Problem(
        file=document["file"],
        line=document["line"],
        column=document["column"],
        code=document["code"],
        message=document["message"],
        path=document["path"],
        hint=document["hint"],
        severity=document["severity"],
        source_line=document["source_line"],
        length=max(1, document["end_column"] - document["column"]),
    )
