"""``python -m orchestrator_core serve`` as a process: signals, reload and a stop that loses no request."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from attrs import define

from orchestrator_core.testing.service import write_files

RunFixture = Callable[..., Any]
ROOT = Path(__file__).parents[2]

SLOW = '''
    import asyncio
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl

    @frozen
    class Options:
        """Nothing to configure."""

    class Slow:
        async def fetch(self, operation, params):
            await asyncio.sleep(params["seconds"])
            return params

    @asynccontextmanager
    async def opened(options, context):
        yield Slow()

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("slow", "Takes its time.", Options, opened)]
'''
FILES = {
    "config/config.yaml": "reload: {watch: false}\nplugins_dir: ../plugins\n",
    "config/domains/d.yaml": """
        endpoints:
          version: {response_mapping: 1}
          slow: {data_sources: [{name: slow, type: slow, params: {seconds: "$request.body"}}]}
    """,
    "plugins/slow.py": SLOW,
}


@define
class Process:
    """A service in a process of its own; ``lines`` is what it wrote to standard error."""

    folder: Path
    process: asyncio.subprocess.Process
    url: str
    admin_url: str
    client: aiohttp.ClientSession
    lines: list[str]

    async def get(self, url: str, **more: Any) -> tuple[int, Any]:
        async with self.client.request(more.pop("method", "GET"), url, **more) as response:
            return response.status, await response.json(content_type=None)

    async def version(self, number: int) -> None:
        async with asyncio.timeout(10):
            while (await self.get(f"{self.url}/version"))[1] != number:  # noqa: ASYNC110  # it is asked, not told
                await asyncio.sleep(0.02)


@asynccontextmanager
async def serving(folder: Path, files: Mapping[str, str] = FILES) -> AsyncIterator[Process]:
    write_files(folder, files)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "orchestrator_core", "serve", "--config", "config", "--port", "0", "--admin-port", "0"),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    lines: list[str] = []
    try:
        async with asyncio.timeout(30):
            while not any("/executions" in line for line in lines):
                line = (await process.stderr.readline()).decode()
                assert line, "".join(lines)
                lines.append(line)
        told = "".join(lines)
        urls = re.findall(r"http://127\.0\.0\.1:\d+", told)
        reading = asyncio.create_task(_read(process.stderr, lines))
        async with aiohttp.ClientSession() as client:
            yield Process(folder, process, f"{urls[0]}/orchestrator/d", urls[-1], client, lines)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await reading


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode())


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
            await asyncio.sleep(0.2)
            await service.version(2)
            path.write_text("endpoints: {version: {response_mapping: 3}}")
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            assert (status, told["swapped"], told["problems"]) == (200, True, [])
            await service.version(3)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 10) == 0

    run(main())


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


def test_requests_that_outlive_the_shutdown_timeout_do_not_hold_the_process(run: RunFixture, tmp_path: Path) -> None:
    files = {**FILES, "config/config.yaml": "plugins_dir: ../plugins\nserver: {shutdown_timeout: 200ms}\n"}

    async def main() -> None:
        async with serving(tmp_path, files) as service:
            slow = asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=9))
            await asyncio.sleep(0.2)
            service.process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(service.process.wait(), 5) == 0
            (outcome,) = await asyncio.gather(slow, return_exceptions=True)
            assert isinstance(outcome, aiohttp.ClientError)

    run(main())
