"""``python -m orchestrator_core serve`` as a process of its own, for tests."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from attrs import define, field

from orchestrator_core.testing.service import write_files

ROOT = Path(__file__).parents[2]

SLOW = '''
    import asyncio
    import gc
    import os
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl, option

    @frozen
    class Options:
        """How it opens."""
        opens_in: float = option(0.0, help="How long it takes to open.")
        dies: str = option("", help="File whose being there ends the process.")
        opens: str = option("", help="File that it adds its process id to when it is opened, unless it opens at once.")
        closes: str = option("", help="File that it adds a line to when it is closed.")
        key: str = option("", help="A secret.")
        first: str = option("", help="File. The process that makes it opens at once.")
        waits: str = option("", help="File. While it is there, only the first one opens.")

    class Slow:
        async def fetch(self, operation, params):
            if operation == "pid":
                return os.getpid()
            if operation == "frozen":
                return gc.get_freeze_count() > 10_000
            if operation == "held":
                while not os.path.exists(params["until"]):
                    await asyncio.sleep(0.02)
                return os.getpid()
            await asyncio.sleep(params["seconds"])
            return params

    @asynccontextmanager
    async def opened(options, context):
        if options.dies and os.path.exists(options.dies):
            os._exit(3)
        if not is_first(options.first):
            if options.opens:
                with open(options.opens, "a") as file:
                    file.write(f"{os.getpid()}\\n")
            while options.waits and os.path.exists(options.waits):
                await asyncio.sleep(0.02)
            await asyncio.sleep(options.opens_in)
        try:
            yield Slow()
        finally:
            if options.closes:
                with open(options.closes, "a") as file:
                    file.write("closed\\n")

    def is_first(path):
        try:
            return bool(path) and not os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("slow", "Takes its time.", Options, opened)]
'''
FILES = {
    "config/config.yaml": "reload: {watch: false}\nplugins_dir: ../plugins\n",
    "config/database.yaml": "slow: {sources: {default: {}}}",
    "config/domains/d.yaml": """
        endpoints:
          version: {response_mapping: 1}
          pid: {data_sources: [{name: pid, type: slow, operation: pid}]}
          frozen: {data_sources: [{name: frozen, type: slow, operation: frozen}]}
          held:
            timeout: 60s
            data_sources: [{name: held, type: slow, operation: held, params: {until: "$request.body"}}]
          slow: {data_sources: [{name: slow, type: slow, params: {seconds: "$request.body"}}]}
    """,
    "plugins/slow.py": SLOW,
}
HANGS = {
    **FILES,
    "config/database.yaml": "slow: {sources: {default: {}}}\nhangs: {sources: {default: {}}}",
    "plugins/hangs.py": '''
    import asyncio
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import SourceKind, hookimpl

    @frozen
    class Options:
        """Nothing to configure."""

    class Hangs:
        async def fetch(self, operation, params):
            return None

    @asynccontextmanager
    async def opened(options, context):
        try:
            yield Hangs()
        finally:
            await asyncio.sleep(600)

    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind("hangs", "Does not close.", Options, opened)]
''',
}
"""Of its sources one does not close."""


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

    async def says(self, text: str, seconds: float = 20) -> None:
        """Wait until a line of its log holds a text: a thread writes them, and may be a little behind."""
        async with asyncio.timeout(seconds):
            while not any(text in line for line in self.lines):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)


@asynccontextmanager
async def starting(
    folder: Path, files: Mapping[str, str] = FILES, *arguments: str, shell: str = ":"
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a service after a command of the shell, and end it if it has not ended."""
    write_files(folder, files)
    process = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'{shell} && exec "$@"', "sh"),
        *(sys.executable, "-m", "orchestrator_core", "serve", "--config", "config", "--port", "0", "--admin-port", "0"),
        *arguments,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@asynccontextmanager
async def serving(
    folder: Path, files: Mapping[str, str] = FILES, *arguments: str, shell: str = ":"
) -> AsyncIterator[Process]:
    async with starting(folder, files, *arguments, shell=shell) as process, _served(folder, process) as service:
        yield service


@asynccontextmanager
async def _served(folder: Path, process: asyncio.subprocess.Process) -> AsyncIterator[Process]:
    assert process.stderr is not None
    lines: list[str] = []
    reading: asyncio.Task[None] | None = None
    try:
        async with asyncio.timeout(90):
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
        if reading is not None:
            await reading


async def _read(stream: asyncio.StreamReader, lines: list[str]) -> None:
    while line := await stream.readline():
        lines.append(line.decode())


def running_in(folder: Path) -> list[int]:
    """Return the processes whose working directory this is: a service and its workers, as long as there are any."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # it has ended meanwhile, or is another user's
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder.resolve():
                found.append(int(entry.name))
    return found


@define
class Load:
    """Clients that ask one after the other, and know no second attempt, until nobody listens any more."""

    url: str
    reuse: bool
    count: int = 0
    statuses: set[int] = field(factory=set)
    failures: list[str] = field(factory=list)
    stopped: bool = False

    async def client(self) -> None:
        parts = urlsplit(self.url)
        head = f"GET {parts.path}/version HTTP/1.1\r\nHost: here\r\n\r\n".encode()
        writer: asyncio.StreamWriter | None = None
        try:
            while not self.stopped:
                if writer is None:
                    try:
                        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
                    except ConnectionRefusedError:
                        return
                if await self._asked(reader, writer, head):
                    writer.close()
                    writer = None
        finally:
            if writer is not None:
                writer.close()

    async def _asked(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> bool:
        """Send one request; return whether its connection is used up."""
        try:
            writer.write(head)
            answer = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            await reader.readexactly(int(answer.partition("content-length: ")[2].partition("\r")[0]))
        except (OSError, EOFError) as error:
            self.failures.append(repr(error))
            return True
        self.count += 1
        self.statuses.add(int(answer.split()[1]))
        return not self.reuse or "connection: close" in answer

    async def answered(self, more: int) -> None:
        """Wait until this many more answers have come."""
        until = self.count + more
        async with asyncio.timeout(30):
            while self.count < until:  # noqa: ASYNC110  # it is asked, not told
                await asyncio.sleep(0.01)
