"""Writes commit, or leave nothing; reads hold no transaction."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from typing import Any

import pytest
from database_kit import Database, run

from orchestrator_core.plugin_api import SourceError

ADD = {
    "query": "INSERT INTO accounts (account_id, owner, balance) VALUES (:id, :owner, :balance)",
    "result": "execute",
}
MOVE = {"query": "UPDATE accounts SET balance = balance + :amount WHERE account_id = :id", "result": "execute"}


def accounts(database: Database) -> list[Any]:
    return run(database.sql("SELECT account_id, owner, balance FROM accounts ORDER BY account_id"))


def test_a_write_is_committed_and_counted(database: Database) -> None:
    assert database.fetch(ADD, id=1, owner="ann", balance=10) == {"rowcount": 1}
    assert accounts(database) == [(1, "ann", 10)]


def test_the_count_is_of_matching_rows(database: Database) -> None:
    run(database.sql("INSERT INTO accounts VALUES (1, 'a', 1), (2, 'b', 1), (3, 'c', 1)"))
    same = {"query": "UPDATE accounts SET balance = 1 WHERE account_id <= :most", "result": "execute"}
    assert database.fetch(same, most=2) == {"rowcount": 2}
    assert database.fetch({"query": "DELETE FROM accounts", "result": "execute"}) == {"rowcount": 3}


def test_returned_rows_come_with_the_count(database: Database) -> None:
    query = f"{ADD['query']} RETURNING account_id, owner"
    result = database.fetch({"query": query, "result": "execute"}, id=1, owner="ann", balance=10)
    assert result["rows"] == [{"account_id": 1, "owner": "ann"}]
    assert accounts(database) == [(1, "ann", 10)]


def test_a_write_can_give_a_value(database: Database) -> None:
    query = {"query": f"{ADD['query']} RETURNING balance", "result": "value"}
    assert database.fetch(query, id=1, owner="ann", balance=10) == 10
    assert accounts(database) == [(1, "ann", 10)]


def test_a_write_whose_result_cannot_be_used_is_rolled_back(database: Database) -> None:
    query = "INSERT INTO accounts (account_id, owner, balance) VALUES (1, 'a', 1), (2, 'b', 2) RETURNING account_id"
    with pytest.raises(SourceError, match="more than one row"):
        database.fetch(query)
    assert accounts(database) == []


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        (
            {"id": 1, "owner": "geheim", "balance": 5},
            {
                "sqlite": "add: UNIQUE constraint failed: accounts.account_id",
                "postgresql": 'add: duplicate key value violates unique constraint "accounts_pkey"',
                "mysql": "add: Duplicate entry for key 'PRIMARY'",
            },
        ),
        (
            {"id": 2, "owner": None, "balance": 5},
            {
                "sqlite": "add: NOT NULL constraint failed: accounts.owner",
                "postgresql": 'add: null value in column "owner" of relation "accounts" violates not-null constraint',
                "mysql": "add: Column 'owner' cannot be null",
            },
        ),
    ],
)
def test_a_failed_write_says_why_without_values_and_the_connection_stays(
    database: Database, row: dict[str, Any], messages: dict[str, str]
) -> None:
    async def main() -> None:
        async with database.having(pool_size=1).open(add=ADD) as source:
            await source.fetch("add", {"id": 1, "owner": "ann", "balance": 10})
            with pytest.raises(SourceError) as caught:
                await source.fetch("add", row)
            assert str(caught.value) == messages[database.engine]
            assert not caught.value.transient
            assert caught.value.__cause__ is None
            await source.fetch("add", {"id": 3, "owner": "eve", "balance": 0})

    run(main())
    assert accounts(database) == [(1, "ann", 10), (3, "eve", 0)]


def test_a_statement_that_fails_half_way_leaves_nothing(database: Database) -> None:
    run(database.sql("INSERT INTO accounts VALUES (1, 'a', 100), (2, 'b', 5)"))
    take = {"query": "UPDATE accounts SET balance = balance - :amount", "result": "execute"}
    with pytest.raises(SourceError, match=r"(?i)check|constraint"):
        database.fetch(take, amount=50)
    assert accounts(database) == [(1, "a", 100), (2, "b", 5)]


def test_many_writers_lose_no_update(database: Database) -> None:
    run(database.sql("INSERT INTO accounts VALUES (1, 'a', 0)"))

    async def main() -> None:
        async with database.open(move=MOVE) as source:
            move = source.prepare("move", ["amount", "id"])
            await asyncio.gather(*[move(1, 1) for _ in range(200)])

    run(main())
    assert accounts(database) == [(1, "a", 200)]


def test_a_read_sees_what_a_write_committed(database: Database) -> None:
    async def main() -> list[Any]:
        balance = {"query": "SELECT balance FROM accounts WHERE account_id = :id", "result": "value"}
        async with database.open(add=ADD, move=MOVE, get=balance) as source:
            await source.fetch("add", {"id": 1, "owner": "a", "balance": 0})
            seen = []
            for _ in range(20):
                await source.fetch("move", {"id": 1, "amount": 1})
                seen.append(await source.fetch("get", {"id": 1}))
            return seen

    assert run(main()) == list(range(1, 21))


def test_reads_leave_no_transaction_open(server: Database) -> None:
    count = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        " AND datname = current_database()",
        "mysql": "SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_mysql_thread_id IN"
        " (SELECT id FROM information_schema.processlist WHERE db = DATABASE())",
    }[server.engine]

    async def main() -> None:
        failing = {"postgresql": "SELECT 1 / 0", "mysql": "SELECT POW(99999, 99999)"}[server.engine]
        async with server.open(get="SELECT COUNT(*) AS n FROM customers", bad=failing, add=ADD) as source:
            await asyncio.gather(*[source.fetch("get", {}) for _ in range(50)])
            for _ in range(3):
                with pytest.raises(SourceError):
                    await source.fetch("bad", {})
            await source.fetch("add", {"id": 1, "owner": "a", "balance": 0})
            with pytest.raises(SourceError):
                await source.fetch("add", {"id": 1, "owner": "a", "balance": 0})
            assert await server.sql(count) == [(0,)]

    run(main())


def test_postgresql_errors_do_not_quote_the_value(postgresql: Database) -> None:
    query = "SELECT CAST(CAST(:text AS text) AS integer) AS x"
    with pytest.raises(SourceError, match=r"^operation: invalid input syntax for type integer$"):
        postgresql.fetch(query, text="geheim")


@pytest.mark.parametrize(
    ("query", "value", "message"),
    [
        ("SELECT CAST(CAST(:x AS text) AS regclass)::text AS x", "geheim", 'relation "…" does not exist'),
        ("SELECT CAST(CAST(:x AS text) AS regclass)::text AS x", 'ge"heim', 'relation "…" does not exist'),
        ("SELECT CAST(CAST(:x AS text) AS regclass)::text AS x", '"ge\nheim"', 'relation "…" does not exist'),
        ("SELECT CAST(CAST(:x AS text) AS tsvector)::text AS x", "'geheim", 'syntax error in tsvector: "…"'),
        ("SELECT to_tsquery(:x)::text AS x", 'geheim "als" das &', 'syntax error in tsquery: "…"'),
        ("SELECT now() AT TIME ZONE :x AS x", "geheim", 'time zone "…" not recognized'),
        ("SELECT CAST(CAST(:x AS text) AS int) AS x", "99887766554", 'value "…" is out of range for type integer'),
        ("SELECT to_date(:x, 'YYYY') AS x", "geheim", 'invalid value "…"'),
        ("SELECT current_setting(:x) AS x", "geheim", 'unrecognized configuration parameter "…"'),
        (
            "SELECT nextval('customer_numbers') AS x, CAST(:x AS text) AS y",
            "geheim",
            'relation "customer_numbers" does not exist',
        ),
        (
            "INSERT INTO accounts VALUES (1, :x, -5)",
            "geheim",
            'new row for relation "accounts" violates check constraint "accounts_balance_check"',
        ),
    ],
)
def test_postgresql_quotes_what_stands_in_the_query_and_names_of_constraints(
    postgresql: Database, query: str, value: str, message: str
) -> None:
    operation = {"query": query, "result": "execute"} if query.startswith("INSERT") else query
    with pytest.raises(SourceError) as raised:
        postgresql.fetch(operation, x=value)
    assert str(raised.value) == f"operation: {message}"


@pytest.mark.parametrize(
    ("query", "value", "message"),
    [
        ("SELECT * FROM texts WHERE texts MATCH :x", "geheim:x", "no such column: …"),
        ("SELECT * FROM texts WHERE texts MATCH :x", "geheim AND AND", "fts5: syntax error near …"),
        ("SELECT json_extract('{}', :x) AS x", "geheim", "JSON path error near …"),
        ("SELECT body, length(:x) AS n FROM texts WHERE texts MATCH 'subject:a'", "geheim", "no such column: subject"),
    ],
)
def test_sqlite_errors_quote_nothing_but_the_query(sqlite: Database, query: str, value: str, message: str) -> None:
    run(sqlite.sql("CREATE VIRTUAL TABLE IF NOT EXISTS texts USING fts5(body)"))
    with pytest.raises(SourceError) as raised:
        sqlite.fetch(query, x=value)
    assert str(raised.value) == f"operation: {message}"


@pytest.mark.parametrize(
    ("query", "value", "message"),
    [
        ("SELECT 18446744073709551615 + :x AS x", 987654, "BIGINT UNSIGNED value is out of range"),
        ("SELECT EXP(800 + LENGTH(:x)) AS x", "geheim", "DOUBLE value is out of range"),
        ("INSERT INTO accounts VALUES (:x, 'a', 0)", "geheim\nx", "Incorrect integer value: for column "),
        ("INSERT INTO accounts VALUES (:x, 'a', 0)", "geheim' \n", "Incorrect integer value: for column "),
    ],
)
def test_mysql_errors_do_not_quote_the_value(mysql: Database, query: str, value: Any, message: str) -> None:
    with pytest.raises(SourceError, match=f"^operation: {message}(?!.*(geheim|987654))"):
        mysql.fetch({"query": query, "result": "execute"}, x=value)


def test_a_deadlock_is_transient(postgresql: Database) -> None:
    run(postgresql.sql("DELETE FROM accounts", "INSERT INTO accounts VALUES (1, 'a', 0), (2, 'b', 0)"))
    lock = """
        WITH a AS (UPDATE accounts SET balance = 1 WHERE account_id = :first RETURNING 1),
             p AS (SELECT pg_sleep(0.3) FROM a)
        UPDATE accounts SET balance = balance + (SELECT COUNT(*) FROM p) WHERE account_id = :second
    """

    async def main() -> list[Any]:
        async with postgresql.open(lock={"query": lock, "result": "execute"}) as source:
            pairs = [(1, 2), (2, 1)]
            calls = [source.fetch("lock", {"first": first, "second": second}) for first, second in pairs]
            return await asyncio.gather(*calls, return_exceptions=True)

    results = run(main())
    errors = [result for result in results if isinstance(result, Exception)]
    assert [str(error) for error in errors] == ["lock: deadlock detected"]
    assert all(error.transient for error in errors)  # type: ignore[attr-defined]


def test_a_locked_sqlite_file_is_waited_for_and_then_transient(sqlite: Database) -> None:
    run(sqlite.sql("DELETE FROM accounts"))

    async def main() -> None:
        async with sqlite.having(lock_timeout=0.1).open(add=ADD, get="SELECT COUNT(*) AS n FROM customers") as source:
            get = source.prepare("get", [])
            for _ in range(3):
                assert await get() == {"n": 100}  # proven fast, so it runs on the loop
            holder = sqlite3.connect(sqlite.folder / "test.db", isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    await asyncio.sleep(0.005)
                    ticks += 1

            ticker = asyncio.create_task(tick())
            message = re.escape(": the database stayed locked for 0.1 s")
            with pytest.raises(SourceError, match=f"^get{message}$") as caught:
                await get()
            assert caught.value.transient
            with pytest.raises(SourceError, match=f"^add{message}$"):
                await source.fetch("add", {"id": 1, "owner": "a", "balance": 1})
            assert ticks > 20, "the event loop stood still"
            asyncio.get_running_loop().call_later(0.03, holder.execute, "COMMIT")
            assert await get() == {"n": 100}
            await source.fetch("add", {"id": 1, "owner": "a", "balance": 1})
            ticker.cancel()
            holder.close()
            await asyncio.sleep(0)

    run(main())
