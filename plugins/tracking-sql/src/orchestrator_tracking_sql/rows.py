"""Executions as rows, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter
from typing import Any

import attrs
import orjson
import sqlalchemy

from orchestrator_core.plugin_api import (
    Captured,
    Execution,
    FailedAttempt,
    Generation,
    Identity,
    RunPlan,
    SourceUnavailable,
    StepRecord,
    StorableRun,
)

OWN_COLUMNS = ("id", "started_at", "duration_seconds", "engine_seconds", "trace_id", "steps")
"""What differs from row to row, as a rule."""
SHARED_COLUMNS = (
    *("domain", "endpoint", "generation", "status", "http_status", "models"),
    *("error", "cache", "cached_from", "degraded", "captured"),
)
"""What the rows of an endpoint have in common, as a rule."""
COLUMNS = (*OWN_COLUMNS, *SHARED_COLUMNS)
JSON_COLUMNS = frozenset(("degraded", "models", "steps", "captured"))

_STEP_NAMES = tuple(field.name for field in attrs.fields(StepRecord))
_IDENTITY_NAMES = tuple(field.name for field in attrs.fields(Identity))
_ATTEMPT_NAMES = tuple(field.name for field in attrs.fields(FailedAttempt))
_ALWAYS = ("name", "status", "start_seconds", "duration_seconds", "attempts")
_SELDOM = {field.name: field.default for field in attrs.fields(StepRecord) if field.name not in _ALWAYS}
_ORDINARY = tuple(_SELDOM.values())
_HIT: dict[str, str | int | float] = {"status": "cached", "attempts": 0, "cache": "hit"}
_seldom = attrgetter(*_SELDOM)
_of_identity = attrgetter(*_IDENTITY_NAMES)
_of_attempt = attrgetter(*_ATTEMPT_NAMES)

Values = tuple[Any, ...]
Row = tuple[Values, Values]
"""What stands in its own columns and in the shared ones, in their order; what goes into a JSON column is text."""


def row_of(execution: Execution) -> Row:
    steps, captured = execution.steps, execution.captured
    own = (
        execution.id,
        execution.started_at,
        execution.duration_seconds,
        execution.engine_seconds,
        execution.trace_id,
        _json([_step(step) for step in steps]) if steps else "[]",
    )
    shared = (
        execution.domain,
        execution.endpoint,
        execution.generation,
        execution.status,
        execution.http_status,
        _models(execution.models),
        _text(execution.error) if execution.error else "",
        execution.cache,
        execution.cached_from,
        _json(execution.degraded) if execution.degraded else "[]",
        None if captured is None else captured.text.decode(),
    )
    return own, shared


class RowsOfRuns:
    """The rows of a batch of runs. Those of one plan whose models were the same share the values for that.

    They are made for every execution, on the event loop: a usual one needs no record.
    """

    def __init__(self) -> None:
        self._shared: dict[int, tuple[RunPlan, tuple[Identity, ...], int, Values]] = {}

    def row_of(self, run: StorableRun) -> Row:
        plan, started, kept = run.plan, run.started, run.kept
        steps = None
        if run.usual:
            steps = _steps(run, plan.step_names, started) if kept is None else _kept_steps(plan.step_names, kept.how)
        if steps is None:  # there is more to tell
            return row_of(run.record())
        own = (run.id, run.started_at, run.ended - started, run.engine_seconds(), run.trace_id, steps)
        models, status = run.identities(), run.http_status
        if kept is not None:
            return own, _shared(plan, status, models, kept.how, kept.execution_id)
        known = self._shared.get(id(plan))
        if known is not None and known[0] is plan and known[1] == models and known[2] == status:
            return own, known[3]
        shared = _shared(plan, status, models)
        self._shared[id(plan)] = plan, models, status, shared
        return own, shared


def _shared(plan: RunPlan, status: int, models: tuple[Identity, ...], cache: str = "", cached_from: str = "") -> Values:
    """Return what stands in the shared columns of a usual run."""
    return (
        *(plan.domain, plan.name, plan.generation, "ok", status, _models(models)),
        *("", cache, cached_from, "[]", None),
    )


@lru_cache(256)
def _kept_steps(names: tuple[str, ...], how: str) -> str:
    return _json([_step(StepRecord(name, "cached", cache=how)) for name in names])


def _steps(run: StorableRun, names: Sequence[str], started: float) -> str | None:
    """Return the steps of a usual run; None where one was left behind."""
    if not names:
        return "[]"
    steps = [
        {
            "name": name,
            "status": step[0],
            "start_seconds": step[1] - started,
            "duration_seconds": step[2] - step[1],
            "attempts": 1 if step[0] == "ok" else 0,
        }
        for name, step in zip(names, run.steps, strict=True)
        if isinstance(step, tuple)
    ]
    if len(steps) < len(names):
        return None
    for index, note in run.notes.items() if run.notes else ():
        if note.is_hit and steps[index]["status"] == "ok":
            steps[index] |= _HIT
        else:
            steps[index] = _step(run.step_record(index))
    return _json(steps)


@lru_cache(256)
def _models(identities: tuple[Identity, ...]) -> str:
    if not identities:
        return "[]"
    return _json([dict(zip(_IDENTITY_NAMES, _of_identity(identity), strict=True)) for identity in identities])


def _step(step: StepRecord) -> dict[str, Any]:
    """Return the fields of a step, without those that have their defaults."""
    document = {
        "name": step.name,
        "status": step.status,
        "start_seconds": step.start_seconds,
        "duration_seconds": step.duration_seconds,
        "attempts": step.attempts,
    }
    more = _seldom(step)
    if more != _ORDINARY:
        document |= {name: value for name, value in zip(_SELDOM, more, strict=True) if value != _SELDOM[name]}
        if step.failed_attempts:
            document["failed_attempts"] = [
                dict(zip(_ATTEMPT_NAMES, _of_attempt(attempt), strict=True)) for attempt in step.failed_attempts
            ]
    return document


def _text(value: str) -> str:
    """Return a text that a database can hold: without NUL and the halves of characters that headers can have."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # half a character, in a message
        return orjson.dumps(_valid(value)).decode()


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_valid(key): _valid(item) for key, item in value.items()}
    return [_valid(item) for item in value] if isinstance(value, list | tuple) else value


