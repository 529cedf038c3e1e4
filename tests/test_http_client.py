from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import os
import random
import ssl
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from attrs import evolve, frozen
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.errors import SourceError
from orchestrator_core.http_client import (
    HttpClient,
    HttpConnectError,
    HttpOptions,
    HttpOrigin,
    HttpProtocolError,
    HttpResponse,
    HttpTimeout,
    PoolStats,
    ResponseTooLarge,
    TlsOptions,
)
from orchestrator_core.http_client.pool import Expired
from orchestrator_core.http_client.resends import FEW, Resends
from tests.hostile_server import (
    Behaviour,
    Peer,
    Server,
    always,
    answers_then_closes_on_next_request,
    babbles,
    chunked,
    closes_at_once,
    closes_unanswered,
    drip,
    forever,
    gzipped,
    hostile,
    in_turn,
    moody,
    never_answers,
    ok,
    once,
    silent,
    tunnelling,
)

Run = Callable[[Coroutine[Any, Any, None]], None]
EMPTY = PoolStats(open=0, idle=0, in_use=0, waiting=0)


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run a scenario on each kind of event loop; nothing may be left running, open or unretrieved after it."""

    async def guarded(scenario: Coroutine[Any, Any, None]) -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        gc.freeze()  # the libraries of other tests take a collection longer than a scenario takes
        try:
            async with asyncio.timeout(30):
                await scenario
            await eventually(lambda: asyncio.all_tasks() == {asyncio.current_task()})
            gc.collect()
        finally:
            gc.unfreeze()
        assert complaints == []

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda scenario: runner.run(guarded(scenario))


async def eventually(holds: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110  # what is waited for is the peer's doing, which sets no event
            await asyncio.sleep(0.001)


@asynccontextmanager
async def connected(
    behaviour: Behaviour, options: HttpOptions | None = None, path: str = ""
) -> AsyncIterator[tuple[Server, HttpOrigin]]:
    async with (
        hostile(behaviour) as server,
        HttpClient() as client,
        client.origin(server.url + path, options or HttpOptions()) as origin,
    ):
        yield server, origin


async def answer_to(behaviour: Behaviour, options: HttpOptions | None = None, method: str = "GET") -> HttpResponse:
    async with connected(behaviour, options) as (_, origin):
        return await origin.request(method, "/x")


async def failure_of(behaviour: Behaviour, options: HttpOptions | None = None, method: str = "GET") -> SourceError:
    """The error of one call; its message has the server's URL replaced by ``URL``, and no connection may be left."""
    async with connected(behaviour, options) as (server, origin):
        with pytest.raises(SourceError) as caught:
            await origin.request(method, "/x")
        assert origin.stats == EMPTY
        await eventually(lambda: server.open == 0)
        caught.value.args = (str(caught.value).replace(server.url, "URL"),)
        return caught.value


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_a_request_carries_the_joined_path_the_headers_and_the_body(run: Run) -> None:
    async def scenario() -> None:
        options = HttpOptions(headers={"X-Team": "risk", "accept-encoding": "identity"})
        async with connected(always(ok()), options, path="/api/v1/") as (server, origin):
            await origin.request("POST", "/score?a=1", headers={"x-team": "fraud", "X-Id": "7"}, body=b"{}")
            received = server.requests[0]
            assert (received.method, received.target, received.body) == ("POST", "/api/v1/score?a=1", b"{}")
            assert received.headers == {
                "host": server.url.removeprefix("http://"),
                "accept-encoding": "identity",
                "x-team": "fraud",
                "x-id": "7",
                "content-length": "2",
            }

    run(scenario())


@pytest.mark.parametrize(
    ("path", "target", "sent"),
    [
        ("", "", "/"),
        ("/", "", "/"),
        ("/a", "", "/a"),
        ("/a/", "/b", "/a/b"),
        ("", "?q=1", "/?q=1"),
        ("/a", "?q", "/a?q"),
    ],
)
def test_the_target_is_appended_to_the_path_of_the_base_url(run: Run, path: str, target: str, sent: str) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), path=path) as (server, origin):
            await origin.request("GET", target)
            assert server.requests[0].target == sent

    run(scenario())


def test_a_post_without_body_says_so_and_a_get_says_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok())) as (server, origin):
            await origin.request("POST", "/")
            await origin.request("GET", "/")
            assert [request.headers.get("content-length") for request in server.requests] == ["0", None]

    run(scenario())


def test_a_prepared_call_and_a_route_send_what_request_sends(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), path="/v1") as (server, origin):
            headers = {"Content-Type": "application/json"}
            await origin.request("POST", "/p?q=1", headers=headers, body=b"[1]")
            prepared = origin.prepare("POST", "/p?q=1", headers=headers)
            route = origin.route("POST", headers=headers)
            assert [(await prepared(b"[1]")).body, (await route("/p?q=1", b"[1]")).body] == [b"ok", b"ok"]
            assert server.requests[0] == server.requests[1] == server.requests[2]
            assert server.connections == 1

    run(scenario())


def test_credentials_in_the_base_url_become_basic_authorization(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(always(ok())) as server, HttpClient() as client:
            url = server.url.replace("://", "://us%40er:p%3Aw@")
            async with client.origin(url) as origin:
                await origin.request("GET", "/")
            assert server.requests[0].headers["authorization"] == "Basic dXNAZXI6cDp3"

    run(scenario())


@given(text=st.text(), place=st.integers(0, 3))
def test_nothing_that_could_end_a_line_or_a_word_is_ever_sent(text: str, place: int) -> None:
    from orchestrator_core.http_client.request import FormBuilder, parse_url

    forms = FormBuilder.for_origin(parse_url("http://h:1"), {}, None)
    method, target, name, value = [text if place == index else "x" for index in range(4)]
    with contextlib.suppress(ValueError):
        head = forms.build(method, {name: value}, None).head(f"/{target}").open_head
        assert head.count(b"\r\n") == head.count(b"\n") == head.count(b"\r") == 4
        assert head.split(b"\r\n")[0].count(b" ") == 2
        assert b"\0" not in head


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"target": "/a b"},
            (
                "target '/a b' must be empty or start with '/' or '?', without spaces, control characters, '#' or "
                "characters outside ASCII: percent-encode them"
            ),
        ),
        ({"method": "GET /x HTTP/1.1\r\n"}, "'GET /x HTTP/1.1\\r\\n' is not a method this client can send"),
        ({"headers": {"X\r\nY": "1"}}, "'X\\r\\nY' is not a header name"),
        (
            {"headers": {"Authorization": "secret\r\nX: 1"}},
            "the value of header Authorization has a line break, a control character or one outside Latin-1",
        ),
        ({"headers": {"Content-length": "3"}}, "header Content-length is set by the client itself"),
    ],
)
def test_what_cannot_be_sent_safely_is_refused(run: Run, arguments: dict[str, Any], message: str) -> None:
    async def scenario() -> None:
        async with connected(always(ok())) as (server, origin):
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
                await origin.request(**{"method": "GET", "target": "/", **arguments})
            assert str(caught.value) == message
            assert server.connections == 0

    run(scenario())


