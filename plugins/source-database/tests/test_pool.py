"""Limits, cancellation and lost connections."""

from __future__ import annotations

import asyncio
import random
import re
import threading
import time
from typing import Any

import pytest
from database_kit import Database, eventually, run
from orchestrator_source_database.plugin import DatabaseSource
from orchestrator_source_database.pool import Pool
from orchestrator_source_database.sqlite import Sqlite

from orchestrator_core.plugin_api import SourceError, SourceUnavailable

GET = "SELECT customer_id, name FROM customers WHERE customer_id = :id"
SLOW = {
    "sqlite": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < :seconds * 8000000)"
    " SELECT COUNT(*) AS slept FROM t",
    "postgresql": "SELECT CAST(pg_sleep(:seconds) AS text) AS slept",
    "mysql": "SELECT SLEEP(:seconds) AS slept",
}
SESSIONS = {
    "postgresql": "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
    "mysql": "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()",
}
RUNNING = {
    "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'"
    " AND query LIKE '%pg_sleep%' AND pid <> pg_backend_pid()",
    "mysql": "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() AND info LIKE 'SELECT SLEEP%'",
}


def slow(database: Database) -> dict[str, Any]:
    return {"query": SLOW[database.engine], "params": {"seconds": "number"}}


def pool_of(source: DatabaseSource) -> Pool[Any]:
    database = source._database
    return database._readers if isinstance(database, Sqlite) else database._pool


async def settled(source: DatabaseSource) -> Pool[Any]:
    """Wait until every connection is back, and return the pool."""
    pool = pool_of(source)

    async def at_rest() -> bool:
        return pool.count == len(pool.free)

    await eventually(at_rest)
    return pool


async def running(server: Database) -> int:
    """How many slow queries the server is working on."""
    ((count,),) = await server.sql(RUNNING[server.engine])
    return int(count)


async def kill(database: Database) -> None:
    for (session,) in await database.sql(SESSIONS[database.engine]):
        sql = f"SELECT pg_terminate_backend({session})" if database.engine == "postgresql" else f"KILL {session}"
        await database.sql(sql)


def test_a_thousand_at_once_get_their_own_answers(database: Database) -> None:
    async def main() -> None:
        async with database.having(pool_size=4).open(get=GET) as source:
            get = source.prepare("get", ["id"])
            keys = [random.randint(1, 100) for _ in range(1000)]
            answers = await asyncio.gather(*[get(key) for key in keys])
            assert answers == [{"customer_id": key, "name": f"customer {key}"} for key in keys]
            assert (await settled(source)).count <= 4

    run(main())


def test_no_more_connections_than_the_pool_size(server: Database) -> None:
    async def main() -> None:
        async with server.having(pool_size=3).open(slow=slow(server), get=GET) as source:
            calls = [asyncio.create_task(source.fetch("slow", {"seconds": 0.2})) for _ in range(9)]
            most = 0
            while not all(call.done() for call in calls):
                most = max(most, await running(server))
            await asyncio.gather(*calls)
            assert most == 3

    run(main())


def test_who_waits_too_long_for_a_connection_is_told(database: Database) -> None:
    async def main() -> None:
        options = {"pool_size": 2, "pool_timeout": 0.1}
        async with database.having(**options).open(slow=slow(database), get=GET) as source:
            busy = [asyncio.create_task(source.fetch("slow", {"seconds": 1.5})) for _ in range(2)]
            await asyncio.sleep(0.05)
            message = "database 'default': all 2 connections are in use, and none came free within 0.1 s"
            started = time.monotonic()
            with pytest.raises(SourceUnavailable, match=f"^{re.escape(message)}$"):
                await source.fetch("get", {"id": 1})
            assert time.monotonic() - started < 1
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            await settled(source)
            assert await source.fetch("get", {"id": 1}) == {"customer_id": 1, "name": "customer 1"}

    run(main())


