"""What is put into the database comes out, once, in order and by pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import evolve
from orchestrator_tracking_sql.options import SqlOptions, parse_url
from orchestrator_tracking_sql.plugin import open_sql, select_of
from sqlalchemy import create_engine
from tracking_kit import STARTED_AT, Place, captured, execution, postgresql

from orchestrator_core.plugin_api import Execution, Generation, Query, StoreContext

Run = Callable[..., Any]


def bare(execution: Execution) -> Execution:
    """Return the execution as a page has it."""
    return evolve(execution, captured=None)


def found(page: Any) -> list[Execution]:
    return list(page.executions)


def test_an_execution_comes_back_as_it_was(run: Run, place: Place) -> None:
    whole = execution(1, cache="hit", cached_from="x", captured=captured({"answer": [1, 2.5, None, "x"]}))
    failed = execution(2, status="failed", http_status=502, degraded=(), models=(), steps=(), error="it is 'down'; --")

    async def main() -> None:
        async with place.open() as store:
            await store.add([whole, failed])
            assert await store.get(whole.id) == whole
            assert await store.get(failed.id) == failed
            assert await store.get("unknown") is None
        async with place.open() as store:
            assert found(await store.find(Query())) == [failed, bare(whole)]

    run(main())


@pytest.mark.parametrize("text", ["a\0b", "\ud800 alone", "\U0001f600 \u2028 \\u0000 '\"", "x" * 100_000, ""])
def test_any_text_can_be_stored(run: Run, place: Place, text: str) -> None:
    kept = text.encode("utf-8", "replace").decode()
    asked = execution(1, error=text, captured=captured({"answer": [kept, {kept: 1}]}))

    async def main() -> None:
        async with place.open() as store:
            await store.add([asked])
            got = await store.get(asked.id)
        assert got is not None
        assert got.error == kept.replace("\0", "\ufffd")
        assert got.captured == {"answer": [kept, {kept: 1}]}

    run(main())


def test_what_is_added_again_is_there_once_and_as_it_was(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(1), execution(2)])
            await store.add([execution(2, error="another"), execution(3), execution(3)])
            assert found(await store.find(Query())) == [execution(3), execution(2), execution(1)]

    run(main())


def test_filters(run: Run, place: Place) -> None:
    kept = [
        execution(number, domain="credit" if number % 2 else "shop", endpoint=f"e{number % 3}", status=status)
        for number, status in enumerate(["ok", "ok", "failed", "degraded", "ok", "cancelled", "failed", "ok"])
    ]

    async def main() -> None:
        async with place.open() as store:
            await store.add(kept)
            for query, numbers in (
                (Query(domain="shop"), [6, 4, 2, 0]),
                (Query(domain="shop", endpoint="e0"), [6, 0]),
                (Query(endpoint="e1"), [7, 4, 1]),
                (Query(status="failed"), [6, 2]),
                (Query(status="failed", domain="credit"), []),
                (Query(since=STARTED_AT + 5), [7, 6, 5]),
                (Query(until=STARTED_AT + 2), [1, 0]),
                (Query(since=STARTED_AT + 2, until=STARTED_AT + 5, status="ok"), [4]),
                (Query(limit=2), [7, 6]),
            ):
                assert found(await store.find(query)) == [kept[number] for number in numbers], query

    run(main())


@pytest.mark.parametrize("most", [100, 2])
def test_pages_of_a_domain_or_of_an_endpoint_alone(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("orchestrator_tracking_sql.statements.MOST_PAGES", most)
    kept = [
        execution(number, domain=f"d{number % 3}", endpoint=f"e{number % 4}", status="ok" if number % 5 else "failed")
        for number in range(60)
    ]

    async def main() -> None:
        async with place.open() as store:
            await store.add(kept)
            for name, value in (("domain", "d1"), ("endpoint", "e3"), ("endpoint", "none"), ("domain", "none")):
                for status in (None, "ok"):
                    query = Query(**{name: value}, status=status, since=STARTED_AT + 10, until=STARTED_AT + 55, limit=4)
                    seen: list[Execution] = []
                    while True:
                        page = await store.find(query)
                        seen += page.executions
                        if page.cursor is None:
                            break
                        query = evolve(query, cursor=page.cursor)
                    wanted = [one for one in kept[54:9:-1] if getattr(one, name) == value]
                    assert seen == [one for one in wanted if status in (None, one.status)], query

    run(main())


def test_a_page_of_a_domain_looks_at_little_of_it(run: Run, tmp_path: Path) -> None:
    place = Place("sqlite", f"sqlite:///{tmp_path / 'executions.db'}", tmp_path)

    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(number, endpoint=f"e{number % 3}") for number in range(5000)])

    run(main())
    engine = create_engine(parse_url(place.url))
    with engine.connect() as connection:
        hundreds: list[None] = []
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: hundreds.append(None), 100)  # of instructions of SQLite's machine
        for query in (Query(domain="credit", limit=5), Query(endpoint="e1", limit=5), Query(endpoint="none", limit=5)):
            connection.execute(select_of(connection, query)).all()
            assert len(hundreds) < 50, query
            hundreds.clear()
    engine.dispose()


def test_a_text_that_no_row_can_have_finds_nothing(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(1)])
            for query in (Query(domain="a\0"), Query(endpoint="\0"), Query(status="\0")):
                assert found(await store.find(query)) == []
            assert await store.get("\0") is None
            assert await store.get_generation("\0") is None

    run(main())


def test_pages_stay_as_they_are_while_executions_are_added(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(number) for number in range(0, 100, 2)])
            seen: list[Execution] = []
            cursor: str | None = None
            newer = 1000
            while True:
                page = await store.find(Query(limit=7, cursor=cursor))
                seen += page.executions
                await store.add([execution(newer)])  # after what was seen
                newer += 1
                if page.cursor is None:
                    break
                cursor = page.cursor
            assert seen == [execution(number) for number in range(98, -1, -2)]
            assert page.cursor is None

    run(main())


def test_the_cursor_is_none_when_a_page_just_fits(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(number) for number in range(4)])
            assert (await store.find(Query(limit=4))).cursor is None
            assert (await store.find(Query(limit=3))).cursor == execution(1).id

    run(main())


def test_a_large_batch_of_large_executions(run: Run, place: Place) -> None:
    large = [execution(number, captured=captured({"answer": "x" * 200_000})) for number in range(150)]

    async def main() -> None:
        async with place.open() as store:
            await store.add(large)
            assert found(await store.find(Query(limit=1000))) == [bare(each) for each in reversed(large)]
            assert await store.get(large[77].id) == large[77]

    run(main())


def test_old_executions_go_in_small_batches(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(number) for number in range(1300)])
            deleted = []
            while not deleted or deleted[-1]:
                deleted.append(await store.prune(STARTED_AT + 1200, None))
            assert deleted == [500, 500, 200, 0]
            assert await store.prune(None, 100) == 0
            assert await store.prune(None, 30) == 70
            assert place.ids() == [execution(number).id for number in range(1270, 1300)]

    run(main())


def test_of_very_many_executions_the_newest_are_counted_in_parts_and_once(
    run: Run, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_tracking_sql.plugin.COUNTED_AT_ONCE", 300)
    read: list[Any] = []

    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(number) for number in range(1700)])
            reads = store._database.read

            async def counted(work: Any) -> Any:
                read.append(await reads(work))
                return read[-1]

            monkeypatch.setattr(store._database, "read", counted)
            assert [await store.prune(None, 700) for _ in range(3)] == [500, 500, 0]
            assert read == [execution(number).id for number in (1699 - 300, 1699 - 600, 1699 - 700)]
            assert place.ids() == [execution(number).id for number in range(1000, 1700)]
            assert await store.prune(None, 1000) == 0
            assert read[3:] == [execution(1699 - 300).id, execution(1699 - 600).id, None]
            assert await store.prune(None, 600) == 100

    run(main())


def test_generations(run: Run, place: Place) -> None:
    first = Generation("aaa", 1.5, {"config.yaml": "12"}, {"config.yaml": "tracking: {}\n"})

    async def main() -> None:
        async with place.open() as store:
            await store.add_generation(first)
            await store.add_generation(Generation("aaa", 2.5, {}))
            assert await store.get_generation("aaa") == first
            assert await store.get_generation("bbb") is None

    run(main())


def test_a_configuration_goes_with_the_last_execution_that_it_answered(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:

            async def kept(before: float | None, keep: int | None) -> str:
                while await store.prune(before, keep):
                    pass
                return "".join([id_ for id_ in "abcd" if await store.get_generation(id_)])

            for number, id_ in enumerate("abcd"):
                started_at = STARTED_AT + 1000 * number
                await store.add_generation(Generation(id_, started_at, {}))
                await store.add([execution(1000 * number, generation=id_)])
                last = f"UPDATE orchestrator_generations SET last_served_at = {started_at - 10} WHERE id = '{id_}'"
                place.ask(last)  # the execution came after the core had last told of it
            assert await kept(None, 2) == "cd"
            assert await kept(STARTED_AT + 2500, None) == "d"
            await store.add_generation(Generation("d", STARTED_AT, {}))  # it still serves, though nobody asks
            assert await kept(STARTED_AT + 5000, None) == "d"
            assert place.ids() == []
            place.ask(f"UPDATE orchestrator_generations SET last_served_at = {STARTED_AT}")
            assert await kept(STARTED_AT + 5000, None) == ""

    run(main())


def test_json_columns_can_be_queried(run: Run, place: Place) -> None:
    async def main() -> None:
        async with place.open() as store:
            await store.add([execution(1, captured=captured({"answer": {"score": 0.75}}))])

    run(main())
    path = {
        "sqlite": "json_extract(captured, '$.answer.score'), json_extract(steps, '$[1].name')",
        "postgresql": "captured->'answer'->'score', steps->1->>'name'",
    }
    assert place.ask(f"SELECT {path[place.engine]} FROM orchestrator_executions") == [(0.75, "score")]


def test_documents_with_a_nul_can_be_passed_over_in_postgresql(run: Run, tmp_path: Path) -> None:
    """As docs/tracking.md says; what is stored is exact all the same."""
    with postgresql() as url:
        place = Place("postgresql", url, tmp_path)
        odd = execution(1, captured=captured({"answer": {"score": "0.5\0"}}))

        async def main() -> None:
            async with place.open() as store:
                await store.add([odd, execution(2, captured=captured({"answer": {"score": 0.75}}))])
                assert await store.get(odd.id) == odd

        run(main())
        whole = r"CASE WHEN captured::text NOT LIKE '%\\u0000%' THEN captured END"
        asked = "SELECT id FROM orchestrator_executions WHERE {} #>> '{{answer,score}}' = '0.75'"
        assert place.ask(asked.format(whole)) == [(execution(2).id,)]
        with pytest.raises(psycopg.errors.UntranslatableCharacter):
            place.ask(asked.format("captured"))


def test_ids_are_in_their_order_whatever_the_language_of_the_database(run: Run, tmp_path: Path) -> None:
    """Danish has "aa" after "z"."""
    with postgresql("TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'da' ENCODING 'UTF8'") as url:
        place = Place("postgresql", url, tmp_path)
        kept = [execution(number * 7) for number in range(400)]

        async def main() -> None:
            async with place.open() as store:
                await store.add(kept)
                assert [one.id for one in found(await store.find(Query(limit=1000)))] == [one.id for one in kept[::-1]]
                for one in kept[::8]:
                    assert found(await store.find(Query(since=one.started_at, until=one.started_at + 1))) == [one]

        run(main())


def test_a_database_of_postgresql_without_an_encoding(run: Run, tmp_path: Path) -> None:
    with postgresql("TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'") as url:
        kept = execution(1, error="it is down: \U0001f600", captured=captured({"answer": "\u0416"}))

        async def main() -> None:
            async with Place("postgresql", url, tmp_path).open() as store:
                await store.add([kept])
                assert await store.get(kept.id) == kept

        run(main())


def test_what_the_url_sets_holds_on_postgresql(run: Run, tmp_path: Path) -> None:
    with postgresql() as url:
        place = Place("postgresql", url, tmp_path)
        place.ask("CREATE SCHEMA tracking")

        async def main() -> Any:
            more = "options=-csearch_path%3Dtracking&application_name=shop"
            async with open_sql(SqlOptions(url=f"{url}?{more}"), StoreContext(tmp_path / "config")) as store:
                await store.add([execution(1)])
                named = "SELECT DISTINCT application_name FROM pg_stat_activity WHERE datname = current_database()"
                return place.ask(named)

        names = run(main())
        assert ("shop",) in names
        assert place.ask("SELECT id FROM tracking.orchestrator_executions") == [(execution(1).id,)]
