"""Clients that take their time, or take no answer, are closed; those that are only idle are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import orjson
import pytest
import structlog

from orchestrator_core.http.listener import MOST_SLICES, SPARE, SWEEP_SECONDS, SWEPT_AT_ONCE, Limits, _Server
from orchestrator_core.testing import service

Run = Callable[[Coroutine[Any, Any, None]], None]

CONFIG = """
    server:
      header_timeout: 300ms
      body_timeout: 300ms
      send_timeout: 300ms
      max_connections: 20
"""
DOMAIN = """
    endpoints:
      quick: {response_mapping: {body: "$request.body ?? null"}}
      large: {response_mapping: {text: "%s"}}
""" % ("x" * 200_000)
FILES = {"config.yaml": CONFIG, "domains/d.yaml": DOMAIN}
HEAD = b"GET /orchestrator/d/quick HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /orchestrator/d/quick HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


async def everything(address: tuple[str, int], start: bytes, drip: bytes = b"") -> bytes:
    """Send the start and then drips, and return what comes until the service closes."""
    reader, writer = await asyncio.open_connection(*address)

    async def send() -> None:
        writer.write(start)
        while drip:
            await asyncio.sleep(0.05)
            writer.write(drip)

    sending = asyncio.create_task(send())
    received = b""
    try:
        async with asyncio.timeout(10):
            while chunk := await reader.read(65536):
                received += chunk
    except ConnectionResetError:  # a drip met a closed connection
        received += bytes(reader._buffer)  # type: ignore[attr-defined]
    finally:
        sending.cancel()
        writer.close()
    return received


def told(raw: bytes) -> tuple[bytes, dict[str, Any]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nX-Execution-Id: " in head
    problem = orjson.loads(body)
    del problem["execution_id"]
    return head.partition(b"\r\n")[0], problem


MEDIUM = """
    endpoints:
      medium: {response_mapping: {text: "%s"}}
