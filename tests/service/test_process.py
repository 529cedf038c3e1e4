"""``python -m orchestrator_core serve`` as a process: signals, reload and a stop that loses no request."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from orchestrator_core.tasks import beside
from orchestrator_core.testing.ports import free_port
from orchestrator_core.testing.service import write_files
from orchestrator_core.watching import watch
from tests.service.processes import FILES, HANGS, Load, serving, starting

RunFixture = Callable[..., Any]


def test_sighup_and_post_reload_swap_and_a_broken_file_does_not(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            path = tmp_path / "config/domains/d.yaml"
            await service.version(1)
            path.write_text("endpoints: {version: {response_mapping: 2}}")
            service.process.send_signal(signal.SIGHUP)
            await service.version(2)
            path.write_text("endpoints: {version: {response_mapping: $x}}")
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            assert (status, told["problems"][0]["code"]) == (422, "ORC502")
            service.process.send_signal(signal.SIGHUP)
            service.process.send_signal(signal.SIGUSR2)
            await service.says("SIGUSR2 is ignored")
            await asyncio.sleep(0.2)
            await service.version(2)
            path.write_text("endpoints: {version: {response_mapping: 3}}")
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            assert (status, told["swapped"], told["problems"]) == (200, True, [])
            await service.version(3)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 10) == 0

    run(main())


def test_the_garbage_collector_leaves_out_what_is_there_at_the_start(run: RunFixture, tmp_path: Path) -> None:
    """It would look at all libraries while requests wait. Of a test's own process it is not told so."""

    async def main(*arguments: str) -> None:
        async with serving(tmp_path, FILES, *arguments) as service:
            assert await service.get(f"{service.url}/frozen") == (200, True)

    run(main())
    run(main("--workers", "1"))
    assert not gc.get_freeze_count()


def test_sigterm_lets_requests_in_flight_finish(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            slow = [asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=0.6)) for _ in range(3)]
            await asyncio.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.gather(*slow) == [(200, {"seconds": 0.6})] * 3
            assert await asyncio.wait_for(service.process.wait(), 10) == 0
            assert not [line for line in service.lines if "Traceback" in line or "Error" in line]

    run(main())


def told_of_the_stop(answer: tuple[int, Any]) -> bool:
    status, problem = answer
    said = "the service is shutting down, and the request was not done in step 'slow'"
    return (status, problem["detail"]) == (503, said)


def test_requests_that_outlive_the_shutdown_timeout_do_not_hold_the_process(run: RunFixture, tmp_path: Path) -> None:
    files = {**FILES, "config/config.yaml": "plugins_dir: ../plugins\nserver: {shutdown_timeout: 200ms}\n"}

    async def main() -> None:
        async with serving(tmp_path, files) as service:
            slow = asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=9))
            await asyncio.sleep(0.2)
            service.process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(service.process.wait(), 5) == 0
            assert told_of_the_stop(await slow)

    run(main())


def test_a_source_that_does_not_close_does_not_hold_the_process(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, HANGS) as service:
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)  # else the two are one
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0
        assert any("a source does not close: it is broken off" in line for line in service.lines)

    run(main(), timeout_seconds=60)


BLOCKS = """
    import asyncio, time
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl

    @frozen
    class Options:
        \"\"\"Nothing to configure.\"\"\"

    class Blocks:
        async def fetch(self, operation, params):
            await asyncio.to_thread(time.sleep, 600)

    @asynccontextmanager
    async def opened(options, context):
        yield Blocks()

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("blocks", "Its thread never ends.", Options, opened)]
"""


def test_a_thread_that_does_not_end_does_not_hold_the_process(run: RunFixture, tmp_path: Path) -> None:
    files = {
        **FILES,
        "config/config.yaml": "plugins_dir: ../plugins\n",
        "config/domains/blocking.yaml": """
            endpoints:
              get:
                timeout: 200ms
                data_sources:
                  - {name: blocked, type: blocks, operation: get}
        """,
        "config/integrations/blocks.yaml": "blocks: {sources: {default: {}}}",
        "plugins/blocks.py": BLOCKS,
    }

    async def main() -> None:
        async with serving(tmp_path, files) as service:
            address = urlsplit(service.url)
            status, _ = await service.get(f"{address.scheme}://{address.netloc}/orchestrator/blocking/get")
            assert status == 504
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0
        assert any("threads do not end" in line for line in service.lines)

    run(main(), timeout_seconds=60)


def test_signals_that_come_together_are_one(run: RunFixture, tmp_path: Path) -> None:
    """As who sends one to the process, and one to its group."""

    async def main() -> None:
        async with serving(tmp_path) as service:
            slow = asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=0.6))
            await asyncio.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            service.process.send_signal(signal.SIGINT)
            assert await slow == (200, {"seconds": 0.6})
            assert await asyncio.wait_for(service.process.wait(), 60) == 0

    run(main())


