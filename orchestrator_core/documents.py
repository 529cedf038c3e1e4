"""Executions and problems as the JSON documents that the admin listener and the command line show."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import Execution, Identity, StepRecord


def execution_json(execution: Execution) -> dict[str, Any]:
    """Return the execution with times in milliseconds; ``started_at`` is ISO 8601 in UTC."""
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
        "steps": [_step_json(step) for step in execution.steps],
    }


def _step_json(step: StepRecord) -> dict[str, Any]:
    return {
        "name": step.name,
        "status": step.status,
        "start_ms": _milliseconds(step.start_seconds),
        "duration_ms": _milliseconds(step.duration_seconds),
        "attempts": step.attempts,
        "error": step.error,
    }


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def identity_json(identity: Identity) -> dict[str, str]:
    return {"name": identity.name, "version": identity.version, "digest": identity.digest}


def problem_json(problem: Problem) -> dict[str, Any]:
    """Return the problem's fields, and ``text``: the problem as people read it, with source line and caret."""
    return {
        "code": problem.code,
        "severity": problem.severity,
        "file": problem.file,
        "line": problem.line,
        "column": problem.column,
        "path": problem.path,
        "message": problem.message,
        "hint": problem.hint,
        "source_line": problem.source_line,
        "text": str(problem),
    }