""" % ("x" * 50_000)


def test_a_client_that_pipelines_and_does_not_read_is_not_answered_into_memory(run: Run) -> None:
    """Small answers wait for it as well as large ones."""

    async def main() -> None:
        async with service({"domains/d.yaml": MEDIUM}) as served:
            reader, writer = await asyncio.open_connection(*served.running.public)
            count = 400
            writer.write(b"GET /orchestrator/d/medium HTTP/1.1\r\nHost: x\r\n\r\n" * count)
            for _ in range(5 * count):  # turns of the loop in which all of them would be answered
                await asyncio.sleep(0)
            (connection,) = served.running.listener._server.connections
            assert connection.transport is not None
            waiting = connection.transport.get_write_buffer_size()  # type: ignore[attr-defined]
            await reader.readexactly(2**20)
            writer.transport.abort()
            assert 0 < waiting < 2**20

    run(main())


def test_a_head_that_drips_is_ended(run: Run) -> None:
    async def main() -> None:
        async with service(FILES) as served:
            status, problem = told(await everything(served.running.public, HEAD + b"X-Slow: ", b"1"))
            assert status == b"HTTP/1.1 408 Request Timeout"
            assert problem == {
                "type": "about:blank",
                "title": "bad request",
                "status": 408,
                "detail": "no request came within 0.3 s",
            }

    run(main())


def test_a_connection_that_says_nothing_is_closed(run: Run) -> None:
    async def main() -> None:
        async with service(FILES) as served:
            assert await everything(served.running.public, b"") == b""

    run(main())


def test_a_body_that_drips_is_ended(run: Run) -> None:
    async def main() -> None:
        async with service(FILES) as served:
            status, problem = told(await everything(served.running.public, POST, b"1"))
            assert status == b"HTTP/1.1 408 Request Timeout"
            assert problem["detail"] == "the body did not arrive within 0.3 s"
            (execution,) = await served.executions()
            assert (execution["status"], execution["http_status"]) == ("failed", 408)

    run(main())


def test_a_client_that_does_not_read_its_answers_is_cut_off(run: Run) -> None:
    async def main() -> None:
        async with service(FILES) as served:
            reader, writer = await asyncio.open_connection(*served.running.public, limit=1000)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            request = b"GET /orchestrator/d/large HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(request * 60)
            live = served.running.live
            async with asyncio.timeout(10):
                while served.running.limit.connections:  # noqa: ASYNC110  # nobody tells of it
                    await asyncio.sleep(0.05)
            assert live.snapshot.running == 0
            writer.transport.abort()
            del reader

    run(main())


def test_a_client_that_reads_one_answer_after_the_other_is_not_cut_off(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is always something of an answer that it has not read yet, but none of them takes it long."""
    monkeypatch.setattr("orchestrator_core.http.listener.SWEEP_SECONDS", 0.05)
    size = 8_000_000
    files = {**FILES, "domains/d.yaml": 'endpoints: {huge: {response_mapping: {text: "%s"}}}' % ("x" * size)}

    async def main() -> None:
        async with service(files) as served:
            reader, writer = await asyncio.open_connection(*served.running.public, limit=1000)
            answers, loop = 0, asyncio.get_running_loop()
            ends = loop.time() + 1.0
            request = b"GET /orchestrator/d/huge HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(request)
            while loop.time() < ends:
                writer.write(request)
                received = 0
                while received < size:
                    chunk = await reader.read(size // 10)
                    assert chunk, f"the connection was closed after {answers} answers"
                    received += len(chunk)
                    await asyncio.sleep(0.002)
                answers += 1
            writer.close()

    run(main())


def test_an_idle_connection_is_kept(run: Run) -> None:
    """The time for a head begins with its first byte once there was a request."""

    async def main() -> None:
        async with service(FILES) as served:
            reader, writer = await asyncio.open_connection(*served.running.public)
            for pause in (2.5, 0):
                writer.write(HEAD + b"\r\n")
                head = await reader.readuntil(b"\r\n\r\n")
                assert head.startswith(b"HTTP/1.1 200 OK")
                await reader.readexactly(int(head.partition(b"Content-Length: ")[2].partition(b"\r")[0]))
                await asyncio.sleep(pause)
            writer.close()

    run(main())


def test_a_connection_too_many_is_told_so_counted_and_logged_once_in_a_while(run: Run) -> None:
    def told_refused() -> list[Any]:
        known = ("most", "refused")
        return [{name: event[name] for name in known} for event in logged if event["event"].startswith("connections")]

    async def main() -> None:
        async with service(FILES) as served:
            opened = [await asyncio.open_connection(*served.running.public) for _ in range(20)]
            status, problem = told(await everything(served.running.public, HEAD + b"\r\n"))
            assert status == b"HTTP/1.1 503 Service Unavailable"
            assert problem["detail"] == "all 20 connections are in use"
            for _ in range(4):
                await everything(served.running.public, HEAD + b"\r\n")
            limit = served.running.limit
            assert (limit.connections, limit.connections_refused) == (20, 5)
            assert told_refused() == [{"most": 20, "refused": 1}]
            for _, writer in opened:
                writer.close()
            async with asyncio.timeout(10):
                while served.running.limit.connections:  # noqa: ASYNC110  # nobody tells of it
                    await asyncio.sleep(0.05)
            assert (await served.get("/orchestrator/d/quick")).status == 200
        assert told_refused() == [{"most": 20, "refused": 1}, {"most": 20, "refused": 4}]

    with structlog.testing.capture_logs() as logged:
        run(main())


def test_health_is_seen_while_all_connections_are_in_use(run: Run) -> None:
    async def main() -> None:
        async with service(FILES) as served:
            opened = [await asyncio.open_connection(*served.running.public) for _ in range(20)]
            for _ in range(3):
                answer = await everything(served.running.public, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200 OK")
                assert b"Connection: close" in answer
            assert served.running.limit.connections_refused == 0
            silent = await everything(served.running.public, b"")
            assert told(silent)[1]["detail"] == "all 20 connections are in use"
            assert served.running.limit.connections_refused == 1
            spare = [await asyncio.open_connection(*served.running.public) for _ in range(SPARE)]
            assert told(await everything(served.running.public, b""))[0] == b"HTTP/1.1 503 Service Unavailable"
            for _, writer in (*opened, *spare):
                writer.close()

    run(main())


def test_of_many_to_be_closed_one_is_closed_in_a_turn_of_the_loop(run: Run) -> None:
    closed: list[object] = []

    class Connected:
        def sweep(self, now: float, limits: Limits) -> bool:
            closed.append(self)
            return True

    async def main() -> None:
        server = _Server(lambda request: asyncio.sleep(0), None, Limits())  # type: ignore[arg-type, return-value]
        server.stop_timers()
        server._connections = {Connected(): None for _ in range(50)}  # type: ignore[assignment, misc]
        while len(closed) < 50:
            before = len(closed)
            server._sweep()
            server.stop_timers()
            assert len(closed) - before <= 1

    run(main())


@pytest.mark.parametrize("count", [0, 3, 1000, 10_000])
def test_all_connections_are_looked_at_within_a_second_a_few_at_a_time(run: Run, count: int) -> None:
    looked_at: list[int] = []

    class Connected:
        def __init__(self, number: int) -> None:
            self.number = number

        def sweep(self, now: float, limits: Limits) -> bool:
            looked_at.append(self.number)
            return False

    async def main() -> None:
        server = _Server(lambda request: asyncio.sleep(0), None, Limits())  # type: ignore[arg-type, return-value]
        server.stop_timers()
        server._connections = {Connected(number): None for number in range(count)}  # type: ignore[assignment, misc]
        seconds, most = 0.0, 0
        server._sweep()
        while len(looked_at) < count:
            before = len(looked_at)
            seconds += server._pause
            server.stop_timers()
            server._sweep()
            most = max(most, len(looked_at) - before)
        server.stop_timers()
        assert looked_at == list(range(count))
        assert seconds <= SWEEP_SECONDS
        assert most <= max(SWEPT_AT_ONCE, count / MOST_SLICES)

    run(main())
