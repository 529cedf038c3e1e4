"""A partner API that fails, in every way there is: what the client is answered, and what is left behind.

The pool has one connection, so that the call after the fault only succeeds when the fault has given it back.
"""

from __future__ import annotations

import asyncio
import gzip
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import orjson
import pytest
from attrs import define, frozen

from orchestrator_core.testing import RunningService, service
from tests.faults.kit import (
    WITHOUT_POLICIES,
    failed_steps,
    meanwhile,
    no_more_than,
    nothing_left,
    problem,
    relay,
    warmed,
)
from tests.hostile_server import Behaviour, Peer, Server, always, chunked, hostile, ok

Run = Callable[[Coroutine[Any, Any, None]], None]

TARGET = "/orchestrator/loans/predict/7"
CALL = "step 'credit': get_score: GET {url}/scores/7"
GOOD = ok(orjson.dumps({"data": {"score": 720}}), "Content-Type: application/json")

INTEGRATION = """
    api:
      sources:
        credit_api:
          base_url: "{url}"
          timeout: 300ms
          connect_timeout: 150ms
          max_connections: 1
          max_response_bytes: 1MiB
          auth: {{bearer: "secret-token"}}
          {options}
          operations:
            get_score: {{path: "/scores/{{applicant_id}}", result: {{score: "$response.body.data.score"}}}}
            get_raw: {{path: "/scores/{{applicant_id}}"}}
            post_score:
              method: POST
              path: /scores
              body: {{id: "$params.applicant_id"}}
              result: {{score: "$response.body.data.score"}}
        other_api:
          base_url: "{other}"
          timeout: 30s
          operations:
            get: {{path: /}}
"""
DOMAIN = """
    endpoints:
      predict:
        data_sources:
          - name: credit
            type: api
            source_id: credit_api
            operation: get_score
            params: {applicant_id: "$request.path_params.entity_id"}
        response_mapping: {score: "$credit.score"}
      together:
        timeout: 5s
        data_sources:
          - {name: history, type: api, source_id: other_api, operation: get}
          - {name: credit, type: api, source_id: credit_api, operation: get_score, params: {applicant_id: 7}}
        response_mapping: {score: "$credit.score", history: "$history"}
      hurried:
        timeout: 100ms
        data_sources:
          - {name: credit, type: api, source_id: credit_api, operation: get_score, params: {applicant_id: 7}}
        response_mapping: {score: "$credit.score"}
      raw:
        data_sources:
          - {name: credit, type: api, source_id: credit_api, operation: get_raw, params: {applicant_id: 7}}
        response_mapping: {half: "$credit.data.score / 2"}
      tolerant:
        data_sources:
          - name: credit
            type: api
            source_id: credit_api
            operation: get_score
            params: {applicant_id: 7}
            default: {score: 500}
        response_mapping: {score: "$credit.score", degraded: "$execution.degraded"}
      posted:
        methods: [POST]
        data_sources:
          - {name: credit, type: api, source_id: credit_api, operation: post_score, params: {applicant_id: 7}}
        response_mapping: {score: "$credit.score"}
      elsewhere:
        data_sources:
          - {name: other, type: api, source_id: other_api, operation: get}
        response_mapping: {other: "$other"}
"""


def files(url: str, other: str = "http://127.0.0.1:1", options: str = "{}") -> dict[str, str]:
    own = "" if options == "{}" else options
    return {
        "config.yaml": WITHOUT_POLICIES,
        "integrations/api.yaml": INTEGRATION.format(url=url, other=other, options=own),
        "domains/loans.yaml": DOMAIN,
    }


Mood: TypeAlias = "bytes | Behaviour"
"""An answer, after which the connection serves on, or what is done with a request that has been read."""


@define
class Api:
    """The partner: it answers well until it has a mood."""

    server: Server
    mood: Mood = GOOD

    @property
    def url(self) -> str:
        return self.server.url


@asynccontextmanager
async def partner() -> AsyncIterator[Api]:
    api: Api

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            if not isinstance(api.mood, bytes):
                await api.mood(peer)
                return
            await peer.send(api.mood)

    async with hostile(behave) as server:
        api = Api(server)
        yield api


async def says_nothing(peer: Peer) -> None:
    await peer.until_client_closes()


async def closes(_: Peer) -> None:
    return


async def drips(peer: Peer) -> None:
    await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(1000):
        await peer.send(b" ")
        await asyncio.sleep(0.02)


