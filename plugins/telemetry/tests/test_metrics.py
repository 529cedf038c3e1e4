"""What ``GET /metrics`` says after requests, read with Prometheus's own parser."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog
from attrs import frozen
from orchestrator_telemetry.counters import COUNTED_TOGETHER, Counters
from orchestrator_telemetry.options import MetricsOptions, TelemetryOptions
from orchestrator_telemetry.plugin import open_telemetry

from orchestrator_core.plugin_api import (
    EndpointInfo,
    FinishedRun,
    Page,
    SourceError,
    SourceKind,
    SourceUnavailable,
    StoreKind,
    Telemetry,
    TelemetryContext,
    hookimpl,
)
from orchestrator_core.testing import check_problems

SHOP = """
    endpoints:
      hello:
        path: "/{name}"
        data_sources:
          - {name: greeting, type: direct, params: {text: "hello {{ $request.name }}"}}
          - {name: extra, type: direct, params: {x: "$request.body.x"}, required: false}
          - {name: never, type: direct, condition: "$request.name == 'nobody'", params: {}}
        response_mapping: {text: "$greeting.text", extra: "$extra.x ?? null"}
      fails:
        data_sources:
          - {name: partner, type: broken, operation: any, params: {}}
"""
HELLO = {"domain": "shop", "endpoint": "hello"}


@frozen
class NoOptions:
    """Nothing to configure."""


class Broken:
    """A source type whose calls fail."""

    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        return [SourceKind("broken", "Fails.", NoOptions, self.opened)]

    @asynccontextmanager
    async def opened(self, options: Any, context: Any) -> AsyncIterator[Any]:
        yield self

    async def fetch(self, operation: str, params: Any) -> Any:
        raise SourceUnavailable("the partner is away")


def labels(**given: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(given.items()))


def of_step(step: str, **more: str) -> tuple[tuple[str, str], ...]:
    return labels(**HELLO, step=step, source="direct.default", **more)


def test_requests_are_counted_by_endpoint_method_and_status(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    for name in ("Ada", "Bob"):
        assert shop.post(f"/orchestrator/shop/hello/{name}", {"x": 1}).status == 200
    assert shop.get("/orchestrator/shop/hello/Cy").headers["X-Orchestrator-Degraded"] == "extra"
    assert shop.request("DELETE", "/orchestrator/shop/hello/Cy").status == 405
    assert shop.get("/orchestrator/shop/fails").status == 503
    found = scrape(shop)
    assert found["orchestrator_requests_total"] == {
        labels(**HELLO, method="POST", status="200"): 2,
        labels(**HELLO, method="GET", status="200"): 1,
        labels(**HELLO, method="DELETE", status="405"): 1,
        labels(domain="shop", endpoint="fails", method="GET", status="503"): 1,
    }
    assert found["orchestrator_requests_degraded_total"] == {
        labels(**HELLO): 1,
        labels(domain="shop", endpoint="fails"): 0,
    }
    assert found["orchestrator_request_duration_seconds_count"] == {
        labels(**HELLO): 4,
        labels(domain="shop", endpoint="fails"): 1,
    }
    assert found["orchestrator_requests_in_flight"] == {(): 0}
    assert found["orchestrator_connections"][()] >= 1
    assert found["orchestrator_connections_refused_total"] == {(): 0}


def test_runs_that_wait_to_be_counted_are_counted_once_and_when_somebody_asks(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    counted = 0
    for more in (1, COUNTED_TOGETHER - 1, COUNTED_TOGETHER + 1, 3 * COUNTED_TOGETHER):

        async def ask(times: int) -> None:
            for _ in range(times):
                await shop.service.get("/orchestrator/shop/hello/Ada")
                await shop.service.get("/orchestrator/shop/fails")

        shop.run(ask(more))
        counted += more
        found = scrape(shop)
        assert found["orchestrator_requests_total"] == {
            labels(**HELLO, method="GET", status="200"): counted,
            labels(domain="shop", endpoint="fails", method="GET", status="503"): counted,
        }
        assert found["orchestrator_request_duration_seconds_count"][labels(**HELLO)] == counted
        assert found["orchestrator_steps_total"][of_step("greeting", status="ok")] == counted


def test_a_run_that_cannot_be_counted_is_logged_as_itself_and_the_others_are_counted() -> None:
    counters = Counters((1.0,))
    finished = counters.observe(EndpointInfo("shop", "hello", "/orchestrator/shop/hello", "g1", ()))
    with structlog.testing.capture_logs() as logs:
        for index in range(COUNTED_TOGETHER):
            ended: Any = None if index == 1 else 0.5
            run = SimpleNamespace(
                id=f"run {index}", http_status=200, started=0.0, ended=ended, degraded_steps=(), notes=None, steps=()
            )
            finished(cast(FinishedRun, run), "GET", None)
    assert [(entry["event"], entry["execution_id"]) for entry in logs] == [("an execution is not counted", "run 1")]
    assert counters.endpoints["shop", "hello"].seconds.buckets == [COUNTED_TOGETHER - 1, 0]


def test_steps_are_counted_by_outcome_and_timed_unless_skipped(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    shop.post("/orchestrator/shop/hello/Ada", {"x": 1})
    shop.get("/orchestrator/shop/hello/Bob")
    shop.get("/orchestrator/shop/fails")
    found = scrape(shop)
    partner = {"domain": "shop", "endpoint": "fails", "step": "partner", "source": "broken.default"}
    assert found["orchestrator_steps_total"] == {
        of_step("greeting", status="ok"): 2,
        of_step("extra", status="ok"): 1,
        of_step("extra", status="default"): 1,
        of_step("never", status="skipped"): 2,
        labels(**partner, status="failed"): 1,
    }
    assert found["orchestrator_step_attempts_total"] == {
        of_step("greeting"): 2,
        of_step("extra"): 1,  # of the other, the value was missing
        of_step("never"): 0,
        labels(**partner): 1,
    }
    assert found["orchestrator_step_duration_seconds_count"][of_step("extra")] == 2
    assert found["orchestrator_step_duration_seconds_count"][of_step("never")] == 0


FLAKY = """
    endpoints:
      kept: {data_sources: [{name: rate, type: flaky, source_id: kept, operation: one, cache: {ttl: 1h}}]}
      answers: {cache: {ttl: 1h}, data_sources: [{name: rate, type: flaky, source_id: kept, operation: two}]}
      again: {data_sources: [{name: rate, type: flaky, source_id: again, operation: twice}]}
      down: {data_sources: [{name: rate, type: flaky, source_id: down, operation: down}]}
