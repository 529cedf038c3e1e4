"""The admin listener: executions, sources, models, the configuration and its reload. Never on the public port."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

import attrs
import orjson
from aiohttp import web

from orchestrator_core.applied import applied, defaults_of
from orchestrator_core.catalog import SourceSpec
from orchestrator_core.config.secrets import MASK, Secret, without_passwords
from orchestrator_core.config.written_out import may_name_a_secret
from orchestrator_core.documents import execution_json, moment_of, policies_json, problem_json
from orchestrator_core.engine import failure_of, new_execution_id
from orchestrator_core.errors import (
    BadRequest,
    EntityNotFound,
    InvalidRequest,
    SourceUnavailable,
    did_you_mean,
)
from orchestrator_core.http.answers import JSON_TYPE, Answer, common_headers, own_timing, problem
from orchestrator_core.http.models_page import (
    ModelPath,
    act,
    find_model,
    model_json,
    model_logs,
    models_of,
    parse_model_path,
)
from orchestrator_core.plugin_api import Exposition, Query, Telemetry
from orchestrator_core.reload import Live, Reloaded
from orchestrator_core.run import clock
from orchestrator_core.snapshot import OpenSource, Snapshot
from orchestrator_core.tracking import MAX_PAGE, ExecutionLog, tracking_json

_EXECUTION = re.compile(r"/executions/([^/]+)\Z")
METRICS = "/metrics"
_GENERATION = re.compile(r"/generations/([^/]+)\Z")
TEXT_TYPE = "text/plain; charset=utf-8"
STATUSES = ("ok", "degraded", "failed", "cancelled")
_LIMIT = re.compile(r"[0-9]{1,9}\Z")
_CURSOR = re.compile(r"[0-9a-f]{32}\Z")


class Text(str):
    """A document that is no JSON."""


class AdminApp:
    """Answers the requests of the admin listener."""

    def __init__(self, live: Live, executions: ExecutionLog, telemetry: Telemetry | None = None) -> None:
        self.live = live
        self.executions = executions
        self.telemetry = telemetry

    async def handle(self, request: web.BaseRequest) -> Answer:
        """Answer one request; the handler of :class:`aiohttp.web.Server`."""
        started, execution_id = clock(), new_execution_id()
        redact = self.live.snapshot.configuration.redactor
        try:
            if request.path == METRICS:
                _only(request, "GET", "HEAD")
                exposed = await self._metrics()
                timing = common_headers(execution_id, own_timing(started))
                return Answer(200, exposed.text.encode(), exposed.content_type, timing)
            status, document = await self._answer(request)
        except Exception as error:  # the boundary of the admin listener
            failure = failure_of(error, None, redact)
            headers = common_headers(execution_id, own_timing(started))
            if failure.status == 405:
                headers += allow_line(request.path)
            return problem(failure, execution_id, headers, request.path)
        if isinstance(document, Text):
            text = redact(document).encode("utf-8", "replace")
            return Answer(status, text, TEXT_TYPE, common_headers(execution_id, own_timing(started)))
        body = orjson.dumps(redact.data(document), option=orjson.OPT_INDENT_2)
        return Answer(status, body, JSON_TYPE, common_headers(execution_id, own_timing(started)))

    async def _answer(self, request: web.BaseRequest) -> tuple[int, Any]:
        path = request.path
        if path == "/reload":
            _only(request, "POST")
            return self._reloaded(await self.live.reload())
        if match := _EXECUTION.match(path):
            _only(request, "GET", "HEAD")
            return 200, await self._execution(match[1])
        if match := _GENERATION.match(path):
            _only(request, "GET", "HEAD")
            return 200, await self._generation(match[1])
        if model_path := parse_model_path(path):
            _only(request, *(("POST",) if model_path.is_action else ("GET", "HEAD")))
            return await self._model(model_path, request.query_string)
        pages = {
            "/executions": self._executions,
            "/sources": self._sources,
            "/models": self._models,
            "/config": self._config,
            "/health/live": self._health,
            "/health/ready": self._health,
        }
        page = pages.get(path)
        if page is None:
            models = ("/models/{id}", "/models/{id}/logs")
            known = [*pages, METRICS, "/reload", "/executions/{id}", "/generations/{id}", *models]
            raise EntityNotFound(f"no such page: {did_you_mean(path, known) or ', '.join(known)}")
        _only(request, "GET", "HEAD")
        return 200, await page(request)

    async def _executions(self, request: web.BaseRequest) -> dict[str, Any]:
        found = await self.executions.find(parse_execution_query(request.query_string))
        executions = [execution_json(execution) for execution in found.page.executions]
        incomplete = {"incomplete": found.incomplete} if found.incomplete else {}
        return {"executions": executions, "cursor": found.page.cursor, **incomplete}

    async def _execution(self, execution_id: str) -> dict[str, Any]:
        execution, unavailable = await self.executions.get(execution_id)
        if execution is None and unavailable:
            raise SourceUnavailable(unavailable)
        if execution is None:
            raise EntityNotFound(f"no execution {execution_id} is kept")
        return execution_json(execution)

    async def _generation(self, generation_id: str) -> dict[str, Any]:
        """Return a configuration that has served, as the store has it."""
        writer = self.executions.writer
        if writer is None:
            raise EntityNotFound("generations are kept where tracking.store is configured")
        generation, unavailable = await writer.generation(generation_id)
        if unavailable:
            raise SourceUnavailable(unavailable)
        if generation is None:
            raise EntityNotFound(f"no generation {generation_id} is kept")
        return {
            "generation": generation.id,
            "served_at": datetime.fromtimestamp(generation.served_at, UTC).isoformat(timespec="milliseconds"),
            "files": dict(generation.files),
            "texts": dict(generation.texts),
        }

    async def _sources(self, request: web.BaseRequest) -> dict[str, Any]:
        snapshot = self.live.snapshot
        told = await asyncio.gather(*map(_source, snapshot.sources.values()))  # one that hangs holds up no other
        found = []
        for (key, opened), source in zip(snapshot.sources.items(), told, strict=True):
            # The policies are those of the configuration that serves: a source is kept when they alone change.
            policies = _policies(snapshot.catalog.specs.get(key, opened.spec), snapshot)
            found.append({**source, "policies": policies})
        return {"sources": found}

    async def _models(self, request: web.BaseRequest) -> dict[str, Any]:
        return {"models": [model_json(listed, self.executions) for listed in models_of(self.live.snapshot)]}

    async def _model(self, path: ModelPath, query: str) -> tuple[int, Any]:
        listed = find_model(self.live.snapshot, path.id)
        if path.page == "logs":
            return 200, Text(await model_logs(listed, query))
        if path.is_action:
            act(listed, path.page)
            return 202, model_json(listed, self.executions)
        return 200, model_json(listed, self.executions)

    async def _metrics(self) -> Exposition:
        if self.telemetry is not None and self.telemetry.metrics is not None:
            return await self.telemetry.metrics()
        if self.live.registry.telemetry is None:
            raise EntityNotFound("no installed plugin provides metrics: pip install orchestrator-api-telemetry")
        raise EntityNotFound("metrics are switched off: see telemetry in config.yaml")

    async def _config(self, request: web.BaseRequest) -> dict[str, Any]:
        snapshot, last = self.live.snapshot, self.live.last
        return {
            "generation": snapshot.generation,
            "folder": str(snapshot.configuration.folder),
            "files": dict(snapshot.configuration.files),
            "endpoints": [ready.plan.id for ready in snapshot.plans.values()],
            "problems": [problem_json(found) for found in snapshot.problems],
            "last_reload": {
                "at": datetime.fromtimestamp(last.at, UTC).isoformat(timespec="milliseconds"),
                "swapped": last.swapped,
                "problems": [problem_json(found) for found in last.problems],
            },
            "tracking": tracking_json(self.executions),
        }

    async def _health(self, request: web.BaseRequest) -> dict[str, Any]:
        return {"status": "live", "generation": self.live.snapshot.generation}

    def _reloaded(self, reloaded: Reloaded) -> tuple[int, dict[str, Any]]:
        document = {
            "generation": reloaded.generation,
            "swapped": reloaded.swapped,
            "problems": [problem_json(found) for found in reloaded.problems],
        }
        return (200 if reloaded.swapped else 422), document


def allow_line(path: str) -> str:
    """Return the header line of a 405, with the methods that a page of the admin listener takes."""
    model = parse_model_path(path)
    acts = path in ("/reload", "/restart") or (model is not None and model.is_action)
    return f"Allow: {'POST' if acts else 'GET, HEAD'}\r\n"


def _only(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        raise BadRequest(f"{request.path} takes {' and '.join(methods)}, not {request.method}", 405)


async def _source(opened: OpenSource) -> dict[str, Any]:
    spec = opened.spec
    scope, type_name, source_id = spec.key
    return {
        "type": type_name,
        "source_id": source_id,
        "domain": scope or None,
        "plugin": str(spec.plugin),
        "operations": sorted(spec.operations),
        "options": _options(spec.options),
        **attrs.asdict(await opened.standing()),
    }


def _policies(spec: SourceSpec, snapshot: Snapshot) -> dict[str, Any]:
    """Return each policy's options, why they apply and what it remembers; of a source of models, by operation."""
    defaults = defaults_of(snapshot.configuration)
    found = {}
    for operation, state in snapshot.memory.of_source(spec.key):
        remembered = state.describe()
        said = policies_json(applied(defaults, spec, operation))
        found[operation] = {name: {**policy, **remembered.get(name, {})} for name, policy in said.items()}
    return found.get("", found)


