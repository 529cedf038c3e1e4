"""Feast's HTTP feature server as a source, on the core's outbound client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from time import time
from typing import Any, TypeAlias

import orjson
from attrs import evolve, frozen

from orchestrator_core.plugin_api import (
    JSON,
    CallInspection,
    EntityNotFound,
    Finding,
    HttpOptions,
    HttpOrigin,
    HttpResponse,
    Inspection,
    InvalidParam,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    SourceError,
    TlsOptions,
    check_depth,
)
from orchestrator_source_feast.asked import Asked, AskedOperation
from orchestrator_source_feast.binding import ENTITY_ID, FEATURE_REFS
from orchestrator_source_feast.inspection import needs_references, references_findings
from orchestrator_source_feast.keys import Unfit, shown, to_present
from orchestrator_source_feast.lookup import duplicates
from orchestrator_source_feast.many import Answers, CallMany, in_turns, one_by_one, shared_out
from orchestrator_source_feast.options import FeastOptions, split_reference

__all__ = ["FeatureServer", "open_server"]

Call: TypeAlias = Callable[..., Awaitable[JSON]]
PATH = "/get-online-features"
HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}
TRANSIENT = frozenset({429, 502, 503, 504})
NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
ROWS_AT_ONCE = 500
NEVER = "1970-01-01T00:00:00Z"
STATUSES = frozenset(("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE", "INVALID"))
"""Feast's ``FieldStatus``."""
REASON_LENGTH = 200


class Refused(SourceError):
    """The server answered another status than 200; ``kind`` is the class of Feast's error, if it is one."""

    def __init__(self, message: str, kind: str, reason: str, *, transient: bool) -> None:
        super().__init__(message, transient=transient)
        self.kind = kind
        self.reason = reason