"""
FLAKY_SOURCES = """
    flaky:
      sources:
        kept: {circuit_breaker: false, concurrency: {max: 2}}
        again: {retry: {backoff: 1ms}}
        down: {retry: false, circuit_breaker: {failures: 2, reset: 1h}}
"""


class Flaky:
    """A source type that fails the first call of ``twice`` and all of ``down``."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        return [SourceKind("flaky", "Fails.", NoOptions, self.opened, idempotent=True)]

    @asynccontextmanager
    async def opened(self, options: Any, context: Any) -> AsyncIterator[Any]:
        yield self

    async def fetch(self, operation: str, params: Any) -> Any:
        self.calls.append(operation)
        if operation == "down" or self.calls == ["twice"]:
            raise SourceError("it is away", transient=True)
        return 1.5


def test_policies_are_counted_by_source_and_in_the_steps(serve: Any, scrape: Any) -> None:
    flaky = Flaky()
    shop = serve({"domains/shop.yaml": FLAKY, "database.yaml": FLAKY_SOURCES}, plugins={"flaky": flaky})
    for path, statuses in (("again", [200]), ("kept", [200] * 3), ("answers", [200] * 2), ("down", [502, 502, 503])):
        assert [shop.get(f"/orchestrator/shop/{path}").status for _ in statuses] == statuses
    assert flaky.calls == ["twice", "twice", "one", "two", "down", "down"]
    found = scrape(shop)

    def steps(name: str) -> dict[tuple[str, ...], float]:
        return {
            tuple(value for key, value in labels if key in ("endpoint", "status")): count
            for labels, count in found[name].items()
        }

    assert steps("orchestrator_steps_total") == {
        ("again", "ok"): 1,
        ("kept", "ok"): 1,
        ("kept", "cached"): 2,
        ("answers", "ok"): 1,
        ("down", "failed"): 3,
    }
    assert steps("orchestrator_step_attempts_total") == {
        ("again",): 2,
        ("kept",): 1,
        ("answers",): 1,
        ("down",): 2,
    }
    by_source = {
        name.removeprefix("orchestrator_source_"): {dict(labels)["source"]: count for labels, count in series.items()}
        for name, series in found.items()
        if name.startswith("orchestrator_source_") and "state" not in name
    }
    assert by_source["retries_total"] == {"flaky.again": 1, "flaky.kept": 0}
    assert by_source["breaker_opened_total"] == {"flaky.again": 0, "flaky.down": 1}
    assert by_source["breaker_refused_total"] == {"flaky.again": 0, "flaky.down": 1}
    ready = by_source["ready"]
    assert [ready[name] for name in ("flaky.again", "flaky.kept", "flaky.down")] == [1, 1, 0]
    assert by_source["calls_running"] == {"flaky.kept": 0}
    states = [dict(labels) for labels, count in found["orchestrator_source_breaker_state"].items() if count]
    assert {state["source"]: state["state"] for state in states} == {"flaky.again": "closed", "flaky.down": "open"}
    looked = {
        (dict(labels)["of"], dict(labels)["name"], dict(labels)["result"]): count
        for labels, count in found["orchestrator_cache_lookups_total"].items()
        if count
    }
    assert looked == {
        ("source", "flaky.kept", "miss"): 1,
        ("source", "flaky.kept", "hit"): 2,
        ("endpoint", "shop.answers", "miss"): 1,
        ("endpoint", "shop.answers", "hit"): 1,
    }


