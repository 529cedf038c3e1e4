"""JSON to a model server and back, with errors that name the request and the server's reason."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from math import isfinite
from typing import Any, Protocol

import orjson

from orchestrator_core.plugin_api import JSON, HttpResponse, InvalidParam, SourceError, check_depth, check_integers

_TRANSIENT = frozenset({429, 502, 503, 504})
_REASON_LENGTH = 200
_WORDS: dict[type, str] = {dict: "an object", str: "a string", bool: "true or false", type(None): "null"}


class Post(Protocol):
    """Sends a body and returns the whole answer."""

    def __call__(self, body: bytes | None = None, /) -> Awaitable[HttpResponse]: ...


class Exchange:
    """One kind of request to a model server: JSON out, JSON back. ``call`` is how errors name it."""

    __slots__ = ("_post", "call")

    def __init__(self, post: Post, call: str) -> None:
        self._post = post
        self.call = call

    async def __call__(self, body: JSON) -> Any:
        """Send the body and return the answer's.

        Raises ``InvalidParam`` for what JSON cannot hold, and ``SourceError`` for another status than 2xx or an answer
        that is no JSON.
        """
        return decoded(checked(await self._post(encoded(body)), self.call), self.call)

    def unfit(self, expected: str, got: object) -> SourceError:
        """Return the error for an answer of another shape than expected."""
        return SourceError(f"{self.call}: expected {expected}, got {shown(got)}")


def checked(answer: HttpResponse, call: str) -> HttpResponse:
    """Return the answer if its status is 2xx; raise :class:`SourceError` with the server's reason if not."""
    if 200 <= answer.status < 300:
        return answer
    reason = _reason(answer)
    raise SourceError(
        f"{call}: the model server answered {answer.status}{': ' if reason else ''}{reason}",
        transient=answer.status in _TRANSIENT,
        retry_after_seconds=answer.retry_after_seconds,
    )


def decoded(answer: HttpResponse, call: str) -> Any:
    try:
        body = orjson.loads(answer.body)
        check_integers(answer.body)
        check_depth(body, answer.body)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{call}: the answer ({answer.status}) is not JSON: {error}") from error
    return body


def shown(value: object) -> str:
    """Return what a JSON value is, in words."""
    return f"a list of {len(value)}" if isinstance(value, list) else _WORDS.get(type(value), "a number")


def _reason(answer: HttpResponse) -> str:
    """Return what a server says of its error: the usual field of a JSON body, or the first line of a text."""
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        is_text = answer.headers.get("content-type", "").startswith("text/plain")
        text = answer.body.decode("utf-8", "replace") if is_text else ""
        lines = answer.request.masked(text).strip().splitlines()
        return lines[0][:_REASON_LENGTH] if lines else ""
    if not isinstance(body, dict):
        return ""
    said = next((body[key] for key in ("detail", "message", "error") if body.get(key)), "")
    words = answer.request.masked(said if isinstance(said, str) else orjson.dumps(said).decode())
    return " ".join(words.split())[:_REASON_LENGTH]


def encoded(value: JSON) -> bytes:
    try:
        body = orjson.dumps(value)
    except TypeError as error:
        raise InvalidParam("features", f"the features cannot be written as JSON: {error}") from error
    # orjson writes NaN and infinity as null without a word; where there is no null, there is none of them.
    if b"null" in body:
        _refuse_not_finite(value, "")
    return body


def _refuse_not_finite(value: JSON, where: str) -> None:
    if isinstance(value, float):
        if not isfinite(value):
            raise InvalidParam("features", f"feature '{where}' is {value}, which JSON cannot hold")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if item.__class__ is not str and item.__class__ is not int:
                _refuse_not_finite(item, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_not_finite(item, f"{where}[{index}]")
