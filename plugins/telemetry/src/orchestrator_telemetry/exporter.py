"""The exporter of spans, and what it says when it fails, without what the environment's variables have told it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter

from orchestrator_telemetry.options import TracesOptions

EXPORTER_LOGGER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
HEADERS_LOGGER = "opentelemetry.util.re"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
HEADERS = ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS")
SESSIONS = (
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_CREDENTIAL_PROVIDER",
    "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER",
)
"""Variables that have the exporter use a session of somebody else's."""
MASK = "***"


class Words(logging.Handler):
    """Keeps what a library logs of one export, instead of logging it again with every failure.

    The last of it says that the export has failed, and the first why, where it was tried again. The collector's last
    answer, or why there was none, is added where the library does not name it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self._said: list[str] = []
        self._status = 0
        self._reason = ""
        self._error = ""
        self.rejected = 0

    def unanswered(self, error: Exception) -> None:
        self._status, self._error = 0, str(error)

    def answered(self, response: Any, **_: Any) -> None:
        self._status, self._reason = response.status_code, response.reason or ""
        if self._status == 200:
            self.rejected, why = _rejected(response.content)
            if self.rejected:
                self._said = [f"The collector answered 200, and rejected {self.rejected} spans: {why}"]

    @property
    def sent_elsewhere(self) -> bool:
        """Return whether the collector named another address: the exporter takes that for success."""
        return 300 <= self._status < 400

    @property
    def text(self) -> str:
        first, last = self._said[:1], self._said[-1:]
        text = " ".join(dict.fromkeys([*last, *first]))
        if self._status and str(self._status) not in text:
            text = f"{text} The collector answered {self._status} {self._reason}".strip()
        elif not self._status and self._error not in text:
            text = f"{text} {self._error}"
        for secret in _told_by_the_environment():
            text = text.replace(secret, MASK)
        return text

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def _told_by_the_environment() -> Iterator[str]:
    """Yield what is secret in the exporter's own variables, which no configuration knows of."""
    for name in ENDPOINTS:
        user, at, _ = os.environ.get(name, "").rpartition("@")
        if at:
            yield user.rpartition("//")[2]
    for name in HEADERS:
        for header in os.environ.get(name, "").split(","):
            value = header.partition("=")[2].strip()
            sent = unquote(value).strip()
            yield from filter(None, (value, sent, repr(sent)[1:-1]))


def _rejected(answer: bytes) -> tuple[int, str]:
    """Return how many spans a collector did not take though it took the export, and why."""
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

    try:
        told = ExportTraceServiceResponse.FromString(answer).partial_success
    except DecodeError:  # such as of one that answers with JSON; it has taken them by its status
        return 0, ""
    return max(0, told.rejected_spans), told.error_message or "it does not say why"


def open_exporter(options: TracesOptions) -> tuple[SpanExporter, Words]:
    """Return the exporter, and what it says when it fails, which it would otherwise log every time."""
    words = Words()
    if options.exporter == "console":
        return ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n"), words
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    logger = logging.getLogger(EXPORTER_LOGGER)
    logger.handlers = [words]
    logger.propagate = False
    logging.getLogger(HEADERS_LOGGER).addFilter(_without_the_header)
    exporter = OTLPSpanExporter(
        endpoint=options.endpoint,
        headers=dict(options.headers),
        timeout=float(options.timeout),
        session=None if any(map(os.environ.get, SESSIONS)) else _session(words),
    )
    return exporter, words


def _session(words: Words) -> Any:
    """Return a session that tells of each answer, and why there was none."""
    import requests

    class Session(requests.Session):
        def request(self, *args: Any, **kwargs: Any) -> requests.Response:
            try:
                return super().request(*args, **kwargs)
            except Exception as error:
                words.unanswered(error)
                raise

    session = Session()
    session.hooks["response"].append(words.answered)
    return session


def _without_the_header(record: logging.LogRecord) -> bool:
    """Say which variable cannot be read in place of what stands in it: that can be a token."""
    given = " or ".join(name for name in HEADERS if name in os.environ)
    record.msg, record.args = f"{given}: expected name=value, separated by commas and percent-encoded", ()
    return True
