"""Reads for many items: the results and errors of one read for each, in one statement where that is exact."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest
from attrs import evolve
from database_kit import Database, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam, OrchestratorError, SourceError
from orchestrator_core.testing import check_problems, service

THINGS = {
    "sqlite": "id INTEGER PRIMARY KEY, code TEXT COLLATE NOCASE, word TEXT, fixed CHAR(4), price NUMERIC, amount REAL,"
    " day TEXT, at TEXT, raw BLOB, kind TEXT, other INTEGER",
    "postgresql": "id int PRIMARY KEY, code text COLLATE nocase, word varchar(20), fixed char(4), price numeric(10,2),"
    " amount float8, day date, at timestamp, raw bytea, kind kind, other int8",
    "mysql": "id int PRIMARY KEY, code varchar(20), word varchar(20) COLLATE utf8mb4_bin, fixed char(4),"
    " price decimal(10,2), amount double, day date, at datetime(3), raw varbinary(8), kind enum('x','y'), other bigint",
}
ROWS = [
    "1, 'A', 'A', 'ab', 1.50, 1.5, '2024-01-31', '2024-01-31 12:30:15', {raw}, 'x', 1",
    "2, 'a ', 'a', 'ab  ', 0.10, 0.1, '2024-02-29', '2024-02-29 00:00:00', NULL, 'y', 1",
    "3, '1', '01', '1', 12.00, 12, NULL, NULL, {raw}, NULL, NULL",
    "4, '01', '1', '', NULL, NULL, '2024-01-31', NULL, NULL, 'x', 0",
    "5, NULL, '', NULL, -3.25, -3.25, '1999-12-31', '2024-01-31 12:30:15', {raw}, 'y', 2",
    "6, 'é', 'É', 'é', 100000.01, 1e10, NULL, NULL, NULL, NULL, 2",
    "7, 'E', 'e', 'E', 0, 0, NULL, NULL, NULL, NULL, NULL",
]
COLUMNS = "id, code, word, fixed, price, amount, day, at, raw, kind, other"


@pytest.fixture
def things(database: Database) -> Database:
    raw = {"sqlite": "x'00ff'", "postgresql": "'\\x00ff'", "mysql": "x'00ff'"}[database.engine]
    before = ["DROP TABLE IF EXISTS things"]
    if database.engine == "postgresql":
        before += [
            "DROP COLLATION IF EXISTS nocase",
            "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
            "DROP TYPE IF EXISTS kind",
            "CREATE TYPE kind AS ENUM ('x', 'y')",
        ]
    rows = ", ".join(f"({row.format(raw=raw)})" for row in ROWS)
    inserts = f"INSERT INTO things VALUES {rows}"
    run(database.sql(*before, f"CREATE TABLE things ({THINGS[database.engine]})", inserts))
    return database


async def outcome(call: Any) -> Any:
    try:
        return await call
    except OrchestratorError as error:
        return error


def shown(outcomes: Sequence[Any]) -> list[Any]:
    """Errors compare by what they say."""
    return [
        (type(each), str(each), each.__dict__) if isinstance(each, Exception) else (type(each), each)
        for each in outcomes
    ]


EQUAL = f"SELECT {COLUMNS} FROM things WHERE "
READS: dict[str, dict[str, Any]] = {
    "typed key": {"query": EQUAL + "id = :a", "params": {"a": "integer"}},
    "key": {"query": EQUAL + "id = :a"},
    "allowed to miss": {"query": EQUAL + "id = :a", "on_missing": "allow"},
    "value": {"query": "SELECT word FROM things WHERE id = :a", "result": "value", "on_missing": "allow"},
    "text without case": {"query": EQUAL + "code = :a", "result": "many"},
    "text without case, one": {"query": EQUAL + "code = :a", "result": "one", "on_missing": "allow"},
    "text with case": {"query": EQUAL + "word = :a", "result": "many"},
    "fixed text": {"query": EQUAL + "fixed = :a", "result": "many"},
    "turned round": {"query": EQUAL + ":a = code", "result": "many"},
    "typed text": {"query": EQUAL + "code = :a", "params": {"a": "string"}, "result": "many"},
    "typed number": {"query": EQUAL + "amount = :a", "params": {"a": "number"}, "result": "many"},
    "typed decimal": {"query": EQUAL + "price = :a", "params": {"a": "decimal"}, "result": "many"},
    "typed day": {"query": EQUAL + "day = :a", "params": {"a": "date"}, "result": "many"},
    "typed moment": {"query": EQUAL + "at = :a", "params": {"a": "datetime"}, "result": "many"},
    "two keys": {"query": EQUAL + "other = :a AND id <> :b", "result": "many"},
    "one key twice": {"query": EQUAL + "(id = :a OR other = :a)", "result": "many"},
    "a range": {"query": EQUAL + "id > :a AND id < :b", "result": "many"},
    "or null": {"query": EQUAL + "(other = :a OR (other IS NULL AND id = :b))", "result": "many"},
    "like": {"query": EQUAL + "code LIKE :a", "result": "many"},
    "everything": {"query": "SELECT * FROM things WHERE other = :a", "result": "many"},
    "count": {"query": "SELECT count(*) AS n, max(id) AS id FROM things WHERE other = :a"},
    "groups": {"query": "SELECT other, count(*) AS n FROM things WHERE id < :a GROUP BY other", "result": "many"},
    "distinct": {"query": "SELECT DISTINCT other FROM things WHERE id < :a", "result": "many"},
    "the first": {"query": EQUAL + "other = :a ORDER BY id DESC LIMIT 1", "on_missing": "allow"},
    "in order": {"query": EQUAL + "other = :a ORDER BY id DESC", "result": "many"},
    "a page": {"query": EQUAL + "id > :a ORDER BY id LIMIT 2", "result": "many"},
    "so many": {
        "query": EQUAL + "other = 1 ORDER BY id DESC LIMIT :a",
        "params": {"a": "integer"},
        "result": "many",
    },
    "a join": {
        "query": "SELECT t.id, o.word AS other_word FROM things t JOIN things o ON o.other = t.id WHERE t.id = :a",
        "result": "many",
    },
    "a subquery": {"query": EQUAL + "id = (SELECT max(id) FROM things WHERE other = :a)", "on_missing": "allow"},
    "with": {"query": "WITH t AS (SELECT * FROM things WHERE other = :a) SELECT id FROM t", "result": "many"},
    "a part of the result": {"query": "SELECT id, coalesce(word, :b) AS word FROM things WHERE id = :a"},
    "nothing but the parameter": {"query": "SELECT CAST(:a AS CHAR(5)) AS a"},
    "an aggregate of the parameter": {"query": "SELECT max(CAST(:a AS DECIMAL(9, 2))) AS a FROM things"},
    "a union": {
        "query": "SELECT id FROM things WHERE id = :a UNION ALL SELECT other FROM things WHERE id = :b",
        "result": "many",
    },
    "fails for some": {"query": "SELECT id, 10 / (id - :b) AS part FROM things WHERE id = :a"},
}
VALUES = st.one_of(
    st.integers(-1, 8),
    st.sampled_from(["A", "a", "a ", "1", "01", " 1", "1.0", "", "é", "É", "e", "ab", "ab  ", "%a%", "1e0", "x"]),
    st.sampled_from([1.0, 1.5, 0.1, -3.25, 0.0, True, False, None]),
    st.sampled_from(["2024-01-31", "2024-01-31T12:30:15", "2024-01-31T12:30:15+02:00", "20240131", "0.10", "1.50"]),
    st.sampled_from([2**40, 2**63, 2**70, [1], {"a": 1}, "x\0"]),
)


@pytest.mark.parametrize("name", READS)
def test_each_item_gets_what_a_read_of_its_own_gets(things: Database, name: str) -> None:
    async def main() -> None:
        async with things.open(read=READS[name]) as source:
            (names,) = [sorted({"a", "b"} & set(query.names)) for query in source._queries.values()]
            many, one = source.prepare_many("read", names), source.prepare("read", names)
            if many is None:
                assert (things.engine, name) in LEFT_ALONE
                return
            assert (things.engine, name) not in LEFT_ALONE

            @given(st.lists(st.tuples(*[VALUES] * len(names)), max_size=24))
            @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
            def check(items: list[tuple[Any, ...]]) -> None:
                loop_run(compare(items))

            async def compare(items: list[tuple[Any, ...]]) -> None:
                expected = [await outcome(one(*values)) for values in items]
                assert shown(await many(items)) == shown(expected)

            loop = asyncio.get_running_loop()

            def loop_run(coroutine: Any) -> None:
                asyncio.run_coroutine_threadsafe(coroutine, loop).result()

            await asyncio.to_thread(check)

    run(main())


LEFT_ALONE = {
    ("mysql", name)
    for name in (
        "in order",
        "a page",
        "so many",
        "a subquery",
        "with",
        "a part of the result",
        "nothing but the parameter",
        "an aggregate of the parameter",
        "a union",
        "fails for some",
    )
}
"""What is not put into one statement, since it could answer otherwise: then the items are read several at once."""


def test_a_server_is_asked_once_for_all(server: Database) -> None:
    """The time at which a statement started is the same for all of its rows."""
    moment = {"postgresql": "statement_timestamp()", "mysql": "NOW(6)"}[server.engine]

    async def main() -> None:
        query = f"SELECT customer_id, {moment} AS at FROM customers WHERE customer_id = :customer_id"
        async with server.open(read={"query": query, "params": {"customer_id": "integer"}}) as source:
            many = source.prepare_many("read", ["customer_id"])
            assert many is not None
            for size in (64, 100):
                found: Any = await many([(str(number),) for number in range(1, size + 1)])
                assert [row["customer_id"] for row in found] == list(range(1, size + 1))
                statements = {"postgresql": {64: 1, 100: 1}, "mysql": {64: 1, 100: 4}}[server.engine][size]
                assert len({row["at"] for row in found}) == statements

    run(main())


def test_more_items_than_one_statement_takes(database: Database) -> None:
    async def main() -> None:
        async with database.open(read="SELECT name FROM customers WHERE customer_id = :id") as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            found = await many([(number % 100 + 1,) for number in range(2503)])
            assert found == [{"name": f"customer {number % 100 + 1}"} for number in range(2503)]
            assert await many([]) == []

    run(main())


def test_each_item_has_its_own_error(database: Database) -> None:
    async def main() -> None:
        read = {"query": "SELECT name FROM customers WHERE customer_id = :id", "params": {"id": "integer"}}
        async with database.open(read=read) as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            found: Any = await many([(1,), (0,), ("x",), (None,), (2,)])
            assert shown(found) == shown(
                [
                    {"name": "customer 1"},
                    EntityNotFound("read: nothing found for id=0"),
                    InvalidParam("id", "read: parameter 'id' expected integer, got 'x'"),
                    EntityNotFound("read: nothing found for id=null"),
                    {"name": "customer 2"},
                ]
            )

    run(main())


def test_an_item_that_fails_in_the_database_fails_alone(things: Database) -> None:
    async def main() -> None:
        read = "SELECT id FROM things WHERE id = :a AND abs(:b) < 100"  # abs of the least integer overflows
        failing = (1, -(2**63))
        if things.engine == "postgresql":
            read = "SELECT id FROM things WHERE id = :a AND 10 / (id - 2) > abs(:b)"
            failing = (2, 0)
        async with things.open(read=read) as source:
            many = source.prepare_many("read", ["a", "b"])
            assert many is not None
            found: Any = await many([(3, 1), failing, (3, 1)])
            assert (found[0], found[2]) == ({"id": 3}, {"id": 3})
            assert isinstance(found[1], SourceError)

    run(main())


@pytest.mark.parametrize("result", ["execute", "one"])
def test_writes_are_never_put_together(database: Database, result: str) -> None:
    async def main() -> None:
        write = {"query": "UPDATE accounts SET balance = :b WHERE account_id = :a", "result": result}
        async with database.open(write=write) as source:
            assert source.prepare_many("write", ["a", "b"]) is None

    run(main())


@pytest.mark.parametrize(
    "query",
    [
        "SELECT id FROM things WHERE id = :a FOR UPDATE",
        "SELECT id FROM things WHERE id = :a -- or :a",
        "SELECT id FROM things WHERE id = :a /* :a */",
        r"SELECT id FROM things WHERE id = :a AND word <> '\:'' \\'",
        "SELECT id FROM things WHERE id = 1",
    ],
)
def test_what_cannot_be_told_apart_for_certain_is_left_alone(server: Database, query: str) -> None:
    async def main() -> None:
        async with server.open(read=query) as source:
            names = ["a"] if ":a" in query else []
            assert source.prepare_many("read", names) is None

    run(main())


def test_wrong_names_are_refused_as_for_one(database: Database) -> None:
    async def main() -> None:
        async with database.open(read="SELECT name FROM customers WHERE customer_id = :id") as source:
            with pytest.raises(InvalidParam, match="there is no parameter 'idd'; did you mean 'id'"):
                source.prepare_many("read", ["idd"])

    run(main())


def test_a_changed_table_is_read_as_it_is_now(server: Database) -> None:
    async def main() -> None:
        await server.sql("DROP TABLE IF EXISTS changing", "CREATE TABLE changing (id int, x int)")
        await server.sql("INSERT INTO changing VALUES (1, 5), (2, 6)")
        async with server.open(read="SELECT * FROM changing WHERE id = :id") as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            ids = [(1,), (2,), (1,), (2,)]
            assert (await many(ids))[:2] == [{"id": 1, "x": 5}, {"id": 2, "x": 6}]
            await server.sql("ALTER TABLE changing ADD y int", "UPDATE changing SET y = 7")
            assert (await many(ids))[:2] == [{"id": 1, "x": 5, "y": 7}, {"id": 2, "x": 6, "y": 7}]
            text = (
                "ALTER TABLE changing ALTER x TYPE text"
                if server.engine == "postgresql"
                else ("ALTER TABLE changing MODIFY x varchar(9)")
            )
            await server.sql(text)
            assert (await many(ids))[:2] == [{"id": 1, "x": "5", "y": 7}, {"id": 2, "x": "6", "y": 7}]

    run(main())


def test_a_broken_connection_is_replaced(server: Database) -> None:
    async def main() -> None:
        async with server.open(read="SELECT name FROM customers WHERE customer_id = :id") as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            await many([(1,)] * 4)
            if server.engine == "postgresql":
                name = server.url.rpartition("/")[2]
                await server.sql(
                    f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
                    " AND application_name = 'orchestrator-api'"
                )
            else:
                rows = await server.sql(
                    "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"
                )
                await server.sql(*[f"KILL {row[0]}" for row in rows])
            assert await many([(2,)] * 4) == [{"name": "customer 2"}] * 4

    run(main())


def test_a_database_that_is_down_fails_all_items_at_once(server: Database) -> None:
    down = evolve(server, url=server.url.replace(":5432", ":1").replace(":3306", ":1"))

    async def main() -> None:
        async with down.open(read="SELECT name FROM customers WHERE customer_id = :id") as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            with pytest.raises(SourceError, match="connection refused"):
                await many([(1,)] * 4)

    run(main())


def test_a_cancelled_read_of_many_gives_its_connection_back(database: Database) -> None:
    slow = {
        "sqlite": "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 100000000 + :a)"
        " SELECT count(*) AS n FROM n",
        "postgresql": "SELECT pg_sleep(30) AS n FROM customers WHERE customer_id = :a",
        "mysql": "SELECT sleep(30) AS n FROM customers WHERE customer_id = :a",
    }[database.engine]

    async def main() -> None:
        async with database.having(pool_size=1).open(
            slow=slow, quick="SELECT name FROM customers WHERE customer_id = :a"
        ) as source:
            many = source.prepare_many("slow", ["a"])
            assert many is not None
            task = asyncio.ensure_future(many([(1,)] * 8))
            await asyncio.sleep(0.2)
            started = time.perf_counter()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await source.fetch("quick", {"a": 1}) == {"name": "customer 1"}
            assert time.perf_counter() - started < 10

    run(main())


def test_the_statement_timeout_is_for_each_item(sqlite: Database) -> None:
    count = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < :a) SELECT count(*) AS n FROM n"

    async def main() -> None:
        async with sqlite.having(statement_timeout=0.5).open(count=count) as source:
            many = source.prepare_many("count", ["a"])
            assert many is not None
            started = time.perf_counter()
            found: Any = await many([(40_000,)] * 200)
            assert found == [{"n": 40_000}] * 200, f"{time.perf_counter() - started:.1f} s"
            found = await many([(1,)] * 4 + [(10**9,)] + [(1,)] * 4)
            assert [found[0], found[-1]] == [{"n": 1}] * 2
            assert str(found[4]) == "count: the database gave up: the statement took too long"

    run(main())


def test_a_locked_database_is_waited_for_once(sqlite: Database) -> None:
    async def main() -> None:
        other = sqlite3.connect(sqlite.folder / "test.db", isolation_level=None)
        read = "SELECT name FROM customers WHERE customer_id = :id"
        async with sqlite.having(lock_timeout=0.3).open(read=read) as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            other.execute("BEGIN EXCLUSIVE")
            started = time.perf_counter()
            found = await many([(1,)] * 8)
            assert time.perf_counter() - started < 1.5
            message = "read: the database stayed locked for 0.3 s"
            assert shown(found) == shown([SourceError(message, transient=True)] * 8)
            other.execute("ROLLBACK")
            assert await many([(1,)] * 2) == [{"name": "customer 1"}] * 2
        other.close()

    run(main())


def test_a_locked_table_is_waited_for_once(postgresql: Database) -> None:
    """It locks out all items alike: to ask for them one by one would only be as many waits more."""

    async def main() -> None:
        other = await asyncpg.connect(postgresql.url)
        read = "SELECT name FROM customers WHERE customer_id = :id"
        try:
            async with postgresql.having(lock_timeout=0.3, pool_size=1).open(read=read) as source:
                many = source.prepare_many("read", ["id"])
                assert many is not None
                await many([(1,)] * 8)
                async with other.transaction():
                    await other.execute("LOCK TABLE customers")
                    started = time.perf_counter()
                    with pytest.raises(SourceError) as caught:
                        await many([(1,)] * 8)
                    assert time.perf_counter() - started < 1.5
                assert str(caught.value) == "read: canceling statement due to lock timeout"
                assert caught.value.transient
                assert await many([(1,)] * 2) == [{"name": "customer 1"}] * 2
        finally:
            await other.close()

    run(main())


def test_a_step_for_each_reads_customers_over_http(database: Database) -> None:
    step = """
        name: customer
        type: database
        operation: get_customer
        for_each: "$request.body.ids"
        params: {customer_id: "$item"}
    """.strip().replace("\n        ", "\n                    ")
    files = {
        "database.yaml": f"""
            database:
              sources: {{default: {{connection_string: "{database.url}"}}}}
              operations:
                get_customer:
                  query: "SELECT customer_id, name FROM customers WHERE customer_id = :customer_id"
                  params: {{customer_id: integer}}
        """,
        "domains/shop.yaml": f"""
            endpoints:
              strict:
                data_sources:
                  - {step}
              tolerant:
                data_sources:
                  - {step}
                    required: false
              wrong:
                data_sources:
                  - {step}
                response_mapping: {{first: "$customer[0].nme"}}
        """,
    }
    if database.engine == "sqlite":
        files["database.yaml"] = files["database.yaml"].replace("///", f"///{database.folder}/")
    named = [{"customer_id": number, "name": f"customer {number}"} for number in range(1, 101)]

    async def main() -> None:
        fine = {**files, "domains/shop.yaml": files["domains/shop.yaml"].partition("              wrong:")[0]}
        async with service(fine) as shop:
            ids = [*range(100, 0, -1), "7", 7]
            answer = await shop.post("/orchestrator/shop/strict", {"ids": ids})
            assert (answer.status, answer.json) == (200, [named[int(number) - 1] for number in ids])
            answer = await shop.post("/orchestrator/shop/strict", {"ids": [1, 0]})
            assert (answer.status, answer.json["detail"]) == (
                404,
                "step 'customer', item 1: get_customer: nothing found for customer_id=0",
            )
            answer = await shop.post("/orchestrator/shop/strict", {"ids": [1, "x"]})
            finding = "get_customer: parameter 'customer_id' expected integer, got 'x'"
            assert (answer.status, answer.json["detail"]) == (422, f"step 'customer', item 1: {finding}")
            assert answer.json["errors"] == [{"pointer": "/body/ids/1", "message": finding}]
            answer = await shop.post("/orchestrator/shop/tolerant", {"ids": [1, 0, "x", 2]})
            assert answer.json == [named[0], None, None, named[1]]
            assert answer.headers["X-Orchestrator-Degraded"] == "customer"

    run(main())
    problems = check_problems(files)
    assert [f"{problem.code} {problem.message}; {problem.hint}" for problem in problems] == [
        "ORC505 the step 'customer' returns no field 'nme'; did you mean 'name'?"
    ]