def json_of(value: Any, *headers: str, status: str = "200 OK") -> bytes:
    return ok(orjson.dumps(value), "Content-Type: application/json", *headers, status=status)


@frozen
class Fault:
    """What the API does, and what the client is told. ``{url}`` stands for the API's address."""

    name: str
    mood: Mood
    status: int
    detail: str
    title: str = "source failed"
    retry_after: str | None = None

    def __str__(self) -> str:
        return self.name


LARGE = 50 * 2**20
HTML = ok(b"<html><h1>Welcome</h1></html>", "Content-Type: text/html; charset=utf-8")
FAULTS = [
    Fault("hanging", says_nothing, 504, f"{CALL}: no complete answer came within 0.3 s", "deadline passed"),
    Fault("dripping", drips, 504, f"{CALL}: no complete answer came within 0.3 s", "deadline passed"),
    Fault("closing", closes, 502, f"{CALL}: the peer closed the connection without an answer"),
    Fault("500", json_of({"error": "boom"}, status="500 Oops"), 502, f"{CALL}: answered 500"),
    Fault("400", json_of({"detail": "no such region"}, status="400 No"), 502, f"{CALL}: answered 400: no such region"),
    Fault("401", json_of({"detail": "secret-token is expired"}, status="401 No"), 502, f"{CALL}: answered 401"),
    Fault(
        "503 that says when",
        json_of({}, "Retry-After: 7", status="503 Busy"),
        503,
        f"{CALL}: answered 503 and asks to wait 7 s",
        "not available",
        "7",
    ),
    Fault(
        "404",
        json_of({}, status="404 No"),
        404,
        "step 'credit': get_score: nothing found for applicant_id='7'",
        "not found",
    ),
    Fault(
        "HTML",
        HTML,
        502,
        f"{CALL}: the answer (200, text/html) is not JSON: unexpected character, expected a JSON value: "
        "line 1 column 1 (char 0)",
    ),
    Fault(
        "truncated JSON",
        ok(b'{"data": {"score": 7', "Content-Type: application/json"),
        502,
        f"{CALL}: the answer (200, application/json) is not JSON: unexpected end of data: line 1 column 21 (char 20)",
    ),
    Fault(
        "truncated body",
        lambda peer: peer.send(b'HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n{"data":'),
        502,
        f"{CALL}: the peer closed the connection in the middle of the answer",
    ),
    Fault(
        "missing field",
        json_of({"data": {"scor": 720}}),
        502,
        f"{CALL}: $response.body.data.score is missing: $response.body.data has no field 'score' (it has: scor)",
    ),
    Fault(
        "a list for an object",
        json_of([{"score": 720}]),
        502,
        f"{CALL}: $response.body.data.score is missing: $response.body is a list",
    ),
    Fault(
        "an empty body",
        ok(b""),
        502,
        f"{CALL}: $response.body.data.score is missing: $response.body is null",
    ),
    Fault(
        "50 MB",
        ok(b" " * LARGE),
        502,
        f"{CALL}: the answer is larger than max_response_bytes, 1048576",
    ),
    Fault(
        "50 MB in chunks",
        chunked(*[b" " * 2**20] * 50),
        502,
        f"{CALL}: the answer is larger than max_response_bytes, 1048576",
    ),
    Fault(
        "50 MB compressed",
        ok(gzip.compress(b" " * LARGE), "Content-Encoding: gzip"),
        502,
        f"{CALL}: the answer is larger than max_response_bytes, 1048576",
    ),
    Fault(
        "a redirect without a target",
        ok(b"", status="302 Found"),
        502,
        f"{CALL}: answered 302, a redirect that is not followed",
    ),
    Fault(
        "not HTTP",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        502,
        f"{CALL}: the answer is not HTTP/1.1: Expected HTTP/, RTSP/ or ICE/",
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_an_api_that_fails_has_its_status_its_message_and_nothing_left(fault: Fault, run: Run) -> None:
    async def main() -> None:
        async with nothing_left(fault.name), partner() as api, service(files(api.url)) as served:
            assert (await served.get(TARGET)).json == {"score": 720}
            before = await warmed(served, TARGET)
            api.mood = fault.mood
            answer = await served.get(TARGET)
            detail = fault.detail.format(url=api.url)
            assert answer.json == problem(answer, detail, "credit", fault.title, TARGET)
            assert (answer.status, answer.headers.get("Retry-After")) == (fault.status, fault.retry_after)
            assert answer.headers["Content-Type"] == "application/problem+json"
            ((name, status, error),) = await failed_steps(served)
            assert (name, status, f"step 'credit': {error}") == ("credit", "failed", detail)
            await mended(served, api)
            await no_more_than(before)

    run(main())


async def mended(served: RunningService, api: Api) -> None:
    """The API is well again, and the one connection that the pool may have is free."""
    api.mood = GOOD
    answer = await served.get(TARGET)
    assert (answer.status, answer.json) == (200, {"score": 720})
    async with asyncio.timeout(5):
        while api.server.open > 1:  # noqa: ASYNC110  # the server's side ends a moment later
            await asyncio.sleep(0.01)


def test_an_api_that_refuses_connections_is_a_bad_gateway_until_it_listens(run: Run) -> None:
    async def main() -> None:
        async with nothing_left("a refusing API"), partner() as api, relay("127.0.0.1", api.server.port) as way:
            url = f"http://127.0.0.1:{way.port}"
            async with service(files(url)) as served:
                assert (await served.get(TARGET)).json == {"score": 720}
                before = await warmed(served, TARGET)
                await way.refuse()
                refused = f"cannot connect: [Errno 111] Connect call failed ('127.0.0.1', {way.port})"
                for _ in range(2):
                    answer = await served.get(TARGET)
                    detail = f"{CALL.format(url=url)}: {refused}"
                    assert answer.json == problem(answer, detail, "credit", "source failed", TARGET)
                    assert answer.status == 502
                await way.listen()
                assert (await served.get(TARGET)).json == {"score": 720}
                await no_more_than(before)

    run(main())


def test_an_api_that_does_not_take_the_connection_is_given_up_after_connect_timeout(run: Run) -> None:
    """A listener whose queue is full drops what knocks, as a host that is down does."""

    async def main() -> None:
        with socket.socket() as full, socket.socket() as one, socket.socket() as two:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for knocking in (one, two):
                knocking.setblocking(False)
                knocking.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}"
            async with nothing_left("an API that is down"), service(files(url)) as served:
                started = time.monotonic()
                answer = await served.get(TARGET)
                assert 0.1 < time.monotonic() - started < 2
                detail = f"{CALL.format(url=url)}: no connection was made within 0.15 s"
                assert answer.json == problem(answer, detail, "credit", "deadline passed", TARGET)
                assert answer.status == 504

    run(main())


@pytest.mark.parametrize("options", ["{}", "follow_redirects: 5"])
@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "307 Temporary", "308 Permanent"])
def test_a_redirect_to_another_host_is_not_followed_and_gets_no_credentials(
    options: str, status: str, run: Run
) -> None:
    async def main() -> None:
        async with (
            nothing_left("a redirect"),
            partner() as api,
            hostile(always(GOOD)) as evil,
            service(files(api.url, options=options)) as served,
        ):
            assert (await served.get(TARGET)).status == 200
            for location in (evil.url, f"//127.0.0.1:{evil.port}/x", f"{api.url}@127.0.0.1:{evil.port}/"):
                api.mood = ok(b"", f"Location: {location}", status=status)
                answer = await served.get(TARGET)
                number = status.partition(" ")[0]
                detail = f"{CALL.format(url=api.url)}: answered {number}, a redirect that is not followed"
                assert answer.json == problem(answer, detail, "credit", "source failed", TARGET)
                assert answer.status == 502
            assert (evil.requests, evil.connections) == ([], 0)
            await mended(served, api)

    run(main())


