"""The open model: a connection pool to the model server and the protocol spoken over it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from orchestrator_core.plugin_api import JSON, HttpOptions, HttpOrigin, Identity, OpenContext, TlsOptions
from orchestrator_model_http.json_protocol import JsonProtocol, checked
from orchestrator_model_http.options import HttpModelOptions

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


class HttpModel:
    """A model server. ``predict`` may be called by any number of tasks at a time."""

    def __init__(self, options: HttpModelOptions, name: str, origin: HttpOrigin) -> None:
        self._name = name
        self._options = options
        self._origin = origin
        self._url = _without_credentials(options.base_url)
        post = origin.prepare("POST", options.endpoint, headers=_HEADERS, idempotent=options.idempotent)
        self._protocol = JsonProtocol(post, f"POST {self._url}{options.endpoint}", options.rows)

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        """Score N rows: in one request with ``rows: list``, in N at a time with ``rows: one``.

        Raises ``InvalidParam`` for a feature that JSON cannot hold, and ``SourceError`` when the server cannot be
        reached, answers another status than 2xx, or answers what is not a prediction for each row.
        """
        return await self._protocol.predict(rows) if rows else []

    async def check_ready(self) -> None:
        """Ask the health path. Raises ``SourceError`` when the server cannot be reached or does not answer 2xx."""
        path = self._options.health
        answer = await self._origin.request("GET", path or "/")
        if path:
            checked(answer, f"GET {self._url}{path}")

    def identity(self) -> Identity:
        return Identity(self._name, self._options.version or f"{self._url}{self._options.endpoint}")


@asynccontextmanager
async def open_http(options: HttpModelOptions, context: OpenContext) -> AsyncIterator[HttpModel]:
    """Open the connection pool; nothing is sent before the first prediction."""
    http_options = HttpOptions(
        timeout_seconds=options.timeout,
        connect_timeout_seconds=min(options.connect_timeout, options.timeout),
        max_connections=options.max_connections,
        max_response_bytes=options.max_response_bytes,
        tls=_with_absolute_paths(options.tls, context),
        proxy=options.proxy,
        headers=options.headers,
    )
    async with context.http.origin(options.base_url, http_options) as origin:
        yield HttpModel(options, context.name, origin)


def _with_absolute_paths(tls: TlsOptions, context: OpenContext) -> TlsOptions:
    def absolute(path: str | None) -> str | None:
        return str(context.path(path)) if path else None

    return TlsOptions(
        verify=tls.verify,
        ca_file=absolute(tls.ca_file),
        cert_file=absolute(tls.cert_file),
        key_file=absolute(tls.key_file),
        server_name=tls.server_name,
    )


def _without_credentials(base_url: str) -> str:
    url = urlsplit(base_url)
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path.rstrip('/')}"
