"""The line of each request, of a service that runs in this process on a log of the test's."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog

from orchestrator_core.config.model import LoggingOptions
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.http.limit import Limit
from orchestrator_core.http.refused import MOST_A_SECOND, RefusedLines
from orchestrator_core.logs import LogMask, configure_logging
from orchestrator_core.testing import service
from tests.engine.lab import Lab

CANARY = "canary-5e8d1"
SHOP = {
    "domains/shop.yaml": """
        endpoints:
          hello:
            path: "/{name}"
            data_sources:
              - {name: greeting, type: direct, params: {text: "hello {{ $request.name }}"}}
              - {name: extra, type: direct, params: {x: "$request.body.x"}, required: false}
            response_mapping: {text: "$greeting.text"}
        """
}
WAITS = "endpoints: {waits: {data_sources: [{name: waits, type: lab, operation: x}]}}"


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(LoggingOptions(format="json"), LogMask(Redactor.of([CANARY])))
    yield stream
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    structlog.get_config()["logger_factory"].lines.flush()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [event for event in events if event["event"] == "request"]


def test_each_request_has_a_line_with_the_id_of_its_answer(serve: Any, stream: io.StringIO) -> None:
    shop = serve(SHOP)
    headers = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}
    first = shop.post("/orchestrator/shop/hello/Ada?q=secret", {"x": 1}, headers=headers)
    second = shop.get("/orchestrator/shop/hello/Bob")
    third = shop.request("DELETE", "/orchestrator/shop/hello/Bob")
    found = lines(stream)
    assert [event["execution_id"] for event in found] == [
        answer.headers["X-Execution-Id"] for answer in (first, second, third)
    ]
    assert [(event["method"], event["status"], event["trace_id"]) for event in found] == [
        ("POST", 200, "ab" * 16),
        ("GET", 200, ""),
        ("DELETE", 405, ""),
    ]
    assert {event["route"] for event in found} == {"/orchestrator/shop/hello/{name}"}
    assert [event.get("degraded") for event in found] == [None, ["extra"], None]
    assert found[2]["error"] == "DELETE is not among the endpoint's methods"
    assert all(event["milliseconds"] > 0 for event in found)


def test_pages_of_the_service_have_a_line_only_when_they_fail(
    serve: Any, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOMAINS", CANARY)
    shop = serve({**SHOP, "config.yaml": "plugins_dir: '${env:DOMAINS}'"}, plugins={"other": "X = 1"})
    cut = f"/{'x' * 190}{CANARY}"
    for path in ("/health/live", "/orchestrator", f"/nothing/{'x' * 500}", "/%ff%00\\", f"/{CANARY}", cut):
        shop.get(path)
    found = lines(stream)
    assert [(event["route"], event["status"]) for event in found] == [("-", 404)] * 4
    paths = [f"/nothing/{'x' * 191}", "/%ff%00\\", "/***", f"/{'x' * 190}***"]
    assert [event["path"] for event in found] == paths


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (b"NONSENSE\r\n\r\n", {"method": "-", "error": "this is not HTTP: Invalid method encountered"}),
        (
            b"GET http://ada:password@[::1/ HTTP/1.1\r\nHost: x\r\n\r\n",
            {"method": "-", "error": "this is not HTTP: its target is no URL"},
        ),
        (b"GET / HTTP/1.1\r\n\r\n", {"method": "-", "error": "this is not HTTP: Missing 'Host' header in request."}),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"s" * 9000 + b"\r\n\r\n",
            {"method": "-", "error": "this is not HTTP: Got more than 8190 bytes"},
        ),
        (
            b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n" % (b"s" * 9000),
            {"method": "-", "error": "this is not HTTP: Got more than 8190 bytes"},
        ),
        (
            b"GET /canary-5e8d1?x HTTP/1.1\r\nHost: x\r\nX: \xff\r\n\r\n",
            {"method": "GET", "path": "/***", "error": "the head of the request is not UTF-8"},
        ),
    ],
)
def test_what_cannot_be_read_has_a_line_with_the_id_of_its_answer(
    serve: Any, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, sent: bytes, told: dict[str, str]
) -> None:
    monkeypatch.setenv("DOMAINS", CANARY)
    shop = serve({**SHOP, "config.yaml": "plugins_dir: '${env:DOMAINS}'"}, plugins={"other": "X = 1"})
    answer = shop.run(head_of_answer(shop.service.running.public, sent)).decode()
    (event,) = lines(stream)
    assert f"X-Execution-Id: {event['execution_id']}\r\n" in answer
    assert {"route": "-", "status": 400, **told}.items() <= event.items()


async def head_of_answer(address: tuple[str, int], sent: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    writer.write(sent)
    try:
        return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    finally:
        writer.close()


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_what_is_refused_because_there_is_too_much_has_a_line_with_the_id_of_its_answer(
    run: Any, stream: io.StringIO, method: str
) -> None:
    config = {"config.yaml": "server: {limit: {max: 1}}"}

    async def forever(_: Any) -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with service({**SHOP, **config, "domains/waits.yaml": WAITS}, plugins={"lab": Lab({"x": forever})}) as it:
            waits = asyncio.create_task(it.get("/orchestrator/waits/waits"))
            while not it.running.live.snapshot.running:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.005)
            path = "/orchestrator/shop/hello/Ada?q=secret"
            refused = await (it.post(path, {"x": "\xe4"}) if method == "POST" else it.request(method, path))
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)
        (event,) = (event for event in lines(stream) if event["status"] == 503)
        assert event["execution_id"] == refused.headers["X-Execution-Id"]
        assert (event["method"], event["route"]) == (method, "/orchestrator/shop/hello/{name}")
        assert event["error"] == "the service is overloaded"

    run(main())


def test_a_client_that_goes_while_its_request_waits_for_its_turn_has_a_line(
    run: Any, stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limit, "_let_some_in", lambda *_: None)
    goes_on = asyncio.Event()

    async def waits(_: Any) -> None:
        await goes_on.wait()

    async def main() -> None:
        async with service({**SHOP, "domains/waits.yaml": WAITS}, plugins={"lab": Lab({"x": waits})}) as it:
            limit = it.running.limit

            async def until(holds: Callable[[], bool]) -> None:
                async with asyncio.timeout(5):
                    while not holds():  # noqa: ASYNC110  # nobody tells of it
                        await asyncio.sleep(0.005)

            async def ask(*paths: str) -> asyncio.StreamWriter:
                _, writer = await asyncio.open_connection(*it.running.public)
                writer.write(b"".join(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in paths))
                return writer

            behind_another = await ask("/orchestrator/waits/waits", "/orchestrator/shop/hello/Ada?q=secret")
            await until(lambda: it.running.live.snapshot.running == 1)
            limit.engaged = True
            goes_on.set()
            await until(lambda: limit.waiting == 1)
            behind_another.close()
            await until(lambda: limit.connections == 0)
            first = await ask("/orchestrator/shop/hello/Bob")
            await until(lambda: limit.waiting == 2)  # the one that has gone is counted still
            first.close()
            await until(lambda: len([event for event in lines(stream) if event["status"] == 499]) == 2)

    run(main())
    gone = [event for event in lines(stream) if event["status"] == 499]
    assert len({event["execution_id"] for event in gone}) == 2
    assert [(event["method"], event["route"], event["error"]) for event in gone] == [
        ("GET", "/orchestrator/shop/hello/{name}", "the client has gone while the request waited for its turn")
    ] * 2


def test_of_many_that_are_refused_so_many_a_second_have_a_line_and_the_others_are_counted() -> None:
    told: list[str] = []
    soon: list[Any] = []
    refused = RefusedLines(lambda seconds, call: soon.append(call))
    refused.add("before", "GET", "/", 0.0)
    refused.use(lambda execution_id, *_, **more: told.append(execution_id), {})
    with structlog.testing.capture_logs() as logs:
        for number in range(MOST_A_SECOND + 7):
            refused.add(f"{number}", "GET", "/orchestrator", 0.0)
        assert len(told) == MOST_A_SECOND
        soon.pop()()
        refused.add("after", "GET", "/orchestrator/a/b?c", 0.0)
        soon.pop()()
    assert told[-1] == "after"
    assert [(entry["event"], entry["count"]) for entry in logs] == [
        ("requests were refused without a line for each: they are too many", 7)
    ]
    assert soon == []


def test_they_can_be_left_out(serve: Any, stream: io.StringIO) -> None:
    shop = serve({**SHOP, "config.yaml": "logging: {requests: false}"})
    shop.get("/orchestrator/shop/hello/Ada")
    assert lines(stream) == []