def _options(options: Any) -> dict[str, str | None]:
    """Return the options as their masked representations, None for one that is not set.

    Secrets and whole URLs with passwords never leave.
    """
    if not attrs.has(type(options)):
        return {}
    return {field.name: _shown(options, field) for field in attrs.fields(type(options)) if field.repr}


def _shown(options: Any, field: Any) -> str | None:
    value = getattr(options, field.name)
    if value is None:
        return None
    if isinstance(value, Secret):
        return MASK
    if callable(field.repr):  # one that says itself what is shown of it, such as a secret that is written out
        return str(field.repr(value)).strip("'")
    return without_passwords(value if type(value) is str else repr(_without_proofs(value)))


def _without_proofs(value: Any) -> Any:
    """Return data in which what is named as a secret is one: a model's options are not read yet where they stand."""
    if isinstance(value, Mapping):
        return {
            key: Secret(item) if isinstance(item, str) and may_name_a_secret(key) else _without_proofs(item)
            for key, item in value.items()
        }
    return [_without_proofs(item) for item in value] if isinstance(value, list) else value


def parse_execution_query(text: str) -> Query:
    """Return the filters of ``GET /executions``. Times are Unix seconds or ISO 8601."""
    given = parse_qs(text, keep_blank_values=True)
    known = [field.name for field in attrs.fields(Query)]
    errors = [
        {"pointer": f"/{name}", "message": f"unknown filter: {did_you_mean(name, known)}"}
        for name in given
        if name not in known
    ]
    values: dict[str, Any] = {}
    for name, texts in given.items():
        try:
            if len(texts) > 1:
                raise ValueError("is given more than once, and takes one value")
            values[name] = _parsers.get(name, str)(texts[0])
        except ValueError as error:
            errors.append({"pointer": f"/{name}", "message": str(error)})
    if errors:
        raise InvalidRequest("; ".join(f"{error['pointer']} {error['message']}" for error in errors), errors)
    return Query(**values)


def _limit(text: str) -> int:
    if not _LIMIT.match(text) or not 1 <= int(text) <= MAX_PAGE:
        raise ValueError(f"expected a number from 1 to {MAX_PAGE}")
    return int(text)


def _cursor(text: str) -> str:
    if not _CURSOR.match(text):
        raise ValueError("expected the cursor of the page before")
    return text


def _status(text: str) -> str:
    if text not in STATUSES:
        raise ValueError(f"expected one of {', '.join(STATUSES)}")
    return text


_parsers: Mapping[str, Any] = {
    "limit": _limit,
    "since": moment_of,
    "until": moment_of,
    "status": _status,
    "cursor": _cursor,
}