UNREADABLE = "base_url is not a URL: its host or port cannot be read; percent-encode what is special in a password"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host", "base_url must start with http://host or https://host"),
        ("http://user:secret@", "base_url must start with http://host or https://host"),
        ("http://host/?key=secret", "base_url must not have a query or a fragment"),
        ("http://host:99999", UNREADABLE),
        ("http://user:sec/ret@host", UNREADABLE),
        ("http://[user:secret@host", UNREADABLE),
        (
            "http://host/\r\nX: 1",
            "base_url has a space, a control character or a character outside ASCII: percent-encode it",
        ),
    ],
)
def test_a_base_url_that_cannot_be_used_is_refused_without_repeating_it(run: Run, url: str, message: str) -> None:
    async def scenario() -> None:
        async with HttpClient() as client:
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared
                await client.origin(url).__aenter__()
            assert str(caught.value) == message

    run(scenario())


def test_a_long_path_is_cut_short_in_messages(run: Run) -> None:
    async def scenario() -> None:
        async with connected(once(b"")) as (server, origin):
            with pytest.raises(SourceError) as caught:
                await origin.request("GET", "/" + "x" * 1000 + "?secret=1")
            assert str(caught.value).startswith(f"GET {server.url}/{'x' * 299}…?…: the peer closed ")

    run(scenario())


def test_options_do_not_show_their_secrets() -> None:
    options = HttpOptions(proxy="http://u:secret@p", headers={"Authorization": "secret"})
    assert "secret" not in repr(options)


@pytest.mark.parametrize("field", ["timeout_seconds", "connect_timeout_seconds", "max_connections"])
def test_options_that_make_no_sense_are_refused(field: str) -> None:
    senseless: dict[str, Any] = {field: 0}
    with pytest.raises(ValueError, match=field):
        HttpOptions(**senseless)


def test_a_large_body_arrives_whole_however_slowly_it_is_read(run: Run) -> None:
    body = bytes(range(256)) * 40_000

    async def slow_reader(peer: Peer) -> None:
        peer.reader._limit = 1024  # type: ignore[attr-defined]  # read little ahead, so that the client must wait
        await peer.request()
        await peer.send(ok())

    async def scenario() -> None:
        async with connected(slow_reader) as (server, origin):
            assert (await origin.request("PUT", "/", body=body)).body == b"ok"
            assert server.requests[0].body == body

    run(scenario())


def test_a_server_that_refuses_a_large_body_early_is_heard_and_the_connection_is_not_reused(run: Run) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(ok(b"too much", status="413 Content Too Large"))
        await asyncio.sleep(0.05)

    async def scenario() -> None:
        async with connected(refuse) as (_, origin):
            answer = await origin.request("POST", "/", body=bytes(30_000_000))
            assert (answer.status, answer.body) == (413, b"too much")
            assert origin.stats == EMPTY

    run(scenario())


# -- what comes back ---------------------------------------------------------------------------------------------------


def test_headers_are_found_in_any_case_and_repeated_ones_are_joined(run: Run) -> None:
    async def scenario() -> None:
        answer = await answer_to(always(ok(b"{}", "X-One: 1", "Set-Cookie: a=1", "x-empty:", "set-cookie: b=2")))
        assert dict(answer.headers) == {
            "x-one": "1",
            "set-cookie": "a=1, b=2",
            "x-empty": "",
            "content-length": "2",
        }
        assert (answer.headers["X-ONE"], "x-ONE" in answer.headers, len(answer.headers)) == ("1", True, 4)
        assert answer.headers.get_all("Set-Cookie") == ["a=1", "b=2"]
        assert repr(answer.headers) == "Headers(['x-one', 'set-cookie', 'x-empty', 'content-length'])"

    run(scenario())


def test_trailers_and_interim_headers_do_not_become_headers(run: Run) -> None:
    async def scenario() -> None:
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
        answer = await answer_to(always(interim + chunked(b"ok", trailers=b"X-User: admin\r\n")))
        assert dict(answer.headers) == {"transfer-encoding": "chunked"}

    run(scenario())


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Oops", "302 Found"])
def test_any_status_is_an_answer(run: Run, status: str) -> None:
    async def scenario() -> None:
        answer = await answer_to(always(ok(b"body", status=status)))
        assert (answer.status, answer.body) == (int(status[:3]), b"body")

    run(scenario())


def test_json_is_parsed_and_what_is_not_json_names_the_call(run: Run) -> None:
    async def scenario() -> None:
        async with connected(in_turn(once(ok(b'{"a": [1]}')), once(ok(b"<html>")))) as (server, origin):
            assert (await origin.request("GET", "/x")).json() == {"a": [1]}
            await eventually(lambda: origin.stats == EMPTY)
            answer = await origin.request("GET", "/x?key=secret")
            with pytest.raises(SourceError) as caught:
                answer.json()
            assert str(caught.value).startswith(f"GET {server.url}/x?…: the answer (status 200) is not JSON: ")
            assert str(caught.value).endswith(": line 1 column 1 (char 0)")

    run(scenario())


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"id": 123456789012345678901234567890}', "an integer in it does not fit in 64 bits"),
        (b"[" * 201 + b"]" * 201, "it is nested more than 200 deep"),
    ],
)
def test_json_that_no_answer_can_hold_is_none(run: Run, body: bytes, why: str) -> None:
    async def scenario() -> None:
        answer = await answer_to(always(ok(body)))
        with pytest.raises(SourceError, match=f"the answer \\(status 200\\) is not JSON: {why}$"):
            answer.json()

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        ok(b"hello"),
        chunked(b"he", b"llo"),
        chunked(b"hello", trailers=b"X-Sum: 1\r\nX-Other: 2\r\n"),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + ok(b"hello"),
        gzipped(b"hello"),
        ok(zlib.compress(b"hello"), "Content-Encoding: deflate"),
        ok(zlib.compress(b"hello", wbits=-15), "Content-Encoding: deflate"),
        ok(b"hello", "Content-Encoding: identity"),
    ],
    ids=["length", "chunked", "trailers", "interim", "gzip", "deflate", "raw-deflate", "identity"],
)
@pytest.mark.parametrize("pace", [always, drip])
def test_a_body_in_any_form_and_pace_is_read_and_the_connection_is_reused(
    run: Run, answer: bytes, pace: Callable[[bytes], Behaviour]
) -> None:
    async def scenario() -> None:
        async with connected(pace(answer)) as (server, origin):
            assert [(await origin.request("GET", "/")).body for _ in range(2)] == [b"hello", b"hello"]
            assert (server.connections, origin.stats.idle) == (1, 1)

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        ok(b"hello", "Connection: close"),
    ],
    ids=["until-close", "1.0-until-close", "1.0-length", "close"],
)
def test_an_answer_that_ends_its_connection_is_read_and_the_next_call_connects_anew(run: Run, answer: bytes) -> None:
    async def scenario() -> None:
        async with connected(once(answer)) as (server, origin):
            assert [(await origin.request("GET", "/")).body for _ in range(2)] == [b"hello", b"hello"]
            assert server.connections == 2
            await eventually(lambda: origin.stats == EMPTY)

    run(scenario())


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nContent-Encoding: gzip\r\n\r\n"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ],
)
def test_an_answer_without_body_does_not_wait_for_one(run: Run, method: str, answer: bytes) -> None:
    async def scenario() -> None:
        async with connected(always(answer)) as (server, origin):
            assert [(await origin.request(method, "/")).body for _ in range(3)] == [b"", b"", b""]
            assert server.connections == 1

    run(scenario())


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", ok() + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
        ("GET", ok() + b"HTTP/1.1 200 OK\r\n"),
        ("GET", ok() + b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", ok() + b"x"),
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\npoison"),
    ],
)
def test_bytes_after_an_answer_never_become_the_next_one(run: Run, method: str, answer: bytes) -> None:
    async def scenario() -> None:
        async with connected(in_turn(always(answer), always(ok(b"clean")))) as (server, origin):
            assert (await origin.request(method, "/")).status in (200, 204)
            assert (await origin.request("GET", "/")).body == b"clean"
            assert server.connections == 2

    run(scenario())


