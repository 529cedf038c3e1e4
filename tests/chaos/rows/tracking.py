"""The tracking database is locked, full, or gone: answers are as before, and what is lost is counted."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from tests.bench.backends import postgresql_database
from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting, compared, grown
from tests.chaos.proxy import chaos_proxy
from tests.chaos.stage import Stage, stage

RATE = 300
MOST_GROWTH = 0.05
SETTLED_SECONDS = 30.0
OTHER_FILES = 64 * 1024
CONFIG = """\
logging: {{requests: false}}
tracking:
  queue: 200
  retry_window: {window}s
  store: {{type: sql, url: "{url}"}}
"""
Fault = Callable[[Stage], AbstractAsyncContextManager[None]]


async def measure(setting: Setting) -> list[Finding]:
    findings = []
    file = setting.folder / "executions.db"
    for name, fault in (("locked", locked(file)), ("full", full)):
        for stale in setting.folder.glob("executions.db*"):
            stale.unlink()
        findings += await under(setting, name, f"sqlite:///{file}", fault, lambda: _rows_of_file(file))
    async with postgresql_database(setting.postgresql, []) as url:
        parts = urlsplit(url)
        async with chaos_proxy(parts.hostname or "127.0.0.1", parts.port or 5432) as proxy:

            @asynccontextmanager
            async def gone(_: Stage) -> AsyncIterator[None]:
                await proxy.refuse()
                try:
                    yield
                finally:
                    await proxy.well()

            through = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{proxy.port}").geturl()
            findings += await under(setting, "gone", through, gone, lambda: _rows_of_server(url))
    return findings


async def under(setting: Setting, name: str, url: str, fault: Fault, rows: Callable[[], Any]) -> list[Finding]:
    """Measure before and during a fault; then wait until all is written, and count."""
    seconds = setting.long(20, 1.5)
    config = CONFIG.format(url=url, window=2 if setting.quick else 5)
    async with stage(setting, config=config) as service:
        streams = [
            Stream(endpoint, service.path(f"{endpoint}/{{n}}"), rate=RATE, ids=100)
            for endpoint in ("plain", "customer")
        ]
        before_rows = await rows()
        async with service.load(*streams) as driven:
            await asyncio.sleep(1)
            begun = monotonic()
            await asyncio.sleep(seconds)
            setting.say(f"the tracking database is {name} for {seconds:g} s")
            broken = monotonic()
            async with fault(service):
                await asyncio.sleep(seconds)
                mended = monotonic()
            await asyncio.sleep(0.5)
        counts = await _settled(service)
        kept = await rows() - before_rows
        dropped = sum(counts["dropped"].values())
        finished = sum(map(len, driven.values()))
        findings = [
            Finding(
                f"{name}: every request is answered",
                "; ".join(f"{met.name}: {met.shown()}" for met in driven.values()),
                all(set(met.status) == {200} for met in driven.values()),
            ),
            Finding(
                f"{name}: dropped count exact",
                f"{finished:,} answered, {counts['finished']:,} finished = {counts['written']:,} written +"
                f" {dropped:,} dropped + {counts['waiting']} waiting; {kept:,} in the store",
                counts["finished"] == finished
                and counts["written"] + dropped == finished
                and kept == counts["written"]
                and dropped > 0,
            ),
        ]
        for met in driven.values():
            p99 = met.between(begun, broken).percentile(0.99), met.between(broken, mended).percentile(0.99)
            findings.append(
                Finding(
                    f"{name}: p99 of {met.name} up by at most 5 %",
                    compared("p99", *p99),
                    grown(*p99) <= MOST_GROWTH,
                    relative=True,
                )
            )
        return findings


async def _settled(service: Stage) -> dict[str, Any]:
    async with asyncio.timeout(SETTLED_SECONDS):
        while True:
            counts: dict[str, Any] = (await service.admin("/config"))[1]["tracking"]
            if not counts["waiting"]:
                return counts
            await asyncio.sleep(0.1)


def locked(file: Path) -> Fault:
    @asynccontextmanager
    async def lock(_: Stage) -> AsyncIterator[None]:
        connection = sqlite3.connect(file, isolation_level=None, timeout=10)
        try:
            connection.execute("BEGIN EXCLUSIVE")
            yield
        finally:
            connection.close()

    return lock


@asynccontextmanager
async def full(service: Stage) -> AsyncIterator[None]:
    """Let no file of the service's be written beyond a few pages, as on a full disk."""
    soft, hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (service.log.stat().st_size + OTHER_FILES, hard))
    try:
        yield
    finally:
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (soft, hard))


async def _rows_of_file(file: Path) -> int:
    connection = sqlite3.connect(file)
    try:
        return int(connection.execute("SELECT count(*) FROM orchestrator_executions").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


async def _rows_of_server(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval("SELECT count(*) FROM orchestrator_executions")
    finally:
        await connection.close()
    return found


ROW = Row("tracking", "the tracking database locked, full, gone", measure)
