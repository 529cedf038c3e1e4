"""The public listener: endpoints, what there is of them, the API documentation and the service's health."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from aiohttp import web

from orchestrator_core.answer_cache import Make
from orchestrator_core.engine import (
    CLIENT_CLOSED_REQUEST,
    Failure,
    execute,
    failure_of,
    finish,
    make_request,
    new_execution_id,
)
from orchestrator_core.errors import BadRequest, EntityNotFound, SourceUnavailable, did_you_mean
from orchestrator_core.expressions import MISSING
from orchestrator_core.http.answers import (
    JSON_TYPE,
    OVERLOADED,
    Answer,
    common_headers,
    encode,
    header_lines,
    own_timing,
    problem,
    run_headers,
)
from orchestrator_core.http.connection import LINGERING_SECONDS
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.pages import PageContent
from orchestrator_core.http.reading import ACCEPTED, parse_query, read_json, waits_to_be_asked
from orchestrator_core.http.routing import ROOT, Route
from orchestrator_core.http.serving import Serving, limit_of
from orchestrator_core.http_client import current_trace, parse_traceparent
from orchestrator_core.plugin_api import Telemetry, Trace
from orchestrator_core.reload import Live
from orchestrator_core.request_lines import RequestLine
from orchestrator_core.run import Request, Run, clock
from orchestrator_core.snapshot import ReadyPlan, Snapshot
from orchestrator_core.tracking import ExecutionLog, Unrecorded
from orchestrator_core.turns import Turns

log = structlog.get_logger("orchestrator.http")

_NO_QUERY: Mapping[str, list[str]] = {}
NO_TELEMETRY = Telemetry()
NO_ROUTE = "-"
"""What the log has for the route of a page of the service's own, and of a path that nobody serves."""
NO_METHOD = "-"
LONGEST_LOGGED_PATH = 200
MOST_COMPARED = 50
"""Of more names none is suggested: to find the closest takes 50 µs for each, and anybody can ask for a wrong one."""


