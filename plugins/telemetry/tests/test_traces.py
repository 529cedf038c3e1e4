"""Spans at a collector that speaks OTLP over HTTP, and what a partner is told of the trace."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, cast

import orjson
import pytest
import structlog
from aiohttp import web
from attrs import define, field, frozen
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTracePartialSuccess,
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from orchestrator_telemetry import options
from orchestrator_telemetry.export import Export, Lost
from orchestrator_telemetry.exporter import open_exporter
from orchestrator_telemetry.options import TracesOptions
from orchestrator_telemetry.recorded import Recorded
from orchestrator_telemetry.traces import Tracer

from orchestrator_core.plugin_api import Duration, EndpointInfo, HttpOptions, SourceError, SourceKind, hookimpl, option
from orchestrator_core.testing import check_problems, service

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
DEADLINE_SECONDS = 20
CANARY = "canary-5e8d1"

SHOP = """
    endpoints:
      cart:
        path: "/{id}"
        data_sources:
          - {name: first, type: partner, operation: /first, params: {id: "$request.id"}}
          - {name: second, type: partner, operation: /second, params: {id: "$first.id"}}
          - {name: other, type: partner, operation: /other, params: {id: "$request.id"}}
          - {name: own, type: direct, params: {x: "$second.id"}}
          - {name: never, type: direct, condition: "$request.id == 'none'", params: {}}
        response_mapping: {id: "$own.x", other: "$other.id"}
      list:
        data_sources:
          - {name: score, type: partner, operation: /each, for_each: [1, 2], params: {id: "$item"}}
      refused:
        data_sources:
          - {name: hidden, type: partner, operation: /fail, params: {id: x}, required: false}
          - {name: partner, type: partner, operation: /fail, params: {id: "$hidden.id ?? 'y'"}}
"""

FLAKY = """
    endpoints:
      flaky: {data_sources: [{name: score, type: partner, operation: /flaky, params: {id: x}}]}
"""


@frozen
class PartnerOptions:
    """A partner behind HTTP, called with the core's client."""

    url: str = option(help="Its address.")
    token: str = option("", help="Its token.")
    headers: dict[str, str] = option(factory=dict, help="Headers of every call.")


class PartnerSource:
    def __init__(self, origin: Any, token: str) -> None:
        self.origin = origin
        self.token = token

    async def fetch(self, operation: str, params: Any) -> Any:
        answer = await self.origin.request("POST", operation, body=orjson.dumps(dict(params)))
        if answer.status != 200:
            raise SourceError(f"the partner refused the token {self.token}", transient=operation == "/flaky")
        return answer.json()


@asynccontextmanager
async def open_partner(options: PartnerOptions, context: Any) -> AsyncIterator[PartnerSource]:
    async with context.http.origin(options.url, HttpOptions(headers=options.headers)) as origin:
        yield PartnerSource(origin, options.token)


class PartnerPlugin:
    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        return [SourceKind("partner", "A partner.", PartnerOptions, open_partner)]