def test_data_on_an_idle_connection_drops_it(run: Run) -> None:
    speak = asyncio.Event()

    async def talkative(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())
        await speak.wait()
        await peer.send(ok(b"poison"))
        await peer.until_client_closes()

    async def scenario() -> None:
        async with connected(in_turn(talkative, always(ok(b"clean")))) as (_, origin):
            await origin.request("GET", "/")
            speak.set()
            await eventually(lambda: origin.stats == EMPTY)
            assert (await origin.request("GET", "/")).body == b"clean"

    run(scenario())


# -- what must not be believed -----------------------------------------------------------------------------------------

HEAD = b"HTTP/1.1 200 OK\r\n"
NOT_HTTP = "GET URL/x: the answer is not HTTP/1.1: "
CUT = "GET URL/x: the peer closed the connection in the middle of the answer"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"\x16\x03\x01garbage", NOT_HTTP + "Expected HTTP/, RTSP/ or ICE/"),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", NOT_HTTP + "Missing expected CR after response line"),
        (b"HTTP/1.1 000 No\r\nContent-Length: 2\r\n\r\nok", "GET URL/x: the answer has the status 0"),
        (HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", NOT_HTTP + "Duplicate Content-Length"),
        (HEAD + b"Content-Length: 2, 2\r\n\r\nok", NOT_HTTP + "Invalid character in Content-Length"),
        (HEAD + b"Content-Length: -2\r\n\r\nok", NOT_HTTP + "Invalid character in Content-Length"),
        (
            HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            NOT_HTTP + "Content-Length can't be present with Transfer-Encoding",
        ),
        (
            HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            NOT_HTTP + "Transfer-Encoding can't be present with Content-Length",
        ),
        (
            HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "GET URL/x: the answer has the transfer encoding 'gzip, chunked', not 'chunked'",
        ),
        (
            HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            "GET URL/x: the answer has the transfer encoding 'gzip', not 'chunked'",
        ),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n", NOT_HTTP + "Invalid character in chunk size"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nok\r\n", NOT_HTTP + "Expected LF after chunk data"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 20 + b"\r\nok", NOT_HTTP + "Chunk size overflow"),
        (
            HEAD + b"A: b\r\n folded\r\nContent-Length: 2\r\n\r\nok",
            NOT_HTTP + "Unexpected whitespace after header value",
        ),
        (HEAD + b"A: b\0c\r\nContent-Length: 2\r\n\r\nok", NOT_HTTP + "Invalid header value char"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
            NOT_HTTP + "it switches to another protocol",
        ),
        (ok(b"hi", "Content-Encoding: br"), "GET URL/x: the answer has the content encoding 'br', not asked for"),
        (
            ok(b"hi", "Content-Encoding: gzip"),
            "GET URL/x: the answer's gzip body is damaged: Error -3 while decompressing data: incorrect header check",
        ),
        (
            ok(b"hi", "Content-Encoding: gzip", "Content-Encoding: gzip"),
            "GET URL/x: the answer has the content encoding 'gzip,gzip', not asked for",
        ),
    ],
)
def test_a_malformed_answer_is_an_error_and_ends_its_connection(run: Run, answer: bytes, message: str) -> None:
    async def scenario() -> None:
        error = await failure_of(always(answer))
        assert (type(error), str(error), error.transient) == (HttpProtocolError, message, False)

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"", "GET URL/x: the peer closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", CUT),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nok", CUT),
        (chunked(b"ok")[:-2], CUT),
        (b"HTTP/1.1 100 Continue\r\n\r\n", CUT),
        (
            ok(gzipped(b"hello" * 99).partition(b"\r\n\r\n")[2][:-9], "Content-Encoding: gzip"),
            "GET URL/x: the answer's compressed body ended too soon",
        ),
    ],
    ids=["nothing", "headers", "length", "chunks", "interim", "gzip"],
)
def test_a_truncated_answer_is_a_transient_error_and_never_half_an_answer(
    run: Run, answer: bytes, message: str
) -> None:
    async def scenario() -> None:
        error = await failure_of(once(answer))
        assert (type(error), str(error), error.transient) == (HttpProtocolError, message, True)

    run(scenario())


@pytest.mark.parametrize(
    "behaviour",
    [
        forever(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 10_000),
        forever(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100),
        forever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100),
        always(ok(b"", *["X: y"] * 201)),
        always(ok(b"", "X: " + "x" * 2**16)),
    ],
    ids=["one-header", "many-headers", "interim", "201-headers", "64-KiB-header"],
)
def test_headers_without_bound_are_refused(run: Run, behaviour: Behaviour) -> None:
    async def scenario() -> None:
        error = await failure_of(behaviour)
        assert str(error) == "GET URL/x: the answer's headers are more than 200 or larger than 65536 bytes"
        assert type(error) is HttpProtocolError

    run(scenario())


@pytest.mark.parametrize("more", [b"T: y\r\n" * 1000, b"x" * 10_000], ids=["many-trailers", "one-trailer"])
def test_trailers_without_bound_are_refused(run: Run, more: bytes) -> None:
    async def scenario() -> None:
        start = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "
        error = await failure_of(forever(start, more), HttpOptions(max_response_bytes=1000))
        assert str(error) == "GET URL/x: the answer's chunk headers or trailers are too large"

    run(scenario())