class FeatureServer:
    """A feature server. ``fetch`` and what ``prepare`` returns may be called concurrently."""

    def __init__(self, asked: Asked, origin: HttpOrigin, url: str) -> None:
        self._asked = asked
        self._origin = origin
        self._url = url
        self._post = origin.prepare("POST", PATH, headers=HEADERS, idempotent=True)

    def prepare(self, operation: str, param_names: Sequence[str]) -> Call:
        """Return the coroutine function that takes the values in the order of the names."""
        asked, names = self._asked.of(operation), tuple(param_names)
        if FEATURE_REFS not in names:
            asked.wanted()
            _check_distinct(asked)
        self._check_names(asked, names)
        row_of, at = _row_of(asked, names), names.index(FEATURE_REFS) if FEATURE_REFS in names else None

        async def call(*values: Any) -> JSON:
            one = asked if at is None else _by_references(asked, asked.references(values[at]))
            row = row_of(values)
            (result,) = await self._ask_for(one, [row])
            if isinstance(result, OrchestratorError):
                raise result
            return result

        return call

    def prepare_many(self, operation: str, param_names: Sequence[str]) -> CallMany:
        """Return what asks for many entities in one POST.

        Where the server refuses them together they are asked for one by one: one of them may be to blame.
        """
        call = self.prepare(operation, param_names)
        asked, names = self._asked.of(operation), tuple(param_names)
        row_of, at = _row_of(asked, names), names.index(FEATURE_REFS) if FEATURE_REFS in names else None

        def group_of(values: Sequence[Any]) -> tuple[tuple[str, ...] | None, tuple[type, ...]]:
            """Items of the same features and of the same types: Feast reads a column by the type of its values."""
            references = None if at is None else asked.references(values[at])
            return references, tuple(type(value) for value in row_of(values).values())

        async def of_same(group: tuple[tuple[str, ...] | None, Any], items: Sequence[Sequence[Any]]) -> Answers:
            references, _ = group
            one = asked if references is None else _by_references(asked, references)
            answers: list[JSON | OrchestratorError] = []
            for start in range(0, len(items), ROWS_AT_ONCE):
                part = items[start : start + ROWS_AT_ONCE]
                try:
                    answers += await self._ask_for(one, [row_of(values) for values in part])
                except SourceError as error:
                    unknown = isinstance(error, Refused) and error.kind.endswith("NotFoundException")
                    if error.transient or unknown or len(part) == 1:
                        raise
                    answers += await one_by_one(call, part, self._asked.options.pool_size)
            return answers

        return shared_out(group_of, of_same)

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        return await self.prepare(operation, list(params))(*params.values())

    async def check_ready(self) -> None:
        answer = await self._origin.request("GET", "/health")
        if answer.status != 200:
            raise SourceError(f"GET {self._url}/health: the feature server answered {answer.status}", transient=True)

    async def inspect(self) -> Inspection:
        """Ask the server for each operation's features of an entity that is not there: only it knows the registry."""
        await self.check_ready()
        facts: dict[str, OperationFacts] = {}
        findings: list[Finding] = []
        for operation in self._asked.declared:
            asked = self._asked.of(operation)
            if not asked.names_features:
                continue
            row = {} if asked.entity_key is None else {asked.entity_key: "0"}
            fields = tuple(_field(asked, *split_reference(reference)) for reference in asked.features) or None
            try:
                answer = await self._ask(asked, [row]) if row else None
            except Refused as refused:
                if refused.kind.endswith("NotFoundException"):
                    findings.append(_finding(asked, refused.reason))
                    continue
                answer = None  # it needs join keys or request-time inputs that nobody has told us
            if answer is not None:
                fields = tuple(field for field, _, _ in _vectors(asked, answer, row, 0))
            facts[operation] = OperationFacts(required=(ENTITY_ID,) if row else (), optional=None, fields=fields)
        return Inspection(facts, tuple(findings))

    def inspect_call(
        self, operation: str, param_names: Sequence[str], constants: Mapping[str, JSON]
    ) -> CallInspection | None:
        """Tell the fields of a step that names its features. Whether there are such features only the server knows."""
        asked = self._asked.of(operation)
        if FEATURE_REFS not in param_names:
            return None if asked.names_features else needs_references(asked)
        required = (FEATURE_REFS,) if asked.entity_key is None else (ENTITY_ID, FEATURE_REFS)
        if FEATURE_REFS not in constants:
            return CallInspection(OperationFacts(required))
        references = asked.references_or_flaws(constants[FEATURE_REFS])
        if isinstance(references, tuple):
            fields = tuple(_field(asked, *split_reference(reference)) for reference in references)
            flaws = duplicates(references, fields)
            if not flaws:
                return CallInspection(OperationFacts(required, None, fields))
            references = flaws
        return CallInspection(findings=tuple(references_findings(asked, references)))

    def _check_names(self, asked: AskedOperation, names: Sequence[str]) -> None:
        if ENTITY_ID in names and asked.entity_key is None:
            message = f"{asked.name}: set entity_key on the source, to say which join key entity_id fills"
            raise InvalidParam(ENTITY_ID, message)
        if asked.entity_key is not None and ENTITY_ID not in names:
            message = f"{asked.name}: parameter '{ENTITY_ID}' (the join key '{asked.entity_key}') is missing"
            raise InvalidParam(ENTITY_ID, message)
        if asked.entity_key in names and asked.entity_key != ENTITY_ID:
            message = f"{asked.name}: there is no parameter '{asked.entity_key}'; it is filled by entity_id"
            raise InvalidParam(str(asked.entity_key), message)

    async def _ask_for(
        self, asked: AskedOperation, rows: Sequence[Mapping[str, Any]]
    ) -> Sequence[JSON | OrchestratorError]:
        answer = await self._ask(asked, rows)

        def result(item: tuple[int, Mapping[str, Any]]) -> JSON | OrchestratorError:
            index, row = item
            try:
                return _result(asked, row, _vectors(asked, answer, row, index))
            except OrchestratorError as error:
                return error

        return await in_turns(enumerate(rows), result)

    async def _ask(self, asked: AskedOperation, rows: Sequence[Mapping[str, Any]]) -> Any:
        features = {"feature_service": asked.service} if asked.service else {"features": asked.features}
        full = asked.full_names if asked.service else _ambiguous(asked)
        entities = {column: [row[column] for row in rows] for column in rows[0]}
        try:
            body = orjson.dumps({**features, "entities": entities, "full_feature_names": full})
        except TypeError as error:
            raise SourceError(f"{asked.name}: the parameters cannot be written as JSON: {error}") from error
        answer = await self._post(body)
        if answer.status != 200:
            raise self._refused(answer)
        try:
            body = orjson.loads(answer.body)
            check_depth(body, answer.body)
        except ValueError as error:
            raise SourceError(f"POST {self._url}{PATH}: the answer is not JSON: {error}") from None
        return body

    def _refused(self, answer: HttpResponse) -> Refused:
        kind, reason = _reason(answer)
        message = f"POST {self._url}{PATH}: the feature server answered {answer.status}"
        refused = Refused(
            f"{message}{f': {reason}' if reason else ''}", kind, reason, transient=answer.status in TRANSIENT
        )
        refused.retry_after_seconds = answer.retry_after_seconds
        return refused


