"""The schema: made, brought up to date, refused when it is a later one, by one process of many."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from orchestrator_tracking_sql.migrate import FOLDER, LOCK
from orchestrator_tracking_sql.options import parse_url
from orchestrator_tracking_sql.schema import HEAD, VERSION_TABLE, metadata
from sqlalchemy import create_engine
from tracking_kit import Place, captured, execution, files, postgresql, until

from orchestrator_core.plugin_api import Generation, Query, SourceUnavailable
from orchestrator_core.testing import service

Run = Callable[..., Any]


def alembic(place: Place, revision: str) -> None:
    """Bring the database to a revision, as a version of the plugin of that time did."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    engine = create_engine(parse_url(place.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def revision(place: Place) -> list[tuple[Any, ...]]:
    return place.ask(f"SELECT version_num FROM {VERSION_TABLE}")


def test_the_newest_migration_is_the_schema_that_the_code_expects() -> None:
    config = Config()
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("path_separator", "os")
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_the_migrations_make_the_tables_of_the_code(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open():
            pass

    run(main())
    engine = create_engine(parse_url(place.url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_an_older_schema_is_brought_up_to_date_with_what_is_in_it(run: Run, place: Place) -> None:
    alembic(place, "0001")
    assert revision(place) == [("0001",)]
    place.ask(
        "INSERT INTO orchestrator_executions (id, domain, endpoint, generation, status, http_status, started_at,"
        " duration_seconds, engine_seconds, trace_id, error, degraded, models, steps) VALUES ('0a', 'credit', 'ask',"
        " 'abc', 'ok', 200, 5.5, 0.25, 0.125, '', '', '[]', '[]', '[{\"name\": \"a\", \"status\": \"ok\"}]')"
    )

    async def main() -> None:
        async with place.open() as store:
            (old,) = (await store.find(Query())).executions
            assert (old.id, old.steps[0].name, old.captured) == ("0a", "a", None)
            await store.add([execution(1, captured=captured({"answer": 1}))])
            await store.add_generation(Generation("abc", 1.0, {}))

    run(main())
    assert revision(place) == [(HEAD,)]


def test_configurations_of_an_older_schema_stay_as_long_as_what_they_may_have_answered(run: Run, place: Place) -> None:
    alembic(place, "0003")
    place.ask("INSERT INTO orchestrator_generations (id, served_at, files, texts) VALUES ('abc', 1.5, '{}', '{}')")

    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(1)])  # which it may have answered, like any other until now
            assert await store.prune(None, 10) == 0
            assert await store.get_generation("abc") == Generation("abc", 1.5, {})

    run(main())


def test_a_process_that_waits_too_long_for_the_one_that_makes_the_tables_says_so(run: Run, tmp_path: Path) -> None:
    with postgresql() as url, psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK])

        async def main() -> None:
            async with Place("postgresql", url, tmp_path).open(lock_timeout=0.05):
                raise AssertionError("it opens")

        with pytest.raises(SourceUnavailable, match="another process makes its tables, or brings them up to date"):
            run(main())


def test_a_later_schema_is_refused(run: Run, place: Place) -> None:
    alembic(place, "head")
    place.ask(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")

    async def main() -> None:
        async with place.open():
            raise AssertionError("it opens")

    with pytest.raises(ValueError, match="its tables have the schema 9999, which is later than this version") as raised:
        run(main())
    assert "install a later version" in str(raised.value)
    assert revision(place) == [("9999",)]


def test_a_later_schema_that_comes_while_a_service_runs_is_an_outage(run: Run, place: Place) -> None:
    async def main() -> None:
        async with service(files(place)) as shop:
            await shop.get("/orchestrator/d/hello")
            await until(shop, lambda now: now["written"] == 1)
            place.ask(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
            place.ask("ALTER TABLE orchestrator_executions RENAME COLUMN error TO failure")
            for _ in range(20):
                await shop.get("/orchestrator/d/hello")
            found = await until(shop, lambda now: "install a later version" in now["outage"])
            assert (found["written"], found["waiting"], set(found["dropped"].values())) == (1, 20, {0})
            place.ask("ALTER TABLE orchestrator_executions RENAME COLUMN failure TO error")
            place.ask(f"UPDATE {VERSION_TABLE} SET version_num = '{HEAD}'")
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], found["outage"]) == (21, "")

    run(main())


def test_who_only_reads_changes_nothing(run: Run, place: Place) -> None:
    async def read() -> list[str]:
        async with place.open(existing=True) as store:
            return [one.id for one in (await store.find(Query())).executions]

    place.ask("SELECT 1")  # makes SQLite's file
    with pytest.raises(ValueError, match="there are no tables of executions in it: the service makes them"):
        run(read())
    alembic(place, "0001")
    with pytest.raises(ValueError, match="its tables have the schema 0001, which is earlier than the one") as raised:
        run(read())
    assert str(raised.value).endswith(f"reads ({HEAD}): start the service, which brings them up to date")
    assert revision(place) == [("0001",)]

    async def write() -> None:
        async with place.open() as store:
            await store.add([execution(1)])

    run(write())
    assert run(read()) == [execution(1).id]
    place.ask(f"UPDATE {VERSION_TABLE} SET version_num = '9999'")
    with pytest.raises(ValueError, match="its tables have the schema 9999, which is later than this version"):
        run(read())


WRITER = """
import asyncio, sys
sys.path[:0] = {path!r}
from tracking_kit import Place, execution
from pathlib import Path

async def main():
    place = Place({engine!r}, {url!r}, Path({folder!r}))
    first = int(sys.argv[1])
    async with place.open(lock_timeout=20) as store:
        for batch in range(20):
            await store.add([execution(first + batch * 10 + number) for number in range(10)])

asyncio.run(main())
"""


def test_processes_that_start_at_once_make_the_tables_once_and_all_write(place: Place) -> None:
    script = WRITER.format(path=sys.path, engine=place.engine, url=place.url, folder=str(place.folder))
    started = [
        subprocess.Popen([sys.executable, "-c", script, str(number * 1000)], stderr=subprocess.PIPE)
        for number in range(3)
    ]
    for process in started:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, b"")
    assert revision(place) == [(HEAD,)]
    assert place.ids() == [execution(process * 1000 + number).id for process in range(3) for number in range(200)]
