"""What is written back: JSON bodies, problem details (RFC 9457) and the headers that every answer carries."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from time import time
from typing import Any

import orjson
from aiohttp import HttpVersion11, web
from aiohttp.helpers import rfc822_formatted_time

from orchestrator_core.blame import UnfitAnswer
from orchestrator_core.engine import Failure, new_execution_id
from orchestrator_core.plan import Place, Plan, giver
from orchestrator_core.run import CACHED, OK, Run, clock
from orchestrator_core.schemas import pointer

JSON_TYPE = "application/json"
PROBLEM_TYPE = "application/problem+json"
SERVER = "orchestrator"
MILLI = 1000.0
DEEPEST_PLACE = 20
"""A value that is unfit for being too deep, or for being within itself, has no place."""


def encode(value: Any, plan: Plan) -> bytes:
    """Return the JSON of an answer. Raises :class:`UnfitAnswer` for what JSON cannot hold: its place and who gave it.

    orjson writes NaN and infinities as null, without a word. So where the text has a null at all, the value is looked
    through for numbers that are none.
    """
    try:
        body = orjson.dumps(value)
    except TypeError as error:
        raise _unfit(f"a value that JSON cannot ({error})", plan, _unwritable(value)) from error
    if b"null" in body and (place := _not_finite(value, ())) is not None:
        raise _unfit("a number that JSON cannot (NaN or infinite)", plan, place)
    return body


def _unfit(what: str, plan: Plan, place: Place) -> UnfitAnswer:
    message = f"the answer holds {what} at {pointer(place) or '/'}"
    step = giver(plan, place)
    if step is None:
        return UnfitAnswer(message)
    return UnfitAnswer(f"step '{step.name}': {step.spec.label}: {message}", step=step.name)


def _not_finite(value: Any, place: Place) -> Place | None:
    """Return the place of the first number that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else place
    return next((found for key, item in _items(value) if (found := _not_finite(item, (*place, key))) is not None), None)


def _unwritable(value: Any, place: Place = ()) -> Place:
    """Return the place of the first value that orjson does not write."""
    for key, item in _items(value) if len(place) < DEEPEST_PLACE else ():
        try:
            orjson.dumps(item)
        except TypeError:
            return _unwritable(item, (*place, key))
    return place


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, list | tuple) else ()


class Answer:
    """A whole answer, written at once: the lean twin of :class:`aiohttp.web.Response`.

    aiohttp's own makes a multidict of the headers, fills it up and serialises it, which costs about as much as the
    rest of a request. ``headers`` are further header lines, each with its line end; nothing in them comes from a
    client. What aiohttp's protocol asks of a response is :meth:`prepare`, :meth:`write_eof` and ``keep_alive``.
    """

    __slots__ = ("body", "closes", "content_type", "headers", "keep_alive", "status")

    def __init__(self, status: int, body: bytes, content_type: str, headers: str) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.keep_alive: bool | None = True
        self.closes = False

    async def prepare(self, request: web.BaseRequest) -> None:
        """Write the answer. Raises ``ConnectionResetError`` when the client is gone, which aiohttp expects."""
        writer = request.writer
        transport = writer.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client is gone")
        connection: Any = request._protocol
        self.keep_alive = keep_alive = request.keep_alive and not self.closes and not connection.closing
        transport.write(
            self.written(
                keep_alive=keep_alive, old=request.version is not HttpVersion11, bodiless=request.method == "HEAD"
            )
        )
        connection.answered = keep_alive and request._payload.is_eof()
        if connection.writing_paused:  # a client that pipelines and does not read is not answered into memory
            await writer.drain()

    def written(self, *, keep_alive: bool, old: bool = False, bodiless: bool = False) -> bytes:
        """Return the answer as it goes over the wire; ``old`` for a client of HTTP/1.0, ``bodiless`` to a HEAD."""
        kept = "Connection: keep-alive\r\n" if old else ""
        connection = kept if keep_alive else CLOSES
        body = self.body
        head = (
            f"{_status_line(self.status)}Content-Type: {self.content_type}\r\n{self.headers}"
            f"Content-Length: {len(body)}\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n{connection}\r\n"
        ).encode("latin-1")
        return head if bodiless else head + body

    async def write_eof(self) -> None:
        """Everything is written already."""


@cache
def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"


def header_lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


def common_headers(execution_id: str, timing: str) -> str:
    return f"X-Execution-Id: {execution_id}\r\nServer-Timing: {timing}\r\n"


def run_headers(run: Run) -> str:
    """Return the headers of a finished run: its id, its step timings in milliseconds, a cache, what is degraded."""
    headers = f"X-Execution-Id: {run.id}\r\nServer-Timing: {server_timing(run)}\r\n"
    if run.kept is not None:
        age = max(0, int(time() - run.kept.made_at))
        headers += f"X-Orchestrator-Cache: {run.kept.how}\r\nAge: {age}\r\n"
    if run.degraded_steps:
        headers += f"X-Orchestrator-Degraded: {', '.join(run.degraded_steps)}\r\n"
    return headers


def server_timing(run: Run) -> str:
    """Return ``customer_data;dur=1.234, engine;dur=0.056``: a metric per step and one for the engine's own time."""
    metrics, names, noted = "", run.plan.step_names, run.notes is not None
    for index, step in enumerate(run.steps):
        name = names[index]
        if isinstance(step, tuple):
            status, start, stop, _ = step
            if noted and run.is_cached(index):
                status = CACHED
            if status is OK:
                metrics += f"{name};dur={(stop - start) * MILLI:.3f}, "
            else:
                metrics += f"{name};dur={(stop - start) * MILLI:.3f};desc={status}, "
        elif step is not None:
            metrics += f"{name};dur={(run.ended - step) * MILLI:.3f};desc=cancelled, "
    return f"{metrics}engine;dur={run.engine_seconds() * MILLI:.3f}"


def own_timing(started: float) -> str:
    """Return the ``Server-Timing`` of an answer that no endpoint made."""
    return f"engine;dur={(clock() - started) * MILLI:.3f}"


OVERLOADED = Failure(503, "not available", "the service is overloaded")
CLOSES = "Connection: close\r\n"
_BEFORE_ID, _AFTER_ID = orjson.dumps(OVERLOADED.problem("#")).decode().split("#")
_REFUSAL_LENGTH = len(_BEFORE_ID) + len(new_execution_id()) + len(_AFTER_ID)


def refusal(execution_id: str, retry_after: str, waited_seconds: float, connection: str = "") -> bytes:
    """Return :data:`OVERLOADED` as it goes over the wire, on a connection of HTTP/1.1 that stays open.

    With the header line ``connection`` it may be another one.

    It is written thousands of times a second when it is written at all.
    """
    return (
        f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: {PROBLEM_TYPE}\r\nX-Execution-Id: {execution_id}\r\n"
        f"Server-Timing: engine;dur={waited_seconds * MILLI:.3f}\r\nRetry-After: {retry_after}\r\n"
        f"Content-Length: {_REFUSAL_LENGTH}\r\nDate: {rfc822_formatted_time()}\r\nServer: {SERVER}\r\n{connection}\r\n"
        f"{_BEFORE_ID}{execution_id}{_AFTER_ID}"
    ).encode("ascii")


def problem(failure: Failure, execution_id: str, headers: str, instance: str = "") -> Answer:
    if failure.retry_after_seconds is not None:
        headers += f"Retry-After: {max(1, math.ceil(failure.retry_after_seconds))}\r\n"
    body = orjson.dumps(failure.problem(execution_id, instance))
    return Answer(failure.status, body, PROBLEM_TYPE, headers)