def _row_of(asked: AskedOperation, names: Sequence[str]) -> Callable[[Sequence[Any]], dict[str, Any]]:
    """Return what makes of an item's values its columns, as Feast names them. That raises ``InvalidParam``."""
    columns = [
        (asked.entity_key or ENTITY_ID if name == ENTITY_ID else name, index)
        for index, name in enumerate(names)
        if name != FEATURE_REFS
    ]

    def row_of(values: Sequence[Any]) -> dict[str, Any]:
        row = {}
        for column, index in columns:
            row[column] = values[index]
            if column == asked.entity_key:
                _check_present(asked.name, names[index], values[index])
        return row

    return row_of


def _by_references(asked: AskedOperation, references: tuple[str, ...]) -> AskedOperation:
    one = evolve(asked, features=references, service="")
    _check_distinct(one)
    return one


def _check_distinct(asked: AskedOperation) -> None:
    fields = [_field(asked, *split_reference(reference)) for reference in asked.features]
    if flaws := duplicates(asked.features, fields):
        raise InvalidParam(FEATURE_REFS, f"{asked.name}: {flaws[0]}")


def _field(asked: AskedOperation, view: str, feature: str) -> str:
    return f"{view}__{feature}" if asked.full_names else feature


def _check_present(operation: str, name: str, value: Any) -> None:
    try:
        to_present(value)
    except Unfit as unfit:
        message = f"{operation}: parameter '{name}' expected {unfit}, got {shown(value)}"
        raise InvalidParam(name, message) from None


def _ambiguous(asked: AskedOperation) -> bool:
    """Whether full names are needed to tell features apart. Asked for them, Feast loses on-demand views in Python."""
    names = [split_reference(reference)[1] for reference in asked.features]
    return len(set(names)) < len(names)


@frozen
class Vector:
    """A feature's value for one entity."""

    value: Any
    status: str
    stamp: str


