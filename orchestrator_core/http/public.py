"""The public listener: endpoints, what there is of them, the API documentation and the service's health."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Mapping
from typing import Any
from urllib.parse import parse_qs

import orjson
import structlog
from aiohttp import web

from orchestrator_core.engine import (
    CLIENT_CLOSED_REQUEST,
    execute,
    failure_of,
    finish,
    make_request,
    new_execution_id,
)
from orchestrator_core.errors import BadRequest, EntityNotFound, SourceUnavailable, did_you_mean
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.http.answers import (
    JSON_TYPE,
    Answer,
    common_headers,
    encode,
    header_lines,
    own_timing,
    problem,
    run_headers,
)
from orchestrator_core.http.docs import docs_asset
from orchestrator_core.http.openapi import openapi
from orchestrator_core.http.routing import ROOT, Route, listing, make_routes, paths
from orchestrator_core.http_client import current_trace, parse_traceparent
from orchestrator_core.logs import request_line
from orchestrator_core.plugin_api import JSON, EndpointInfo, Finished, StepInfo, Telemetry, Trace
from orchestrator_core.reload import Live
from orchestrator_core.request_lines import RequestLine
from orchestrator_core.run import Run, clock
from orchestrator_core.snapshot import ReadyPlan, Snapshot
from orchestrator_core.tracking import ExecutionLog

log = structlog.get_logger("orchestrator.http")

MAX_QUERY_FIELDS = 1000
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_NO_QUERY: Mapping[str, list[str]] = {}
_PAGES = frozenset({"/health/live", "/health/ready", ROOT, f"{ROOT}/", "/openapi.json", "/docs"})
NO_TELEMETRY = Telemetry()
NO_ROUTE = "-"
"""What the log has for the route of a page of the service's own, and of a path that nobody serves."""
LONGEST_LOGGED_PATH = 200


