"""What stands in ``config.yaml`` under ``telemetry``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal
from urllib.parse import urlsplit

from attrs import frozen

from orchestrator_core.plugin_api import Duration, check_headers, option, positive

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
NEEDED = {"console": "opentelemetry.sdk", "otlp": "opentelemetry.exporter.otlp.proto.http"}
INSTALL = "pip install 'orchestrator-api-telemetry[otlp]'"


def _ascending(instance: Any, attribute: Any, value: tuple[float, ...]) -> None:
    if not value or list(value) != sorted(set(value)) or value[0] <= 0 or not math.isfinite(value[-1]):
        raise ValueError("expected bounds in seconds, each greater than the one before and the first than 0")


def _ratio(instance: Any, attribute: Any, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"expected a ratio from 0 to 1, got {value:g}")


def _http(instance: Any, attribute: Any, value: str | None) -> None:
    if value is None:
        return
    if not value.startswith(("http://", "https://")):
        raise ValueError("expected an address that starts with http:// or https://")
    try:
        url = urlsplit(value)
        url.port  # noqa: B018  # it is read here to be refused here
    except ValueError:  # its text can hold a part of a password, taken for a port
        raise ValueError("its host or port cannot be read; percent-encode what is special in a password") from None
    if not url.hostname:  # such as of a variable that is empty
        raise ValueError("expected an address with a host, such as http://127.0.0.1:4318/v1/traces")


def _sendable(instance: Any, attribute: Any, value: Mapping[str, str]) -> None:
    check_headers(value)


def _installed(instance: Any, attribute: Any, value: str) -> None:
    needed = NEEDED.get(value)
    if needed is not None and not _is_there(needed):
        raise ValueError(f"exporting spans needs OpenTelemetry: {INSTALL}")


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a package that it is in
        return False


@frozen
class MetricsOptions:
    """Prometheus metrics at ``GET /metrics`` of the admin listener."""

    enabled: bool = option(True, help="Count, and serve the metrics.")
    buckets: tuple[float, ...] = option(
        BUCKETS, help="Upper bounds of the durations' histograms, in seconds.", validator=_ascending
    )
    process: bool = option(
        True, help="Add the metrics of the process: CPU, memory, descriptors, garbage collection, Python's version."
    )


@frozen
class TracesOptions:
    """OpenTelemetry spans: one of each request, and one of each of its steps."""

    exporter: Literal["otlp", "console", "none"] = option(
        "otlp",
        help="Where spans go: to a collector by OTLP over HTTP, to standard output, or nowhere, so that only "
        "calls outward carry their ids.",
        validator=_installed,
    )
    endpoint: str | None = option(
        None,
        help="The collector's address for traces; default OTEL_EXPORTER_OTLP_ENDPOINT, else "
        "http://localhost:4318/v1/traces.",
        validator=_http,
    )
    headers: Mapping[str, str] = option(
        factory=dict, help="Headers for the collector, such as an Authorization.", validator=_sendable
    )
    sample_ratio: float = option(
        1.0,
        help="Which part of the requests is recorded that come without a traceparent; else its flag says so.",
        validator=_ratio,
    )
    service_name: str | None = option(None, help="service.name; default OTEL_SERVICE_NAME, else orchestrator.")
    resource: Mapping[str, str] = option(factory=dict, help="Further attributes of the resource.")
    timeout: Duration = option(Duration(5), help="How long one export may take, with its retries.", validator=positive)
    interval: Duration = option(Duration(1), help="How long spans are collected before an export.", validator=positive)
    max_queue: int = option(
        2048, help="How many requests may wait to be exported; the spans of more are dropped.", validator=positive
    )
    shutdown_timeout: Duration = option(
        Duration(3), help="How long the end of the service waits for the last export.", validator=positive
    )


@frozen
class TelemetryOptions:
    """What the service tells about itself. ``telemetry: false`` switches all of it off."""

    metrics: MetricsOptions = option(factory=MetricsOptions, help="Prometheus metrics.")
    traces: TracesOptions | None = option(None, help="OpenTelemetry spans; off where the section is missing or null.")
