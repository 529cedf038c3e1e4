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
    Noted,
    RunPlan,
    SourceUnavailable,
    StepRecord,
    StorableRun,
)

OWN_COLUMNS = ("id", "started_at", "duration_seconds", "engine_seconds", "steps", "trace_id")
"""What differs from row to row, but for the last ones of a plan without steps, or of requests without a trace."""
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
"""What stands in the first of the columns, which is the row's own, and in the others; text in a JSON column.

The others are the same object in all rows of a batch that are alike in them.
"""


def row_of(execution: Execution) -> Row:
    steps, captured = execution.steps, execution.captured
    own = (
        execution.id,
        execution.started_at,
        execution.duration_seconds,
        execution.engine_seconds,
        _json([_step(step) for step in steps]) if steps else "[]",
        execution.trace_id,
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


def alike(row: Row, known: dict[Values, Values]) -> Row:
    """Return a row of a record that shares its values with the ones before, where they are the same."""
    own, shared = row
    return own, shared if shared[-1] is not None else known.setdefault(shared, shared)


class RowsOfRuns:
    """The rows of a batch of runs. What those of one plan have in common is found once.

    They are made for every execution, on the event loop: a usual one needs no record.
    """

    def __init__(self) -> None:
        self._plans: dict[int, _RowsOfPlan] = {}

    def rows_of(self, runs: Sequence[StorableRun]) -> list[Row]:
        rows: list[Row] = []
        append, plan, row_of = rows.append, runs[0].plan, self._of(runs[0].plan).row_of
        for run in runs:
            if run.plan is not plan:
                plan = run.plan
                row_of = self._of(plan).row_of
            append(row_of(run))
        return rows

    def _of(self, plan: RunPlan) -> _RowsOfPlan:
        rows = self._plans.get(id(plan))
        if rows is None:
            rows = self._plans[id(plan)] = _RowsOfPlan(plan)
        return rows


class _RowsOfPlan:
    """Those of one plan, which it holds on to. Where their models were the same, too, they share the values for that.

    A step's document is the same object for each run: what differs is put into it before it is made text.
    """

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._steps = [
            {"name": name, "status": "", "start_seconds": 0.0, "duration_seconds": 0.0, "attempts": 0}
            for name in plan.step_names
        ]
        self._shared: dict[tuple[tuple[Identity, ...], int, int, tuple[str, str] | None], Values] = {}
        self._others: dict[Values, Values] = {}

    def row_of(self, run: StorableRun) -> Row:
        if not run.usual:
            return alike(row_of(run.record()), self._others)
        own: Values = (run.id, run.started_at, run.ended - run.started, run.engine_seconds())
        kept, trace_id = run.kept, run.trace_id
        models: tuple[Identity, ...] = ()
        if self._steps:
            steps = self._steps_of(run) if kept is None else _kept_steps(self._plan.step_names, kept.how)
            if steps is None:  # one was left behind
                return alike(row_of(run.record()), self._others)
            own, models = (*own, steps, trace_id) if trace_id else (*own, steps), run.identities()
        elif trace_id:
            own = (*own, "[]", trace_id)
        key = (models, run.http_status, len(own), None if kept is None else (kept.how, kept.execution_id))
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = self._values(*key)
        return own, shared

    def _values(self, models: tuple[Identity, ...], status: int, own: int, cache: tuple[str, str] | None) -> Values:
        """Return what stands in the columns of a usual run that are not among so many of its own."""
        plan = self._plan
        return (
            *("[]", "")[own - len(OWN_COLUMNS) + 2 :],
            *(plan.domain, plan.name, plan.generation, "ok", status, _models(models)),
            *("", *(cache or ("", "")), "[]", None),
        )

    def _steps_of(self, run: StorableRun) -> str | None:
        """Return the steps of a usual run; None where one was left behind."""
        steps, started = self._steps, run.started
        for document, step in zip(steps, run.steps, strict=True):
            if not isinstance(step, tuple):
                return None
            status, start, end, _ = step
            document["status"] = status
            document["start_seconds"] = start - started
            document["duration_seconds"] = end - start
            document["attempts"] = 1 if status == "ok" else 0
        return _json(steps if not run.notes else _noted(steps, run, run.notes))


def _noted(steps: Sequence[dict[str, Any]], run: StorableRun, notes: Mapping[int, Noted]) -> list[dict[str, Any]]:
    """Return the documents of the steps with what is noted of some of them."""
    documents = list(steps)
    for index, note in notes.items():
        hit = note.is_hit and steps[index]["status"] == "ok"
        documents[index] = {**steps[index], **_HIT} if hit else _step(run.step_record(index))
    return documents


@lru_cache(256)
def _kept_steps(names: tuple[str, ...], how: str) -> str:
    return _json([_step(StepRecord(name, "cached", cache=how)) for name in names])


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
    "alike",
    "execution_of",
    "generation_of",
    "row_of",
]
