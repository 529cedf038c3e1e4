"""The proxy and the load: what the figures of the table rest on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.bench.process import awake
from tests.chaos.load import CLOSED, REFUSED, TIMED_OUT, Stream, Traffic, load
from tests.chaos.outcome import Finding, Row, table
from tests.chaos.proxy import Proxy, chaos_proxy

RunFixture = Callable[..., Any]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers each request, unless it is silent."""

    def __init__(self) -> None:
        self.port = 0
        self.answered = 0
        self.silent = asyncio.Event()
        self.silent.set()
        self.serving: set[asyncio.Task[None] | None] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.current_task())
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                await self.silent.wait()
                self.answered += 1
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    async with listening:
        yield server
    await asyncio.gather(*filter(None, server.serving))


async def ask(proxy: Proxy) -> bytes:
    """Return the whole answer, or what there was of it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        return await reader.readexactly(len(ANSWER))
    except asyncio.IncompleteReadError as cut:
        return cut.partial
    finally:
        writer.close()


def test_the_proxy_passes_on_and_counts(run: RunFixture) -> None:
    async def main() -> None:
        async with serving() as server, chaos_proxy("127.0.0.1", server.port) as proxy:
            assert [await ask(proxy) for _ in range(3)] == [ANSWER] * 3
            assert (proxy.connections, proxy.requests, proxy.turned_away) == (3, 3, 0)

    run(main())


def test_the_proxy_resets_refuses_cuts_and_is_well_again(run: RunFixture) -> None:
    async def main() -> None:
        async with serving() as server, chaos_proxy("127.0.0.1", server.port) as proxy:
            await proxy.reset()
            with pytest.raises(ConnectionResetError):
                await ask(proxy)
            assert (proxy.turned_away, proxy.requests) == (1, 0)
            await proxy.refuse()
            with pytest.raises(ConnectionRefusedError):
                await ask(proxy)
            await proxy.truncate(10)
            assert await ask(proxy) == ANSWER[:10]
            await proxy.well()
            assert await ask(proxy) == ANSWER

    run(main())


def test_what_hangs_in_the_proxy_goes_on_when_it_is_well(run: RunFixture) -> None:
    async def main() -> None:
        async with serving() as server, chaos_proxy("127.0.0.1", server.port) as proxy:
            await proxy.hang()
            asking = [asyncio.create_task(ask(proxy)) for _ in range(3)]
            done, _ = await asyncio.wait(asking, timeout=0.2)
            assert (len(done), server.answered) == (0, 0)
            await proxy.well()
            assert await asyncio.gather(*asking) == [ANSWER] * 3

    run(main())


def test_the_load_charges_a_server_that_stands_still_with_all_that_would_have_come(run: RunFixture) -> None:
    async def main() -> None:
        async with serving() as server:
            async with load(server.port, [Stream("one", "/{n}", rate=100, connections=1, ids=3)]) as driven:
                await asyncio.sleep(0.3)
                server.silent.clear()
                await asyncio.sleep(1)
                server.silent.set()
                await asyncio.sleep(0.2)
            met = driven["one"]
            assert set(met.status) == {200}
            assert len(met) == server.answered
            # One request alone would have been late with a loop that waits for its answer.
            assert sum(seconds > 0.25 for seconds in met.seconds) > 20

    run(main())


def test_the_load_tells_why_there_is_no_answer(run: RunFixture) -> None:
    async def main() -> None:
        async with serving() as server, chaos_proxy("127.0.0.1", server.port) as proxy:
            stream = Stream("one", "/", rate=50, connections=20, timeout_seconds=0.4)
            async with load(proxy.port, [stream]) as driven:
                await asyncio.sleep(0.3)
                await proxy.hang()
                await asyncio.sleep(1)
                await proxy.reset()
                await asyncio.sleep(0.3)
                await proxy.refuse()
                await asyncio.sleep(0.3)
            assert {200, TIMED_OUT, CLOSED, REFUSED} == set(driven["one"].status)

    run(main())


def test_the_figures_of_a_stream_can_be_cut_by_time_and_status() -> None:
    met = Traffic("one", [0.0, 1.0, 2.0, 3.0], [0.1, 0.4, 0.2, 0.3], [200, 503, 200, CLOSED])
    assert met.between(1, 3).only(200).seconds == [0.2]
    assert (met.percentile(0.5), met.worst) == (0.3, 0.4)
    assert met.shown() == "1 closed unanswered, 2 200, 1 503"


def test_the_table_says_what_was_not_measured() -> None:
    async def measure(_: object) -> list[Finding]:
        return []

    row = Row("down", "a source down", measure)
    findings = [Finding("503", "all of 7", True), Finding("fast", "1 s", False), Finding("quiet", "no server", None)]
    assert table([(row, findings)]).splitlines()[2:] == [
        "| a source down | 503 | all of 7 | held |",
        "|  | fast | 1 s | not held |",
        "|  | quiet | no server | not measured |",
    ]


def test_the_cores_are_kept_awake_while_the_block_runs(tmp_path: Path) -> None:
    device = tmp_path / "cpu_dma_latency"
    os.mkfifo(device)
    reading = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with awake(device) as kept:
            assert kept
            assert os.read(reading, 100) == bytes(4)
            with pytest.raises(BlockingIOError):
                os.read(reading, 100)  # it is held open
        assert os.read(reading, 100) == b""
    finally:
        os.close(reading)


def test_cores_that_are_not_ours_to_keep_awake_are_told_of(tmp_path: Path) -> None:
    with awake(tmp_path / "missing" / "cpu_dma_latency") as kept:
        assert not kept
    assert not list(tmp_path.iterdir())