@define
class World:
    """A collector and a partner, and what they were sent."""

    spans: list[Any] = field(factory=list)
    resources: list[dict[str, str]] = field(factory=list)
    collector_headers: list[dict[str, str]] = field(factory=list)
    partner_calls: list[tuple[str, dict[str, str]]] = field(factory=list)
    collector_status: int = 200
    collector_answer: bytes = b""
    url: str = ""

    async def collect(self, request: web.Request) -> web.Response:
        if self.collector_status != 200:
            return web.Response(status=self.collector_status)
        message = ExportTraceServiceRequest.FromString(await request.read())
        self.collector_headers.append(dict(request.headers))
        for resource in message.resource_spans:
            self.resources.append({each.key: each.value.string_value for each in resource.resource.attributes})
            for scope in resource.scope_spans:
                self.spans += scope.spans
        return web.Response(body=self.collector_answer, content_type="application/x-protobuf")

    async def partner(self, request: web.Request) -> web.Response:
        self.partner_calls.append((request.path, dict(request.headers)))
        if request.path == "/fail" or (request.path == "/flaky" and len(self.partner_calls) % 2):
            return web.Response(status=500)
        return web.json_response({"id": json.loads(await request.read())["id"]})

    async def start(self) -> Callable[[], Any]:
        app = web.Application()
        app.router.add_post("/v1/traces", self.collect)
        app.router.add_post("/{any}", self.partner)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner.cleanup

    async def until(self, count: int) -> list[Any]:
        """The spans, once there are so many."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.spans) < count:  # noqa: ASYNC110  # they arrive in another thread
                await asyncio.sleep(0.01)
        return self.spans

    def sent(self, path: str) -> list[Any]:
        """The ``traceparent`` of each call of a path, or None."""
        return [headers.get("traceparent") for called, headers in self.partner_calls if called == path]


@pytest.fixture
def world() -> Iterator[World]:
    """It has a thread of its own, and outlives the service of a test that asks for it first."""
    world = World()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    cleanup = asyncio.run_coroutine_threadsafe(world.start(), loop).result(DEADLINE_SECONDS)
    yield world
    asyncio.run_coroutine_threadsafe(cleanup(), loop).result(DEADLINE_SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(DEADLINE_SECONDS)
    loop.close()


def traced(world: World, more: str = "", partner: str = "") -> dict[str, str]:
    return {
        "config.yaml": f"telemetry: {{traces: {{endpoint: '{world.url}/v1/traces', interval: 10ms{more}}}}}",
        "integrations/partner.yaml": f"partner: {{sources: {{default: {{url: '{world.url}'{partner}}}}}}}",
        "domains/shop.yaml": SHOP,
    }


PLUGINS = {"partner": PartnerPlugin()}


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


def test_a_request_and_its_steps_are_spans_of_the_callers_trace(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"}
    answer = shop.get("/orchestrator/shop/cart/7", headers=headers)
    assert answer.json == {"id": "7", "other": "7"}
    by_name = {span.name: span for span in shop.run(world.until(5))}
    assert sorted(by_name) == ["GET /orchestrator/shop/cart/{id}", "first", "other", "own", "second"]
    request = by_name.pop("GET /orchestrator/shop/cart/{id}")
    assert (request.trace_id.hex(), request.parent_span_id.hex(), request.kind) == (TRACE, CALLER, 2)
    assert request.trace_state == "vendor=1"
    generation = shop.executions()[0]["generation"]
    assert attributes(request) == {
        "http.request.method": "GET",
        "http.route": "/orchestrator/shop/cart/{id}",
        "http.response.status_code": 200,
        "url.scheme": "http",
        "url.path": "/orchestrator/shop/cart/7",
        "orchestrator.domain": "shop",
        "orchestrator.endpoint": "cart",
        "orchestrator.execution_id": answer.headers["X-Execution-Id"],
        "orchestrator.generation": generation,
    }
    for name, span in by_name.items():
        assert (span.trace_id.hex(), span.parent_span_id) == (TRACE, request.span_id), name
        assert request.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert {name: span.kind for name, span in by_name.items()} == {"first": 3, "second": 3, "other": 3, "own": 1}
    assert attributes(by_name["first"]) == {
        "orchestrator.step": "first",
        "orchestrator.source": "partner.default",
        "orchestrator.operation": "/first",
        "orchestrator.status": "ok",
        "orchestrator.attempts": 1,
    }
    assert len({span.span_id for span in world.spans}) == 5
    assert shop.executions()[0]["trace_id"] == TRACE


@pytest.mark.parametrize(
    ("config", "sent", "told"),
    [
        ("", "/orchestrator/shop/cart/a%2Fb?token=x", "/orchestrator/shop/cart/a%2Fb"),
        ("", "http://shop.example/orchestrator/shop/cart/7?token=x", "/orchestrator/shop/cart/7"),
        ("", f"/orchestrator/shop/cart/{CANARY}", "/orchestrator/shop/cart/***"),
        ("tracking: {redact: [request.path_params.id]}", "/orchestrator/shop/cart/7", "/orchestrator/shop/cart/{id}"),
        ("tracking: {capture: full}", "/orchestrator/shop/cart/7", "/orchestrator/shop/cart/7"),
    ],
)
def test_a_request_span_has_the_path_without_its_query_and_what_nobody_is_to_know(
    world: World, serve: Any, monkeypatch: pytest.MonkeyPatch, config: str, sent: str, told: str
) -> None:
    monkeypatch.setenv("PARTNER_TOKEN", CANARY)
    files = traced(world, partner=", token: '${env:PARTNER_TOKEN}'")
    shop = serve({**files, "config.yaml": f"{files['config.yaml']}\n{config}"}, plugins=PLUGINS)

    async def ask() -> None:
        reader, writer = await asyncio.open_connection(*shop.service.running.public)
        writer.write(f"GET {sent} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()

    shop.run(ask())
    (request,) = [span for span in shop.run(world.until(5)) if span.kind == 2]
    assert attributes(request)["url.path"] == told


def test_a_partner_is_told_the_span_of_the_step_that_calls_it(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    shop.get("/orchestrator/shop/cart/7", headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "vendor=1"})
    ids = {span.name: span.span_id.hex() for span in shop.run(world.until(5))}
    told = {path: headers["traceparent"] for path, headers in world.partner_calls}
    assert told == {f"/{name}": f"00-{TRACE}-{ids[name]}-01" for name in ("first", "second", "other")}
    assert {headers["tracestate"] for _, headers in world.partner_calls} == {"vendor=1"}


def test_a_request_without_a_caller_begins_a_trace_which_its_record_has(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    shop.get("/orchestrator/shop/cart/7")
    shop.get("/orchestrator/shop/cart/8")
    spans = [span for span in shop.run(world.until(10)) if span.kind == 2]
    assert [span.parent_span_id for span in spans] == [b"", b""]
    kept = {execution["id"]: execution["trace_id"] for execution in shop.executions()}
    assert {attributes(span)["orchestrator.execution_id"]: span.trace_id.hex() for span in spans} == kept
    assert len(set(kept.values())) == 2


def test_the_calls_of_all_items_carry_their_steps_span(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    ids = {span.name: span.span_id.hex() for span in shop.run(world.until(2))}
    assert world.sent("/each") == [f"00-{TRACE}-{ids['score']}-01"] * 2
    (score,) = [span for span in world.spans if span.name == "score"]
    assert attributes(score)["orchestrator.items"] == 2


def test_the_flag_of_a_random_trace_id_is_passed_on(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    for flags in ("02", "03"):
        shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-{flags}"})
    assert [told[-2:] for told in world.sent("/each")] == ["02", "02", "03", "03"]


def test_a_method_that_http_does_not_define_names_no_span(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    assert shop.request("PROPFIND", "/orchestrator/shop/list").status == 405
    (span,) = shop.run(world.until(1))
    assert span.name == "HTTP /orchestrator/shop/list"
    found = attributes(span)
    assert (found["http.request.method"], found["http.request.method_original"]) == ("_OTHER", "PROPFIND")


def test_each_attempt_that_failed_is_an_event_of_its_step(world: World, serve: Any) -> None:
    files = traced(world, partner=", retry: {backoff: 1ms, non_idempotent: true}")
    shop = serve({**files, "domains/shop.yaml": FLAKY}, plugins=PLUGINS)
    assert shop.get("/orchestrator/shop/flaky").status == 200
    span = {span.name: span for span in shop.run(world.until(2))}["score"]
    (event,) = span.events
    assert (event.name, event.attributes[0].key) == ("exception", "exception.message")
    assert "refused the token" in event.attributes[0].value.string_value
    assert span.start_time_unix_nano < event.time_unix_nano < span.end_time_unix_nano
    assert span.status.code == 0


def test_a_caller_who_does_not_record_is_not_recorded_here(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-00"})
    shop.get("/orchestrator/shop/list")
    assert {span.trace_id.hex() for span in shop.run(world.until(2))}.isdisjoint({TRACE})
    (unrecorded, _), (recorded, _) = world.sent("/each")[:2], world.sent("/each")[2:]
    assert unrecorded.startswith(f"00-{TRACE}-")
    assert unrecorded.endswith("-00")
    assert CALLER not in unrecorded
    assert recorded.endswith("-01")


@pytest.mark.parametrize("more", [", sample_ratio: 0", ", exporter: none, sample_ratio: 0"])
def test_what_is_not_sampled_is_passed_on_as_such(world: World, serve: Any, more: str) -> None:
    shop = serve(traced(world, more), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list")
    trace_id = shop.executions()[0]["trace_id"]
    (first, second) = world.sent("/each")
    assert first == second
    assert first.startswith(f"00-{trace_id}-")
    assert first.endswith("-00")
    assert world.spans == []


@pytest.mark.parametrize("config", ["telemetry: false", "telemetry: {}"])
def test_without_traces_a_callers_trace_is_passed_on_unchanged(world: World, serve: Any, config: str) -> None:
    shop = serve({**traced(world), "config.yaml": config}, plugins=PLUGINS)
    shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": "a=1,b=2"})
    shop.get("/orchestrator/shop/list")
    assert world.sent("/each") == [f"00-{TRACE}-{CALLER}-01"] * 2 + [None] * 2
    assert [headers.get("tracestate") for _, headers in world.partner_calls] == ["a=1,b=2"] * 2 + [None] * 2


@pytest.mark.parametrize("given", ["garbage", f"00-{'0' * 32}-{CALLER}-01", f"ff-{TRACE}-{CALLER}-01"])
def test_a_traceparent_against_the_rules_is_not_passed_on(world: World, serve: Any, given: str) -> None:
    shop = serve({**traced(world), "config.yaml": "telemetry: {}"}, plugins=PLUGINS)
    assert shop.get("/orchestrator/shop/list", headers={"traceparent": given}).status == 200
    assert world.sent("/each") == [None, None]
    assert shop.executions()[0]["trace_id"] == ""


def test_a_source_that_names_a_trace_itself_keeps_its_own(world: World, serve: Any) -> None:
    own = f"00-{'ab' * 16}-{'cd' * 8}-01"
    shop = serve(traced(world, partner=f", headers: {{TraceParent: '{own}'}}"), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-01"})
    raw = [[value for name, value in headers.items() if name.lower() == "traceparent"]
           for _, headers in world.partner_calls]  # fmt: skip
    assert raw == [[own], [own]]


def test_a_failure_is_an_error_of_its_span_and_of_the_request(world: World, serve: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    assert shop.get("/orchestrator/shop/refused").status == 502
    spans = {span.name: span for span in shop.run(world.until(3))}
    request = spans["GET /orchestrator/shop/refused"]
    assert {name: span.status.code for name, span in spans.items()} == dict.fromkeys(spans, 2)
    found = attributes(request)
    assert (found["error.type"], found["http.response.status_code"]) == ("502", 502)
    assert [value.string_value for value in next(
        each.value.array_value.values for each in request.attributes if each.key == "orchestrator.degraded"
    )] == ["hidden"]  # fmt: skip
    assert attributes(spans["hidden"])["orchestrator.status"] == "default"
    assert attributes(spans["partner"])["error.type"] == "failed"


def test_no_secret_is_in_a_span_a_metric_or_a_header(world: World, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARTNER_TOKEN", CANARY)
    monkeypatch.setenv("COLLECTOR_TOKEN", f"{CANARY}-collector")
    files = traced(
        world,
        ", headers: {Authorization: 'Bearer ${env:COLLECTOR_TOKEN}'}, resource: {team: '${env:COLLECTOR_TOKEN}'}",
        ", token: '${env:PARTNER_TOKEN}'",
    )
    shop = serve(files, plugins=PLUGINS)
    trace = {"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": f"vendor={CANARY},other=1"}
    shop.get("/orchestrator/shop/refused", headers=trace)
    spans = shop.run(world.until(3))
    assert {span.trace_state for span in spans} == {"vendor=***,other=1"}
    assert [span.status.message for span in spans if span.name == "hidden"] == ["the partner refused the token ***"]
    assert CANARY not in str(spans)
    assert CANARY not in str(world.resources)
    assert CANARY not in shop.admin("GET", "/metrics").json
    assert CANARY not in repr(shop.service.running.live.snapshot.telemetry)
    # The collector itself is told its own token.
    assert world.collector_headers[0]["Authorization"] == f"Bearer {CANARY}-collector"


def test_the_resource_says_which_service_it_is(world: World, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    shop = serve(traced(world, ", service_name: scoring, resource: {team: risk}"), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list")
    shop.run(world.until(2))
    resource = world.resources[0]
    named = ("service.name", "team", "deployment.environment.name")
    assert [resource[name] for name in named] == ["scoring", "risk", "test"]


def test_the_end_of_the_service_exports_what_is_left(world: World, run: Any) -> None:
    async def serve_and_stop() -> None:
        files = traced(world, ", timeout: 5s")
        files["config.yaml"] = files["config.yaml"].replace("10ms", "1h")
        async with service(files, plugins=PLUGINS) as shop:
            await shop.get("/orchestrator/shop/list")
            assert world.spans == []
        assert len(world.spans) == 2

    run(serve_and_stop())


def test_a_collector_that_fails_harms_no_request_and_is_logged_once(world: World, serve: Any, scrape: Any) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    world.collector_status = 400
    with structlog.testing.capture_logs() as logs:
        for lost in (2, 4, 6):
            assert shop.get("/orchestrator/shop/list").status == 200
            until(lambda lost=lost: scrape(shop)["orchestrator_spans_dropped_total"][()] == lost)
        world.collector_status = 200
        shop.get("/orchestrator/shop/list")
        until(lambda: scrape(shop)["orchestrator_spans_exported_total"][()] == 2)
    assert [entry["event"] for entry in logs] == [
        "spans cannot be exported: they are dropped until it can be done again",
        "spans are exported again",
    ]
    assert "code: 400" in logs[0]["error"]
    assert scrape(shop)["orchestrator_spans_dropped_total"] == {(): 6}


@pytest.mark.parametrize(
    ("status", "told"),
    [
        (302, "The collector answered 302 Found"),
        (429, "The collector answered 429 Too Many Requests"),
    ],
)
def test_what_a_collector_answers_that_took_nothing_is_told(
    world: World, serve: Any, scrape: Any, status: int, told: str
) -> None:
    shop = serve(traced(world, ", timeout: 500ms"), plugins=PLUGINS)
    world.collector_status = status
    with structlog.testing.capture_logs() as logs:
        shop.get("/orchestrator/shop/list")
        until(lambda: scrape(shop)["orchestrator_spans_dropped_total"][()] == 2)
    assert logs[0]["error"].endswith(told)
    assert scrape(shop)["orchestrator_spans_exported_total"] == {(): 0}


def rejected(spans: int, why: str = "") -> bytes:
    partial = ExportTracePartialSuccess(rejected_spans=spans, error_message=why)
    return ExportTraceServiceResponse(partial_success=partial).SerializeToString()


def test_spans_that_a_collector_rejects_of_an_export_that_it_takes_are_dropped(
    world: World, serve: Any, scrape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLLECTOR_TOKEN", CANARY)
    shop = serve(traced(world, ", headers: {X-Token: '${env:COLLECTOR_TOKEN}'}"), plugins=PLUGINS)
    answers = [
        (rejected(1, f"no room for {CANARY}"), 1, 1),
        (rejected(1), 2, 2),
        (rejected(7), 2, 4),
        (rejected(0, "please send fewer"), 4, 4),
        (rejected(-1), 6, 4),
        (b"<html>", 8, 4),
    ]
    with structlog.testing.capture_logs() as logs:
        for answer, exported, dropped in answers:
            world.collector_answer = answer
            assert shop.get("/orchestrator/shop/list").status == 200
            until(lambda all_=exported + dropped: sum(counted(shop, scrape)) == all_)
            assert counted(shop, scrape) == (exported, dropped)
    assert [(entry["event"], entry.get("error")) for entry in logs] == [
        (
            "the collector rejects some of the spans: they are dropped",
            "The collector answered 200, and rejected 1 spans: no room for ***",
        ),
        (
            "spans cannot be exported: they are dropped until it can be done again",
            "The collector answered 200, and rejected 7 spans: it does not say why",
        ),
        ("spans are exported again", None),
    ]


def counted(shop: Any, scrape: Any) -> tuple[int, int]:
    metrics = scrape(shop)
    return tuple(int(metrics[f"orchestrator_spans_{what}_total"][()]) for what in ("exported", "dropped"))  # type: ignore[return-value]


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_log_says_of_an_export_comes_before_its_count(monkeypatch: pytest.MonkeyPatch) -> None:
    class Log:
        def warning(self, event: str, **_: Any) -> None:
            counts.append(export.dropped)

        def info(self, event: str) -> None:
            counts.append(export.exported)

    counts: list[int] = []
    monkeypatch.setattr("orchestrator_telemetry.export.log", Log())
    said = iter([Lost(1, "refused"), None])
    export = Export(lambda recorded: ["span"], lambda spans: next(said), TracesOptions(exporter="none"))
    for _ in range(2):
        export._export([cast(Any, None)])
    assert (counts, export.dropped, export.exported) == ([0, 0], 1, 1)


def test_a_full_queue_drops_spans_and_counts_them_without_waiting() -> None:
    class Ended:
        steps = (1.0, ("ok", 1.0, 2.0, None), ("skipped", 1.0, 1.0, None), None)

    export = Export(lambda recorded: ["span"] * 3, lambda spans: None, TracesOptions(exporter="none", max_queue=2))
    tracer = Tracer(1.0, export)
    finished = tracer.observe(EndpointInfo("shop", "cart", "/", "g", ()))
    for _ in range(5):
        finished(Ended(), "GET", tracer.begin({}))  # type: ignore[arg-type]
    assert (export.exported, export.dropped) == (0, 9)
    export.stop()
    export.work()
    assert (export.exported, export.dropped) == (6, 9)


def test_what_a_stop_gives_up_includes_the_requests_whose_export_hangs() -> None:
    class Ended:
        steps = (1.0, None)

    began, hangs = threading.Event(), threading.Event()

    def send(spans: Any) -> Lost | None:
        began.set()
        return None if hangs.wait(DEADLINE_SECONDS) else Lost(2, "it hung")

    export = Export(lambda recorded: ["span"] * 2, send, TracesOptions(exporter="none"))
    thread = threading.Thread(target=export.work, daemon=True)
    for number in range(3):
        export.put(Recorded(None, Ended(), "GET", None))  # type: ignore[arg-type]
        if number == 0:
            export.stop()
            thread.start()
            assert began.wait(DEADLINE_SECONDS)
    assert (export.give_up(), export.dropped) == (3, 4)
    hangs.set()
    thread.join()
    assert (export.exported, export.dropped) == (2, 4)


@pytest.mark.parametrize("state", [",".join(f"a{number}=1" for number in range(40)), "no-pair"])
def test_a_tracestate_against_the_rules_writes_nothing_to_the_log(
    world: World, serve: Any, caplog: pytest.LogCaptureFixture, state: str
) -> None:
    shop = serve(traced(world), plugins=PLUGINS)
    shop.get("/orchestrator/shop/list", headers={"traceparent": f"00-{TRACE}-{CALLER}-01", "tracestate": state})
    shop.run(world.until(2))
    assert caplog.messages == []


def test_a_ratio_records_that_part_of_the_traces() -> None:
    tracer = Tracer(0.25, None)
    recorded = sum(tracer.begin({}).sampled for _ in range(20_000))
    assert 4_500 < recorded < 5_500
    assert not any(Tracer(0.0, None).begin({}).sampled for _ in range(1000))
    assert all(Tracer(1.0, None).begin({}).sampled for _ in range(1000))


def test_a_defect_of_the_exporter_does_not_end_the_export() -> None:
    answers: list[Any] = [RuntimeError("out of order"), None]

    def send(spans: Any) -> None:
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    export = Export(lambda recorded: ["span"], send, TracesOptions(exporter="none"))
    for _ in range(2):
        export.put(Recorded(None, None, "GET", None))  # type: ignore[arg-type]
        export.stop()
        export.work()
    assert (export.exported, export.dropped) == (1, 1)


def test_the_exporters_own_log_is_ours() -> None:
    assert logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter").propagate is False


@pytest.mark.parametrize("given", [f"Authorization: Bearer {CANARY}", f"Authorization=Bearer \xfc{CANARY}"])
def test_headers_of_the_environment_that_cannot_be_read_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", given)
    open_exporter(TracesOptions())
    said = "OTEL_EXPORTER_OTLP_HEADERS: expected name=value, separated by commas and percent-encoded"
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("variable", "value", "timeout", "told"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"ada:{CANARY}@127.0.0.1:1", 2, "adapters were found for '***@127"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", f"x-key=a%0A{CANARY}", 2, "Invalid leading whitespace"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1", 2, "Connection refused"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://ada:{CANARY}@127.0.0.1:1", 0.2, "Connection refused"),
    ],
)
def test_a_failed_export_says_why_without_secrets_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, timeout: float, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    exporter, words = open_exporter(TracesOptions(timeout=Duration(timeout)))
    words.begin()
    assert exporter.export([]).name == "FAILURE"
    exporter.shutdown()
    assert words.text.count(told) == 1
    assert CANARY not in words.text


@pytest.mark.parametrize("there", ["", "opentelemetry"])
def test_an_exporter_that_is_not_installed_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, there: str) -> None:
    def find_spec(name: str) -> None:
        if name.partition(".")[0] != there:
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(options, "find_spec", find_spec)
    (problem,) = check_problems({"config.yaml": "telemetry:\n  traces:\n    exporter: console\n"}, offline=True)
    assert (problem.line, problem.message) == (
        3,
        "exporting spans needs OpenTelemetry: pip install 'orchestrator-api-telemetry[otlp]'",
    )
    assert check_problems({"config.yaml": "telemetry: {traces: {exporter: none}}"}, offline=True) == []
