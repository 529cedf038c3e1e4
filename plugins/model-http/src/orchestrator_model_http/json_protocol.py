"""The protocol ``json``: features are posted as they are, and the answer is the prediction."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from math import isfinite
from typing import Literal, Protocol

import orjson

from orchestrator_core.plugin_api import JSON, HttpResponse, InvalidParam, SourceError

_TRANSIENT = frozenset({429, 502, 503, 504})
_REASON_LENGTH = 200
_WORDS: dict[type, str] = {dict: "an object", str: "a string", bool: "true or false", type(None): "null"}


class Post(Protocol):
    """Sends a body and returns the whole answer."""

    def __call__(self, body: bytes | None = None, /) -> Awaitable[HttpResponse]: ...


class JsonProtocol:
    """Rows to requests and answers to results. ``call`` is the request as errors name it."""

    def __init__(self, post: Post, call: str, rows: Literal["one", "list"]) -> None:
        self._post = post
        self._call = call
        self.predict = self._predict_list if rows == "list" else self._predict_each

    async def _predict_each(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        if len(rows) == 1:
            return [await self._result(_body(rows[0]))]
        bodies = [_body(row) for row in rows]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._result(body)) for body in bodies]
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the other requests were cancelled, or failed at the same moment
        return [task.result() for task in tasks]

    async def _predict_list(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        results = await self._result(_body(rows))
        if isinstance(results, list) and len(results) == len(rows):
            return results
        wanted = "1 result" if len(rows) == 1 else f"{len(rows)} results"
        got = f"a list of {len(results)}" if isinstance(results, list) else _WORDS.get(type(results), "a number")
        raise SourceError(f"{self._call}: expected a list of {wanted}, got {got}")

    async def _result(self, body: bytes) -> JSON:
        answer = checked(await self._post(body), self._call)
        try:
            result: JSON = orjson.loads(answer.body)
        except orjson.JSONDecodeError as error:
            raise SourceError(f"{self._call}: the answer ({answer.status}) is not JSON: {error}") from error
        return result


def checked(answer: HttpResponse, call: str) -> HttpResponse:
    """Return the answer if its status is 2xx; raise :class:`SourceError` with the server's reason if not."""
    if 200 <= answer.status < 300:
        return answer
    reason = _reason(answer)
    raise SourceError(
        f"{call}: the model server answered {answer.status}{': ' if reason else ''}{reason}",
        transient=answer.status in _TRANSIENT,
    )


def _reason(answer: HttpResponse) -> str:
    """Return what a server says of its error: the usual field of a JSON body, or the first line of a text."""
    try:
        body = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        is_text = answer.headers.get("content-type", "").startswith("text/plain")
        lines = answer.body.decode("utf-8", "replace").strip().splitlines() if is_text else []
        return lines[0][:_REASON_LENGTH] if lines else ""
    if not isinstance(body, dict):
        return ""
    said = next((body[key] for key in ("detail", "message", "error") if body.get(key)), "")
    return (said if isinstance(said, str) else orjson.dumps(said).decode())[:_REASON_LENGTH]


def _body(value: JSON) -> bytes:
    _refuse_not_finite(value, "")
    try:
        return orjson.dumps(value)
    except TypeError as error:
        raise InvalidParam("features", f"the features cannot be written as JSON: {error}") from error


def _refuse_not_finite(value: JSON, where: str) -> None:
    """Raise for NaN and infinity, which orjson would write as null without a word."""
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