def test_a_hanging_api_costs_its_endpoint_the_deadline_and_other_endpoints_nothing(run: Run) -> None:
    async def main() -> None:
        async with (
            nothing_left("a hanging API"),
            partner() as api,
            hostile(always(ok(b'"well"'))) as other,
            service(files(api.url, other.url)) as served,
        ):
            assert (await served.get("/orchestrator/loans/elsewhere")).json == {"other": "well"}
            api.mood = says_nothing
            started = time.monotonic()
            hanging = [asyncio.ensure_future(served.get(TARGET)) for _ in range(5)]
            hanging += [asyncio.ensure_future(served.get("/orchestrator/loans/hurried")) for _ in range(5)]
            elsewhere = await meanwhile(hanging, lambda: served.get("/orchestrator/loans/elsewhere"))
            assert time.monotonic() - started < 2
            assert [answer.json for answer in elsewhere] == [{"other": "well"}] * len(elsewhere)
            answers = [call.result() for call in hanging]
            assert [answer.status for answer in answers] == [504] * 10
            # One has the connection, the others wait in line for it: each as long as the source's timeout.
            url = CALL.format(url=api.url)
            assert {answer.json["detail"] for answer in answers[:5]} == {
                f"{url}: no complete answer came within 0.3 s",
                f"{url}: no connection of the pool was free within 0.3 s",
            }
            hurried = "the request took longer than its 0.1 s in step 'credit'"
            for answer in answers[5:]:
                expected = problem(answer, hurried, "credit", "deadline passed", "/orchestrator/loans/hurried")
                assert answer.json == expected
            await mended(served, api)

    run(main())


