"""The open model: a connection pool to the model server and the protocol spoken over it."""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from orchestrator_core.plugin_api import (
    JSON,
    HttpOptions,
    HttpOrigin,
    Identity,
    ModelFacts,
    OpenContext,
    OptionError,
    SourceError,
    SourceUnavailable,
    TlsOptions,
)
from orchestrator_model_http.exchange import Exchange, checked, decoded
from orchestrator_model_http.json_protocol import JsonProtocol
from orchestrator_model_http.mlflow_protocol import MlflowProtocol
from orchestrator_model_http.options import HttpModelOptions
from orchestrator_model_http.outputs import names_in, result_of
from orchestrator_model_http.v2_protocol import Metadata, V2Protocol, plan_inputs, read_metadata

_HEADERS = {"Content-Type": "application/json", "Accept": "application/json"}


PredictOne: typing.TypeAlias = Callable[[Mapping[str, JSON]], Awaitable[JSON]]


class Protocol(typing.Protocol):
    """Sends at least one row and returns as many results."""

    def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Awaitable[Sequence[JSON]]: ...


class HttpModel:
    """A model server. ``predict`` and ``predict_one`` may be called by any number of tasks at a time."""

    def __init__(self, options: HttpModelOptions, name: str, origin: HttpOrigin, metadata: Metadata) -> None:
        self._name = name
        self._options = options
        self._origin = origin
        self._metadata = metadata
        self._url = _without_credentials(options.base_url)
        post = origin.prepare("POST", options.path, headers=_HEADERS, idempotent=options.idempotent)
        exchange = Exchange(post, f"POST {self._url}{options.path}")
        self._protocol = _protocol(options, metadata, exchange)
        row_is_request = options.protocol == "json" and options.rows == "one"
        self.predict_one: PredictOne = exchange.__call__ if row_is_request else self._predict_one

    async def predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        """Score N rows: in one request, or with the protocol ``json`` and ``rows: one`` in N at a time.

        Raises ``InvalidParam`` for a feature that JSON cannot hold, and ``SourceError`` when the server cannot be
        reached, answers another status than 2xx, or answers what is not a prediction for each row.
        """
        return await self._protocol.predict(rows) if rows else []

    async def _predict_one(self, row: Mapping[str, JSON]) -> JSON:
        return (await self._protocol.predict((row,)))[0]

    async def check_ready(self) -> None:
        """Ask the health path. Raises ``SourceError`` when the server cannot be reached or does not answer 2xx."""
        path = self._options.health_path
        answer = await self._origin.request("GET", path or "/")
        if path:
            checked(answer, f"GET {self._url}{path}")

    def identity(self) -> Identity:
        said = self._options.version or self._options.model_version or self._metadata.version
        return Identity(self._name, said or f"{self._url}{self._options.path}")

    def facts(self) -> ModelFacts:
        """Return what a ``v2`` server says of its tensors. Of the other protocols nothing is known."""
        if self._options.protocol != "v2":
            return ModelFacts()
        inputs = self._options.features or [tensor.name for tensor in self._metadata.inputs]
        outputs = self._options.outputs or self._metadata.outputs
        return ModelFacts(tuple(inputs) or None, tuple(outputs) or None)


def _protocol(options: HttpModelOptions, metadata: Metadata, exchange: Exchange) -> Protocol:
    if options.protocol == "json":
        return JsonProtocol(exchange, options.rows)
    if options.protocol == "mlflow":
        return MlflowProtocol(exchange, result_of(options.outputs))
    try:
        encode = plan_inputs(metadata, options.features)
    except ValueError as error:
        raise OptionError("features", str(error)) from error
    names = metadata.outputs if options.outputs is None else names_in(options.outputs)
    return V2Protocol(exchange, encode, result_of(options.outputs), outputs=names, parameters=options.parameters)


@asynccontextmanager
async def open_http(options: HttpModelOptions, context: OpenContext) -> AsyncIterator[HttpModel]:
    """Open the connection pool. A ``v2`` server is asked for its tensors; else nothing is sent before it is needed.

    Raises ``SourceUnavailable`` when a ``v2`` server cannot be reached or does not have the model ready yet, and
    ``SourceError`` or ``OptionError`` when it has no such model, or one that the options do not fit.
    """
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
        metadata = await _metadata(options, origin) if options.protocol == "v2" else Metadata()
        yield HttpModel(options, context.name, origin, metadata)


async def _metadata(options: HttpModelOptions, origin: HttpOrigin) -> Metadata:
    call = f"GET {_without_credentials(options.base_url)}{options.model_path}"
    try:
        answer = checked(await origin.request("GET", options.model_path), call)
    except SourceError as error:
        if error.transient:
            raise SourceUnavailable(str(error), started=False) from error
        raise
    return read_metadata(decoded(answer, call), call)


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
