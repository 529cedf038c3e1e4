"""The one outbound HTTP client: a process has one, and each source opens its origins on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Protocol, Self

from orchestrator_core.http_client.connection import Connection
from orchestrator_core.http_client.dial import Resolve, dial, resolve_by_system, route_to
from orchestrator_core.http_client.errors import HttpTimeout, StaleConnection
from orchestrator_core.http_client.options import HttpOptions
from orchestrator_core.http_client.pool import Deadlines, Expired, Pool, PoolStats
from orchestrator_core.http_client.request import FormBuilder, RequestHead, parse_url
from orchestrator_core.http_client.response import HttpResponse
from orchestrator_core.http_client.tracing import current_trace


class PreparedCall(Protocol):
    """What :meth:`HttpOrigin.prepare` returns; it raises what :meth:`HttpOrigin.request` does."""

    def __call__(self, body: bytes | None = None, /) -> Awaitable[HttpResponse]: ...


class RouteCall(Protocol):
    """What :meth:`HttpOrigin.route` returns; it raises what :meth:`HttpOrigin.request` does, ``ValueError`` too."""

    def __call__(self, target: str, body: bytes | None = None, /) -> Awaitable[HttpResponse]: ...


_DEFAULTS = HttpOptions()
_FOLLOWED_ANY_METHOD = frozenset({307, 308})
_FOLLOWED_GET_HEAD = frozenset({301, 302, 303})


class HttpClient:
    """Opens origins, and closes those still open when it is closed itself. It shares nothing between them.

    ``resolve`` turns a host and port into the addresses that may be connected to; the default asks the system.

    >>> async with HttpClient() as client, client.origin("http://127.0.0.1:9001/v1") as scores:
    ...     answer = await scores.request("GET", "/scores/7")
    ...     answer.status, answer.json()
    """

    def __init__(self, *, resolve: Resolve = resolve_by_system) -> None:
        self._resolve = resolve
        self._origins: set[HttpOrigin] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with AsyncExitStack() as stack:
            for origin in self._origins:
                stack.push_async_callback(origin.close)

    def origin(self, base_url: str, options: HttpOptions = _DEFAULTS) -> AbstractAsyncContextManager[HttpOrigin]:
        """Open the pool for one ``scheme://host:port``, with the URL's path before every target. Nothing connects yet.

        Credentials in the URL are sent as Basic authorization. Entering raises ``ValueError`` for a URL, header, proxy
        or certificate file that cannot be used.
        """
        return self._open(base_url, options)

    @asynccontextmanager
    async def _open(self, base_url: str, options: HttpOptions) -> AsyncIterator[HttpOrigin]:
        url = parse_url(base_url)
        proxy = None if options.proxy is None else parse_url(options.proxy, "proxy")
        if proxy is not None and proxy.secure:
            raise ValueError("proxy must start with http://: TLS to the proxy itself is not supported")
        forms = FormBuilder.for_origin(url, options.headers, proxy)
        # Reading the system's certificates takes tens of milliseconds.
        route = await asyncio.to_thread(route_to, url, options, proxy)
        origin = HttpOrigin(forms, options, partial(dial, route, self._resolve))
        self._origins.add(origin)
        try:
            yield origin
        finally:
            self._origins.discard(origin)
            await origin.close()


class HttpOrigin:
    """One pool for one ``scheme://host:port``. Any number of tasks of one event loop may call it at the same time.

    A cancelled call closes its connection. A call whose kept-alive connection turns out to be closed by the peer is
    sent again, once, if its method is idempotent; a POST never is, unless the caller says ``idempotent=True``. The
    connections of a peer that does so again and again are used once each, for a while: see ``resends.py``.
    """

    def __init__(self, forms: FormBuilder, options: HttpOptions, dial: Callable[[Connection], Awaitable[None]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._forms = forms
        self._options = options
        self._deadlines = Deadlines(self._loop)
        self._pool = Pool(self._loop, options, dial, self._deadlines)

    @property
    def stats(self) -> PoolStats:
        return self._pool.stats

    async def request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_seconds: float | None = None,
        idempotent: bool | None = None,
    ) -> HttpResponse:
        """Send one request and return the whole answer, whatever its status.

        ``target`` is appended to the base URL's path, percent-encoded as it is. Raises ``ValueError`` for a target or
        header that cannot be sent safely, else :class:`HttpConnectError`, :class:`HttpTimeout`,
        :class:`HttpProtocolError` or :class:`ResponseTooLarge`, each with ``transient`` for the retry policy.
        """
        head = self._forms.build(method, headers, idempotent).head(target)
        return await self._caller()(head, self._seconds(timeout_seconds), body)

    def prepare(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        idempotent: bool | None = None,
    ) -> PreparedCall:
        """Build the head of a request that is sent many times; call what this returns with each body, or ``None``.

        The same as :meth:`request`, with the checks and the bytes done once.
        """
        head = self._forms.build(method, headers, idempotent).head(target)
        return partial(self._caller(), head, self._seconds(timeout_seconds))

    def route(
        self,
        method: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
        idempotent: bool | None = None,
    ) -> RouteCall:
        """As :meth:`prepare` where each call has a target of its own; call what this returns with target and body."""
        form = self._forms.build(method, headers, idempotent)
        seconds = self._seconds(timeout_seconds)
        call = self._caller()

        def call_target(target: str, body: bytes | None = None) -> Awaitable[HttpResponse]:
            return call(form.head(target), seconds, body)

        return call_target

    async def close(self) -> None:
        """Close every connection, those in use too. Leaving the context that opened the origin does this."""
        await self._pool.close()

    def _seconds(self, timeout_seconds: float | None) -> float:
        return self._options.timeout_seconds if timeout_seconds is None else timeout_seconds

    def _caller(self) -> Callable[[RequestHead, float, bytes | None], Awaitable[HttpResponse]]:
        return self._follow if self._options.follow_redirects else self._send

    async def _follow(self, head: RequestHead, seconds: float, body: bytes | None = None) -> HttpResponse:
        deadline = self._loop.time() + seconds
        response = await self._send(head, seconds, body, deadline)
        for _ in range(self._options.follow_redirects):
            followed = _FOLLOWED_GET_HEAD if head.form.method in ("GET", "HEAD") else frozenset()
            if response.status not in _FOLLOWED_ANY_METHOD | followed or "location" not in response.headers:
                break
            redirected = head.form.redirected(head.path, response.headers["location"])
            if redirected is None:
                break
            head = redirected
            response = await self._send(head, seconds, body, deadline)
        return response

    async def _send(
        self, head: RequestHead, seconds: float, body: bytes | None = None, deadline: float | None = None
    ) -> HttpResponse:
        if deadline is None:
            deadline = self._loop.time() + seconds
        trace = current_trace.get()
        if trace is not None and not head.form.names_trace:
            head = head.carrying(trace.lines)
        connection = self._pool.take() or await self._pool.acquire(head, deadline, seconds)
        try:
            return await self._exchange(connection, head, body, deadline, seconds)
        except StaleConnection:
            if not head.form.may_resend:
                raise
        self._pool.note_resend()
        connection = await self._pool.acquire(head, deadline, seconds, fresh=True)
        return await self._exchange(connection, head, body, deadline, seconds)

    async def _exchange(
        self, connection: Connection, head: RequestHead, body: bytes | None, deadline: float, seconds: float
    ) -> HttpResponse:
        answer = connection.send(head, body)
        self._deadlines.watch(answer, deadline)
        try:
            return await answer
        except Expired:
            timeout = HttpTimeout(head.call, "total", seconds)
            self._pool.gave_up(connection, timeout)
            raise timeout from None
        except asyncio.CancelledError as error:
            self._pool.gave_up(connection, error)
            raise
        finally:
            self._deadlines.forget(answer)
            self._pool.release(connection)