def test_a_failed_step_ends_the_others_and_their_connections(run: Run) -> None:
    async def main() -> None:
        async with (
            nothing_left("steps that are ended"),
            partner() as api,
            hostile(says_nothing) as slow,
            service(files(api.url, slow.url)) as served,
        ):
            api.mood = json_of({}, status="500 Oops")
            answer = await served.get("/orchestrator/loans/together")
            assert (answer.status, answer.json["step"]) == (502, "credit")
            assert answer.json["detail"] == f"{CALL.format(url=api.url)}: answered 500"
            assert [step[:2] for step in await failed_steps(served)] == [
                ("history", "cancelled"),
                ("credit", "failed"),
            ]
            async with asyncio.timeout(5):
                while slow.open:  # noqa: ASYNC110  # its side ends a moment later
                    await asyncio.sleep(0.01)
            await mended(served, api)

    run(main())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"data": {}}, "$credit.data.score is missing: $credit.data has no field 'score' (it has: nothing)"),
        (
            {"data": {"score": "high"}},
            (
                "step 'credit': response_mapping.half: '/' takes two numbers, got a string and a number, in "
                "$credit.data.score / 2"
            ),
        ),
        ({"data": None}, "$credit.data.score is missing: $credit.data is null"),
        ([], "$credit.data.score is missing: $credit is a list"),
    ],
)
def test_a_field_that_is_missing_or_of_another_type_is_the_steps_fault(body: Any, message: str, run: Run) -> None:
    async def main() -> None:
        async with partner() as api, service(files(api.url)) as served:
            api.mood = json_of(body)
            answer = await served.get("/orchestrator/loans/raw")
            assert (answer.status, answer.json["detail"]) == (502, message)
            assert answer.json.get("step") == "credit"

    run(main())


def test_a_step_with_a_default_goes_on_and_says_so(run: Run) -> None:
    async def main() -> None:
        async with partner() as api, service(files(api.url)) as served:
            for mood in (says_nothing, closes, HTML, json_of({}, status="500 Oops")):
                api.mood = mood
                answer = await served.get("/orchestrator/loans/tolerant")
                assert (answer.status, answer.json) == (200, {"score": 500, "degraded": True})
                assert answer.headers["X-Orchestrator-Degraded"] == "credit"

    run(main())


@pytest.mark.parametrize("ending", ["closes", "resets"])
def test_a_post_is_sent_once_however_its_connection_ends(ending: str, run: Run) -> None:
    """On a new connection and on one that was used before, with the request read."""

    async def behave(peer: Peer) -> None:
        while (await peer.request()).method != "POST":
            await peer.send(GOOD)
        if ending == "resets":
            peer.writer.transport.abort()

    async def main() -> None:
        async with nothing_left("a POST"), hostile(behave) as server, service(files(server.url)) as served:
            for used_before in (False, True):
                if used_before:
                    assert (await served.get(TARGET)).status == 200
                answer = await served.post("/orchestrator/loans/posted", {})
                assert [request.body for request in server.requests if request.method == "POST"] == [b'{"id":7}']
                assert (answer.status, answer.json["step"]) == (502, "credit")
                why = "the peer closed the connection without an answer"
                if used_before:
                    why = (
                        "the peer closed the kept-alive connection without an answer, and the request must not be sent "
                        "twice"
                    )
                said = f"step 'credit': post_score: POST {server.url}/scores: {why}"
                assert answer.json["detail"].startswith(said)
                server.requests.clear()

    run(main())
