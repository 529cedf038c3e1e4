"""What a service does that gets more than it can do: how it refuses, what it still answers, and what it forgets."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import ANY

import orjson
import pytest

from orchestrator_core.http.answers import Answer
from orchestrator_core.http.connection import Connection
from orchestrator_core.http.limit import Limit
from orchestrator_core.testing import RunningService, check_problems, service
from orchestrator_core.testing.pytest_plugin import Served
from tests.engine.lab import Lab

Run = Callable[[Coroutine[Any, Any, None]], None]

DOMAIN = """
    endpoints:
      quick:
        response_mapping: {x: "$request.body.x ?? 1"}
      hangs:
        data_sources: [{name: waits, type: lab, operation: forever}]
"""
QUICK, HANGS = "/orchestrator/d/quick", "/orchestrator/d/hangs"


async def forever(_: Any) -> None:
    await asyncio.Event().wait()


LAB = {"lab": Lab({"forever": forever})}
REFUSED = {
    "type": "about:blank",
    "title": "not available",
    "status": 503,
    "detail": "the service is overloaded",
}


@asynccontextmanager
async def full(at_most: int = 1) -> AsyncIterator[RunningService]:
    """Serve with so many requests in flight as there may be."""
    files = {"config.yaml": f"server: {{limit: {{max: {at_most}, retry_after: 3s}}}}", "domains/d.yaml": DOMAIN}
    async with service(files, plugins=LAB) as served:
        hanging = [asyncio.create_task(served.get(HANGS)) for _ in range(at_most)]
        await until(lambda: served.running.live.snapshot.running == at_most)
        try:
            yield served
        finally:
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
            await until(lambda: served.running.live.snapshot.running == 0)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.005)


async def exchange(served: RunningService, *parts: bytes) -> bytes:
    """Send the parts over one connection, and return all that comes until the service closes it."""
    reader, writer = await asyncio.open_connection(*served.running.public)
    try:
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.02)
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()


def test_beyond_the_limit_a_request_is_refused_at_once_and_says_when_to_come_again(run: Run) -> None:
    async def main() -> None:
        async with full() as served:
            answers = [await served.get(QUICK), await served.post(QUICK, {"x": 2}), await served.get(QUICK)]
            for answer in answers:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "3"
                assert answer.headers["Content-Type"] == "application/problem+json"
                assert re.fullmatch(r"engine;dur=\d+\.\d{3}", answer.headers["Server-Timing"])
                answer.json.pop("instance", None)
                assert answer.json == {**REFUSED, "execution_id": answer.headers["X-Execution-Id"]}
            assert len({answer.json["execution_id"] for answer in answers}) == 3
            assert served.running.limit.shed == 3
            assert await served.executions() == []

    run(main())


def test_health_the_lists_and_the_admin_listener_are_never_refused(run: Run) -> None:
    async def main() -> None:
        async with full() as served:
            assert (await served.get(QUICK)).status == 503
            pages = ("/health/live", "/health/ready", "/orchestrator", "/orchestrator/d", "/openapi.json", "/docs")
            assert [(await served.get(page)).status for page in pages] == [200] * len(pages)
            assert (await served.admin("GET", "/config")).status == 200
            assert (await served.get("/nothing")).status == 404

    run(main())


def test_when_there_is_room_again_requests_are_answered(run: Run) -> None:
    async def main() -> None:
        files = {"config.yaml": "server: {limit: {max: 1}}", "domains/d.yaml": DOMAIN}
        async with service(files, plugins=LAB) as served:
            hanging = asyncio.create_task(served.get(HANGS))
            await until(lambda: served.running.limit.in_flight == 1)
            assert (await served.get(QUICK)).status == 503
            hanging.cancel()
            await until(lambda: served.running.limit.in_flight == 0)
            assert (await served.get(QUICK)).status == 200

    run(main())


def test_as_many_as_there_may_be_are_let_in(run: Run) -> None:
    async def main() -> None:
        async with full(3) as served:
            assert served.running.limit.in_flight == 3
            assert [answer.status for answer in await asyncio.gather(*(served.get(QUICK) for _ in range(5)))] == [
                503
            ] * 5

    run(main())


@pytest.mark.parametrize(
    ("request_bytes", "closes"),
    [
        (b"HEAD %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True),
        (b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", True),
        (b"GET %b HTTP/1.0\r\n\r\n", True),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\n{", True),
        (b"POST %b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n", True),
    ],
)
def test_every_form_of_a_request_is_refused_properly(run: Run, request_bytes: bytes, closes: bool) -> None:
    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)  # from now on the connections ask before they take anything up
            raw = await exchange(served, request_bytes % QUICK.encode())
            head, _, body = raw.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert head.count(b"HTTP/1.1") == 1
            if request_bytes.startswith(b"HEAD"):
                assert body == b""
            else:
                assert orjson.loads(body)["detail"] == "the service is overloaded"

    run(main())


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_clients_that_connect_for_one_request_each_are_refused_without_a_connection(
    run: Run, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    """A connection costs several times as much as the answer. Whoever asks for health gets one all the same."""
    asked = b"GET %b HTTP/%b\r\nHost: x\r\nConnection: close\r\n\r\n" % (QUICK.encode(), version.encode())
    health = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    made: list[Connection] = []
    connection_made = Connection.connection_made
    monkeypatch.setattr(
        Connection, "connection_made", lambda self, transport: (made.append(self), connection_made(self, transport))
    )

    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            before, limit = len(made), served.running.limit
            shed = limit.shed
            clients = []
            for number in range(100):
                client = socket.create_connection(served.running.public)  # the kernel's queue takes it
                client.sendall(health if number == 50 else asked)
                client.setblocking(False)
                clients.append(client)
            loop = asyncio.get_running_loop()
            heads = [await loop.sock_recv(client, 4096) for client in clients]
            ends = [await loop.sock_recv(client, 4096) for client in clients]
            for client in clients:
                client.close()
            assert [head[9:12] for head in heads].count(b"503") == 99
            assert heads[50].startswith(b"HTTP/1.1 200")
            assert heads[60].startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nConnection: close\r\n" in heads[60]
            assert b"\r\nRetry-After: 3\r\n" in heads[60]
            assert orjson.loads(heads[60].partition(b"\r\n\r\n")[2]) == {**REFUSED, "execution_id": ANY}
            assert ends == [b""] * 100
            assert limit.shed - shed == 99
            assert limit.backlog == 0
            assert len(made) - before < 30

    run(main())


def test_requests_on_one_connection_are_refused_in_their_order(run: Run) -> None:
    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            get = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % QUICK.encode()
            health = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
            last = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % QUICK.encode()
            raw = await exchange(served, get, get + health + get, b"GET %b HT" % QUICK.encode(), get[-21:], last)
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"503", b"503", b"200", b"503", b"400"]

    run(main())


def test_a_connection_that_was_refused_is_served_when_there_is_room(run: Run) -> None:
    get = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % QUICK.encode()
    post = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n" % QUICK.encode() + b'{"x":2}'

    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            reader, writer = await asyncio.open_connection(*served.running.public)

            async def answer(request: bytes) -> tuple[bytes, Any]:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(re.findall(rb"Content-Length: (\d+)", head)[0])
                return head[9:12], orjson.loads(await reader.readexactly(length))

            assert [(await answer(request))[0] for request in (get, post, get)] == [b"503"] * 3
            served.running.limit.use(None)
            assert [await answer(request) for request in (post, get)] == [(b"200", {"x": 2}), (b"200", {"x": 1})]
            assert served.running.limit.shed == 4
            assert served.running.limit.backlog == 0
            writer.close()

    run(main())


def test_a_whole_request_in_pieces_is_refused_when_it_is_whole(run: Run) -> None:
    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            get = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % QUICK.encode()
            raw = await exchange(served, *(get[start : start + 20] for start in range(0, len(get), 20)))
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"503"]

    run(main())


@pytest.mark.parametrize("cut", [0, 15])
def test_a_request_that_comes_in_the_turn_of_the_answer_before_it_is_refused_without_being_read(
    run: Run, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """aiohttp waits for the next one a turn later. In an overload that is milliseconds: clients are quicker."""
    health = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    get = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n" % QUICK.encode()
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    prepare, shed = Answer.prepare, []

    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            limit = served.running.limit

            async def prepared(answer: Answer, request: Any) -> None:
                await prepare(answer, request)
                if not shed:
                    before = limit.shed
                    request._protocol.data_received(get[: len(get) - cut])
                    shed.append(limit.shed - before)

            monkeypatch.setattr(Answer, "prepare", prepared)
            raw = await exchange(served, health, get[len(get) - cut :] + last if cut else last)
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"200", b"503", b"200"]
            assert shed == [0 if cut else 1]
            assert limit.backlog == 0

    run(main())


def test_the_next_request_is_answered_after_a_refused_one_that_asked_for_an_upgrade(run: Run) -> None:
    upgrade = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n" % QUICK.encode()
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"

    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            raw = await exchange(served, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", upgrade, last)
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw) == [b"200", b"503", b"200"]

    run(main())


@pytest.mark.parametrize(
    ("head", "status"),
    [(b"/orchestrator/d/nothing HTTP/1.1\r\n", b"404"), (b"/orchestrator/d/quick HTTP/1.1\r\nX: \xc3\r\n", b"400")],
)
def test_what_is_refused_to_a_request_for_no_endpoint_is_not_refused_to_the_next(
    run: Run, head: bytes, status: bytes
) -> None:
    post = b"POST %bHost: x\r\nContent-Length: 2\r\n\r\n" % head
    last = b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % QUICK.encode()

    async def main() -> None:
        async with full() as served:
            await served.get(QUICK)
            reader, writer = await asyncio.open_connection(*served.running.public)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
            writer.write(post)
            await asyncio.sleep(0.02)
            writer.write(b"{}")
            await asyncio.sleep(0.02)
            served.running.limit.use(None)
            writer.write(last)
            assert re.findall(rb"HTTP/1\.1 (\d+)", await reader.read()) == [status, b"200"]
            writer.close()

    run(main())


def test_a_request_behind_one_that_is_being_taken_up_is_not_refused_before_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer would be taken for that of the one before it."""
    get = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % QUICK.encode()
    let_in, released = Connection.let_in, asyncio.Event()

    async def waits(_: Any) -> int:
        await released.wait()
        return 1

    async def main() -> None:
        async with service({"domains/d.yaml": DOMAIN}, plugins={"lab": Lab({"forever": waits})}) as served:
            limit = served.running.limit
            limit.engaged, limit._at_once = True, 1.0
            reader, writer = await asyncio.open_connection(*served.running.public)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")

            def and_more(connection: Connection) -> None:
                monkeypatch.setattr(Connection, "let_in", let_in)
                let_in(connection)
                connection.data_received(get)  # before the connection's task has gone on
                asyncio.get_running_loop().call_soon(limit._refuse_first, 0.0, 0)

            monkeypatch.setattr(Connection, "let_in", and_more)
            writer.write(get.replace(b"quick", b"hangs"))
            await until(lambda: limit.in_flight == 1)
            await asyncio.sleep(0.02)
            released.set()
            writer.write(get.replace(b"Host", b"Connection: close\r\nHost"))
            raw = await reader.read()
            writer.close()
            assert b"\r\n\r\n1HTTP/1.1 " in raw
            assert re.findall(rb"HTTP/1\.1 (\d+)", raw)[0] == b"200"

    run(main())


