"""The database is locked, full or gone: answers do not change, and every execution is written or counted as dropped."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import structlog
from orchestrator_tracking_sql.database import Database
from orchestrator_tracking_sql.options import SqlOptions
from sqlalchemy import Connection
from tracking_kit import Place, Relay, counts, files, postgresql, until
from yarl import URL

from orchestrator_core.plugin_api import SourceUnavailable
from orchestrator_core.testing import RunningService, service

Run = Callable[..., Any]


async def ask(shop: RunningService, times: int) -> set[int]:
    """Return the statuses of so many answers."""
    return {(await shop.get("/orchestrator/d/hello")).status for _ in range(times)}


def sqlite(folder: Path) -> Place:
    return Place("sqlite", f"sqlite:///{folder / 'executions.db'}", folder)


def delete(folder: Path) -> None:
    for path in folder.glob("executions.db*"):
        path.unlink()


def dropped(found: dict[str, Any]) -> int:
    return sum(found["dropped"].values())


def test_what_finds_the_database_locked_is_written_when_the_lock_is_gone(run: Run, tmp_path: Path) -> None:
    place = sqlite(tmp_path)

    async def main() -> None:
        async with service(files(place)) as shop:
            assert await ask(shop, 3) == {200}
            with closing(sqlite3.connect(tmp_path / "executions.db", isolation_level=None)) as other:
                await until(shop, lambda now: now["written"] == 3)
                other.execute("BEGIN IMMEDIATE")
                assert await ask(shop, 50) == {200}
                found = await until(shop, lambda now: bool(now["outage"]))
                assert (found["outage"], found["written"], dropped(found)) == ("database is locked", 3, 0)
                other.execute("COMMIT")
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["finished"], found["written"], dropped(found)) == (53, 53, 0)

    run(main())
    assert len(place.ids()) == 53


def test_what_waits_too_long_for_the_lock_is_dropped_and_counted(run: Run, tmp_path: Path) -> None:
    place = sqlite(tmp_path)

    async def main() -> dict[str, Any]:
        async with service(files(place, retry_window="500ms", queue=30)) as shop:
            with closing(sqlite3.connect(tmp_path / "executions.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                assert await ask(shop, 10) == {200}
                await until(shop, lambda now: now["dropped"]["store_failed"] == 10)
                assert {(await each).status for each in [shop.get("/orchestrator/d/hello") for _ in range(80)]} == {200}
                await until(shop, lambda now: now["waiting"] == 0)
                other.execute("COMMIT")
            assert await ask(shop, 5) == {200}
            return await until(shop, lambda now: now["waiting"] == 0)

    found = run(main())
    assert found["finished"] == 95
    assert found["written"] + dropped(found) == 95
    assert found["written"] == len(place.ids()) == 5


def test_a_full_database_costs_no_answer(run: Run, tmp_path: Path) -> None:
    place = sqlite(tmp_path)
    settings = files(place, retry_window="300ms")
    settings["config.yaml"] = settings["config.yaml"].replace("lock_timeout", "max_size: 100KiB, lock_timeout")

    async def main() -> dict[str, Any]:
        async with service(settings) as shop:
            assert await ask(shop, 25) == {200}
            await until(shop, lambda now: now["written"] == 25)  # a batch that is too large is not written in part
            for _ in range(60):
                assert await ask(shop, 25) == {200}
                if (await counts(shop))["outage"]:
                    break
            return await until(shop, lambda now: now["waiting"] == 0)

    with structlog.testing.capture_logs() as logged:
        found = run(main())
    assert {entry["error"] for entry in logged if entry["log_level"] == "error"} == {"database or disk is full"}
    assert found["written"] > 0
    assert dropped(found) > 0
    assert found["written"] + dropped(found) == found["finished"]
    assert len(place.ids()) == found["written"]


def empty(folder: Path) -> None:
    """Make the file empty, as who needs room on the disk does."""
    (folder / "executions.db").write_bytes(b"")


@pytest.mark.parametrize("gone", [delete, empty])
def test_a_file_that_is_deleted_or_made_empty_is_made_anew(
    run: Run, tmp_path: Path, gone: Callable[[Path], None]
) -> None:
    place = sqlite(tmp_path)

    async def main() -> None:
        async with service(files(place)) as shop:
            assert await ask(shop, 3) == {200}
            await until(shop, lambda now: now["written"] == 3)
            gone(tmp_path)
            assert await ask(shop, 4) == {200}
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["finished"], found["written"], dropped(found)) == (7, 7, 0)
            assert len(await shop.executions()) == 4

    run(main())
    assert len(place.ids()) == 4


def test_a_backup_that_takes_the_place_of_the_file_is_gone_on_with(run: Run, tmp_path: Path) -> None:
    place, backup = sqlite(tmp_path), tmp_path / "backup.db"

    async def main() -> None:
        async with service(files(place)) as shop:
            assert await ask(shop, 3) == {200}
            assert len(await shop.executions()) == 3
            with closing(sqlite3.connect(tmp_path / "executions.db")) as one, closing(sqlite3.connect(backup)) as other:
                one.backup(other)
            assert await ask(shop, 5) == {200}
            await until(shop, lambda now: now["written"] == 8)
            backup.replace(tmp_path / "executions.db")
            assert await ask(shop, 4) == {200}
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], dropped(found)) == (12, 0)
            assert len(await shop.executions()) == 3 + 4

    run(main())
    assert place.ask("PRAGMA integrity_check") == [("ok",)]
    assert len(place.ids()) == 3 + 4


def test_a_row_that_is_damaged_is_told_of_as_a_store_that_fails(run: Run, tmp_path: Path) -> None:
    place = sqlite(tmp_path)

    async def main() -> None:
        async with service(files(place)) as shop:
            assert await ask(shop, 2) == {200}
            (first, _) = await shop.executions()
            place.ask(f"UPDATE orchestrator_executions SET steps = '[{{' WHERE id = '{first['id']}'")
            said = f"the execution store fails: the row of the execution {first['id']} is damaged: "
            listed = await shop.admin("GET", "/executions")
            assert (listed.status, len(listed.json["executions"])) == (200, 2)  # from memory
            assert listed.json["incomplete"].startswith(said)

    run(main())


def test_a_folder_that_is_not_there_is_waited_for(run: Run, tmp_path: Path) -> None:
    place = sqlite(tmp_path / "later")

    async def main() -> None:
        async with service(files(place)) as shop:
            assert await ask(shop, 3) == {200}
            assert (await counts(shop))["outage"] == f"there is no folder {tmp_path / 'later'}"
            (tmp_path / "later").mkdir()
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], dropped(found)) == (3, 0)

    run(main())


def test_a_database_that_cannot_be_written_is_named_with_what_is_written_to_read_it(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(SqlOptions(url="sqlite:///executions.db"), tmp_path.joinpath, durable=False)
        try:
            await database.open()
            with pytest.raises(SourceUnavailable) as raised:
                await database.read(lambda connection: connection.exec_driver_sql("CREATE TABLE more (name)"))
        finally:
            await database.close()
        assert str(raised.value) == (
            f"attempt to write a readonly database: {tmp_path / 'executions.db'}, beside which SQLite writes files"
            " of its own, even to read it"
        )

    run(main())


@pytest.mark.parametrize("mode", ["buffered", "durable"])
def test_a_connection_that_postgresql_ends_is_made_again(run: Run, tmp_path: Path, mode: str) -> None:
    async def main(url: str) -> None:
        place = Place("postgresql", url, tmp_path)
        async with service(files(place, mode=mode)) as shop:
            await ask(shop, 3)
            await until(shop, lambda now: now["written"] == 3)
            await shop.executions()  # the connection that reads is there now too
            kill = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database()"
            assert place.ask(f"{kill} AND pid <> pg_backend_pid()") == [(2,)]
            assert await asyncio.gather(*(ask(shop, 5) for _ in range(4))) == [{200}] * 4
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["finished"], found["written"], dropped(found)) == (23, 23, 0)
            assert len(place.ids()) == 23
            answer = (await shop.admin("GET", "/executions")).json
            assert ("incomplete" in answer, len(answer["executions"])) == (False, 23)
            assert len(place.ask(f"{kill} AND pid <> pg_backend_pid()")) == 1
            assert (await shop.admin("GET", f"/generations/{answer['executions'][0]['generation']}")).status == 200

    with postgresql() as url:
        run(main(url))


def test_a_postgresql_that_goes_away_and_comes_back(run: Run, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        at = URL(url)
        relay = Relay(at.port or 5432)
        await relay.open()
        place = Place("postgresql", str(at.with_port(relay.port)), tmp_path)
        async with service(files(place)) as shop:
            assert await ask(shop, 3) == {200}
            await until(shop, lambda now: now["written"] == 3)
            await relay.close()
            assert await ask(shop, 40) == {200}
            await until(shop, lambda now: bool(now["outage"]))
            listed = (await shop.admin("GET", "/executions")).json
            assert (len(listed["executions"]), "incomplete" in listed) == (43, True)
            await relay.open()
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["finished"], found["written"], dropped(found)) == (43, 43, 0)
        await relay.close()

    with postgresql() as url:
        run(main(url))
        assert len(Place("postgresql", url, tmp_path).ids()) == 43


@pytest.mark.parametrize("returns", [True, False])
def test_a_postgresql_that_says_nothing_any_more(run: Run, tmp_path: Path, returns: bool) -> None:
    """Its connections stay open, as when it is stopped, or behind a network that lost it."""

    async def main(url: str) -> None:
        at = URL(url)
        relay = Relay(at.port or 5432)
        await relay.open()
        place = Place("postgresql", str(at.with_port(relay.port)), tmp_path)
        settings = files(place)
        settings["config.yaml"] = settings["config.yaml"].replace(
            "lock_timeout", "statement_timeout: 100ms, lock_timeout"
        )
        async with asyncio.timeout(20):
            async with service(settings) as shop:
                assert await ask(shop, 3) == {200}
                assert len((await shop.admin("GET", "/executions")).json["executions"]) == 3
                relay.speaks.clear()
                assert await ask(shop, 3) == {200}
                listed = await shop.admin("GET", "/executions")  # the reader gives up too
                assert (len(listed.json["executions"]), "incomplete" in listed.json) == (6, True)
                found = await until(shop, lambda now: bool(now["outage"]))
                assert found["outage"] in ("the database said nothing for 2.1 s", "connection timeout expired")
                if returns:
                    relay.speaks.set()
                    found = await until(shop, lambda now: now["waiting"] == 0)
                    assert (found["finished"], found["written"], dropped(found)) == (6, 6, 0)
            await relay.close()  # and the service has ended though nothing was said

    with postgresql() as url:
        run(main(url))


def test_what_is_cancelled_and_then_fails_is_told_to_nobody(run: Run, place: Place) -> None:
    """Else asyncio's log says that an exception was never retrieved."""

    async def main() -> None:
        begun, told = threading.Event(), []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: told.append(context["message"]))

        def fail(connection: Connection) -> None:
            begun.set()
            time.sleep(0.1)
            connection.exec_driver_sql("SELECT nothing")

        database = Database(SqlOptions(url=place.url), Path, durable=False)
        await database.open()
        asked = asyncio.create_task(database.read(fail))
        await asyncio.to_thread(begun.wait)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        del asked
        gc.collect()
        await database.close()
        assert told == []

    run(main())


