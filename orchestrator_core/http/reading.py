"""What a client sends: the body as JSON, and the query. Whatever cannot be read is its mistake."""

from __future__ import annotations

import asyncio
import json
import random
import re
from urllib.parse import parse_qs

import orjson
from aiohttp import HttpVersion11, web

from orchestrator_core.depth import is_deeper
from orchestrator_core.errors import BadRequest
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.http.answers import JSON_TYPE
from orchestrator_core.plugin_api import JSON

MAX_QUERY_FIELDS = 1000
MAX_DEPTH = 100
BODY_TIMEOUTS_SPREAD = 1.1
"""Clients that came together are not given up in one moment, which would keep the others waiting."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_LONG_NUMBER = re.compile(rb"[0-9]{19}")


async def read_json(request: web.BaseRequest, timeout_seconds: float) -> JSON | Missing:
    """Return the body of a request, MISSING if it is empty. Raises :class:`BadRequest` if it is not JSON."""
    length = request.content_length
    if length is not None and length > request._client_max_size:
        raise _too_large(request)
    raw = await _read(request, timeout_seconds)
    if not raw:
        return MISSING
    content_type = request.headers.get("Content-Type", JSON_TYPE).partition(";")[0].strip().lower()
    if content_type != JSON_TYPE and not content_type.endswith("+json"):
        raise BadRequest(f"the body must be {JSON_TYPE}, not {content_type}", 415)
    try:
        body: JSON = orjson.loads(raw)
        if _LONG_NUMBER.search(raw):
            json.loads(raw, parse_int=_exact)
    except ValueError as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    except RecursionError:
        raise _too_deep() from None
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and is_deeper(body, MAX_DEPTH):
        raise _too_deep()
    if b"\\u0000" in raw and _holds_nul(body):
        raise BadRequest("the body holds a NUL character")
    return body


async def _read(request: web.BaseRequest, timeout_seconds: float) -> bytes:
    try:
        if request._payload.is_eof():
            return await request.read()
        _ask_for_body(request)
        async with asyncio.timeout(timeout_seconds * random.uniform(1, BODY_TIMEOUTS_SPREAD)):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(request) from None
    except TimeoutError:
        raise BadRequest(f"the body did not arrive within {timeout_seconds:g} s", 408) from None
    except web.RequestPayloadError as error:
        reason = " ".join(str(error).rpartition("message:")[2].split())  # aiohttp puts a status before it
        raise BadRequest(f"the body cannot be read: {reason}") from error


def _ask_for_body(request: web.BaseRequest) -> None:
    """Have a client send the body that it holds back until somebody wants it (RFC 9110, section 10.1.1)."""
    if request.headers.get("Expect", "").strip().lower() != "100-continue" or request.version != HttpVersion11:
        return
    transport = request.transport
    if transport is not None and not transport.is_closing():
        transport.write(CONTINUE)


def _holds_nul(value: JSON) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


def _exact(digits: str) -> int:
    """Refuse an integer that orjson has made a float, and so another number."""
    number = int(digits) if len(digits) <= 20 else 2**64
    if not -(2**63) <= number < 2**64:
        raise ValueError("an integer in it does not fit in 64 bits")
    return number


def _too_deep() -> BadRequest:
    return BadRequest(f"the body is nested more than {MAX_DEPTH} deep")


def _too_large(request: web.BaseRequest) -> BadRequest:
    return BadRequest(f"the body is larger than {request._client_max_size} bytes", 413)


def parse_query(query: str) -> dict[str, list[str]]:
    """Return the values of each query parameter. Raises :class:`BadRequest` if they are no text or too many."""
    if "%00" in query:
        raise BadRequest("the query holds a NUL character")
    try:
        return parse_qs(query, keep_blank_values=True, errors="strict", max_num_fields=MAX_QUERY_FIELDS)
    except UnicodeDecodeError:
        raise BadRequest("the query is not UTF-8") from None
    except ValueError as error:
        raise BadRequest(f"the query cannot be read: {error}") from error


__all__ = ["parse_query", "read_json"]