def test_a_request_that_waits_for_its_turn_keeps_its_connection(run: Run) -> None:
    async def main() -> None:
        async with service({"domains/d.yaml": DOMAIN}, plugins=LAB) as served:
            limit = served.running.limit
            limit.engaged = True
            reader, writer = await asyncio.open_connection(*served.running.public)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            await reader.readuntil(b"}")
            (connection,) = served.running.listener._server.connections
            assert isinstance(connection, Connection)
            connection.data_received(b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % QUICK.encode())
            assert connection.waits
            connection._next_keepalive_close_time = 0.0
            connection._process_keepalive()
            assert (await reader.read()).endswith(b'{"x":1}')
            writer.close()

    run(main())


def test_many_requests_that_wait_for_a_slow_source_are_all_let_in(run: Run) -> None:
    """They cost the event loop nothing, so they are no overload."""

    async def main() -> None:
        files = {"config.yaml": "server: {docs: false}", "domains/d.yaml": DOMAIN}
        async with service(files, plugins=LAB) as served:
            hanging = [asyncio.create_task(served.get(HANGS)) for _ in range(300)]
            await until(lambda: served.running.limit.in_flight == 300)
            assert (await served.get(QUICK)).status == 200
            assert served.running.limit.shed == 0
            for task in hanging:
                task.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)
            await until(lambda: served.running.limit.in_flight == 0)
            assert served.running.limit.backlog == 0

    run(main())