def test_a_check_of_a_source_with_all_connections_in_use_says_so_at_once(database: Database) -> None:
    """Its pool_timeout is 30 s, and what is checked for is whether the database is there."""

    async def main() -> None:
        async with database.having(pool_size=2).open(slow=slow(database), get=GET) as source:
            await source.check_ready()
            busy = [asyncio.create_task(source.fetch("slow", {"seconds": 1.5})) for _ in range(2)]
            await asyncio.sleep(0.05)
            started = time.monotonic()
            with pytest.raises(SourceUnavailable, match=r"all 2 connections are in use$") as caught:
                await source.check_ready()
            assert (caught.value.busy, time.monotonic() - started < 1) == (True, True)
            for task in busy:
                task.cancel()
            await asyncio.gather(*busy, return_exceptions=True)
            await settled(source)
            await source.check_ready()

    run(main())


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_each_who_waits_has_the_whole_timeout(server: Database, loop: str) -> None:
    async def main() -> None:
        async with server.having(pool_size=1, pool_timeout=0.3).open(slow=slow(server)) as source:
            sleep = source.prepare("slow", ["seconds"])
            await sleep(0)
            busy = asyncio.create_task(sleep(0.8))  # type: ignore[arg-type]
            await asyncio.sleep(0.05)

            async def waits() -> float:
                started = time.monotonic()
                with pytest.raises(SourceUnavailable, match=r"none came free within 0\.3 s$"):
                    await sleep(0)
                return time.monotonic() - started

            first = asyncio.create_task(waits())
            await asyncio.sleep(0.15)
            left = asyncio.create_task(waits())
            second = asyncio.create_task(waits())
            await asyncio.sleep(0)
            left.cancel()
            for waited in await asyncio.gather(first, second):
                assert 0.28 < waited < 0.75
            await busy
            assert not (await settled(source))._waiting
            await sleep(0)

    run(main(), loop=loop)


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_200_requests_cancelled_at_random_leave_the_pool_whole(database: Database, loop: str) -> None:
    randomly = random.Random(4711)
    add = {"query": "INSERT INTO accounts (account_id, owner, balance) VALUES (:id, 'x', 1)", "result": "execute"}

    async def main() -> None:
        async with database.having(pool_size=4).open(get=GET, slow=slow(database), add=add) as source:
            get, sleep = source.prepare("get", ["id"]), source.prepare("slow", ["seconds"])
            write = source.prepare("add", ["id"])

            async def abandoned(number: int) -> None:
                call, value = [(get, number % 100 + 1), (sleep, 0.05), (write, number)][number % 3]
                task = asyncio.create_task(call(value))  # type: ignore[arg-type]
                await asyncio.sleep(randomly.random() * 0.02)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            for _ in range(10):
                await asyncio.gather(*[abandoned(randomly.randrange(10**6)) for _ in range(20)])
            pool = await settled(source)
            assert pool.count <= 4
            keys = [randomly.randint(1, 100) for _ in range(200)]
            answers = await asyncio.gather(*[get(key) for key in keys])
            assert answers == [{"customer_id": key, "name": f"customer {key}"} for key in keys]
            assert (await settled(source)).count <= 4

    threads = threading.active_count()
    run(main(), loop=loop)
    assert threading.active_count() <= threads + 1, "a thread was left behind"


def test_a_cancelled_query_is_ended_in_the_server(server: Database) -> None:
    async def main() -> None:
        async with server.open(slow=slow(server)) as source:
            task = asyncio.create_task(source.fetch("slow", {"seconds": 30}))

            async def started() -> bool:
                return await running(server) == 1

            async def ended() -> bool:
                return await running(server) == 0

            await eventually(started)
            task.cancel()
            await eventually(ended)
            await asyncio.gather(task, return_exceptions=True)

    run(main())


def test_reads_go_on_after_all_connections_were_killed(server: Database) -> None:
    async def main() -> None:
        async with server.having(pool_size=3).open(get=GET) as source:
            get = source.prepare("get", ["id"])
            await asyncio.gather(*[get(key) for key in range(1, 30)])
            for key in (7, 8):
                await kill(server)
                assert await get(key) == {"customer_id": key, "name": f"customer {key}"}
            await kill(server)
            await source.check_ready()

    run(main())


def test_a_write_never_goes_to_a_connection_known_to_be_dead(server: Database) -> None:
    add = {"query": "INSERT INTO accounts (account_id, owner, balance) VALUES (:id, 'x', 1)", "result": "execute"}

    async def main() -> None:
        async with server.open(add=add) as source:
            await source.fetch("add", {"id": 1})
            await settled(source)
            await kill(server)
            await asyncio.sleep(0.1)
            assert await source.fetch("add", {"id": 2}) == {"rowcount": 1}

    run(main())


def test_a_connection_lost_twice_is_a_transient_error(server: Database) -> None:
    async def main() -> None:
        async with server.open(slow=slow(server)) as source:
            task = asyncio.create_task(source.fetch("slow", {"seconds": 30}))

            async def killed() -> bool:
                if await running(server):
                    await kill(server)
                return task.done()

            await eventually(killed)
            with pytest.raises(SourceError, match=r"^slow: the connection to the database was lost$") as caught:
                await task
            assert caught.value.transient

    run(main())


