"""Executions as rows, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import attrs
import orjson
from sqlalchemy import Row

from orchestrator_core.plugin_api import Captured, Execution, Generation, Identity, StepRecord

COLUMNS = (
    *("id", "domain", "endpoint", "generation", "status", "http_status", "started_at", "duration_seconds"),
    *("engine_seconds", "trace_id", "error", "cache", "cached_from", "degraded", "models", "steps", "captured"),
)
FIRST_JSON_COLUMN = COLUMNS.index("degraded")
JSON_COLUMNS = frozenset(COLUMNS[FIRST_JSON_COLUMN:])

_STEP_NAMES = tuple(field.name for field in attrs.fields(StepRecord))
_IDENTITY_NAMES = tuple(field.name for field in attrs.fields(Identity))
_of_step = attrgetter(*_STEP_NAMES)
_of_identity = attrgetter(*_IDENTITY_NAMES)

Values = tuple[Any, ...]


def values_of(execution: Execution) -> Values:
    """Return what stands in the row, in the order of the columns."""
    return (
        execution.id,
        execution.domain,
        execution.endpoint,
        execution.generation,
        execution.status,
        execution.http_status,
        execution.started_at,
        execution.duration_seconds,
        execution.engine_seconds,
        execution.trace_id,
        execution.error.replace("\0", "\ufffd"),  # PostgreSQL's text holds no NUL
        execution.cache,
        execution.cached_from,
        execution.degraded,
        [dict(zip(_IDENTITY_NAMES, _of_identity(model), strict=True)) for model in execution.models],
        [dict(zip(_STEP_NAMES, _of_step(step), strict=True)) for step in execution.steps],
        None if execution.captured is None else orjson.Fragment(execution.captured.text),
    )


def document_of(rows: Sequence[Values], *, nested: bool = True) -> str:
    """Return rows as one JSON document, which the database takes apart: one parameter for any number of rows.

    Without ``nested``, what goes into JSON columns is text of its own in it: PostgreSQL cannot take a document apart
    that has a NUL in a string, though it can store one.
    """
    try:
        return orjson.dumps(rows if nested else [_with_texts(row) for row in rows]).decode()
    except TypeError:  # a lone surrogate, which can stand in a header and so in a message
        return document_of(_valid(rows), nested=nested)


def _with_texts(row: Values) -> Values:
    return (*row[:FIRST_JSON_COLUMN], *map(_text_of, row[FIRST_JSON_COLUMN:]))


def _text_of(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, Mapping):
        return {_valid(key): _valid(item) for key, item in value.items()}
    return [_valid(item) for item in value] if isinstance(value, list | tuple) else value


def execution_of(row: Row[Any]) -> Execution:
    """Return the execution of a row, which may be without ``captured``.

    Fields that a later version has added to its JSON are left out.
    """
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
        steps=tuple(StepRecord(**_known(step, _STEP_NAMES)) for step in orjson.loads(row.steps)),
        captured=None if captured is None else Captured(captured.encode()),
    )


def _known(values: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}


def generation_of(row: Row[Any]) -> Generation:
    return Generation(row.id, row.served_at, orjson.loads(row.files), orjson.loads(row.texts))


__all__ = ["COLUMNS", "JSON_COLUMNS", "Values", "document_of", "execution_of", "generation_of", "values_of"]