def test_counters_of_what_a_reload_takes_away_or_replaces_never_fall(serve: Any, scrape: Any) -> None:
    files = {"domains/shop.yaml": FLAKY, "database.yaml": FLAKY_SOURCES}
    shop = serve(files, plugins={"flaky": Flaky()})

    def counted() -> dict[tuple[str, Any], float]:
        paths = ("again", "kept", "kept", "answers", "down")
        assert all(shop.get(f"/orchestrator/shop/{path}").status in (200, 404, 502, 503) for path in paths)
        found = scrape(shop)
        return {
            (name, labels): count
            for name, series in found.items()
            if name.startswith(("orchestrator_source_", "orchestrator_cache_")) and name.endswith("_total")
            for labels, count in series.items()
        }

    first = counted()
    shop.write("domains/shop.yaml", "endpoints: {other: {data_sources: [{name: x, type: direct, params: {}}]}}")
    shop.write("database.yaml", "{}")
    assert shop.reload().status == 200
    assert counted() == first
    for name, text in files.items():
        shop.write(name, text)
    assert shop.reload().status == 200
    again = counted()
    assert {key: again[key] for key in first if again[key] < first[key]} == {}
    hits = ("orchestrator_cache_lookups_total", labels(of="source", name="flaky.kept", result="hit"))
    calls = ("orchestrator_source_calls_total", labels(source="flaky.again"))
    assert [(first[key], again[key]) for key in (hits, calls)] == [(1, 2), (1, 2)]


class Store:
    """A store of executions that takes all but those that failed, and has none of them."""

    @hookimpl
    def orchestrator_execution_stores(self) -> list[StoreKind[Any]]:
        return [StoreKind("nowhere", "Keeps nothing.", NoOptions, self.opened)]

    @asynccontextmanager
    async def opened(self, options: Any, context: Any) -> AsyncIterator[Any]:
        yield self

    async def add(self, executions: Any) -> None:
        if any(execution.status == "failed" for execution in executions):
            raise SourceError("it cannot be stored")

    async def find(self, query: Any) -> Page:
        return Page((), None)

    async def get(self, execution_id: str) -> None:
        return None

    async def prune(self, before: Any, keep: Any) -> int:
        return 0

    async def add_generation(self, generation: Any) -> None:
        pass

    async def get_generation(self, generation_id: str) -> None:
        return None


def test_models_of_the_same_name_in_several_domains_have_series_of_their_own(serve: Any, scrape: Any) -> None:
    model = "ml: {sources: {risk: {base_url: 'http://127.0.0.1:9', models: {default: {endpoint: /x}}}}}"
    endpoint = """
        endpoints:
          score:
            data_sources:
              - {name: risk, type: ml, source_id: risk, operation: predict, params: {features: {}}, default: 0}
    """
    names = ("one", "other")
    files = {f"domains/{name}.yaml": endpoint for name in names}
    files |= {f"domains/{name}/integrations/ml.yaml": model for name in names}
    served = serve(files)
    for name in names:
        assert served.get(f"/orchestrator/{name}/score").json == 0
    found = scrape(served)
    assert found["orchestrator_model_calls_total"] == {labels(model=f"ml.risk ({name})"): 1 for name in names}
    breakers = found["orchestrator_source_breaker_opened_total"]
    assert set(breakers) == {labels(source=f"ml.risk ({name})") for name in names}