@pytest.mark.parametrize(
    "behaviour",
    [
        always(ok(b"x" * 1001)),
        forever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100),
        forever(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"64\r\n" + b"x" * 100 + b"\r\n"),
        always(gzipped(b"x" * 1001)),
        always(gzipped(bytes(2**27))),
    ],
    ids=["length", "until-close", "chunked", "gzip", "bomb"],
)
def test_a_body_larger_than_allowed_is_refused(run: Run, behaviour: Behaviour) -> None:
    async def scenario() -> None:
        error = await failure_of(behaviour, HttpOptions(max_response_bytes=1000))
        assert str(error) == "GET URL/x: the answer is larger than max_response_bytes, 1000"
        assert (type(error), error.transient) == (ResponseTooLarge, False)

    run(scenario())


def test_a_gzip_bomb_is_not_inflated(run: Run) -> None:
    import tracemalloc

    bomb = gzipped(bytes(2**28))

    async def scenario() -> None:
        tracemalloc.start()
        try:
            await failure_of(always(bomb), HttpOptions(max_response_bytes=2**20))
            assert tracemalloc.get_traced_memory()[1] < 2**23
        finally:
            tracemalloc.stop()

    run(scenario())


def test_a_body_that_is_announced_as_too_large_is_not_waited_for(run: Run) -> None:
    async def announces(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 52428800\r\n\r\n")
        await peer.until_client_closes()

    async def scenario() -> None:
        started = time.monotonic()
        error = await failure_of(announces, HttpOptions(max_response_bytes=1000, timeout_seconds=10))
        assert str(error) == "GET URL/x: the answer is larger than max_response_bytes, 1000"
        assert time.monotonic() - started < 5

    run(scenario())


def test_a_body_of_several_compressed_streams_is_read_and_one_of_very_many_refused(run: Run) -> None:
    """What is left behind a stream is copied: without slices, 2 MiB of empty streams took 5 s of the event loop."""
    streams = b"".join(gzip.compress(bytes([65 + number % 26]) * 300) for number in range(1000))
    text = b"".join(bytes([65 + number % 26]) * 300 for number in range(1000))
    empty = gzip.compress(b"") * 100_000

    async def scenario() -> None:
        assert (await answer_to(always(ok(streams, "Content-Encoding: gzip")))).body == text
        large = gzip.compress(random.Random(7).randbytes(200_000))  # more than one slice, incompressible
        assert len((await answer_to(always(ok(large + large, "Content-Encoding: gzip")))).body) == 400_000
        started = time.process_time()
        error = await failure_of(always(ok(empty, "Content-Encoding: gzip")), HttpOptions())
        assert str(error) == "GET URL/x: the answer's body is more than 1000 compressed streams"
        assert time.process_time() - started < 1

    run(scenario())


def test_a_body_of_exactly_the_allowed_size_is_read(run: Run) -> None:
    async def scenario() -> None:
        for behaviour in (always(ok(b"x" * 1000)), always(gzipped(b"x" * 1000)), always(chunked(*[b"x"] * 1000))):
            assert (await answer_to(behaviour, HttpOptions(max_response_bytes=1000))).body == b"x" * 1000

    run(scenario())


# -- redirects ---------------------------------------------------------------------------------------------------------


def redirect(location: str, status: int = 302) -> bytes:
    return ok(b"", f"Location: {location}", status=f"{status} Elsewhere")


def test_redirects_are_returned_and_not_followed(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(redirect("/y"))) as (server, origin):
            answer = await origin.request("GET", "/x")
            assert (answer.status, answer.headers["location"], len(server.requests)) == (302, "/y", 1)

    run(scenario())


@pytest.mark.parametrize(
    ("method", "status", "targets"),
    [("GET", 302, ["/x", "/y?z=1"]), ("POST", 307, ["/x", "/y?z=1"]), ("POST", 302, ["/x"]), ("GET", 304, ["/x"])],
)
def test_redirects_on_the_origin_are_followed_where_asked_to(
    run: Run, method: str, status: int, targets: list[str]
) -> None:
    async def behave(peer: Peer) -> None:
        while True:
            received = await peer.request()
            await peer.send(redirect("y?z=1#part", status) if received.target == "/x" else ok(b"found"))

    async def scenario() -> None:
        async with connected(behave, HttpOptions(follow_redirects=3)) as (server, origin):
            await origin.request(method, "/x", body=b"data" if method == "POST" else None)
            assert [request.target for request in server.requests] == targets
            assert len({(request.method, request.body) for request in server.requests}) == 1

    run(scenario())


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:1/", "https://127.0.0.1/", "//elsewhere/", "/a b", "/a?b c", "http://[", "/x\x85"]
)
def test_redirects_to_another_origin_or_to_nonsense_are_not_followed(run: Run, location: str) -> None:
    async def scenario() -> None:
        async with connected(always(redirect(location)), HttpOptions(follow_redirects=3)) as (server, origin):
            assert ((await origin.request("GET", "/x")).status, len(server.requests)) == (302, 1)

    run(scenario())


def test_a_redirect_loop_ends_with_the_last_redirect(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(redirect("/x")), HttpOptions(follow_redirects=3)) as (server, origin):
            assert (await origin.request("GET", "/x")).status == 302
            assert len(server.requests) == 4

    run(scenario())


# -- connections that were kept ----------------------------------------------------------------------------------------


def test_a_connection_that_the_server_closed_while_idle_is_not_used_again(run: Run) -> None:
    async def scenario() -> None:
        async with connected(once(ok())) as (server, origin):
            for _ in range(3):
                await origin.request("POST", "/", body=b"pay")
                await eventually(lambda: server.open == 0 and origin.stats == EMPTY)
            assert (server.connections, len(server.requests)) == (3, 3)

    run(scenario())


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_an_idempotent_request_on_a_dead_kept_connection_is_sent_again_on_a_fresh_one(run: Run, method: str) -> None:
    behaviour = in_turn(answers_then_closes_on_next_request(b"HTTP/1.1 204 No\r\n\r\n"), always(ok(b"")))

    async def scenario() -> None:
        async with connected(behaviour) as (server, origin):
            await origin.request(method, "/")
            assert (await origin.request(method, "/")).status == 200
            assert (server.connections, len(server.requests)) == (2, 3)

    run(scenario())


def test_a_post_on_a_dead_kept_connection_is_an_error_and_is_not_sent_twice(run: Run) -> None:
    async def scenario() -> None:
        async with connected(answers_then_closes_on_next_request(ok())) as (server, origin):
            await origin.request("POST", "/", body=b"pay 1")
            with pytest.raises(HttpConnectError) as caught:
                await origin.request("POST", "/", body=b"pay 2")
            assert str(caught.value) == (
                f"POST {server.url}/: the peer closed the kept-alive connection without an answer, "
                "and the request must not be sent twice"
            )
            assert caught.value.transient
            assert [request.body for request in server.requests] == [b"pay 1", b"pay 2"]
            assert origin.stats == EMPTY

    run(scenario())


