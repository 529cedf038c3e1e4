"""OAuth 2.0 client credentials (RFC 6749, section 4.4): one token for all calls, fetched once at a time."""

from __future__ import annotations

import asyncio
import math
import re
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import quote_plus, urlencode, urlsplit

import orjson
from attrs import evolve, frozen

from orchestrator_core.plugin_api import HttpClient, HttpOptions, HttpResponse, SourceError
from orchestrator_source_api.answer import CallTimeout
from orchestrator_source_api.options import OAuth2Options

__all__ = ["Tokens", "open_tokens"]

Post: TypeAlias = Callable[[bytes], Awaitable[HttpResponse]]

_TOKEN: Final = re.compile(r"[!-~]+")
_ERROR_CODE: Final = re.compile(r"[a-z_]{1,60}")
_RENEW_BEFORE_SECONDS: Final = 30.0
_RENEW_BEFORE_PART: Final = 0.2
_RETRY_SECONDS: Final = 1.0
_ABANDONED_SECONDS: Final = 0.5
"""So long a token is still waited for that no call waits for any more: the next call may be glad of it."""


@frozen
class Token:
    """A token and when, on the loop's clock, it expires and is due to be renewed."""

    text: str
    expires_at: float
    renew_at: float


class Tokens:
    """The token of one client. Any number of tasks may ask for it; one request at a time fetches it."""

    def __init__(self, post: Post, body: bytes, call: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._post = post
        self._body = body
        self._call = call
        self._token: Token | None = None
        self._fetching: asyncio.Task[Token] | None = None
        self._waiting = 0
        self._not_before = -math.inf
        self._refused_not_before = -math.inf

    async def current(self) -> str:
        """Return a token that has not expired. One that soon will is renewed meanwhile, and nobody waits for that."""
        token, now = self._token, self._loop.time()
        if token is None or now >= token.expires_at:
            return (await self._fetched()).text
        if now >= token.renew_at and now >= self._not_before:
            self._not_before = now + _RETRY_SECONDS
            self._start()
        return token.text

    async def instead_of(self, refused: str) -> str:
        """Return another token than the one that the API has just refused; the same while a renewal would not help.

        An API that refuses whatever token it is shown must not cost the token server a request for each call.
        """
        token, now = self._token, self._loop.time()
        if token is not None and token.text == refused:
            if now < self._refused_not_before:
                return refused
            self._refused_not_before = now + _RETRY_SECONDS
            self._token = None
        return await self.current()

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _fetched(self) -> Token:
        task = self._start()
        self._waiting += 1
        try:
            # Shielded: others wait for the same token, and one who gives up must not take it from them.
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise SourceError(f"{self._call}: the source is closed", transient=True) from None
            raise
        except SourceError as error:
            # Each who waits raises an error of its own.
            kind = CallTimeout if error.status == CallTimeout.status else SourceError
            wait = error.retry_after_seconds
            raise kind(str(error), transient=error.transient, retry_after_seconds=wait) from error
        finally:
            self._waiting -= 1
            if not self._waiting and not task.done():
                self._loop.call_later(_ABANDONED_SECONDS, self._give_up, task)

    def _give_up(self, task: asyncio.Task[Token]) -> None:
        if not self._waiting and not task.done():
            self._fetching = None
            task.cancel()

    def _start(self) -> asyncio.Task[Token]:
        if self._fetching is None:
            self._fetching = self._loop.create_task(self._fetch(), name=f"token from {self._call}")
            self._fetching.add_done_callback(self._done)
        return self._fetching

    def _done(self, task: asyncio.Task[Token]) -> None:
        if self._fetching is task:
            self._fetching = None
        if not task.cancelled() and task.exception() is None:
            self._token = task.result()

    async def _fetch(self) -> Token:
        asked_at = self._loop.time()
        answer = await self._post(self._body)
        text, seconds = _granted(answer, self._call)
        early = min(_RENEW_BEFORE_SECONDS, _RENEW_BEFORE_PART * seconds)
        return Token(text, asked_at + seconds, asked_at + seconds - early)


def _granted(answer: HttpResponse, call: str) -> tuple[str, float]:
    """Return the token and the seconds that it lasts. What the server says is shown as its error code at most."""
    try:
        body: Any = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        body = None
    said = body if isinstance(body, dict) else {}
    if answer.status != 200:
        code = said.get("error")
        shown = f": {code}" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""
        transient = answer.status >= 500 or answer.status == 429
        message = f"{call}: no token: answered {answer.status}{shown}"
        raise SourceError(message, transient=transient, retry_after_seconds=answer.retry_after_seconds)
    text = said.get("access_token")
    if not isinstance(text, str) or not _TOKEN.fullmatch(text):
        raise SourceError(f"{call}: no token: the answer has no access_token")
    kind = said.get("token_type", "bearer")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise SourceError(f"{call}: no token: its token_type is not Bearer")
    return text, _lifetime(said.get("expires_in"))


def _lifetime(expires_in: Any) -> float:
    """Return seconds; a server that does not say is believed until the API refuses the token."""
    try:
        return max(0.0, float(expires_in))
    except (TypeError, ValueError):
        return math.inf


@asynccontextmanager
async def open_tokens(options: OAuth2Options, http: HttpClient, http_options: HttpOptions) -> AsyncIterator[Tokens]:
    """Open the connection to the token server; ``http_options`` are the source's, TLS already the token server's."""
    url = urlsplit(options.token_url)
    base_url = f"{url.scheme}://{url.netloc}"
    path = url.path or "/"
    fields = {"grant_type": "client_credentials", **options.params}
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    if options.scope:
        fields["scope"] = options.scope
    if options.client_auth == "body":
        fields |= {"client_id": options.client_id, "client_secret": options.client_secret}
    else:
        # RFC 6749, section 2.3.1: both are form-encoded before they become Basic credentials.
        pair = f"{quote_plus(options.client_id)}:{quote_plus(options.client_secret)}"
        headers["Authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
    own = evolve(
        http_options,
        timeout_seconds=options.timeout,
        connect_timeout_seconds=min(http_options.connect_timeout_seconds, options.timeout),
        max_connections=1,
        follow_redirects=0,
        headers={"Accept": "application/json"},
    )
    call = f"POST {url.scheme}://{url.netloc.rpartition('@')[2]}{path}"
    async with http.origin(base_url, own) as origin:
        # Asking twice does no harm: the request is sent again when a kept-alive connection turns out to be closed.
        post = origin.prepare("POST", f"{path}?{url.query}" if url.query else path, headers=headers, idempotent=True)
        tokens = Tokens(post, urlencode(fields).encode(), call)
        try:
            yield tokens
        finally:
            await tokens.close()