def test_a_statement_timeout_ends_the_query(database: Database) -> None:
    async def main() -> None:
        async with database.having(statement_timeout=0.2).open(slow=slow(database), get=GET) as source:
            started = time.monotonic()
            if database.engine == "mysql":
                with pytest.raises(SourceError, match=r"^slow: the database gave up: the statement took too long$"):
                    await source.fetch("slow", {"seconds": 30})
            else:
                with pytest.raises(SourceError, match=r"^slow: the database gave up: "):
                    await source.fetch("slow", {"seconds": 30})
            assert time.monotonic() - started < 5
            assert await source.fetch("get", {"id": 1}) == {"customer_id": 1, "name": "customer 1"}

    run(main())


def test_a_table_changed_under_a_held_statement_is_read_anew(database: Database) -> None:
    make = "CREATE TABLE changing (a int)"

    async def main() -> None:
        await database.sql("DROP TABLE IF EXISTS changing", make, "INSERT INTO changing VALUES (1)")
        async with database.open(get="SELECT * FROM changing") as source:
            get = source.prepare("get", [])
            for _ in range(7):
                assert await get() == {"a": 1}
            await database.sql("ALTER TABLE changing ADD COLUMN b int")
            assert await get() == {"a": 1, "b": None}
            await database.sql(
                "DROP TABLE changing", "CREATE TABLE changing (c int)", "INSERT INTO changing VALUES (2)"
            )
            assert await get() == {"c": 2}

    run(main())


def test_connections_are_replaced_at_their_age(server: Database) -> None:
    async def main() -> None:
        async with server.having(pool_size=1, pool_recycle=0.1).open(get=GET) as source:
            await source.fetch("get", {"id": 1})
            first = await server.sql(SESSIONS[server.engine])
            await asyncio.sleep(0.3)
            await source.fetch("get", {"id": 1})
            second = await server.sql(SESSIONS[server.engine])
            assert len(first) == len(second) == 1
            assert first != second

    run(main())


def test_closing_leaves_no_session_and_no_thread(database: Database) -> None:
    async def main() -> None:
        async with database.open(get=GET) as source:
            await asyncio.gather(*[source.fetch("get", {"id": 1}) for _ in range(20)])
        if database.engine != "sqlite":

            async def gone() -> bool:
                return not await database.sql(SESSIONS[database.engine])

            await eventually(gone)

    run(main())
    assert not [thread for thread in threading.enumerate() if thread.name == "sqlite"]


def test_a_slow_sqlite_read_moves_off_the_loop(sqlite: Database) -> None:
    query = {"query": SLOW["sqlite"], "params": {"seconds": "number"}}

    async def main() -> None:
        async with sqlite.open(count=query) as source:
            count = source.prepare("count", ["seconds"])
            for _ in range(5):
                await count(0.00001)
            longest, last, done = 0.0, time.monotonic(), False

            async def watch() -> None:
                nonlocal longest, last
                while not done:
                    await asyncio.sleep(0)
                    now = time.monotonic()
                    longest, last = max(longest, now - last), now

            watching = asyncio.create_task(watch())
            await asyncio.sleep(0)
            started = time.monotonic()
            assert await count(0.5) == {"slept": 4_000_000}
            taken = time.monotonic() - started
            done = True
            await watching
            assert longest < taken / 3, f"the event loop stood still for {longest:.3f} of {taken:.3f} s"

    run(main())


def test_a_waiter_that_is_cancelled_tells_whether_others_were_served(server: Database) -> None:
    """A database with more calls than connections is not down, and one that gives none of them back may be."""

    async def main() -> None:
        async with server.having(pool_size=1).open(get=GET) as source:
            pool = source._database._pool  # type: ignore[union-attr]

            async def begun() -> Any:
                try:
                    return await pool.acquire()
                except asyncio.CancelledError as error:
                    return vars(error)["begun"]

            lent = await pool.acquire()
            in_vain, served, late = (asyncio.create_task(begun()) for _ in range(3))
            await asyncio.sleep(0)
            in_vain.cancel()
            assert await in_vain is True
            await asyncio.sleep(0.05)
            pool.release(lent)
            assert await served is lent
            late.cancel()
            assert await late is False
            cut_off = asyncio.CancelledError()
            pool.mend(lent, cut_off)  # it waited for longer than it had the connection
            assert vars(cut_off) == {"begun": False}

    run(main())


def test_a_waiter_that_is_cancelled_loses_no_connection(server: Database) -> None:
    async def main() -> None:
        async with server.having(pool_size=1).open(get=GET) as source:
            get = source.prepare("get", ["id"])
            for _ in range(50):
                calls = [asyncio.create_task(get(1)) for _ in range(6)]  # type: ignore[arg-type]
                await asyncio.sleep(random.random() * 0.002)
                for call in calls[1::2]:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            assert (await settled(source)).count == 1
            assert await get(5) == {"customer_id": 5, "name": "customer 5"}

    run(main())