class PublicApp:
    """Answers the requests of the public listener, on the snapshot that serves when a request arrives."""

    def __init__(self, live: Live, executions: ExecutionLog, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self.live = live
        self.executions = executions
        self.telemetry = telemetry
        self.stopping = False
        self._begin = telemetry.begin or parse_traceparent
        self._use(live.snapshot)
        live.swapped.append(self._use)

    def stop(self) -> None:
        """Answer 503 from now on."""
        self.stopping = True

    def _use(self, snapshot: Snapshot) -> None:
        self._serving = _Serving(snapshot, self.telemetry)
        self.executions.resize(snapshot.configuration.app.tracking.capacity)

    def handle(self, request: web.BaseRequest) -> Awaitable[Answer]:
        """Answer one request; the handler of :class:`aiohttp.web.Server`."""
        serving = self._serving
        target = request._message.path  # the raw target: aiohttp has it nowhere else as cheaply
        if target[:1] != "/":  # the absolute form, which a proxy sends
            target = request.rel_url.raw_path_qs if request.rel_url.raw_path[:1] == "/" else target
        path, _, query = target.partition("?")
        segments = path.split("/")
        route = serving.routes.get((segments[2], segments[3])) if len(segments) > 3 else None
        if route is None or segments[1] != "orchestrator":
            return self._own(request, serving, path, segments)
        return self._endpoint(request, serving, route, segments, query)

    # --- an endpoint -----------------------------------------------------------------------------------------------

    async def _endpoint(
        self, request: web.BaseRequest, serving: _Serving, route: Route, segments: list[str], query: str
    ) -> Answer:
        ready, snapshot = route.ready, serving.snapshot
        headers = request.headers
        trace = self._begin(headers)
        if trace is None:
            run, outside = Run(ready, new_execution_id()), None
        else:
            run, outside = Run(ready, new_execution_id(), trace.trace_id), current_trace.set(trace)
        snapshot.running += 1
        try:
            params = route.match(segments[4:])
            if params is None:
                raise _no_route()
            if request.method not in route.methods:
                raise BadRequest(f"{request.method} is not among the endpoint's methods", 405)
            if self.stopping:
                raise SourceUnavailable("the service is shutting down")
            body = await read_json(request, ready.timeout) if request.body_exists else MISSING
            texts = parse_query(query) if query else _NO_QUERY
            content = encode(await execute(ready, make_request(ready, params, texts, headers, body), run))
        except asyncio.CancelledError as cancelled:
            finish(run, CLIENT_CLOSED_REQUEST, cancelled, serving.redact)
            raise
        except Exception as error:  # the one boundary at which every failure of a request becomes its answer
            failure = failure_of(error, run, serving.redact)
            finish(run, failure.status, error, serving.redact)
            lines = run_headers(run)
            if failure.status == 405:
                lines += f"Allow: {', '.join(sorted(route.methods))}\r\n"
            response = problem(failure, run.id, lines, request.path)
        else:
            finish(run, 200, None, serving.redact)
            response = Answer(200, content, JSON_TYPE, run_headers(run))
        finally:
            if outside is not None:  # aiohttp serves the connection's next request in the same context
                current_trace.reset(outside)
            snapshot.leave()
            self.executions.add(run)
            if route.finished is not None:
                observe(route.finished, run, request.method, trace)
            if serving.request_line is not None:
                log_run(serving.request_line, request.method, route.path, run)
        return response

    # --- everything else -------------------------------------------------------------------------------------------

    async def _own(self, request: web.BaseRequest, serving: _Serving, path: str, segments: list[str]) -> Answer:
        started, execution_id = clock(), new_execution_id()
        answer = self._own_answer(request, serving, path, segments, started, execution_id)
        if self.telemetry.answered is not None:
            self.telemetry.answered(serving.template(path), request.method, answer.status, clock() - started)
        if serving.request_line is not None and answer.status >= 400:
            shown = serving.redact(path[:LONGEST_LOGGED_PATH])
            seconds = clock() - started
            serving.request_line(execution_id, "", request.method, NO_ROUTE, answer.status, seconds, path=shown)
        return answer

    def _own_answer(
        self,
        request: web.BaseRequest,
        serving: _Serving,
        path: str,
        segments: list[str],
        started: float,
        execution_id: str,
    ) -> Answer:
        try:
            status, content, content_type, extra = self._find(request, serving, path, segments)
        except (BadRequest, EntityNotFound) as error:
            failure = failure_of(error, None, serving.redact)
            headers = common_headers(execution_id, own_timing(started))
            if failure.status == 405:
                headers += "Allow: GET, HEAD\r\n"
            return problem(failure, execution_id, headers, path)
        headers = common_headers(execution_id, own_timing(started)) + header_lines(extra)
        return Answer(status, content, content_type, headers)

    def _find(
        self, request: web.BaseRequest, serving: _Serving, path: str, segments: list[str]
    ) -> tuple[int, bytes, str, Mapping[str, str]]:
        found = self._page(serving, path, segments)
        if found is None:
            raise _no_route(serving.snapshot, segments)
        if request.method not in ("GET", "HEAD"):
            raise BadRequest(f"{request.method} is not a method of {path}", 405)
        return found

    def _page(
        self, serving: _Serving, path: str, segments: list[str]
    ) -> tuple[int, bytes, str, Mapping[str, str]] | None:
        snapshot = serving.snapshot
        if path == "/health/live":
            return 200, b'{"status":"live"}', JSON_TYPE, {}
        if path == "/health/ready":
            if self.stopping:
                return 503, b'{"status":"shutting down"}', JSON_TYPE, {"Retry-After": "1"}
            if serving.waits_for and (waiting := serving.not_yet_ready()):
                document = {"status": "waiting for models", "generation": snapshot.generation, "models": waiting}
                return 503, orjson.dumps(document), JSON_TYPE, {"Retry-After": "1"}
            return 200, orjson.dumps({"status": "ready", "generation": snapshot.generation}), JSON_TYPE, {}
        if path in (ROOT, f"{ROOT}/"):
            return 200, orjson.dumps(serving.domains()), JSON_TYPE, {}
        if len(segments) == 3 and segments[1] == "orchestrator" and segments[2] in serving.domain_names:
            return 200, orjson.dumps(serving.domain(segments[2])), JSON_TYPE, {}
        if not snapshot.configuration.app.server.docs:
            return None
        if path == "/openapi.json":
            return 200, serving.openapi(), JSON_TYPE, {}
        if path == "/docs" or path.startswith("/docs/"):
            asset = docs_asset(path)
            if asset is not None:
                return 200, asset.body, asset.content_type, asset.headers
        return None


class _Serving:
    """A snapshot with its routes and what is made of it once."""

    def __init__(self, snapshot: Snapshot, telemetry: Telemetry) -> None:
        self.snapshot = snapshot
        observing = telemetry.observe
        self.routes = make_routes(
            snapshot.plans.values(), observing and (lambda ready: observing(_endpoint_info(ready)))
        )
        self.redact = snapshot.configuration.redactor
        self.request_line = request_line() if snapshot.configuration.app.logging.requests else None
        self.docs = snapshot.configuration.app.server.docs
        self.domain_names = set(snapshot.configuration.descriptions)
        self._openapi: bytes | None = None
        self.waits_for = [model.slot for _, _, model in snapshot.models() if model.slot.holds_up]

    def not_yet_ready(self) -> dict[str, str]:
        """Return the states of the preloaded models that have never been ready; not one that dies later."""
        self.waits_for = [slot for slot in self.waits_for if slot.holds_up]
        return {slot.label: slot.state for slot in self.waits_for}

    def template(self, path: str) -> str:
        """Return the template of a page of the service's own; an empty string where there is no such page."""
        if path in _PAGES:
            return path
        if path.startswith("/docs/") and self.docs:
            return "/docs/{asset}"
        return f"{ROOT}/{{domain}}" if path.removeprefix(f"{ROOT}/") in self.domain_names else ""

    def domains(self) -> dict[str, Any]:
        return {
            "generation": self.snapshot.generation,
            "domains": [self.domain(name) for name in sorted(self.domain_names)],
        }

    def domain(self, name: str) -> dict[str, Any]:
        description = self.snapshot.configuration.descriptions.get(name, "")
        return {"domain": name, "description": description, "endpoints": listing(self.snapshot.plans, name)}

    def openapi(self) -> bytes:
        if self._openapi is None:
            plans = {key: ready.plan for key, ready in self.snapshot.plans.items()}
            self._openapi = orjson.dumps(openapi(self.snapshot.configuration, plans))
        return self._openapi


def _endpoint_info(ready: ReadyPlan) -> EndpointInfo:
    steps = tuple(
        StepInfo(step.name, step.spec.label, step.operation, not step.spec.kind.in_process) for step in ready.plan.steps
    )
    return EndpointInfo(ready.domain, ready.name, paths(ready.plan)[0], ready.generation, steps)


def observe(finished: Finished, run: Run, method: str, trace: Trace | None) -> None:
    try:
        finished(run, method, trace)
    except Exception:  # telemetry must not fail a request
        log.exception("telemetry failed", execution_id=run.id)


def log_run(line: RequestLine, method: str, route: str, run: Run) -> None:
    more: dict[str, Any] = {"degraded": run.degraded_steps} if run.degraded_steps else {}
    if run.error:
        more["error"] = run.error
    line(run.id, run.trace_id, method, route, run.http_status, run.ended - run.started, **more)


def _no_route(snapshot: Snapshot | None = None, segments: list[str] | None = None) -> EntityNotFound:
    hint = ""
    if snapshot is not None and segments is not None and len(segments) > 3 and segments[1] == "orchestrator":
        domain, name = segments[2], segments[3]
        names = [endpoint for owner, endpoint in snapshot.plans if owner == domain]
        hint = did_you_mean(name, names) if names else did_you_mean(domain, snapshot.configuration.descriptions)
    suffix = f": {hint}" if hint else f": GET {ROOT} lists the endpoints"
    return EntityNotFound(f"no such route{suffix}")


async def read_json(request: web.BaseRequest, timeout_seconds: float) -> JSON | Missing:
    """Return the body of a request, MISSING if it is empty. Raises :class:`BadRequest` if it is not JSON."""
    length = request.content_length
    if length is not None and length > request._client_max_size:
        raise _too_large(request)
    try:
        async with asyncio.timeout(timeout_seconds):
            raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request) from None
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {timeout_seconds:g} s", 408) from None
    except web.RequestPayloadError as error:
        raise BadRequest(f"the body cannot be read: {error}") from error
    if not raw:
        return MISSING
    content_type = request.headers.get("Content-Type", JSON_TYPE).partition(";")[0].strip().lower()
    if content_type != JSON_TYPE and not content_type.endswith("+json"):
        raise BadRequest(f"the body must be {JSON_TYPE}, not {content_type}", 415)
    try:
        body: JSON = orjson.loads(raw)
        if _LONG_NUMBER.search(raw):
            json.loads(raw, parse_int=_exact)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    return body


def _exact(digits: str) -> int:
    """Refuse an integer that orjson has made a float, and so another number."""
    number = int(digits) if len(digits) <= 20 else 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer in it does not fit in 64 bits")
    return number


def _too_large(request: web.BaseRequest) -> BadRequest:
    return BadRequest(f"the body is larger than {request._client_max_size} bytes", 413)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return the values of each query parameter. Raises :class:`BadRequest` if they are not UTF-8 or too many."""
    try:
        return parse_qs(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except UnicodeDecodeError:
        raise BadRequest("the query is not UTF-8") from None
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from error


__all__ = ["PublicApp", "parse_query", "read_json"]
