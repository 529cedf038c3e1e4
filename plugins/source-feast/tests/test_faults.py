"""Stores that are down, slow, locked or replaced; requests that are given up; what is left behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
from feast_kit import ADA, POSTGRESQL_URL, REDIS, REDIS_DATABASE, Made, Way, behind, lock, moved, way_to

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import free_port, leaves_nothing, run

VISITS = {"get": {"features": ["customer:visits"]}}


@pytest.fixture(params=["redis", "postgresql"])
def server(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Made:
    return made(request.param)


def test_a_server_that_is_down_is_a_source_error_until_it_is_back(server: Made, tmp_path: Path) -> None:
    title = {"redis": "Redis", "postgresql": "PostgreSQL"}[server.store]
    port = free_port()

    async def main() -> None:
        async with behind(server, tmp_path, port).open(VISITS, connect_timeout="1s") as source:
            assert not (await source.inspect()).findings
            for call in (source.prepare("get", ["entity_id"])(ADA), source.check_ready()):
                with pytest.raises(SourceError) as caught:
                    await call
                assert caught.value.transient
                assert str(caught.value).startswith(f"feast 'default': cannot connect to {title} at 127.0.0.1:{port}: ")
            way = way_to(server)
            relay = await asyncio.start_server(way._serve, "127.0.0.1", port)
            assert await source.fetch("get", {"entity_id": ADA}) == {"visits": 12}
            relay.close()
            way.cut()

    run(main())


def test_a_connection_that_was_cut_is_replaced(server: Made, tmp_path: Path) -> None:
    async def main() -> None:
        way = way_to(server)
        async with way.open() as port, behind(server, tmp_path, port).open(VISITS) as source:
            call = source.prepare("get", ["entity_id"])
            for _ in range(3):
                assert await asyncio.gather(*(call(ADA) for _ in range(20))) == [{"visits": 12}] * 20
                way.cut()

    run(main())


class BreakingOff(Way):
    """A way to a Redis that takes connections, once it ``breaks_off``, and ends each at the first read."""

    breaks_off = False
    reads = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.breaks_off:
            await super()._serve(reader, writer)
            return
        with closing(writer):
            while b"HMGET" not in (data := await reader.read(65536)):
                writer.write(b"+OK\r\n" * data.count(b"*"))
            self.reads += 1


def test_a_read_that_a_new_connection_breaks_off_is_not_sent_again_by_itself(
    made: Callable[[str], Made], tmp_path: Path
) -> None:
    """Whether it is tried again is for the policy to say, within its budget."""

    async def main() -> None:
        server = made("redis")
        way = BreakingOff(*way_to(server).target)
        async with way.open() as port, behind(server, tmp_path, port).open(VISITS) as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(ADA) == {"visits": 12}
            way.breaks_off = True
            way.cut()
            for number in range(1, 4):
                with pytest.raises(SourceError, match="the connection was lost"):
                    await call(ADA)
                assert way.reads == number

    run(main())


def test_a_server_that_hangs_is_given_up_after_the_timeout(server: Made, tmp_path: Path) -> None:
    async def main() -> None:
        way = way_to(server)
        async with way.open() as port, behind(server, tmp_path, port).open(VISITS, timeout="300ms") as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(ADA) == {"visits": 12}
            way.swallows = True
            started = time.monotonic()
            with pytest.raises(SourceError, match=r"no answer within 0\.3 s") as caught:
                await call(ADA)
            assert caught.value.transient
            assert 0.25 < time.monotonic() - started < 2
            way.swallows = False
            way.cut()
            assert await call(ADA) == {"visits": 12}

    run(main())


def test_cancelled_reads_leave_nothing_and_mix_nothing_up(server: Made) -> None:
    async def main() -> None:
        async with server.open(VISITS) as source:
            await source.check_ready()  # what a loop makes once and keeps is made here
        async with leaves_nothing("cancelled reads"), server.open(VISITS, pool_size=2) as source:
            call = source.prepare("get", ["entity_id"])

            async def one(entity: int) -> Any:
                return await call(entity)

            for delay in (0, 0, 0.0002, 0.001, 0.003):
                tasks = [asyncio.create_task(one(1 + number % 2)) for number in range(40)]
                await asyncio.sleep(delay)
                for task in tasks[::3]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                for number, result in enumerate(results):
                    if not isinstance(result, asyncio.CancelledError):
                        assert result == {"visits": 12 if number % 2 == 0 else 3}

    run(main())


def test_no_free_connection_in_time_is_unavailable(postgresql: Made) -> None:
    table = f"{postgresql.sdk.project}.{postgresql.sdk.project}_customer"

    async def main() -> None:
        options = {"pool_size": 1, "pool_timeout": "100ms", "timeout": "2s"}
        async with postgresql.open(VISITS, **options) as source:
            call = source.prepare("get", ["entity_id"])
            with psycopg.connect(POSTGRESQL_URL) as blocker:
                blocker.execute(f"LOCK TABLE {table}")
                first = asyncio.ensure_future(call(ADA))
                await asyncio.sleep(0.05)
                with pytest.raises(SourceUnavailable) as caught:
                    await call(ADA)
                expected = "feast 'default': all 1 connections are in use, and none came free within 0.1 s"
                assert str(caught.value) == expected
                with pytest.raises(SourceUnavailable, match=r"all 1 connections are in use$") as caught:
                    await source.check_ready()
                assert caught.value.busy
            assert await first == {"visits": 12}
            await source.check_ready()

    run(main())


def test_a_table_that_was_dropped_is_a_source_error(postgresql: Made, tmp_path: Path) -> None:
    elsewhere = moved(postgresql, tmp_path, db_schema="no_such_schema")
    with pytest.raises(SourceError, match=r'relation ".*_customer" does not exist; has `feast apply` been run\?'):
        elsewhere.fetch(VISITS["get"], {"entity_id": ADA})


def test_redis_that_wants_a_password_says_so(redis: Made, tmp_path: Path) -> None:
    host, _, port = REDIS.partition(":")
    where = f"{host}:{port},db={REDIS_DATABASE},username=nobody,password=wrong"
    wrong = moved(redis, tmp_path, connection_string=where)
    with pytest.raises(SourceError, match=rf"Redis at {REDIS} refused AUTH: WRONGPASS"):
        wrong.fetch(VISITS["get"], {"entity_id": ADA})


def test_a_key_of_another_kind_in_redis_is_a_source_error(redis: Made) -> None:
    import redis as client_library
    from feast.infra.online_stores.helpers import _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    host, _, port = REDIS.partition(":")
    key = _redis_key(redis.sdk.project, EntityKey(join_keys=["customer_id"], entity_values=[Value(int64_val=77)]))
    with client_library.Redis(host, int(port), db=REDIS_DATABASE) as client:
        client.set(key, "text")
        try:
            with pytest.raises(SourceError, match="answered: WRONGTYPE"):
                redis.fetch(VISITS["get"], {"entity_id": 77})
        finally:
            client.delete(key)


# --- SQLite -----------------------------------------------------------------------------------------------------------


def copied(sqlite: Made, folder: Path) -> Made:
    shutil.copy(sqlite.folder / "online.db", folder / "online.db")
    return moved(sqlite, folder)


def test_a_missing_file_is_a_source_error_and_not_made(sqlite: Made, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot open the online store .*online\.db: unable to open database file"):
        moved(sqlite, tmp_path).fetch(VISITS["get"], {"entity_id": ADA})
    assert not (tmp_path / "online.db").exists()


def test_a_locked_file_is_waited_for_off_the_loop(sqlite: Made, tmp_path: Path) -> None:
    made = copied(sqlite, tmp_path)

    async def main() -> None:
        async with made.open(VISITS, timeout="3s") as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(ADA) == await call(ADA) == {"visits": 12}
            locked = lock(tmp_path / "online.db")
            waiting = asyncio.ensure_future(call(ADA))
            ticks, started = 0, time.monotonic()
            while time.monotonic() - started < 0.3:
                await asyncio.sleep(0.005)
                ticks += 1
            assert ticks > 20
            assert not waiting.done()
            locked.close()
            assert await waiting == {"visits": 12}

    run(main())


def test_a_file_that_stays_locked_is_a_transient_error(sqlite: Made, tmp_path: Path) -> None:
    made = copied(sqlite, tmp_path)

    async def main() -> None:
        async with leaves_nothing("a locked file"), made.open(VISITS, timeout="200ms", pool_size=1) as source:
            call = source.prepare("get", ["entity_id"])
            locked = lock(tmp_path / "online.db")
            with pytest.raises(SourceError, match=r"stayed locked for 0\.2 s|no answer within 0\.2 s") as caught:
                await call(ADA)
            assert caught.value.transient
            locked.close()
            assert await call(ADA) == {"visits": 12}

    run(main())


def test_a_replaced_file_is_read_after_the_next_refresh(sqlite: Made, tmp_path: Path) -> None:
    made = copied(sqlite, tmp_path)

    async def main() -> None:
        async with made.open(VISITS, registry_refresh="20ms") as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(ADA) == {"visits": 12}
            new = tmp_path / "new.db"
            shutil.copy(sqlite.folder / "online.db", new)
            with sqlite3.connect(new) as connection:
                value = connection.execute(
                    f"SELECT value FROM {made.sdk.project}_customer WHERE feature_name = 'visits' AND value = ?",
                    (b" \x03",),
                ).fetchone()[0]
                connection.execute(
                    f"UPDATE {made.sdk.project}_customer SET value = ? WHERE feature_name = 'visits'", (value,)
                )
            connection.close()
            os.replace(new, tmp_path / "online.db")
            async with asyncio.timeout(10):
                while await call(ADA) != {"visits": 3}:  # noqa: ASYNC110  # nobody tells of it
                    await asyncio.sleep(0.01)

    run(main())


def test_bytes_that_are_no_value_are_an_error_that_names_the_feature(sqlite: Made, tmp_path: Path) -> None:
    made = copied(sqlite, tmp_path)
    with sqlite3.connect(tmp_path / "online.db") as connection:
        connection.execute(
            f"UPDATE {made.sdk.project}_customer SET value = ? WHERE feature_name = 'visits'", (b"\xff",)
        )
    connection.close()
    with pytest.raises(SourceError) as caught:
        made.fetch(VISITS["get"], {"entity_id": ADA})
    assert str(caught.value) == "get: feature 'visits' holds bytes that are no value of Feast's"


# --- the SDK's threads ------------------------------------------------------------------------------------------------


def test_threads_are_bounded_and_slow_ones_are_given_up(sqlite: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        options = {"direct_reads": False, "pool_size": 1, "pool_timeout": "100ms", "timeout": "300ms"}
        async with sqlite.open(VISITS, **options) as source:
            call = source.prepare("get", ["entity_id"])
            assert await call(ADA) == {"visits": 12}
            held, sdk = threading.Event(), source._repository._sdk
            read = sdk.get_online_features
            monkeypatch.setattr(sdk, "get_online_features", lambda **given: held.wait(5) and read(**given))
            slow = asyncio.ensure_future(call(ADA))
            await asyncio.sleep(0.05)
            with pytest.raises(SourceUnavailable) as caught:
                await call(ADA)
            assert str(caught.value) == "feast 'default': all 1 threads are in use, and none came free within 0.1 s"
            with pytest.raises(SourceError, match=r"feast 'default': no answer within 0\.3 s"):
                await slow
            held.set()
            async with asyncio.timeout(5):
                while True:
                    try:
                        assert await call(ADA) == {"visits": 12}
                    except SourceUnavailable:
                        continue
                    break

    run(main())


def test_a_registry_that_hangs_does_not_keep_the_source_from_closing(
    sqlite: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It kept a service that is to stop, and a source that a reload replaces, for minutes."""
    for module in ("source", "threads"):
        monkeypatch.setattr(f"orchestrator_source_feast.{module}.CLOSE_SECONDS", 0.05)
    reading, go_on = threading.Event(), threading.Event()

    async def main() -> None:
        async with sqlite.open(VISITS, registry_refresh="10ms") as source:
            monkeypatch.setattr(source._repository, "refresh", lambda: reading.set() or go_on.wait(20))
            await asyncio.to_thread(reading.wait, 10)
            began = time.monotonic()
        assert time.monotonic() - began < 5
        assert "feast 'default': a thread still waits for the store or its registry; it is left to itself" in (
            caplog.messages
        )

    try:
        run(main())
    finally:
        go_on.set()