def test_clients_that_leave_while_they_wait_are_forgotten(run: Run) -> None:
    async def main() -> None:
        async with service({"domains/d.yaml": DOMAIN}, plugins=LAB) as served:
            limit = served.running.limit
            limit.engaged = True
            writers = []
            for _ in range(50):
                _, writer = await asyncio.open_connection(*served.running.public)
                writer.write(f"GET {HANGS} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 2)
                writers.append(writer)
            await until(lambda: limit.in_flight == 50)
            for writer in writers:
                writer.close()
            await until(lambda: (limit.in_flight, limit.backlog, limit.waiting) == (0, 0, 0))

    run(main())


@pytest.mark.parametrize("engaged", [True, False])
def test_the_backlog_is_empty_after_whatever_a_connection_was_used_for(run: Run, engaged: bool) -> None:
    get = b"GET %b HTTP/1.1\r\nHost: x\r\n" % QUICK.encode()
    upgrade = get + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    last = get + b"Connection: close\r\n\r\n"

    async def main() -> None:
        async with service({"domains/d.yaml": DOMAIN}, plugins=LAB) as served:
            limit = served.running.limit
            whole = get + b"\r\n"
            for parts in ((upgrade + whole + last,), (whole + b"nonsense\r\n\r\n",), (get, b"\r\n" + last)):
                limit.engaged = engaged
                assert (await exchange(served, *parts)).startswith(b"HTTP/1.1 ")
                await until(lambda: limit.connections == 0)
                assert (limit.backlog, limit.in_flight, limit.waiting) == (0, 0, 0)

    run(main())


@pytest.mark.parametrize(
    ("after", "answered"),
    [
        ("endpoints: {quick: {response_mapping: {x: new}}}", (200, {"x": "new"})),
        ("endpoints: {other: {response_mapping: 1}}", (404, None)),
    ],
)
def test_a_request_that_waits_while_the_configuration_changes_is_answered_by_the_new_one(
    run: Run, monkeypatch: pytest.MonkeyPatch, after: str, answered: tuple[int, Any]
) -> None:
    async def main() -> None:
        came, go = asyncio.Event(), asyncio.Event()

        async def turn(self: Limit) -> bool:
            came.set()
            await go.wait()
            return True

        monkeypatch.setattr(Limit, "turn", turn)
        async with service({"domains/d.yaml": DOMAIN}, plugins=LAB) as served:
            served.running.limit.most = 0
            asked = asyncio.create_task(served.get(QUICK))
            async with asyncio.timeout(10):
                await came.wait()
            served.write("domains/d.yaml", after)
            assert (await served.reload()).status == 200
            go.set()
            answer = await asked
            assert (answer.status, answer.json if answer.status == 200 else None) == answered

    run(main())


def test_a_reload_changes_the_limit(serve: Callable[..., Served]) -> None:
    served = serve({"config.yaml": "server: {limit: false}", "domains/d.yaml": DOMAIN}, plugins=LAB)
    limit = served.service.running.limit
    assert (limit.adaptive, limit.most) == (False, 2**62)
    served.write("config.yaml", "server: {limit: {max: 7}}")
    assert served.reload().status == 200
    assert (limit.adaptive, limit.most) == (False, 7)


def test_mistakes_in_the_limit_are_found_with_their_lines() -> None:
    text = """\
    server:
      limit:
        max: 0
        min: 0
        wait: 0
        queue: 5
      header_timeout: 0
      max_connections: 0
      worker_timeout: 500ms
    """
    assert [
        (found.line, found.message)
        for found in check_problems({"config.yaml": text, "domains/d.yaml": "endpoints: {}"})
    ] == [
        (3, "expected adaptive, or at least 1, got 0"),
        (4, "expected at least 1, got 0"),
        (5, "expected more than 0, got 0"),
        (6, "unknown key 'queue'"),
        (7, "expected more than 0, got 0"),
        (8, "expected at least 1, got 0"),
        (9, "expected at least 1 s: a worker may be busy for a moment"),
    ]
    (found,) = check_problems({"config.yaml": "server: {limit: true}", "domains/d.yaml": "endpoints: {}"})
    assert found.message == "expected false, or a mapping such as {max: 100}"
