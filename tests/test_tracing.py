"""The trace of a request: which ``traceparent`` counts, and that every call outward carries it."""

from __future__ import annotations

from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict

from orchestrator_core.http_client import HttpClient, HttpOptions, TraceParent, current_trace, parse_traceparent

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{CALLER}-01"


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (GIVEN, 1),
        (f"00-{TRACE}-{CALLER}-00", 0),
        (f"00-{TRACE}-{CALLER}-03", 3),
        (f"00-{TRACE}-{CALLER}-ff", 3),  # of the flags that are not known yet nothing is passed on
        (f"01-{TRACE}-{CALLER}-01-what-comes-later", 1),
        (f"  {GIVEN} ", 1),
    ],
)
def test_a_traceparent_by_the_rules_is_taken(text: str, flags: int) -> None:
    assert parse_traceparent({"traceparent": text}) == TraceParent(TRACE, CALLER, flags)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "garbage",
        GIVEN.upper(),
        f"{GIVEN}-more",
        GIVEN[:-1],
        f"ff-{TRACE}-{CALLER}-01",
        f"00-{'0' * 32}-{CALLER}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE[:-1]}g-{CALLER}-01",
        f"00-{TRACE}-{CALLER}-0\n",
    ],
)
def test_one_that_is_not_is_as_none(text: str) -> None:
    assert parse_traceparent({"traceparent": text}) is None
    assert parse_traceparent({}) is None


def test_two_are_none() -> None:
    other = GIVEN.replace("4bf", "5bf")
    assert parse_traceparent(CIMultiDict([("traceparent", GIVEN), ("Traceparent", other)])) is None


def test_tracestate_is_passed_on_whole_and_not_where_it_is_none_by_the_rules() -> None:
    several = CIMultiDict([("Traceparent", GIVEN), ("Tracestate", "a=1"), ("Tracestate", "b=2")])
    parent = parse_traceparent(several)
    assert parent is not None
    assert parent.lines == f"traceparent: {GIVEN}\r\ntracestate: a=1,b=2\r\n".encode()
    most = ",".join(f"k{number}=v" for number in range(32))
    for fit in (
        "",
        ",",
        "a=1, b=2 ,,",
        "0tenant@system=x y*/-",
        "a=!\"#$%&'()*+-./:;<>?@[]^_`{|}~",
        "a" * 256 + "=1",
        most,
    ):
        given = parse_traceparent({"traceparent": GIVEN, "tracestate": fit})
        assert given == TraceParent(TRACE, CALLER, 1, fit)
    for unfit in (
        *("a=1\r\nx: y", "é", f"a={'1' * 511}", "a", "a=", "=1", "=,;", "a=1=2", "A=1", "a b=1", "a=1;b=2"),
        *("a@b@c=1", "@a=1", "a" * 257 + "=1", f"{most},a=1"),
    ):
        assert parse_traceparent({"traceparent": GIVEN, "tracestate": unfit}) == TraceParent(TRACE, CALLER, 1)


def test_every_call_of_the_client_carries_the_trace_that_it_is_made_in(run: Any) -> None:
    heads: list[tuple[str, list[str]]] = []

    async def answer(request: web.Request) -> web.Response:
        heads.append((request.path, request.headers.getall("traceparent", [])))
        if request.path == "/from":
            raise web.HTTPFound("/to")
        return web.Response()

    async def main() -> None:
        app = web.Application()
        app.router.add_route("*", "/{any}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        own = HttpOptions(headers={"TraceParent": GIVEN.replace("01", "02")})
        async with (
            HttpClient() as client,
            client.origin(url, HttpOptions(follow_redirects=3)) as origin,
            client.origin(url, own) as with_its_own,
        ):
            prepared = origin.prepare("POST", "/prepared")
            await prepared(b"{}")
            outside = current_trace.set(TraceParent(TRACE, CALLER, 1))
            await prepared(b"{}")
            await origin.route("GET")("/route")
            await origin.request("GET", "/from")
            await with_its_own.request("GET", "/own")
            current_trace.reset(outside)
            await origin.request("GET", "/after")
        await runner.cleanup()

    run(main())
    assert heads == [
        ("/prepared", []),
        ("/prepared", [GIVEN]),
        ("/route", [GIVEN]),
        ("/from", [GIVEN]),
        ("/to", [GIVEN]),
        ("/own", [GIVEN.replace("01", "02")]),
        ("/after", []),
    ]