def test_the_limit_and_the_store_of_executions_are_counted(serve: Any, scrape: Any) -> None:
    config = "server: {limit: {max: 7}}\ntracking: {store: {type: nowhere}}"
    given = {"broken": Broken(), "store": Store()}
    shop = serve({"config.yaml": config, "domains/shop.yaml": SHOP}, plugins=given)
    shop.get("/orchestrator/shop/hello/Ada")
    shop.get("/orchestrator/shop/fails")
    shop.executions()  # after what waits for the store
    found = scrape(shop)
    assert (found["orchestrator_requests_limit"], found["orchestrator_requests_shed_total"]) == ({(): 7}, {(): 0})
    assert found["orchestrator_tracking_written_total"] == {(): 1}
    assert found["orchestrator_tracking_dropped_total"] == {
        labels(reason="queue_full"): 0,
        labels(reason="store_failed"): 0,
        labels(reason="refused"): 1,
        labels(reason="stopped"): 0,
    }
    assert found["orchestrator_tracking_queued"] == {(): 0}


def test_a_histogram_has_the_buckets_of_the_configuration_and_they_only_grow(serve: Any, scrape: Any) -> None:
    config = "telemetry: {metrics: {buckets: [0.001, 5, 60]}}"
    shop = serve({"config.yaml": config, "domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    for _ in range(5):
        shop.get("/orchestrator/shop/hello/Ada")
    found = scrape(shop)
    buckets = {dict(key)["le"]: n for key, n in found["orchestrator_request_duration_seconds_bucket"].items()
               if dict(key)["endpoint"] == "hello"}  # fmt: skip
    assert list(buckets) == ["0.001", "5", "60", "+Inf"]
    assert sorted(buckets.values()) == list(buckets.values())
    assert (buckets["5"], buckets["+Inf"]) == (5, 5)
    total = found["orchestrator_request_duration_seconds_sum"][labels(**HELLO)]
    assert 0 < total < 5


def test_bounds_that_differ_little_are_buckets_of_their_own(serve: Any, scrape: Any) -> None:
    config = "telemetry: {metrics: {buckets: [0.1234567, 0.12345678, 1234567.5]}}"
    shop = serve({"config.yaml": config, "domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    shop.get("/orchestrator/shop/hello/Ada")
    buckets = [dict(key)["le"] for key in scrape(shop)["orchestrator_request_duration_seconds_bucket"]]
    assert buckets[:4] == ["0.1234567", "0.12345678", "1234567.5", "+Inf"]


def test_paths_that_nobody_serves_are_one_series(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    shop.get("/nothing")
    before = {name: set(series) for name, series in scrape(shop).items()}

    async def knock() -> None:
        for number in range(10_000):
            path = f'/{number}"\\{{}}' if number % 2 else f"/orchestrator/shop/{number}/x"
            await shop.service.get(path)

    shop.run(knock())
    after = scrape(shop)
    assert {name: set(series) for name, series in after.items()} == before
    assert after["orchestrator_page_requests_total"] == {labels(page="unknown", method="GET", status="404"): 10_001}


def test_what_is_no_http_is_counted_with_the_paths_that_nobody_serves(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})

    async def send(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*shop.service.running.public)
        writer.write(data)
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)
        finally:
            writer.close()

    for data in (b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: \xff\r\n\r\n"):
        assert shop.run(send(data)) == b"HTTP/1.1 400 Bad Request\r\n"
    assert scrape(shop)["orchestrator_page_requests_total"] == {
        labels(page="unknown", method="other", status="400"): 1,
        labels(page="unknown", method="GET", status="400"): 1,
    }


def test_the_services_own_pages_are_counted_by_their_template(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    for path in ("/health/live", "/orchestrator", "/orchestrator/shop", "/docs", "/docs/swagger-ui.css", "/docs/nope"):
        shop.get(path)
    shop.request("PUT", "/health/live")
    shop.request("PROPFIND", "/health/live")
    assert scrape(shop)["orchestrator_page_requests_total"] == {
        labels(page="/health/live", method="GET", status="200"): 1,
        labels(page="/orchestrator", method="GET", status="200"): 1,
        labels(page="/orchestrator/{domain}", method="GET", status="200"): 1,
        labels(page="/docs", method="GET", status="200"): 1,
        labels(page="/docs/{asset}", method="GET", status="200"): 1,
        labels(page="/docs/{asset}", method="GET", status="404"): 1,
        labels(page="/health/live", method="PUT", status="405"): 1,
        labels(page="/health/live", method="other", status="405"): 1,
    }


def test_reloads_and_the_generation_that_serves(serve: Any, scrape: Any) -> None:
    shop = serve({"domains/shop.yaml": SHOP}, plugins={"broken": Broken()})
    shop.get("/orchestrator/shop/hello/Ada")
    shop.write("domains/shop.yaml", "endpoints: {hello: {methds: [GET]}}")
    assert shop.reload().status == 422
    shop.write("domains/shop.yaml", SHOP.replace("fails:", "breaks:"))
    generation = shop.reload().json["generation"]
    shop.get("/orchestrator/shop/hello/Ada")
    found = scrape(shop)
    assert found["orchestrator_reloads_total"] == {labels(outcome="swapped"): 1, labels(outcome="failed"): 1}
    assert found["orchestrator_generation_info"] == {labels(generation=generation): 1}
    assert found["orchestrator_endpoints"] == {(): 2}
    assert found["orchestrator_requests_total"] == {labels(**HELLO, method="GET", status="200"): 2}


def test_the_metrics_of_the_process_can_be_left_out(serve: Any, scrape: Any) -> None:
    files = {"domains/shop.yaml": "endpoints: {}"}
    assert scrape(serve(files))["process_open_fds"][()] > 0
    without = scrape(serve({**files, "config.yaml": "telemetry: {metrics: {process: false}}"}))
    assert [name for name in without if not name.startswith("orchestrator_")] == []


@pytest.mark.parametrize("config", ["telemetry: false", "telemetry: {metrics: {enabled: false}}"])
def test_switched_off_there_are_no_metrics(serve: Any, config: str) -> None:
    shop = serve({"config.yaml": config, "domains/shop.yaml": "endpoints: {}"})
    answer = shop.admin("GET", "/metrics")
    assert (answer.status, answer.json["detail"]) == (404, "metrics are switched off: see telemetry in config.yaml")


def test_switched_off_nothing_is_left_on_the_path_of_a_request(run: Any) -> None:
    async def opened() -> Telemetry:
        context = TelemetryContext(Path(), "0", dict, str)
        async with open_telemetry(TelemetryOptions(metrics=MetricsOptions(enabled=False)), context) as telemetry:
            return telemetry

    assert run(opened()) == Telemetry(observe=None, answered=None, begin=None, metrics=None)


def test_options_that_do_not_fit_are_found_at_their_line() -> None:
    config = """\
        telemetry:
          metrics: {buckets: [1, 0.5]}
          traces:
            exporter: otpl
            sample_ratio: 2
            endpoint: collector:4318
            headers: {"X Key": a}
        """
    problems = check_problems({"config.yaml": config}, offline=True)
    assert [(found.line, found.code, found.message) for found in problems] == [
        (2, "ORC204", "expected bounds in seconds, each greater than the one before and the first than 0"),
        (4, "ORC202", "expected one of otlp, console, none, got 'otpl': did you mean 'otlp'?"),
        (5, "ORC204", "expected a ratio from 0 to 1, got 2"),
        (6, "ORC204", "expected an address that starts with http:// or https://"),
        (7, "ORC204", "'X Key' is not a header name"),
    ]
    (problem,) = check_problems({"config.yaml": 'telemetry: {traces: {headers: {X-Key: "a\\nb"}}}'}, offline=True)
    assert problem.message == ("the value of header X-Key has a line break, a control character or one outside Latin-1")
    (problem,) = check_problems(
        {"config.yaml": "telemetry: {traces: {endpoint: 'http://ada:sec/ret@collector:4318'}}"}, offline=True
    )
    assert problem.message == "its host or port cannot be read; percent-encode what is special in a password"
    for nowhere in ("http://:4318/v1/traces", "https:///v1/traces"):
        config = f"telemetry: {{traces: {{endpoint: '{nowhere}'}}}}"
        (problem,) = check_problems({"config.yaml": config}, offline=True)
        assert problem.message == "expected an address with a host, such as http://127.0.0.1:4318/v1/traces"
