"""What a client sends: the body as JSON, and the query. Whatever cannot be read is its mistake."""

from __future__ import annotations

import asyncio
import random
import zlib
from urllib.parse import parse_qs

import orjson
from aiohttp import HttpVersion11, web

from orchestrator_core.depth import check_integers, is_deeper
from orchestrator_core.errors import BadRequest
from orchestrator_core.expressions import MISSING, Missing
from orchestrator_core.http.answers import JSON_TYPE
from orchestrator_core.plugin_api import JSON

MAX_QUERY_FIELDS = 1000
MAX_DEPTH = 100
BODY_TIMEOUTS_SPREAD = 1.15
"""Clients that came together are not given up in one moment, which would keep the others waiting."""

CODINGS = frozenset({"gzip", "deflate"})
ACCEPTED = f"Accept: {JSON_TYPE}\r\nAccept-Encoding: {', '.join(sorted(CODINGS))}\r\n"
"""What a 415 says of bodies that are read (RFC 9110, section 15.5.16)."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


async def read_json(request: web.BaseRequest, timeout_seconds: float) -> JSON | Missing:
    """Return the body of a request, MISSING if it is empty. Raises :class:`BadRequest` if it is not JSON."""
    length = request.content_length
    if length is not None and length > request._client_max_size:
        raise _too_large(request)
    coding = request.headers.get("Content-Encoding")
    if coding is not None and (coding := coding.strip().lower()) not in CODINGS:
        if coding not in ("identity", ""):
            raise _unknown_coding(coding)
        coding = None
    raw = await _read(request, timeout_seconds)
    if not raw:
        return MISSING
    if coding is not None:
        raw = _decoded(raw, coding, request)
    content_type = request.headers.get("Content-Type", JSON_TYPE).partition(";")[0].strip().lower()
    if content_type != JSON_TYPE and not content_type.endswith("+json"):
        raise BadRequest(f"the body must be {JSON_TYPE}, not {content_type}", 415)
    try:
        body: JSON = orjson.loads(raw)
        check_integers(raw)
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


def _decoded(raw: bytes, coding: str, request: web.BaseRequest) -> bytes:
    """Return a body without its content coding. No more is made of it than a body may have."""
    most = request._client_max_size
    # "deflate" is zlib's format (RFC 9110, section 8.4.1.2), and some send what is in it alone
    bits = -zlib.MAX_WBITS if coding == "deflate" and raw[0] & 0x0F != 8 else zlib.MAX_WBITS | 32
    decoder = zlib.decompressobj(bits)
    try:
        body = decoder.decompress(raw, most + 1)
    except zlib.error:
        body = b""
    if len(body) > most:
        raise _too_large(request)
    if not decoder.eof or decoder.unused_data:
        raise BadRequest(f"the body cannot be read: Can not decode content-encoding: {coding}")
    return body


def _unknown_coding(coding: str) -> BadRequest:
    return BadRequest(f"the body's Content-Encoding must be {' or '.join(sorted(CODINGS))}, not {coding[:40]}", 415)


def _ask_for_body(request: web.BaseRequest) -> None:
    """Have a client send the body that it holds back until somebody wants it."""
    transport = request.transport
    if waits_to_be_asked(request) and transport is not None and not transport.is_closing():
        transport.write(CONTINUE)


def waits_to_be_asked(request: web.BaseRequest) -> bool:
    """Return whether the client holds its body back until somebody wants it (RFC 9110, section 10.1.1)."""
    return request.headers.get("Expect", "").strip().lower() == "100-continue" and request.version == HttpVersion11


def _holds_nul(value: JSON) -> bool:
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any("\0" in key or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


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


__all__ = ["ACCEPTED", "parse_query", "read_json", "waits_to_be_asked"]
