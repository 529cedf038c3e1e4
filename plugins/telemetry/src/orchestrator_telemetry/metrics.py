"""The metrics: the counters and the service's state, rendered for Prometheus when it asks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from orchestrator_core.plugin_api import EndpointInfo, Exposition, Finished, TelemetryContext
from orchestrator_telemetry.counters import Counters, Histogram
from orchestrator_telemetry.families import FAMILIES
from orchestrator_telemetry.options import MetricsOptions
from orchestrator_telemetry.totals import Labels, Series, Totals

UNKNOWN_PAGE = "unknown"
BREAKER_STATES = ("closed", "open", "half_open")
MODEL_STATES = ("loading", "ready", "unhealthy", "restarting", "failed", "stopped")
CACHE_RESULTS = {"hits": "hit", "stale": "stale", "shared": "shared", "misses": "miss"}

COUNTERS = frozenset(family.name for family in FAMILIES if family.type == "counter")


class Spans(Protocol):
    """What is counted of spans."""

    @property
    def exported(self) -> int: ...
    @property
    def dropped(self) -> int: ...


class Metrics:
    """Counts what requests do, and renders all metrics when they are asked for."""

    def __init__(self, options: MetricsOptions, context: TelemetryContext, spans: Spans | None) -> None:
        self._counters = Counters(options.buckets)
        self._totals = Totals()
        self._context = context
        self._spans = spans
        self._process = CollectorRegistry()
        if options.process:
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=self._process)
        self.answered = self._counters.answered

    def observe(self, endpoint: EndpointInfo) -> Finished:
        return self._counters.observe(endpoint)

    async def render(self) -> Exposition:
        """Return all metrics. The state is read at once; making text of it is left to a thread."""
        self._counters.count_waiting()
        of_the_state = {
            name: self._totals.of(name, series) if name in COUNTERS else series
            for name, series in _of_the_state(self._context.state(), self._context.version)
        }
        return Exposition(CONTENT_TYPE_PLAIN_0_0_4, await asyncio.to_thread(self._text, of_the_state))

    def _text(self, of_the_state: Mapping[str, Series]) -> str:
        registry = CollectorRegistry()
        registry.register(_Rendering(self._counters, of_the_state, self._spans))
        return generate_latest(registry).decode() + generate_latest(self._process).decode()


class _Rendering(Collector):
    """The metric families of one scrape."""

    def __init__(self, counters: Counters, of_the_state: Mapping[str, Series], spans: Spans | None) -> None:
        self._bounds = [*map(_bound, counters.bounds), "+Inf"]
        self._histograms = dict(_histograms(counters))
        self._series = {**of_the_state, **dict(_of_requests(counters)), **dict(_of_spans(spans))}

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            if family.type == "histogram":
                histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
                for labels, values in self._histograms[family.name]:
                    histogram.add_metric(labels, self._cumulative(values), values.sum)
                yield histogram
                continue
            series = self._series.get(family.name)
            if not series:
                continue
            metric: Any = CounterMetricFamily if family.type == "counter" else GaugeMetricFamily
            made = metric(family.name, family.help, labels=family.labels)
            for labels, value in series.items():
                made.add_metric(labels, value)
            yield made

    def _cumulative(self, values: Histogram) -> list[tuple[str, float]]:
        so_far, buckets = 0, []
        for bound, count in zip(self._bounds, list(values.buckets), strict=True):
            so_far += count
            buckets.append((bound, float(so_far)))
        return buckets


def _bound(bound: float) -> str:
    """Return a bound as its label: short where that is exact, so that no two have the same."""
    short = f"{bound:g}"
    return short if float(short) == bound else repr(bound)


def _histograms(counters: Counters) -> Iterator[tuple[str, list[tuple[Labels, Histogram]]]]:
    endpoints = list(counters.endpoints.items())
    yield "orchestrator_request_duration_seconds", [(key, counter.seconds) for key, counter in endpoints]
    yield (
        "orchestrator_step_duration_seconds",
        [
            ((*key, *step), counted.seconds)
            for key, counter in endpoints
            for step, counted in list(counter.steps.items())  # a reload may bring more meanwhile
        ],
    )


def _of_requests(counters: Counters) -> Iterator[tuple[str, Series]]:
    endpoints = list(counters.endpoints.items())
    steps = [((*key, *step), counted) for key, counter in endpoints for step, counted in list(counter.steps.items())]
    yield (
        "orchestrator_requests_total",
        {
            (*key, method, str(status)): count
            for key, counter in endpoints
            for (method, status), count in list(counter.answers.items())
        },
    )
    yield "orchestrator_requests_degraded_total", {key: counter.degraded for key, counter in endpoints}
    yield (
        "orchestrator_page_requests_total",
        {
            (page or UNKNOWN_PAGE, method, str(status)): count
            for (page, method, status), count in list(counters.pages.items())
        },
    )
    yield (
        "orchestrator_steps_total",
        {(*labels, status): count for labels, counted in steps for status, count in list(counted.by_status.items())},
    )
    yield "orchestrator_step_attempts_total", {labels: counted.attempts for labels, counted in steps}


def _of_spans(spans: Spans | None) -> Iterator[tuple[str, Series]]:
    if spans is not None:
        yield "orchestrator_spans_exported_total", {(): spans.exported}
        yield "orchestrator_spans_dropped_total", {(): spans.dropped}


def _of_the_state(state: Mapping[str, Any], version: str) -> Iterator[tuple[str, Series]]:
    """Return the series of what the service tells of itself; one that it has no figures for is left out."""
    yield "orchestrator_build_info", {(version,): 1}
    yield from _of_the_service(state)
    yield from _of_sources(state.get("sources", ()))
    kept = (("source", "sources"), ("endpoint", "answers"))
    yield from _of_caches([cache for name, part in kept for cache in _caches(name, state.get(part, ()))])
    yield from _of_models(state.get("models", ()))


def _of_the_service(state: Mapping[str, Any]) -> Iterator[tuple[str, Series]]:
    yield "orchestrator_generation_info", {(state["generation"],): 1}
    yield "orchestrator_endpoints", {(): state["endpoints"]}
    yield "orchestrator_reloads_total", {(outcome,): count for outcome, count in state["reloads"].items()}
    dropped = state.get("tracking", {}).get("dropped_by_reason", {})
    yield "orchestrator_tracking_dropped_total", {(reason,): count for reason, count in dropped.items()}
    for name, part, key in (
        ("orchestrator_requests_in_flight", "requests", "in_flight"),
        ("orchestrator_requests_limit", "requests", "limit"),
        ("orchestrator_requests_shed_total", "requests", "shed"),
        ("orchestrator_connections", "connections", "open"),
        ("orchestrator_connections_refused_total", "connections", "refused"),
        ("orchestrator_tracking_written_total", "tracking", "written"),
        ("orchestrator_tracking_queued", "tracking", "queued"),
    ):
        value = state.get(part, {}).get(key)
        if value is not None:
            yield name, {(): value}


def _of_sources(sources: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Series]]:
    named = [(source["source"], source) for source in sources]
    breakers = _parts(named, "circuit_breaker")
    states = {name: breaker["state"] for name, breaker in breakers}
    yield (
        "orchestrator_source_ready",
        {
            (name,): int(
                states.get(name, "unreachable" if source["unreachable"] else "") in ("", "closed", "half_open")
            )
            for name, source in named
        },
    )
    yield "orchestrator_source_breaker_state", _one_of(states, BREAKER_STATES)
    for family, part, key in (
        ("orchestrator_source_breaker_opened_total", "circuit_breaker", "opened"),
        ("orchestrator_source_breaker_refused_total", "circuit_breaker", "refused"),
        ("orchestrator_source_calls_total", "retry", "calls"),
        ("orchestrator_source_retries_total", "retry", "retries"),
        ("orchestrator_source_retries_refused_total", "retry", "refused_by_budget"),
        ("orchestrator_source_calls_running", "concurrency", "running"),
        ("orchestrator_source_calls_waiting", "concurrency", "waiting"),
        ("orchestrator_source_calls_refused_total", "concurrency", "refused"),
    ):
        yield family, {(name,): values[key] for name, values in _parts(named, part) if values.get(key) is not None}


def _caches(name: str, of: Iterable[Mapping[str, Any]]) -> list[tuple[Labels, Mapping[str, Any]]]:
    return [((name, each[name]), each["cache"]) for each in of if each.get("cache")]


def _of_caches(caches: list[tuple[Labels, Mapping[str, Any]]]) -> Iterator[tuple[str, Series]]:
    yield "orchestrator_cache_entries", {labels: cache["entries"] for labels, cache in caches}
    yield "orchestrator_cache_errors_total", {labels: cache["errors"] for labels, cache in caches}
    yield (
        "orchestrator_cache_lookups_total",
        {(*labels, result): cache[key] for labels, cache in caches for key, result in CACHE_RESULTS.items()},
    )


def _parts(sources: Iterable[tuple[str, Mapping[str, Any]]], part: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, source[part]) for name, source in sources if source.get(part)]


def _one_of(states: Mapping[str, str], known: Iterable[str]) -> Series:
    return {(name, state): int(state == current) for name, current in states.items() for state in known}


def _of_models(models: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, Series]]:
    named = {model["model"]: model for model in models}
    yield "orchestrator_model_state", _one_of({name: model["state"] for name, model in named.items()}, MODEL_STATES)
    for family, key in (
        ("orchestrator_model_calls_total", "requests"),
        ("orchestrator_model_failures_total", "failures"),
        ("orchestrator_model_starts_total", "starts"),
        ("orchestrator_model_restarts_total", "restarts"),
        ("orchestrator_model_falls_back", "falls_back"),
    ):
        yield family, {(name,): int(model[key]) for name, model in named.items()}