def test_a_connection_is_not_closed_under_a_call_that_uses_it(sqlite: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        options = {"direct_reads": False, "timeout": "30s"}
        async with sqlite.open(VISITS, **options) as source:
            call = source.prepare("get", ["entity_id"])
            await call(ADA)
            online_store = source._repository._sdk._get_provider().online_store
            connection, read = online_store._conn, online_store.online_read
            reading, go_on = threading.Event(), threading.Event()

            def slow(*given: Any, **named: Any) -> Any:
                reading.set()
                go_on.wait(10)
                connection.execute("SELECT 1").fetchall()  # would raise, were it closed
                return read(*given, **named)

            def fail(*given: Any, **named: Any) -> Any:
                raise sqlite3.OperationalError("disk I/O error")

            monkeypatch.setattr(online_store, "online_read", slow)
            going = asyncio.ensure_future(call(ADA))
            await asyncio.to_thread(reading.wait, 10)
            monkeypatch.setattr(online_store, "online_read", fail)
            with pytest.raises(SourceError, match=r"feast 'default': OperationalError: disk I/O error"):
                await call(ADA)
            assert online_store._conn is None
            monkeypatch.setattr(online_store, "online_read", read)
            go_on.set()
            assert await going == await call(ADA) == {"visits": 12}

    run(main())


def test_what_an_on_demand_view_raises_leaves_the_connections_alone(sqlite: Made) -> None:
    async def main() -> None:
        async with sqlite.open({"get": {"features": ["on_demand:per_visit"]}}) as source:
            call = source.prepare("get", ["entity_id", "amount"])
            assert await call(ADA, 6.0) == {"per_visit": 0.5}
            connection = source._repository._sdk._get_provider().online_store._conn
            outcomes = await asyncio.gather(
                *(call(ADA, 6.0 if number % 2 else None) for number in range(20)), return_exceptions=True
            )
            assert outcomes[1::2] == [{"per_visit": 0.5}] * 10
            assert all(isinstance(outcome, SourceError) for outcome in outcomes[::2])
            assert source._repository._sdk._get_provider().online_store._conn is connection

    run(main())


def test_the_sdk_makes_new_connections_after_a_failure(postgresql: Made, tmp_path: Path) -> None:
    async def main() -> None:
        way = way_to(postgresql)
        async with way.open() as port:
            made = behind(postgresql, tmp_path, port)
            async with leaves_nothing("the SDK's connections"), made.open(VISITS, direct_reads=False) as source:
                call = source.prepare("get", ["entity_id"])
                assert await call(ADA) == {"visits": 12}
                way.cut()
                with pytest.raises(SourceError):
                    await call(ADA)
                assert await call(ADA) == {"visits": 12}

    run(main())


@pytest.mark.parametrize("store", ["sqlite", "redis", "postgresql"])
def test_reads_do_not_block_the_loop(store: str, made: Callable[[str], Made]) -> None:
    """The longest time between two turns of the loop, in the best of some rounds: the machine does other things too.

    The SDK holds the loop up for tens of milliseconds; the bound is for any machine, and `bench_feast.py` measures.
    """

    async def turning(turns: list[float]) -> None:
        while True:
            turns.append(time.perf_counter())
            await asyncio.sleep(0)

    async def main() -> None:
        async with made(store).open({"get": {"features": ["customer:visits", "customer:tier"]}}) as source:
            call = source.prepare("get", ["entity_id"])
            await asyncio.gather(*(call(ADA) for _ in range(10)))
            longest = []
            for _ in range(60):
                turns: list[float] = []
                task = asyncio.create_task(turning(turns))
                for _ in range(5):
                    await call(ADA)
                    await asyncio.sleep(0)
                task.cancel()
                longest.append(max(after - before for before, after in pairwise(turns)))
            assert min(longest) < 0.005

    run(main())
