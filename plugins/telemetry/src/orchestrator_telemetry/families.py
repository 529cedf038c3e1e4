"""Every metric there is: its name, its type, its labels and what it means. The guide's table is held against this."""

from __future__ import annotations

from typing import Literal

from attrs import frozen


@frozen
class Family:
    """A metric family. ``name`` is as Prometheus shows it, with a counter's ``_total``."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str


_ENDPOINT = ("domain", "endpoint")
_STEP = (*_ENDPOINT, "step", "source")

FAMILIES = (
    Family("orchestrator_requests_total", "counter", (*_ENDPOINT, "method", "status"), "Requests of endpoints."),
    Family("orchestrator_request_duration_seconds", "histogram", _ENDPOINT, "Time from a request to its answer."),
    Family("orchestrator_requests_degraded_total", "counter", _ENDPOINT, "Requests with a degraded answer."),
    Family("orchestrator_requests_in_flight", "gauge", (), "Requests that are being answered."),
    Family("orchestrator_requests_limit", "gauge", (), "Most requests in flight, where there is a limit."),
    Family("orchestrator_requests_shed_total", "counter", (), "Requests refused because of the limit."),
    Family("orchestrator_connections", "gauge", (), "Open connections of the public listener."),
    Family("orchestrator_connections_refused_total", "counter", (), "Connections refused because all were in use."),
    Family(
        "orchestrator_page_requests_total",
        "counter",
        ("page", "method", "status"),
        "Requests of the service's own pages; those of no page and no endpoint have the page 'unknown'.",
    ),
    Family("orchestrator_steps_total", "counter", (*_STEP, "status"), "Steps that ended, or were skipped."),
    Family("orchestrator_step_duration_seconds", "histogram", _STEP, "Time of a step with its waits and attempts."),
    Family("orchestrator_step_attempts_total", "counter", _STEP, "Calls that steps made, retries included."),
    Family(
        "orchestrator_source_ready",
        "gauge",
        ("source",),
        "0 while its breaker is open, or, where it has none, if it was not there when the configuration was loaded.",
    ),
    Family("orchestrator_source_breaker_state", "gauge", ("source", "state"), "1 for the state it is in."),
    Family("orchestrator_source_breaker_opened_total", "counter", ("source",), "How often the breaker opened."),
    Family(
        "orchestrator_source_breaker_refused_total",
        "counter",
        ("source",),
        "Calls that the breaker did not let through.",
    ),
    Family("orchestrator_source_calls_total", "counter", ("source",), "Calls that the retry budget counts."),
    Family("orchestrator_source_retries_total", "counter", ("source",), "Attempts after the first."),
    Family(
        "orchestrator_source_retries_refused_total", "counter", ("source",), "Attempts that the budget did not allow."
    ),
    Family("orchestrator_source_calls_running", "gauge", ("source",), "Calls under way, where they are limited."),
    Family("orchestrator_source_calls_waiting", "gauge", ("source",), "Calls that wait for their turn."),
    Family(
        "orchestrator_source_calls_refused_total",
        "counter",
        ("source",),
        "Calls that found the queue full, or waited too long.",
    ),
    Family(
        "orchestrator_cache_entries",
        "gauge",
        ("of", "name"),
        "Results in memory.",
    ),
    Family(
        "orchestrator_cache_lookups_total",
        "counter",
        ("of", "name", "result"),
        "Looks into the cache: hit, stale, shared with a call under way, or miss.",
    ),
    Family("orchestrator_cache_errors_total", "counter", ("of", "name"), "Failures of the cache itself."),
    Family("orchestrator_model_state", "gauge", ("model", "state"), "1 for the state it is in."),
    Family("orchestrator_model_calls_total", "counter", ("model",), "Calls of the model."),
    Family("orchestrator_model_failures_total", "counter", ("model",), "Calls that failed because of the model."),
    Family("orchestrator_model_starts_total", "counter", ("model",), "How often the model was started or loaded."),
    Family("orchestrator_model_restarts_total", "counter", ("model",), "How often that was again."),
    Family("orchestrator_model_falls_back", "gauge", ("model",), "1 while its fallback answers."),
    Family("orchestrator_reloads_total", "counter", ("outcome",), "Reloads: swapped or failed."),
    Family("orchestrator_generation_info", "gauge", ("generation",), "1 for the configuration that serves."),
    Family("orchestrator_endpoints", "gauge", (), "Endpoints that are served."),
    Family("orchestrator_build_info", "gauge", ("version",), "1 for the version of the core."),
    Family("orchestrator_tracking_written_total", "counter", (), "Execution records that were stored."),
    Family(
        "orchestrator_tracking_dropped_total",
        "counter",
        ("reason",),
        "Execution records that were dropped: queue_full, store_failed, refused by the store, or stopped before.",
    ),
    Family("orchestrator_tracking_queued", "gauge", (), "Execution records that wait to be stored."),
    Family("orchestrator_spans_exported_total", "counter", (), "Spans that the collector took."),
    Family("orchestrator_spans_dropped_total", "counter", (), "Spans that were lost."),
)