def test_a_post_said_to_be_idempotent_is_sent_again(run: Run) -> None:
    async def scenario() -> None:
        async with connected(in_turn(answers_then_closes_on_next_request(ok()), always(ok(b"new")))) as (_, origin):
            predict = origin.prepare("POST", "/predict", idempotent=True)
            await predict(b"[]")
            assert (await predict(b"[]")).body == b"new"

    run(scenario())


def test_a_request_is_sent_again_once_and_not_on_another_kept_connection(run: Run) -> None:
    dead = answers_then_closes_on_next_request(ok())

    async def scenario() -> None:
        async with connected(in_turn(dead, dead, closes_unanswered)) as (server, origin):
            await asyncio.gather(origin.request("GET", "/"), origin.request("GET", "/"))
            assert origin.stats.idle == 2
            with pytest.raises(HttpProtocolError, match="without an answer"):
                await origin.request("GET", "/")
            assert (server.connections, len(server.requests)) == (3, 4)

    run(scenario())


def test_a_request_that_is_sent_again_is_not_handed_a_connection_that_others_kept(run: Run) -> None:
    dead = answers_then_closes_on_next_request(ok())

    async def scenario() -> None:
        options = HttpOptions(max_connections=1)
        async with connected(in_turn(dead, dead, always(ok(b"new"))), options) as (server, origin):
            await origin.request("GET", "/")
            again, other = await asyncio.gather(origin.request("GET", "/"), origin.request("GET", "/"))
            assert (again.body, other.body) == (b"new", b"ok")
            assert server.connections == 3

    run(scenario())


def test_a_server_that_closes_each_connection_on_its_second_request_is_not_sent_everything_twice(run: Run) -> None:
    async def scenario() -> None:
        async with connected(answers_then_closes_on_next_request(ok())) as (server, origin):
            for _ in range(100):
                assert (await origin.request("GET", "/")).status == 200
            assert len(server.requests) == 100 + FEW + 1
            assert origin.stats.open == 0

    run(scenario())


def test_how_often_a_request_may_be_sent_again_goes_by_what_was_answered_of_late() -> None:
    resends = Resends(now=0.0)

    def taken(now: float, answers: int) -> int:
        return sum(resends.take(now, answers) for _ in range(1000))

    assert taken(1.0, 1000) == FEW  # nobody knows yet what is usual
    assert taken(10.5, 2100) == 400  # a fifth of those that were answered in ten seconds
    assert taken(20.0, 9000) == 0
    assert taken(3620.5, 363_200) == 200  # an hour later, of whose answers as many count
    assert taken(7220.5, 363_220) == FEW


def test_a_get_that_fails_on_a_fresh_connection_is_not_sent_again(run: Run) -> None:
    async def scenario() -> None:
        async with connected(closes_unanswered) as (server, origin):
            with pytest.raises(HttpProtocolError):
                await origin.request("GET", "/")
            assert len(server.requests) == 1

    run(scenario())


def test_idle_connections_close_after_their_time(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), HttpOptions(keepalive_seconds=0.05)) as (server, origin):
            await asyncio.gather(*(origin.request("GET", "/") for _ in range(3)))
            assert origin.stats == PoolStats(open=3, idle=3, in_use=0, waiting=0)
            await eventually(lambda: origin.stats == EMPTY and server.open == 0)

    run(scenario())


def test_connections_have_nagles_algorithm_off(run: Run) -> None:
    import socket

    async def scenario() -> None:
        async with connected(always(ok())) as (_, origin):
            await origin.request("GET", "/")
            (connection,) = origin._pool._live
            sock = connection._transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

    run(scenario())


# -- the pool ----------------------------------------------------------------------------------------------------------


def test_a_hundred_callers_share_five_connections(run: Run) -> None:
    async def scenario() -> None:
        async with connected(drip(ok(), 0.0), HttpOptions(max_connections=5)) as (server, origin):
            answers = await asyncio.gather(*(origin.request("GET", f"/{number}") for number in range(100)))
            assert [answer.body for answer in answers] == [b"ok"] * 100
            assert (server.most_open, server.connections, len(server.requests)) == (5, 5, 100)
            assert origin.stats == PoolStats(open=5, idle=5, in_use=0, waiting=0)

    run(scenario())


def test_callers_wait_in_line(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), HttpOptions(max_connections=1)) as (server, origin):
            await asyncio.gather(*(origin.request("GET", f"/{number}") for number in range(20)))
            assert [request.target for request in server.requests] == [f"/{number}" for number in range(20)]

    run(scenario())


def test_a_caller_that_leaves_the_line_does_not_hold_it_up(run: Run) -> None:
    release = asyncio.Event()

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await release.wait()
            await peer.send(ok())

    async def scenario() -> None:
        async with connected(behave, HttpOptions(max_connections=1)) as (server, origin):
            calls = [asyncio.create_task(origin.request("GET", f"/{number}")) for number in range(4)]
            await eventually(lambda: len(server.requests) == 1)
            assert origin.stats == PoolStats(open=1, idle=0, in_use=1, waiting=3)
            calls[1].cancel()
            release.set()
            await asyncio.wait(calls)
            assert [call.cancelled() for call in calls] == [False, True, False, False]
            assert [request.target for request in server.requests] == ["/0", "/2", "/3"]

    run(scenario())


def test_a_slot_handed_to_a_caller_that_is_cancelled_in_that_moment_goes_to_the_next(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), HttpOptions(max_connections=1)) as (server, origin):
            calls: list[asyncio.Task[HttpResponse]] = []

            async def first() -> HttpResponse:
                answer = await origin.request("GET", "/0")
                calls[1].cancel()  # its waiter was given the connection, and it has not run since
                return answer

            calls.append(asyncio.create_task(first()))
            calls.extend(asyncio.create_task(origin.request("GET", f"/{number}")) for number in range(1, 4))
            await asyncio.wait(calls)
            assert [call.cancelled() for call in calls] == [False, True, False, False]
            assert [request.target for request in server.requests] == ["/0", "/2", "/3"]
            assert origin.stats == PoolStats(open=1, idle=1, in_use=0, waiting=0)

    run(scenario())


def test_a_failed_call_gives_its_slot_to_the_next_in_line(run: Run) -> None:
    async def scenario() -> None:
        options = HttpOptions(max_connections=1)
        async with connected(in_turn(closes_unanswered, closes_unanswered, always(ok())), options) as (_, origin):
            results = await asyncio.gather(*(origin.request("GET", "/") for _ in range(4)), return_exceptions=True)
            assert [type(result) for result in results] == [
                HttpProtocolError,
                HttpProtocolError,
                HttpResponse,
                HttpResponse,
            ]

    run(scenario())


