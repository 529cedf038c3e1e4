"""The database's pool is exhausted; then thousands of clients hang up in the middle of a query."""

from __future__ import annotations

import asyncio

import asyncpg

from tests.chaos.load import TIMED_OUT, Stream
from tests.chaos.outcome import Finding, Row, Setting, milliseconds
from tests.chaos.stage import Stage, stage

POOL_SIZE = 5
POOL_TIMEOUT_SECONDS = 1.0
GRACE_SECONDS = 0.25
RATE = 500
ASKING = 8


async def measure(setting: Setting) -> list[Finding]:
    async with stage(setting, pool_size=POOL_SIZE) as service:
        for _ in range(3):
            assert (await service.get(service.path("customer/1")))[0] == 200
        setting.say(f"more queries of 2 s than the pool's {POOL_SIZE} connections")
        long = Stream("long", service.path("long_query/2"), rate=20, connections=200)
        async with service.load(long) as driven:
            await asyncio.sleep(setting.long(10, 2))
        waited = driven["long"].only(503)
        exhausted = [
            Finding(
                f"503 within the pool timeout ({POOL_TIMEOUT_SECONDS:g} s)",
                f"{driven['long'].shown()}; 503: p50 {milliseconds(waited.percentile(0.5))},"
                f" worst {milliseconds(waited.worst)}, {driven['long'].without_retry_after} without Retry-After",
                len(waited) > 0
                and waited.worst <= POOL_TIMEOUT_SECONDS + GRACE_SECONDS
                and not driven["long"].without_retry_after,
                relative=True,
            ),
            Finding(
                "nothing but 200 and 503", driven["long"].shown(), {200, 503} >= set(driven["long"].status) != {200}
            ),
        ]
        await _rested(service)
        await _all_asked(service)  # so that our own connections are there before and after
        descriptors, tasks = service.descriptors(), len(await service.tasks())
        cancelled = setting.times(10_000, 1_000)
        setting.say(f"{cancelled:,} requests are given up by their clients after 20 ms")
        short = Stream("short", service.path("long_query/0.1"), rate=RATE, connections=256, timeout_seconds=0.02, ids=1)
        async with service.load(short) as driven:
            await asyncio.sleep(cancelled / RATE)
        given_up = len(driven["short"].only(TIMED_OUT))
        await _rested(service)
        served = await _all_asked(service)
        connections = await _server_connections(service)
        left = service.descriptors() - descriptors, len(await service.tasks()) - tasks
        return [
            *exhausted,
            Finding(
                "no connection leaked by clients that hang up",
                f"{given_up:,} given up; {connections} connections at the server of a pool of {POOL_SIZE}, then"
                f" {served.count(200)} of {len(served)} served; {left[0]:+} descriptors,"
                f" {left[1]:+} tasks",
                given_up >= cancelled * 0.9
                and connections <= POOL_SIZE
                and set(served) == {200}
                and max(left) <= ASKING,
            ),
        ]


async def _all_asked(service: Stage) -> list[int]:
    answers = await asyncio.gather(*(service.get(service.path(f"customer/{n}")) for n in range(1, 4 * POOL_SIZE)))
    return [status for status, _ in answers]


async def _rested(service: Stage) -> None:
    """Wait until the database is served again: a breaker that opened for it lets a probe through in time."""
    async with asyncio.timeout(20):
        while (await service.get(service.path("customer/1")))[0] != 200:  # noqa: ASYNC110  # asked, not told
            await asyncio.sleep(0.1)
    await asyncio.sleep(1)


async def _server_connections(service: Stage) -> int:
    connection = await asyncpg.connect(service.setting.postgresql)
    try:
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1", service.database_name
        )
    finally:
        await connection.close()
    return count


ROW = Row("pool", "database pool exhausted; 10,000 requests cancelled by clients", measure)
