"""The open source: one pool of connections to the API, and its operations bound to it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol

from attrs import evolve

from orchestrator_core.plugin_api import (
    JSON,
    HttpOptions,
    HttpOrigin,
    HttpResponse,
    InvalidParam,
    OpenContext,
    SourceError,
    SourceUnavailable,
    TlsOptions,
    did_you_mean,
)
from orchestrator_source_api.answer import named, reader
from orchestrator_source_api.oauth2 import Tokens, open_tokens
from orchestrator_source_api.options import ApiOptions, OperationOptions
from orchestrator_source_api.request import Params, Request

__all__ = ["ApiSource", "open_api"]

_USER_AGENT = "orchestrator-api"
_HEALTH = "health"
_UNAUTHORIZED = 401


class Send(Protocol):
    """Sends one request of an operation and returns the whole answer."""

    def __call__(self, params: Params, /) -> Awaitable[HttpResponse]: ...


class ApiSource:
    """One API with its declared operations. ``fetch`` and what ``prepare`` returns may be called concurrently."""

    def __init__(
        self, options: ApiOptions, operations: Mapping[str, OperationOptions], origin: HttpOrigin, tokens: Tokens | None
    ) -> None:
        self._query = options.query
        self._operations = operations
        self._origin = origin
        self._tokens = tokens
        self._requests = {name: Request(name, each, options.query) for name, each in operations.items()}
        self._calls: dict[tuple[str, tuple[str, ...]], Callable[..., Awaitable[JSON]]] = {}
        self._health = self._health_call(options.health) if options.health else None
        for name, request in self._requests.items():
            self.prepare(name, request.facts.required)  # so that a header that cannot be sent is found at load

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        """Return the coroutine function that calls the operation with the values in the order of the names.

        Raises ``SourceError`` when there is no such operation and ``InvalidParam`` when the names are not its own.
        """
        key = (operation, tuple(param_names))
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._bind(operation, key[1])
        return call

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        names = sorted(params)
        return await self.prepare(operation, names)(*[params[name] for name in names])

    async def check_ready(self) -> None:
        """Ask the ``health`` path, if there is one. Raises ``SourceError`` when it does not answer 2xx."""
        if self._health is not None:
            if self._origin.stats.waiting:
                raise SourceUnavailable("all connections are in use", busy=True)
            await self._health()

    def _bind(self, operation: str, names: tuple[str, ...]) -> Callable[..., Awaitable[JSON]]:
        request = self._requests.get(operation)
        if request is None:
            hint = did_you_mean(operation, self._requests)
            raise SourceError(f"there is no operation '{operation}'{f'; {hint}' if hint else ''}")
        try:
            request.check_names(names)
        except InvalidParam as error:
            raise InvalidParam(error.param, f"{operation}: {error}") from None
        return self._call(request, self._operations[operation], names)

    def _health_call(self, path: str) -> Callable[..., Awaitable[JSON]]:
        options = OperationOptions(path=path, result=None, on_missing="fail")
        return self._call(Request(_HEALTH, options, self._query), options, ())

    def _call(
        self, request: Request, options: OperationOptions, names: tuple[str, ...]
    ) -> Callable[..., Awaitable[JSON]]:
        send = self._sender(request, options, names)
        read = reader(request, options)
        operation = request.name

        async def call(*values: JSON) -> JSON:
            params = dict(zip(names, values, strict=True))
            try:
                answer = await send(params)
            except SourceError as error:
                raise named(operation, error) from error
            except InvalidParam as error:
                raise InvalidParam(error.param, f"{operation}: {error}") from error
            return read(answer, params)

        return call

    def _sender(self, request: Request, options: OperationOptions, names: tuple[str, ...]) -> Send:
        origin, method, tokens = self._origin, request.method, self._tokens
        how: dict[str, Any] = {"timeout_seconds": options.timeout, "idempotent": options.idempotent}
        fixed_target, fixed_headers = request.target(names), request.headers(names)
        fixed_body = request.body(names)
        target, headers, body = _always(fixed_target), _always(fixed_headers), _always(fixed_body)
        if tokens is None and isinstance(fixed_headers, dict):
            if isinstance(fixed_target, str):
                send = origin.prepare(method, fixed_target, headers=fixed_headers, **how)
                return lambda params: send(body(params))
            route = origin.route(method, headers=fixed_headers, **how)
            if fixed_body is None:
                return lambda params: route(target(params))
            return lambda params: route(target(params), body(params))

        last = request.sample_headers()
        last_route = origin.route(method, headers=last, **how)

        def send_with(params: Params, token: str | None = None) -> Awaitable[HttpResponse]:
            # Calls mostly have the headers of the call before: then the head of the request is not built anew.
            nonlocal last, last_route
            wanted = headers(params)
            if token is not None:
                wanted = {**wanted, "authorization": f"Bearer {token}"}
            if wanted != last:
                last_route, last = origin.route(method, headers=wanted, **how), wanted
            return last_route(target(params), body(params))

        if tokens is None:
            return send_with
        own_tokens = tokens

        async def send_with_token(params: Params) -> HttpResponse:
            token = await own_tokens.current()
            answer = await send_with(params, token)
            if answer.status == _UNAUTHORIZED:
                other = await own_tokens.instead_of(token)
                if other != token:
                    answer = await send_with(params, other)
            return answer

        return send_with_token


def _always(value: Any) -> Callable[[Params], Any]:
    return value if callable(value) else lambda _: value


@asynccontextmanager
async def open_api(options: ApiOptions, context: OpenContext) -> AsyncIterator[ApiSource]:
    """Open the pool. Nothing is sent before the first call, so the API need not be up."""
    http_options = HttpOptions(
        timeout_seconds=options.timeout,
        connect_timeout_seconds=min(options.connect_timeout, options.timeout),
        max_connections=options.max_connections,
        keepalive_seconds=options.keepalive,
        max_response_bytes=options.max_response_bytes,
        tls=_with_absolute_paths(options.tls, context),
        proxy=options.proxy,
        headers={"Accept": "application/json", "User-Agent": _USER_AGENT} | _authorization(options) | options.headers,
        follow_redirects=options.follow_redirects,
        egress=options.egress,
    )
    oauth2 = options.auth.oauth2
    async with AsyncExitStack() as stack:
        tokens = None
        if oauth2 is not None:
            tls = oauth2.tls or evolve(options.tls, server_name=None)
            theirs = evolve(http_options, tls=_with_absolute_paths(tls, context))
            tokens = await stack.enter_async_context(open_tokens(oauth2, context.http, theirs))
        origin = await stack.enter_async_context(context.http.origin(options.base_url, http_options))
        yield ApiSource(options, context.operations, origin, tokens)


def _authorization(options: ApiOptions) -> dict[str, str]:
    auth = options.auth
    if auth.basic is not None:
        pair = f"{auth.basic.username}:{auth.basic.password}"
        return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
    return {} if auth.bearer is None else {"Authorization": f"Bearer {auth.bearer}"}


def _with_absolute_paths(tls: TlsOptions, context: OpenContext) -> TlsOptions:
    def absolute(path: str | None) -> str | None:
        return str(context.path(path)) if path else None

    return evolve(
        tls, ca_file=absolute(tls.ca_file), cert_file=absolute(tls.cert_file), key_file=absolute(tls.key_file)
    )
