"""What ``GET /metrics`` says after requests, read with Prometheus's own parser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from orchestrator_telemetry.options import MetricsOptions, TelemetryOptions
from orchestrator_telemetry.plugin import open_telemetry

from orchestrator_core.plugin_api import SourceKind, SourceUnavailable, Telemetry, TelemetryContext, hookimpl
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


class Broken:
    """A source type whose calls fail."""

    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        from contextlib import asynccontextmanager

        from attrs import frozen

        @frozen
        class Options:
            pass

        class Source:
            async def fetch(self, operation: str, params: Any) -> Any:
                raise SourceUnavailable("the partner is away")

        @asynccontextmanager
        async def opened(options: Any, context: Any) -> Any:
            yield Source()

        return [SourceKind("broken", "Fails.", Options, opened)]


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
        of_step("extra"): 2,
        of_step("never"): 0,
        labels(**partner): 1,
    }
    assert found["orchestrator_step_duration_seconds_count"][of_step("extra")] == 2
    assert found["orchestrator_step_duration_seconds_count"][of_step("never")] == 0


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
        """
    problems = check_problems({"config.yaml": config}, offline=True)
    assert [(found.line, found.code, found.message) for found in problems] == [
        (2, "ORC204", "expected bounds in seconds, each greater than the one before and the first than 0"),
        (4, "ORC202", "expected one of otlp, console, none, got 'otpl': did you mean 'otlp'?"),
        (5, "ORC204", "expected a ratio from 0 to 1, got 2"),
        (6, "ORC204", "expected an address that starts with http:// or https://"),
    ]