def test_waiting_for_a_connection_ends_with_the_time_of_the_call(run: Run) -> None:
    async def scenario() -> None:
        async with connected(never_answers, HttpOptions(max_connections=1)) as (server, origin):
            first = asyncio.create_task(origin.request("GET", "/"))
            await eventually(lambda: len(server.requests) == 1)
            with pytest.raises(HttpTimeout) as caught:
                await origin.request("GET", "/x", timeout_seconds=0.02)
            assert (caught.value.phase, caught.value.seconds, caught.value.transient) == ("pool", 0.02, True)
            assert str(caught.value) == f"GET {server.url}/x: no connection of the pool was free within 0.02 s"
            assert origin.stats == PoolStats(open=1, idle=0, in_use=1, waiting=0)
            first.cancel()
            await asyncio.wait([first])

    run(scenario())


def test_who_waits_in_vain_for_a_connection_is_told_whether_others_were_served(run: Run) -> None:
    async def scenario() -> None:
        async with connected(always(ok()), HttpOptions(max_connections=1)) as (_, origin):
            pool, seconds = origin._pool, 60.0
            head = origin._forms.build("GET", None, None).head("/")

            async def begun() -> Any:
                try:
                    return await pool.acquire(head, asyncio.get_running_loop().time() + seconds, seconds)
                except asyncio.CancelledError as error:
                    return vars(error)["begun"]
                except HttpTimeout as error:
                    return not error.busy

            lent = await begun()
            in_vain, timed_in_vain, served, late, timed = (asyncio.create_task(begun()) for _ in range(5))
            await eventually(lambda: origin.stats.waiting == 5)
            since = asyncio.get_running_loop().time()  # which uvloop tells in milliseconds
            await eventually(lambda: asyncio.get_running_loop().time() > since + 0.02)
            waiters = list(pool._waiters)
            in_vain.cancel()
            waiters[1].set_exception(Expired())
            assert [await in_vain, await timed_in_vain] == [True, True]
            pool._hand_over(lent)
            assert await served is lent
            too_late = HttpTimeout(head.call, "total", seconds)
            pool.gave_up(lent, too_late)  # it waited for longer than it had the connection
            assert too_late.busy
            late.cancel()
            waiters[4].set_exception(Expired())
            assert [await late, await timed] == [False, False]
            pool.release(lent)

    run(scenario())


def test_a_slot_that_comes_free_when_the_time_of_a_waiting_call_is_up_is_not_for_it(run: Run) -> None:
    async def scenario() -> None:
        async with connected(never_answers, HttpOptions(max_connections=1)) as (server, origin):
            first = asyncio.create_task(origin.request("GET", "/"))
            await eventually(lambda: len(server.requests) == 1)
            second = asyncio.create_task(origin.request("GET", "/x"))
            await eventually(lambda: origin.stats.waiting == 1)
            pool = origin._pool
            pool._waiters[0].set_exception(Expired())
            assert not pool._hand_over(None)
            with pytest.raises(HttpTimeout):
                await second
            first.cancel()
            await asyncio.wait([first])

    run(scenario())


def test_leaving_the_origin_fails_its_calls_and_closes_its_connections(run: Run) -> None:
    async def behave(peer: Peer) -> None:
        while (await peer.request()).target == "/idle":
            await peer.send(ok())
        await peer.until_client_closes()

    async def scenario() -> None:
        async with hostile(behave) as server, HttpClient() as client:
            async with client.origin(server.url, HttpOptions(max_connections=2)) as origin:
                calls = [asyncio.create_task(origin.request("GET", target)) for target in ("/idle", "/1", "/2", "/3")]
                await eventually(lambda: len(server.requests) == 3)
            await asyncio.wait(calls)
            errors = [call.exception() for call in calls]
            assert errors[0] is None
            assert [type(error) for error in errors[1:]] == [HttpConnectError] * 3
            assert [str(error).partition(": ")[2] for error in errors[1:]] == ["the client is closed"] * 3
            assert origin.stats == EMPTY
            await eventually(lambda: server.open == 0)
            with pytest.raises(HttpConnectError, match="the client is closed"):
                await origin.request("GET", "/")

    run(scenario())


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        never_answers,
        drip(ok(b"x" * 1000)),
        drip(b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000),
        drip(chunked(*[b"x"] * 100)),
    ],
    ids=["never", "body", "headers", "chunks"],
)
def test_an_answer_that_is_not_whole_in_time_is_a_timeout(run: Run, behaviour: Behaviour) -> None:
    async def scenario() -> None:
        error = await failure_of(behaviour, HttpOptions(timeout_seconds=0.1))
        assert isinstance(error, HttpTimeout)
        assert (error.phase, error.seconds, error.transient) == ("total", 0.1, True)
        assert str(error) == "GET URL/x: no complete answer came within 0.1 s"

    run(scenario())


def test_each_call_has_its_own_time(run: Run) -> None:
    async def scenario() -> None:
        async with connected(never_answers) as (_, origin):
            loop = asyncio.get_running_loop()
            started = loop.time()
            seconds = [0.3, 0.1, 0.2, 0.15]
            ended: list[tuple[float, float]] = []

            async def call(time: float) -> None:
                with pytest.raises(HttpTimeout, match=f"within {time:g} s"):
                    await origin.prepare("POST", "/", timeout_seconds=time)(b"{}")
                ended.append((time, loop.time() - started))

            await asyncio.gather(*map(call, seconds))
            assert [time for time, _ in ended] == sorted(seconds)
            assert all(end > time - 0.005 for time, end in ended)  # uvloop's clock ticks in milliseconds
            assert origin.stats == EMPTY

    run(scenario())