def _vectors(asked: AskedOperation, answer: Any, row: Mapping[str, Any], index: int) -> list[tuple[str, str, Vector]]:
    """Return field, feature view and vector of each feature, for the entity that was asked for as the ``index``-th.

    Raise ``SourceError`` for an answer of another shape.
    """
    try:
        names = answer["metadata"]["feature_names"]
        names = names["val"] if isinstance(names, dict) else names
        vectors = {
            name: Vector(
                each["values"][index],
                each["statuses"][index],
                each["event_timestamps"][index] if each.get("event_timestamps") else NEVER,
            )
            for name, each in zip(names, answer["results"], strict=True)
        }
        for name, vector in vectors.items():
            if not isinstance(name, str) or vector.status not in STATUSES:
                raise ValueError(f"the status {str(vector.status)[:40]!r}" if isinstance(name, str) else "a name")
        if asked.service:
            return [(name, "", vector) for name, vector in vectors.items() if name not in row]
        found, by_full_names = [], _ambiguous(asked)
        for reference in asked.features:
            view, feature = split_reference(reference)
            name = f"{view}__{feature}" if by_full_names else feature
            found.append((_field(asked, view, feature), view, vectors[name]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise SourceError(
            f"{asked.name}: the feature server's answer has not the shape it should have"
            f" ({type(error).__name__}: {error})"
        ) from None
    return found


def _result(
    asked: AskedOperation, row: Mapping[str, Any], vectors: Sequence[tuple[str, str, Vector]]
) -> dict[str, Any]:
    # Some stores call the features of an unknown entity present, all of them null and without a time.
    known = {view for _, view, vector in vectors if vector.value is not None or vector.stamp != NEVER}
    result: dict[str, Any] = {}
    for field, view, vector in vectors:
        missing = vector.status in ("NOT_FOUND", "INVALID") or view not in known
        expired = vector.status == "OUTSIDE_MAX_AGE" or _is_old(asked, field, vector)
        if (missing or expired) and not asked.allow_missing:
            entity = ", ".join(f"{key}={shown(value)}" for key, value in row.items())
            where = f"feature view '{view}'" if view else f"feature service '{asked.service}'"
            what = (
                f"there is no {entity} in {where}" if missing else f"what is stored for {entity} in {where} has expired"
            )
            raise EntityNotFound(f"{asked.name}: {what}{' of the online store' if missing else ''}")
        result[field] = None if missing or expired else _finite(asked, field, vector.value)
    return result


def _is_old(asked: AskedOperation, field: str, vector: Vector) -> bool:
    if asked.max_age_seconds is None or vector.stamp == NEVER:
        return False
    try:
        stored_at = datetime.fromisoformat(vector.stamp).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise SourceError(f"{asked.name}: feature '{field}' has an event_timestamp that is no time") from None
    return stored_at < time() - asked.max_age_seconds


def _finite(asked: AskedOperation, field: str, value: Any) -> Any:
    """The server writes numbers that JSON does not have as text."""
    if value in NOT_FINITE if isinstance(value, str) else isinstance(value, list) and NOT_FINITE & set(map(str, value)):
        raise SourceError(f"{asked.name}: feature '{field}' holds NaN or Infinity, which JSON has no number for")
    return value


def _reason(answer: HttpResponse) -> tuple[str, str]:
    """Return the class and the message of a Feast error, or what else the server says."""
    try:
        said = orjson.loads(answer.body)
        if isinstance(said, str):
            said = orjson.loads(said)
    except orjson.JSONDecodeError:
        text = answer.body.decode("utf-8", "replace").strip().strip('"')
        return "", text.partition("\\n")[0][:REASON_LENGTH]
    if not isinstance(said, dict):
        return "", str(said)[:REASON_LENGTH]
    reason = said.get("message") or said.get("detail") or ""
    text = reason if isinstance(reason, str) else orjson.dumps(reason).decode()
    return str(said.get("class", "")), text[:REASON_LENGTH]


def _finding(asked: AskedOperation, reason: str) -> Finding:
    words = set(reason.split())
    if asked.service:
        return Finding(asked.name, reason, ("feature_service",), asked.service)
    for index, reference in enumerate(asked.features):
        for part in split_reference(reference):
            if part in words:
                return Finding(asked.name, reason, ("features", index), part)
    return Finding(asked.name, reason, ("features",))


@asynccontextmanager
async def open_server(options: FeastOptions, context: OpenContext, asked: Asked) -> AsyncIterator[FeatureServer]:
    """Open the connections; nothing is sent before the first call."""

    def absolute(path: str | None) -> str | None:
        return str(context.path(path)) if path else None

    assert options.server_url is not None
    tls: TlsOptions = options.tls
    http = HttpOptions(
        timeout_seconds=options.timeout,
        connect_timeout_seconds=min(options.connect_timeout, options.timeout),
        max_connections=options.pool_size,
        max_response_bytes=options.max_response_bytes,
        tls=evolve(
            tls, ca_file=absolute(tls.ca_file), cert_file=absolute(tls.cert_file), key_file=absolute(tls.key_file)
        ),
        proxy=options.proxy,
        headers=options.headers,
    )
    url = options.server_url.rstrip("/")
    scheme, _, rest = url.partition("://")
    async with context.http.origin(url, http) as origin:
        yield FeatureServer(asked, origin, f"{scheme}://{rest.rpartition('@')[2]}")