class PublicApp:
    """Answers the requests of the public listener, on the snapshot that serves when a request arrives."""

    def __init__(self, live: Live, executions: ExecutionLog, telemetry: Telemetry = NO_TELEMETRY) -> None:
        self.live = live
        self.executions = executions
        self.telemetry = telemetry
        self.draining = False
        self.stopping = False
        self._begin = telemetry.begin or parse_traceparent
        loop = asyncio.get_running_loop()
        self.turns = Turns(loop.call_soon)
        self.limit = Limit(loop.call_soon, loop.call_later, self.turns, limit_of(live.snapshot))
        self._use(live.snapshot)
        live.swapped.append(self._use)

    def drain(self) -> None:
        """Say that the service is not ready, so that no more is sent to it; what is sent nevertheless is answered."""
        self.draining = True

    def stop(self) -> None:
        """Answer 503 from now on, but for the requests that wait for their turn."""
        self.limit.let_all_in()
        self.limit.lines.tell()
        self.stopping = True

    def cut(self) -> None:
        """Answer 503 to the requests under way, whose time is over."""
        for snapshot in self.live.in_use:
            for ready in snapshot.plans.values():
                ready.time_limit.cut()

    def _use(self, snapshot: Snapshot) -> None:
        self._serving = Serving(snapshot, self.telemetry)
        self.limit.use(limit_of(snapshot))
        self.limit.lines.use(self._serving.request_line, self._serving.routes)
        self.executions.resize(snapshot.configuration.app.tracking.capacity)
        self.executions.settle(snapshot.plans.values())

    def handle(self, request: web.BaseRequest) -> Awaitable[Answer]:
        """Answer one request; the handler of :class:`aiohttp.web.Server`."""
        serving = self._serving
        target = request._message.path  # the raw target: aiohttp has it nowhere else as cheaply
        if target[:1] != "/":  # the absolute form, which a proxy sends
            target = request.rel_url.raw_path_qs if request.rel_url.raw_path[:1] == "/" else target
        path, _, query = target.partition("?")
        connection: Any = request._protocol  # ours, which has been through the limit
        if connection.odd and not _is_text(request):
            return self._no_text(request, path)
        segments = path.split("/")
        route = serving.routes.get((segments[2], segments[3])) if len(segments) > 3 else None
        if route is None or segments[1] != "orchestrator":
            return self._own(request, serving, path, segments)
        limit = self.limit
        if connection.passed:
            connection.passed = False
        elif connection.refused or limit.engaged or limit.in_flight >= limit.most:
            return self._asked(request, connection, path, segments, query)
        return self._endpoint(request, serving, route, segments, query)

    # --- an endpoint -----------------------------------------------------------------------------------------------

    async def _endpoint(
        self, request: web.BaseRequest, serving: Serving, route: Route, segments: list[str], query: str
    ) -> Answer:
        ready, snapshot = route.ready, serving.snapshot
        headers = request.headers
        waits = self.executions.durable
        try:
            trace = self._begin(headers)
        except (Exception, SystemExit):  # telemetry must not fail a request
            log.exception("telemetry failed")
            trace = None
        if trace is None:
            run, outside = Run(ready, new_execution_id(), "", self.turns), None
        else:
            run, outside = Run(ready, new_execution_id(), trace.trace_id, self.turns), current_trace.set(trace)
        snapshot.running += 1
        self.limit.in_flight += 1
        try:
            params = route.match(segments[4:])
            if params is None:
                raise _no_route()
            if request.method not in route.methods:
                raise BadRequest(f"{request.method} is not among the endpoint's methods", 405)
            if self.stopping:
                raise SourceUnavailable("the service is shutting down")
            if waits:
                self.executions.refuse()
            body = (
                await read_json(request, min(ready.time_limit.seconds, serving.body_timeout))
                if request.body_exists
                else MISSING
            )
            texts = parse_query(query) if query else _NO_QUERY
            if ready.capture is not None:
                run.capture(request.method, Request(params, texts, headers, body))
            given = make_request(ready, params, texts, headers, body)
            if run.taken is not None:
                run.taken.request = given
            if ready.answers is None:
                content = encode(await execute(ready, given, run), ready.plan)
            else:
                key = ready.answers.key(given)
                content = ready.answers.fresh(key, run) or await ready.answers.answer(
                    key, given, run, ready.time_limit, _make(ready), self._renewing(serving, ready, request.method)
                )
        except asyncio.CancelledError as cancelled:
            waits = False
            finish(run, CLIENT_CLOSED_REQUEST, cancelled, serving.redact)
            raise
        except Exception as error:  # the one boundary at which every failure of a request becomes its answer
            failure = failure_of(error, run, serving.redact)
            finish(run, failure.status, error, serving.redact)
            waits = waits and not isinstance(error, Unrecorded)
            lines = run_headers(run)
            if failure.status == 405:
                lines += f"Allow: {', '.join(sorted(route.methods))}\r\n"
            elif failure.status == 415:
                lines += ACCEPTED
            response = problem(failure, run.id, lines, request.path)
            if run.taken is not None:
                run.taken.answer = response.body
            _end_body(request, response)
        else:
            finish(run, 200, None, serving.redact)
            response = Answer(200, content, JSON_TYPE, run_headers(run))
            if run.taken is not None:
                run.taken.answer = content
        finally:
            if outside is not None:  # aiohttp serves the connection's next request in the same context
                current_trace.reset(outside)
            self.limit.in_flight -= 1
            snapshot.leave()
            stored = self.executions.add(run)
            if not waits:
                self._ended(request, serving, route, run, trace)
        if waits:
            return await self._durable(request, serving, route, run, trace, response, stored)
        return response

    async def _durable(
        self,
        request: web.BaseRequest,
        serving: Serving,
        route: Route,
        run: Run,
        trace: Trace | None,
        response: Answer,
        stored: bool,
    ) -> Answer:
        """Return the answer once its execution is stored; a refusal in its place if that cannot be."""
        try:
            if not stored:
                raise Unrecorded("too many executions are waiting for the store")
            await self.executions.stored(run)
        except Unrecorded as error:
            failure = failure_of(error, None, serving.redact)
            run.http_status, run.error = failure.status, failure.detail
            response = problem(failure, run.id, run_headers(run), request.path)
        finally:
            self._ended(request, serving, route, run, trace)
        return response

    def _ended(self, request: web.BaseRequest, serving: Serving, route: Route, run: Run, trace: Trace | None) -> None:
        """Tell of a request whose status is certain."""
        if route.finished is not None:
            run.target = route.path if route.hides_path else request._message.path
            try:
                route.finished(run, request.method, trace)
            except (Exception, SystemExit):  # telemetry must not fail a request
                log.exception("telemetry failed", execution_id=run.id)
        if serving.request_line is not None:
            log_run(serving.request_line, request.method, route.path, run)

    def _renewing(
        self, serving: Serving, ready: ReadyPlan, method: str
    ) -> Callable[[Request], Awaitable[tuple[bytes, Run]]]:
        """Return what makes a kept answer anew, in an execution that no client waits for."""
        snapshot, make = serving.snapshot, _make(ready)

        async def renew(given: Request) -> tuple[bytes, Run]:
            if snapshot.closed:  # while it was looked for in the shared cache: the next who asks renews it
                raise SourceUnavailable("the configuration was replaced")
            run = Run(ready, new_execution_id(), "", self.turns)
            run.capture(method, given)
            snapshot.running += 1
            try:
                content = await make(given, run)
                if run.taken is not None:
                    run.taken.answer = content
            except asyncio.CancelledError as cancelled:
                finish(run, CLIENT_CLOSED_REQUEST, cancelled, serving.redact)
                raise
            except Exception as error:
                finish(run, failure_of(error, run, serving.redact).status, error, serving.redact)
                raise
            else:
                finish(run, 200, None, serving.redact)
            finally:
                snapshot.leave()
                self.executions.add(run)
            return content, run

        return renew

    async def _no_text(self, request: web.BaseRequest, path: str) -> Answer:
        started, execution_id = clock(), new_execution_id()
        connection: Any = request._protocol
        connection.forget_turn()
        failure = Failure(400, "bad request", "the head of the request is not UTF-8")
        self._tell_refused(execution_id, request.method, 400, path=_shown(path), error=failure.detail)
        return problem(failure, execution_id, common_headers(execution_id, own_timing(started)), _shown(path))

    def malformed(self, execution_id: str, status: int, detail: str) -> None:
        """Tell of what was no request, so that its execution id is found: it has neither a method nor a path."""
        self._tell_refused(execution_id, NO_METHOD, status, error=detail)

    def _tell_refused(self, execution_id: str, method: str, status: int, **more: str) -> None:
        serving = self._serving
        self._tell_answered("", method, status, 0.0)
        if serving.request_line is not None:
            shown = {name: serving.redact(text)[:LONGEST_LOGGED_PATH] for name, text in more.items()}
            serving.request_line(execution_id, "", method, NO_ROUTE, status, 0.0, **shown)

    def _tell_answered(self, page: str, method: str, status: int, seconds: float) -> None:
        if self.telemetry.answered is not None:
            try:
                self.telemetry.answered(page, method, status, seconds)
            except (Exception, SystemExit):  # telemetry must not fail a page, least of all that of a probe
                log.exception("telemetry failed")

    async def _asked(
        self, request: web.BaseRequest, connection: Any, path: str, segments: list[str], query: str
    ) -> Answer:
        """Answer a request of which the limit was not asked yet, or which the connection could not refuse by itself.

        That is one that came while the connection was busy, or one whose body was not there yet.
        """
        started = clock()
        if connection.refused:
            connection.refused = False
        elif await self._turn(request, started):
            serving = self._serving  # what came while the request waited, and its route: the old one may be closed
            route = serving.routes.get((segments[2], segments[3]))
            if route is None:
                return await self._own(request, serving, path, segments)
            return await self._endpoint(request, serving, route, segments, query)
        execution_id = new_execution_id()
        answer = problem(OVERLOADED, execution_id, common_headers(execution_id, own_timing(started)), request.path)
        answer.headers += f"Retry-After: {self.limit.retry_after}\r\n"
        self.limit.lines.add(execution_id, request.method, request._message.path, clock() - started)
        _end_body(request, answer)
        return answer

    async def _turn(self, request: web.BaseRequest, started: float) -> bool:
        try:
            return await self.limit.turn()
        except asyncio.CancelledError:
            self.limit.lines.gone(request.method, request._message.path, clock() - started)
            raise

    # --- everything else -------------------------------------------------------------------------------------------

    async def _own(self, request: web.BaseRequest, serving: Serving, path: str, segments: list[str]) -> Answer:
        started, execution_id = clock(), new_execution_id()
        connection: Any = request._protocol
        connection.forget_turn()
        answer = self._own_answer(request, serving, path, segments, started, execution_id)
        _end_body(request, answer)
        self._tell_answered(serving.pages.template(path), request.method, answer.status, clock() - started)
        if serving.request_line is not None and answer.status >= 400:
            shown = serving.redact(path)[:LONGEST_LOGGED_PATH]
            seconds = clock() - started
            serving.request_line(execution_id, "", request.method, NO_ROUTE, answer.status, seconds, path=shown)
        return answer

    def _own_answer(
        self,
        request: web.BaseRequest,
        serving: Serving,
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

    def _find(self, request: web.BaseRequest, serving: Serving, path: str, segments: list[str]) -> PageContent:
        found = serving.pages.find(path, segments, stopping=self.stopping or self.draining)
        if found is None:
            raise _no_route(serving.snapshot, segments)
        if request.method not in ("GET", "HEAD"):
            raise BadRequest(f"{request.method} is not a method of {path}", 405)
        return found


def _make(ready: ReadyPlan) -> Make:
    async def make(given: Request, run: Run) -> bytes:
        return encode(await execute(ready, given, run), ready.plan)

    return make


def _is_text(request: web.BaseRequest) -> bool:
    """Return whether the request's target and headers are UTF-8; aiohttp makes lone surrogates of what is not."""
    message = request._message
    try:
        message.path.encode()
        for name, value in message.raw_headers:
            name.decode()
            value.decode()
    except UnicodeError:
        return False
    return True


def _shown(path: str) -> str:
    return path.encode("utf-8", "replace").decode()


def _end_body(request: web.BaseRequest, answer: Answer) -> None:
    """Say what becomes of a body that is not read to its end: some of it is ignored, or the connection closed.

    A client that waits to be asked for it may send its next request instead, which would be taken for the body.
    """
    if not request._payload.is_eof():
        connection: Any = request._protocol
        connection.linger(LINGERING_SECONDS if answer.status != 408 else 0.0)
        answer.closes = answer.status == 408 or waits_to_be_asked(request)


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
        word, known = (name, names) if names else (domain, list(snapshot.configuration.descriptions))
        hint = did_you_mean(word, known) if len(known) <= MOST_COMPARED else ""
    suffix = f": {hint}" if hint else f": GET {ROOT} lists the endpoints"
    return EntityNotFound(f"no such route{suffix}")


__all__ = ["PublicApp"]