def test_a_second_signal_ends_requests_in_flight(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            slow = asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=60))
            await asyncio.sleep(0.2)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert not slow.done()
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 60) == 0
            assert told_of_the_stop(await slow)

    run(main(), timeout_seconds=180)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_start_that_waits_for_a_source_is_given_up_by_sigterm_and_not_by_sighup(
    run: RunFixture, tmp_path: Path, workers: int
) -> None:
    files = {
        **FILES,
        "config/database.yaml": f"slow: {{sources: {{default: {{opens_in: 600, opens: {tmp_path}/opens}}}}}}",
    }

    async def main() -> None:
        async with starting(tmp_path, files, "--workers", str(workers)) as process:
            while not (tmp_path / "opens").exists():  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            _, told = await process.communicate()
            assert (process.returncode, b"serving" in told, b"Traceback" in told) == (0, False, False)

    run(main(), timeout_seconds=60)


def test_a_stop_does_not_wait_for_a_reload(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as service:
            slow = f"slow: {{sources: {{default: {{opens_in: 600, opens: {tmp_path}/opens}}}}}}"
            (tmp_path / "config/database.yaml").write_text(slow)
            service.process.send_signal(signal.SIGHUP)
            while not (tmp_path / "opens").exists():  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
            service.process.send_signal(signal.SIGTERM)
            assert await service.process.wait() == 0

    run(main(), timeout_seconds=60)


def test_changes_are_noticed_when_the_system_tells_of_them_no_more(
    run: RunFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def in_trouble(*_: Any, **__: Any) -> AsyncIterator[set[Any]]:
        yield set()
        raise RuntimeError("error in underlying watcher: no space left on device")

    monkeypatch.setattr("watchfiles.awatch", in_trouble)
    reloads: asyncio.Queue[None] = asyncio.Queue()

    async def reload() -> None:
        reloads.put_nowait(None)

    async def main() -> None:
        async with beside(watch(tmp_path, dict, reload), "watch"):
            await reloads.get()
            write_files(tmp_path, {"config.yaml": "{}"})
            await reloads.get()

    run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load_fails_no_request(run: RunFixture, tmp_path: Path, workers: int) -> None:
    """Nothing but a refused connection, whether clients keep theirs or open one for each request."""

    async def main() -> None:
        async with serving(tmp_path, FILES, "--workers", str(workers)) as service:
            loads = [Load(service.url, reuse=reuse) for reuse in (True, False)]
            clients = [asyncio.create_task(load.client()) for load in loads for _ in range(8)]
            for load in loads:
                await load.answered(50)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 60) == 0
            await asyncio.gather(*clients)
            assert [(load.failures, load.statuses) for load in loads] == [([], {200})] * 2

    run(main(), timeout_seconds=180)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_and_stops_without_standard_input_and_output(run: RunFixture, tmp_path: Path, workers: str) -> None:
    """What is opened in their place would be taken for them."""

    async def main() -> None:
        async with serving(tmp_path, FILES, "--workers", workers, shell="exec <&- >&-") as service:
            await service.version(1)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0

    run(main(), timeout_seconds=120)


@pytest.mark.parametrize("how", ["2>&-", "2>/dev/full"])
def test_it_serves_though_nobody_can_be_told_that_it_does(run: RunFixture, tmp_path: Path, how: str) -> None:
    port = free_port()

    async def answers() -> bool:
        async with aiohttp.ClientSession() as client:
            try:
                async with client.get(f"http://127.0.0.1:{port}/orchestrator/d/version") as answer:
                    return answer.status == 200
            except aiohttp.ClientConnectionError:
                return False

    async def main() -> None:
        async with starting(
            tmp_path, FILES, "--port", str(port), shell=f"unset PYTHONUNBUFFERED; exec {how}"
        ) as process:
            async with asyncio.timeout(60):
                while not await answers():
                    assert process.returncode is None
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # in which it would end of what it has to say
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 20) == 0

    run(main(), timeout_seconds=120)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_asks_for_as_many_open_files_as_it_takes_connections(run: RunFixture, tmp_path: Path, workers: str) -> None:
    """With one left over no source could be connected to, and who connects would be closed without a word."""

    async def main() -> None:
        async with serving(tmp_path, FILES, "--workers", workers, shell="ulimit -S -n 100") as service:
            async with connected(service.url, 300):
                assert (await service.get(f"{service.url}/version"))[0] == 200
            assert not [line for line in service.lines if "fewer connections" in line]

    run(main())


def test_where_the_system_allows_few_open_files_it_takes_fewer_connections(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, FILES, shell="ulimit -n 100") as service:
            await service.says("taken=75")
            async with connected(service.url, 75):
                status, told = await service.get(f"{service.url}/version")
                assert (status, told["detail"]) == (503, "all 75 connections are in use")

    run(main())


@asynccontextmanager
async def connected(url: str, number: int) -> AsyncIterator[None]:
    """Have so many connections that have had an answer, so that each has been taken, and have begun a request."""
    parts = urlsplit(url)
    opened = []
    try:
        for _ in range(number):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            opened.append(writer)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).split()[1] == b"200"
            writer.write(b"GET / HTTP/1.1\r\n")
        yield
    finally:
        for writer in opened:
            writer.close()