def test_a_table_that_is_locked_in_postgresql(run: Run, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        place = Place("postgresql", url, tmp_path)
        async with service(files(place, mode="durable", commit_timeout="500ms")) as shop:
            assert await ask(shop, 2) == {200}
            with psycopg.connect(url) as other:
                other.execute("LOCK TABLE orchestrator_executions")
                refused = await shop.get("/orchestrator/d/hello")
                assert refused.status == 503
                assert refused.json["detail"].startswith("the execution cannot be recorded: ")
                other.rollback()
            await until(shop, lambda now: now["waiting"] == 0 and not now["outage"])
            assert await ask(shop, 2) == {200}

    with postgresql() as url:
        run(main(url))


def test_the_password_of_the_url_is_told_nowhere(run: Run, tmp_path: Path) -> None:
    """Not by the options, nor by an error, which PostgreSQL's driver writes."""

    async def main(url: str) -> None:
        at = URL(url).with_password("canary-4711").with_path("/no_such_database_at_all")
        place = Place("postgresql", str(at), tmp_path)
        settings = files(place)
        settings["config.yaml"] = settings["config.yaml"].replace(
            "server: {port: 0}", "server: {port: 0, shutdown_timeout: 100ms}"
        )
        async with service(settings) as shop:
            await ask(shop, 1)
            found = await until(shop, lambda now: bool(now["outage"]))
            assert "no_such_database_at_all" in found["outage"]
            spec = shop.running.live.snapshot.store
            listed = await shop.admin("GET", "/executions")
            texts = [str(found), repr(spec), str(listed.json), str((await shop.admin("GET", "/config")).json)]
            assert not [text for text in texts if "canary-4711" in text]

    with postgresql() as url:
        run(main(url))