def test_a_refused_connection_is_a_transient_connect_error(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(silent) as server:
            url = server.url
        async with HttpClient() as client, client.origin(url) as origin:
            with pytest.raises(HttpConnectError) as caught:
                await origin.request("GET", "/?key=secret")
            assert str(caught.value).startswith(f"GET {url}/?…: cannot connect: [Errno ")
            assert (caught.value.transient, origin.stats) == (True, EMPTY)

    run(scenario())


def test_an_unknown_host_is_a_transient_connect_error(run: Run) -> None:
    async def scenario() -> None:
        async def resolve(_host: str, _port: int) -> list[Any]:
            return []

        async with HttpClient(resolve=resolve) as client, client.origin("http://nowhere.test/v1") as origin:
            with pytest.raises(HttpConnectError) as caught:
                await origin.request("GET", "/x")
            assert str(caught.value) == "GET http://nowhere.test/v1/x: cannot connect: nowhere.test has no address"
            assert caught.value.transient

    run(scenario())


def test_connecting_that_takes_too_long_is_a_timeout(run: Run) -> None:
    async def scenario() -> None:
        async def resolve(_host: str, _port: int) -> list[Any]:
            await asyncio.sleep(60)
            return []

        options = HttpOptions(connect_timeout_seconds=0.05)
        async with HttpClient(resolve=resolve) as client, client.origin("http://slow.test", options) as origin:
            with pytest.raises(HttpTimeout) as caught:
                await origin.request("GET", "/")
            assert (caught.value.phase, caught.value.seconds) == ("connect", 0.05)
            assert str(caught.value) == "GET http://slow.test/: no connection was made within 0.05 s"
            with pytest.raises(HttpTimeout) as caught:
                await origin.request("GET", "/", timeout_seconds=0.01)
            assert (caught.value.phase, caught.value.seconds, origin.stats) == ("total", 0.01, EMPTY)

    run(scenario())


def test_the_next_address_is_tried_when_one_refuses(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(silent) as gone:
            refused = gone.port
        async with hostile(always(ok())) as server:

            async def resolve(_host: str, _port: int) -> Any:
                loop = asyncio.get_running_loop()
                return [
                    *await loop.getaddrinfo("127.0.0.1", refused, type=1),
                    *await loop.getaddrinfo("127.0.0.1", server.port, type=1),
                ]

            async with HttpClient(resolve=resolve) as client, client.origin("http://many.test") as origin:
                assert (await origin.request("GET", "/")).body == b"ok"
                assert server.requests[0].headers["host"] == "many.test"

    run(scenario())


# -- TLS ---------------------------------------------------------------------------------------------------------------


@frozen
class Certificates:
    server: ssl.SSLContext
    mutual: ssl.SSLContext
    ca_file: str
    client_file: str


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    contexts = [ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2)]
    for context in contexts:
        authority.issue_cert("127.0.0.1", "model.test").configure_cert(context)
    authority.configure_trust(contexts[1])
    contexts[1].verify_mode = ssl.CERT_REQUIRED
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    authority.issue_cert("client@example.test").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    return Certificates(contexts[0], contexts[1], str(folder / "ca.pem"), str(folder / "client.pem"))


@asynccontextmanager
async def secured(
    behaviour: Behaviour, context: ssl.SSLContext, tls: TlsOptions, **options: Any
) -> AsyncIterator[tuple[Server, HttpOrigin]]:
    async with (
        hostile(behaviour, context) as server,
        HttpClient() as client,
        client.origin(server.url, HttpOptions(tls=tls, **options)) as origin,
    ):
        yield server, origin


def test_a_certificate_that_nobody_vouches_for_is_refused_for_good(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with secured(always(ok()), certificates.server, TlsOptions()) as (server, origin):
            with pytest.raises(HttpConnectError, match="CERTIFICATE_VERIFY_FAILED") as caught:
                await origin.request("GET", "/")
            assert (caught.value.transient, origin.stats, server.requests) == (False, EMPTY, [])

    run(scenario())


def test_a_certificate_for_another_name_is_refused_for_good(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        tls = TlsOptions(ca_file=certificates.ca_file, server_name="other.test")
        async with secured(always(ok()), certificates.server, tls) as (server, origin):
            with pytest.raises(HttpConnectError, match=r"not valid for 'other\.test'") as caught:
                await origin.request("GET", "/")
            assert (caught.value.transient, server.requests) == (False, [])

    run(scenario())


@pytest.mark.parametrize("how", ["ca_file", "server_name", "unverified"])
def test_a_server_is_accepted_by_its_authority_its_name_or_unseen(
    run: Run, certificates: Certificates, how: str
) -> None:
    tls = {
        "ca_file": TlsOptions(ca_file=certificates.ca_file),
        "server_name": TlsOptions(ca_file=certificates.ca_file, server_name="model.test"),
        "unverified": TlsOptions(verify=False),
    }[how]

    async def scenario() -> None:
        async with secured(always(ok()), certificates.server, tls) as (server, origin):
            for _ in range(3):
                assert (await origin.request("POST", "/", body=b"x" * 200_000)).body == b"ok"
            assert (server.connections, origin.stats.idle) == (1, 1)

    run(scenario())


def test_a_client_certificate_is_shown_where_the_server_wants_one(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        tls = TlsOptions(ca_file=certificates.ca_file, cert_file=certificates.client_file)
        async with secured(always(ok()), certificates.mutual, tls) as (_, origin):
            assert (await origin.request("GET", "/")).body == b"ok"
        async with secured(always(ok()), certificates.mutual, evolve(tls, cert_file=None)) as (server, origin):
            with pytest.raises(SourceError):
                await origin.request("GET", "/")
            assert (server.requests, origin.stats) == ([], EMPTY)

    run(scenario())


@pytest.mark.parametrize("options", [{"ca_file": "absent.pem"}, {"cert_file": "absent.pem"}, {"key_file": "k.pem"}])
def test_a_certificate_file_that_cannot_be_used_is_named(run: Run, options: dict[str, Any]) -> None:
    async def scenario() -> None:
        async with HttpClient() as client:
            with pytest.raises(ValueError, match=f"tls.{next(iter(options))}"):
                await client.origin("https://127.0.0.1", HttpOptions(tls=TlsOptions(**options))).__aenter__()

    run(scenario())


def test_a_handshake_that_never_ends_is_a_connect_timeout_and_leaves_no_socket(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(silent) as server, HttpClient() as client:
            url = server.url.replace("http", "https")
            async with client.origin(url, HttpOptions(connect_timeout_seconds=0.1)) as origin:
                with pytest.raises(HttpTimeout, match=r"no connection was made within 0\.1 s"):
                    await origin.request("GET", "/")
                await eventually(lambda: server.open == 0)
                assert origin.stats == EMPTY

    run(scenario())


def test_a_server_that_speaks_no_tls_is_a_connect_error(run: Run) -> None:
    async def scenario() -> None:
        for behaviour in (babbles, closes_at_once):
            async with (
                hostile(behaviour) as server,
                HttpClient() as client,
                client.origin(server.url.replace("http", "https")) as origin,
            ):
                with pytest.raises(
                    HttpConnectError, match=r"cannot connect: (\[|the peer closed the connection during)"
                ):
                    await origin.request("GET", "/")
                assert origin.stats == EMPTY

    run(scenario())


def test_a_stale_tls_connection_is_replaced(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        tls = TlsOptions(ca_file=certificates.ca_file)
        behaviour = in_turn(answers_then_closes_on_next_request(ok()), always(ok(b"new")))
        async with secured(behaviour, certificates.server, tls) as (_, origin):
            await origin.request("GET", "/")
            assert (await origin.request("GET", "/")).body == b"new"

    run(scenario())


# -- proxies -----------------------------------------------------------------------------------------------------------


def test_plain_http_through_a_proxy_has_the_absolute_form_and_the_credentials(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(always(ok())) as proxy, HttpClient() as client:
            options = HttpOptions(proxy=proxy.url.replace("://", "://user:pw@"))
            async with client.origin("http://model.test:8080/v1", options) as origin:
                for _ in range(2):
                    assert (await origin.request("GET", "/x?y=1")).body == b"ok"
            assert proxy.connections == 1
            received = proxy.requests[0]
            assert received.target == "http://model.test:8080/v1/x?y=1"
            assert received.headers["host"] == "model.test:8080"
            assert received.headers["proxy-authorization"] == "Basic dXNlcjpwdw=="

    run(scenario())


def test_https_through_a_proxy_is_tunnelled_and_verified_end_to_end(run: Run, certificates: Certificates) -> None:
    async def scenario() -> None:
        async with (
            hostile(always(ok()), certificates.server) as server,
            hostile(tunnelling("127.0.0.1", server.port)) as proxy,
            HttpClient() as client,
        ):
            options = HttpOptions(
                proxy=proxy.url.replace("://", "://user:pw@"), tls=TlsOptions(ca_file=certificates.ca_file)
            )
            async with client.origin("https://model.test", options) as origin:
                for _ in range(2):
                    assert (await origin.request("GET", "/x")).body == b"ok"
            async with client.origin("https://other.test", options) as origin:
                with pytest.raises(HttpConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                    await origin.request("GET", "/x")
            received = proxy.requests[0]
            assert (received.method, received.target) == ("CONNECT", "model.test:443")
            assert received.headers["proxy-authorization"] == "Basic dXNlcjpwdw=="
            assert "proxy-authorization" not in server.requests[0].headers
            assert [request.target for request in server.requests] == ["/x", "/x"]

    run(scenario())


@pytest.mark.parametrize("after", [closes_at_once, babbles, silent])
def test_a_tunnel_in_which_nobody_speaks_tls_is_an_error_and_leaves_nothing(run: Run, after: Behaviour) -> None:
    async def scenario() -> None:
        async with (
            hostile(after) as server,
            hostile(tunnelling("127.0.0.1", server.port)) as proxy,
            HttpClient() as client,
            client.origin("https://h.test", HttpOptions(proxy=proxy.url, connect_timeout_seconds=0.2)) as origin,
        ):
            with pytest.raises(HttpTimeout if after is silent else HttpConnectError):
                await origin.request("GET", "/")
            await eventually(lambda: server.open == proxy.open == 0)
            assert origin.stats == EMPTY

    run(scenario())


@pytest.mark.parametrize(
    ("answer", "reason", "transient"),
    [
        (b"HTTP/1.1 407 Who\r\n\r\n", "the proxy refused the tunnel with status 407", False),
        (b"HTTP/1.1 502 Down\r\n\r\n", "the proxy refused the tunnel with status 502", True),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "the proxy's answer is not HTTP", False),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, "the proxy's answer is not HTTP", False),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "the proxy sent data of its own into the tunnel", False),
        (b"", "the proxy closed the connection", True),
    ],
)
def test_a_proxy_that_opens_no_tunnel_is_a_connect_error(run: Run, answer: bytes, reason: str, transient: bool) -> None:
    async def scenario() -> None:
        async with (
            hostile(once(answer)) as proxy,
            HttpClient() as client,
            client.origin("https://model.test", HttpOptions(proxy=proxy.url)) as origin,
        ):
            with pytest.raises(HttpConnectError) as caught:
                await origin.request("GET", "/")
            assert str(caught.value) == f"GET https://model.test/: cannot connect: {reason}"
            assert (caught.value.transient, origin.stats) == (transient, EMPTY)

    run(scenario())


def test_a_proxy_that_never_answers_is_a_connect_timeout(run: Run) -> None:
    async def scenario() -> None:
        async with hostile(never_answers) as proxy, HttpClient() as client:
            options = HttpOptions(proxy=proxy.url, connect_timeout_seconds=0.05)
            async with client.origin("https://model.test", options) as origin:
                with pytest.raises(HttpTimeout, match="no connection was made within"):
                    await origin.request("GET", "/")
                await eventually(lambda: proxy.open == 0)

    run(scenario())


def test_tls_to_the_proxy_itself_is_refused_at_once(run: Run) -> None:
    async def scenario() -> None:
        async with HttpClient() as client:
            with pytest.raises(ValueError, match="TLS to the proxy itself is not supported"):
                await client.origin("http://h", HttpOptions(proxy="https://p")).__aenter__()

    run(scenario())


# -- nothing is left ---------------------------------------------------------------------------------------------------


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


async def cancelled(call: Awaitable[HttpResponse], ready: Callable[[], bool]) -> None:
    task = asyncio.ensure_future(call)
    await eventually(ready)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_cancelled_call_closes_its_connection_and_leaves_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with connected(never_answers) as (server, origin):
            before, tasks = open_files(), len(asyncio.all_tasks())
            for number in range(1, 20):
                await cancelled(origin.request("GET", "/"), lambda: len(server.requests) == number)  # noqa: B023
                assert origin.stats == EMPTY
            await eventually(lambda: server.open == 0 and open_files() == before)
            assert len(asyncio.all_tasks()) == tasks

    run(scenario())


def test_a_call_cancelled_while_connecting_leaves_nothing(run: Run) -> None:
    async def scenario() -> None:
        async with (
            hostile(silent) as server,
            HttpClient() as client,
            client.origin(server.url.replace("http", "https")) as origin,
        ):
            await cancelled(origin.request("GET", "/"), lambda: server.open == 1)
            await eventually(lambda: server.open == 0)
            assert origin.stats == EMPTY

    run(scenario())


def test_a_call_cancelled_in_the_middle_of_a_large_body_leaves_nothing(run: Run) -> None:
    async def reads_little(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.1)

    async def scenario() -> None:
        async with connected(reads_little) as (server, origin):
            await cancelled(origin.request("POST", "/", body=bytes(50_000_000)), lambda: server.open == 1)
            assert origin.stats == EMPTY
            await eventually(lambda: server.open == 0)

    run(scenario())


def test_ten_thousand_mixed_calls_leave_nothing(run: Run) -> None:
    good = ["/ok", "/chunked", "/gzip", "/interim", "/extra", "/close", "/until-close", "/unannounced"]
    bad = ["/cut", "/garbage", "/nothing"]
    targets = [*good * 4, *bad]

    async def scenario() -> None:
        async with connected(moody, HttpOptions(max_connections=8)) as (server, origin):
            before = open_files()

            async def calls(first: int) -> None:
                for number in range(first, first + 500):
                    target = targets[number * 7 % len(targets)]
                    try:
                        answer = await origin.request("GET", target)
                    except HttpProtocolError:
                        assert target in bad
                    else:
                        assert (target in good, answer.body) == (True, b"ok")

            await asyncio.gather(*(calls(first * 500) for first in range(20)))
            assert server.most_open <= 8 + 8  # the server notices a closed connection a moment after the client
            assert (origin.stats.in_use, origin.stats.waiting) == (0, 0)
            await origin.close()
            assert origin.stats == EMPTY
            await eventually(lambda: server.open == 0 and open_files() <= before)

    run(scenario())