def execution_of(row: sqlalchemy.Row[Any]) -> Execution:
    """Return the execution of a row, which may be without ``captured``.

    Fields that a later version has added to its JSON are left out. Raises ``SourceUnavailable`` for what this plugin
    has never written: the file is damaged, or somebody has changed the row.
    """
    try:
        return _execution_of(row)
    except (TypeError, ValueError, AttributeError) as error:
        raise SourceUnavailable(f"the row of the execution {row.id} is damaged: {error}") from error


def _execution_of(row: sqlalchemy.Row[Any]) -> Execution:
    captured = getattr(row, "captured", None)
    return Execution(
        id=row.id,
        domain=row.domain,
        endpoint=row.endpoint,
        generation=row.generation,
        status=row.status,
        http_status=row.http_status,
        started_at=row.started_at,
        duration_seconds=row.duration_seconds,
        engine_seconds=row.engine_seconds,
        trace_id=row.trace_id,
        error=row.error,
        cache=row.cache,
        cached_from=row.cached_from,
        degraded=tuple(orjson.loads(row.degraded)),
        models=tuple(Identity(**_known(model, _IDENTITY_NAMES)) for model in orjson.loads(row.models)),
        steps=tuple(map(_step_of, orjson.loads(row.steps))),
        captured=None if captured is None else Captured(captured.encode()),
    )


def _step_of(document: Mapping[str, Any]) -> StepRecord:
    known = _known(document, _STEP_NAMES)
    if attempts := known.get("failed_attempts"):
        known["failed_attempts"] = tuple(FailedAttempt(**_known(attempt, _ATTEMPT_NAMES)) for attempt in attempts)
    return StepRecord(**known)


def _known(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def generation_of(row: sqlalchemy.Row[Any]) -> Generation:
    return Generation(row.id, row.served_at, orjson.loads(row.files), orjson.loads(row.texts))


__all__ = [
    "COLUMNS",
    "JSON_COLUMNS",
    "OWN_COLUMNS",
    "SHARED_COLUMNS",
    "Row",
    "RowsOfRuns",
    "Values",
    "execution_of",
    "generation_of",
    "row_of",
]
