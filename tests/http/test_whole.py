"""What is refused unread is what the parser would have read as one whole request, the connection's last or not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from unittest.mock import Mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator_core.http.whole import LONGEST, is_last_request, is_whole_request

GET = b"GET /orchestrator/d/e HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b'POST /orchestrator/d/e/7?a=b HTTP/1.1\r\nHost: x\r\ncontent-length: 7\r\nAccept: */*\r\n\r\n{"a":1}'
LAST = GET.replace(b"Host: x", b"Host: x\r\nConnection: close")


@pytest.mark.parametrize(
    "data",
    [
        GET,
        POST,
        b"GET /orchestrator/d/e?text=a/b%20c HTTP/1.1\r\nHost:x\r\nX-Empty:\r\nCONNECTION: Keep-Alive\r\n\r\n",
        b"POST /orchestrator/d/e HTTP/1.1\r\nContent-Length: 0\r\nHost: x\r\n\r\n",
        b"POST /orchestrator/d/e HTTP/1.1\r\nHOST: x\r\nContent-Length:2\r\nContent-Type: x\r\n\r\n\xff\x00",
    ],
)
def test_a_plain_request_is_known(data: bytes) -> None:
    assert is_whole_request(data)
    assert not is_last_request(data)
    assert read(data) == (1, True, False)


@pytest.mark.parametrize(
    "data",
    [
        GET.replace(b"1.1", b"1.0"),
        GET.replace(b"1.1", b"1.0").replace(b"Host: x\r\n", b""),
        POST.replace(b"1.1", b"1.0").replace(b"Accept: */*", b"Connection: close"),
        GET.replace(b"Host: x", b"CONNECTION:close\r\nHost: x"),
        POST.replace(b"Accept: */*", b"connection: Close"),
    ],
)
def test_a_plain_request_that_is_the_last_is_known(data: bytes) -> None:
    assert is_last_request(data)
    assert not is_whole_request(data)
    assert read(data) == (1, True, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GET[:-1],
        GET[1:],
        GET + b"x",
        GET + GET,
        POST[:-1],
        POST + b"x",
        POST + GET,
        b"\r\n" + GET,
        GET.replace(b"1.1", b"1.0"),
        GET.replace(b"GET", b"HEAD"),
        GET.replace(b"GET", b"get"),
        GET.replace(b"/d/e", b"/d"),
        GET.replace(b"/orchestrator/d", b"/health"),
        GET.replace(b"/d/e", b"/d/e f"),
        GET.replace(b"/d/e", b"/d/\xe9"),
        GET.replace(b"\r\n", b"\n"),
        GET.replace(b"Host: x\r\n", b""),
        GET.replace(b"Host", b"X-Host"),
        POST.replace(b"Host: x\r\n", b"").replace(b"7\r\nA", b"9\r\nA").replace(b'{"a":1}', b"\r\nHost:x"),
        *(
            GET.replace(b"Host: x", line)
            for line in (
                *(b"Connection: close", b"connection: keep-alive, close", b"Proxy-Connection: close"),
                *(b"Upgrade: websocket", b"Expect: 100-continue", b"Trailer: x", b"Transfer-Encoding: chunked"),
                *(b"Content-Length: -1", b"Content-Length: 1", b"Content-Length: 0\r\nContent-Length: 0"),
                *(b"Host : x", b"Host: \xe9", b"Host: x\r\n y", b"Host", b": x"),
            )
        ),
        b"GET /orchestrator/d/e HTTP/1.1\r\nX: %b\r\n\r\n" % (b"x" * LONGEST),
    ],
)
def test_anything_else_is_left_to_the_parser(data: bytes) -> None:
    assert not is_whole_request(data)


@pytest.mark.parametrize(
    "data",
    [
        *(
            LAST[:-1],
            LAST + b"x",
            LAST + LAST,
            LAST + GET,
            LAST.replace(b"Host", b"X-Host"),
            LAST.replace(b"1.1", b"1.2"),
        ),
        LAST.replace(b"close", b"close, keep-alive"),
        LAST.replace(b"Host: x", b"Host: x\r\nConnection: keep-alive"),
        LAST.replace(b"Host: x", b"Host: x\r\nUpgrade: websocket"),
        LAST.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        LAST.replace(b"/orchestrator/d", b"/health"),
        GET.replace(b"1.1\r\n", b"1.0\r\nConnection: keep-alive\r\n"),
    ],
)
def test_what_may_not_be_the_last_is_left_to_the_parser(data: bytes) -> None:
    assert not is_last_request(data)


def read(data: bytes) -> tuple[int, bool, bool]:
    """Return how many requests aiohttp reads, and of the last one whether it is whole and ends the connection."""
    loop = asyncio.new_event_loop()
    try:
        protocol = Mock(BaseProtocol)
        parser = HttpRequestParser(protocol, loop, 2**16, max_line_size=8190, max_field_size=8190)
        messages, upgraded, tail = parser.feed_data(data)
    finally:
        loop.close()
    message, payload = messages[-1]
    return len(messages), payload.is_eof() and not upgraded and not tail, message.should_close


PATHS = ("/orchestrator/d/e", "/orchestrator/d/e?x=/", "/orchestrator/d", "/orchestrator//", "/orchestrator/a b/c")
names = st.from_regex(r"[A-Za-z0-9-]+", fullmatch=True) | st.sampled_from(
    ["Connection", "proxy-connection", "CONTENT-LENGTH", "Transfer-Encoding", "upgrade", "expect", "trailer", "TE"]
)
values = st.text("ab,:;= \t", max_size=8) | st.sampled_from(
    ["close", "keep-alive", "chunked", "0", "2", "websocket", "é"]
)


def mostly(*usual: str, rarely: Sequence[str]) -> st.SearchStrategy[str]:
    return st.sampled_from([*usual * 8, *rarely])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(mostly("GET", "POST", rarely=("PUT", "get")))
    path = draw(st.sampled_from(PATHS) | st.text("/ab%?#\x00\x7f", max_size=8).map("/orchestrator/d/{}".format))
    version = draw(mostly("HTTP/1.1", "HTTP/1.0", rarely=("HTTP/1.2",)))
    headers = draw(st.lists(st.builds("{}:{}".format, names, values), max_size=4))
    headers += draw(st.sampled_from([[], ["Connection: close"], ["connection:keep-alive"]]))
    end = draw(mostly("\r\n", rarely=("\n",)))
    body = draw(mostly("", "{}", rarely=("\r\n", GET.decode())))
    return (end.join([f"{method} {path} {version}", "Host: x", *headers, "", ""]) + body).encode()


@given(requests())
@example(GET)
@example(POST)
@example(LAST)
def test_what_is_known_is_one_request_to_the_parser_too(data: bytes) -> None:
    for is_known, ends in ((is_whole_request, False), (is_last_request, True)):
        if is_known(data):
            try:
                found = read(data)
            except BadHttpMessage:  # it would have been refused in any case
                return
            assert found == (1, True, ends)
