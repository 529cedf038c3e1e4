"""The database is asked about each query, and nothing runs."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from database_kit import Database, run

from orchestrator_core.plugin_api import Finding, Inspection, OperationFacts, SourceError


def inspect(database: Database, **operations: Any) -> Inspection:
    async def main() -> Inspection:
        async with database.open(**operations) as source:
            return await source.inspect()

    return run(main())


def finding(database: Database, query: str | dict[str, Any]) -> Finding:
    inspection = inspect(database, get=query)
    assert inspection.facts == {}
    (only,) = inspection.findings
    assert (only.operation, only.at) == ("get", ("query",))
    return only


def test_a_good_query_tells_its_fields(database: Database) -> None:
    query = "SELECT customer_id AS id, credit_score FROM customers WHERE customer_id = :customer_id"
    inspection = inspect(
        database,
        one=query,
        many={"query": "SELECT * FROM customers;", "result": "many"},
        value={"query": "SELECT COUNT(*) FROM customers", "result": "value"},
        change={"query": "UPDATE customers SET name = :name", "result": "execute"},
    )
    assert inspection.findings == ()
    assert inspection.facts == {
        "one": OperationFacts(("customer_id",), (), ("id", "credit_score"), idempotent=True),
        "many": OperationFacts(
            (), (), ("customer_id", "name", "credit_score", "annual_income"), many=True, idempotent=True
        ),
        "value": OperationFacts((), (), idempotent=True),
        "change": OperationFacts(("name",), (), ("rowcount",), idempotent=False),
    }


def test_a_wrong_column_suggests_the_real_one(database: Database) -> None:
    found = finding(database, "SELECT credt_score FROM customers WHERE customer_id = :id")
    assert found.message == "there is no column 'credt_score' in customers"
    assert found.near == "credt_score"
    assert found.hint == "did you mean 'credit_score'?"


def test_a_wrong_column_of_an_alias_suggests_the_real_one(database: Database) -> None:
    found = finding(database, "SELECT c.credt_score FROM customers c")
    assert (found.message, found.near) == ("there is no column 'credt_score' in customers", "credt_score")
    assert found.hint == "did you mean 'credit_score'?"


def test_a_wrong_table_suggests_the_real_one(database: Database) -> None:
    found = finding(database, "SELECT name FROM customrs")
    assert found.message == "there is no table 'customrs'"
    assert found.near == "customrs"
    assert found.hint == "did you mean 'customers'?"


def test_a_wrong_column_in_a_write_is_found(database: Database) -> None:
    found = finding(database, {"query": "UPDATE accounts SET balanc = :b", "result": "execute"})
    assert (found.near, found.hint) == ("balanc", "did you mean 'balance'?")


@pytest.mark.parametrize("query", ["SELECT name FORM customers", "SELECT name FROM customers WHER customer_id = 1"])
def test_a_syntax_error_points_at_the_word(database: Database, query: str) -> None:
    found = finding(database, query)
    assert found.message.startswith("syntax error near '")
    assert found.near in query
    assert found.near


def test_two_columns_of_one_name_are_found(database: Database) -> None:
    found = finding(database, "SELECT a.name, b.name FROM customers a, customers b")
    assert (found.message, found.near, found.hint) == (
        "the query returns two columns named 'name'",
        "name",
        "rename one with AS",
    )


def test_all_findings_come_at_once(database: Database) -> None:
    inspection = inspect(database, a="SELECT nme FROM customers", b="SELECT 1 FROM nowhere", c="SELECT 1 AS one")
    assert [found.operation for found in inspection.findings] == ["a", "b"]
    assert list(inspection.facts) == ["c"]


def test_postgresql_says_which_parameter_has_no_type(postgresql: Database) -> None:
    found = finding(postgresql, "SELECT 1 AS one WHERE :x IS NULL")
    assert found.message == "the database cannot tell the type of parameter ':x'"
    assert (found.near, found.hint) == (":x", "write CAST(:x AS integer), or its other type")


def test_inspecting_runs_nothing(database: Database) -> None:
    insert = "INSERT INTO accounts (account_id, owner, balance) VALUES (:id, 'x', 1)"
    slow = {
        "sqlite": "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT COUNT(*) AS n FROM t",
        "postgresql": "SELECT pg_sleep(30)",
        "mysql": "SELECT SLEEP(30)",
    }[database.engine]
    inspection = inspect(
        database,
        insert={"query": insert, "result": "execute"},
        returning={"query": f"{insert} RETURNING account_id", "result": "value"},
        delete={"query": "DELETE FROM customers", "result": "execute"},
        drop={"query": "DROP TABLE customers", "result": "execute"},
        slow=slow,
    )
    assert inspection.findings == ()
    assert run(database.sql("SELECT COUNT(*) FROM customers")) == [(100,)]
    assert run(database.sql("SELECT COUNT(*) FROM accounts")) == [(0,)]


@pytest.mark.parametrize(
    ("engine", "changed", "why"),
    [
        ("mysql", "?time_zone=UTC", "asyncmy takes no 'time_zone', which stands behind the ? of connection_string"),
        ("mysql", "?ssl_ca=/nonexistent/ca.pem", "No such file or directory"),
        ("mysql", "no-such-host.invalid", "Name or service not known"),
        ("postgresql", "no-such-host.invalid", "Name or service not known"),
        ("postgresql", "?schema=shop", 'unrecognized configuration parameter "schema"'),
        (
            "postgresql",
            "?sslmode=on",
            "`sslmode` parameter must be one of: disable, allow, prefer, require, verify-ca, verify-full",
        ),
    ],
)
def test_why_no_connection_can_be_made_is_said(
    request: pytest.FixtureRequest, engine: str, changed: str, why: str
) -> None:
    database: Database = request.getfixturevalue(engine)
    url = database.url + changed if changed[0] == "?" else database.url.replace("127.0.0.1", changed)
    with pytest.raises(SourceError) as caught:
        Database(engine, url, database.folder).fetch("SELECT 1")
    assert str(caught.value).endswith(f": {why}")


def test_mysql_takes_the_time_zone_of_the_session_from_the_url(mysql: Database) -> None:
    zoned = Database("mysql", f"{mysql.url}?init_command=SET+time_zone%3D'%2B02:00'", mysql.folder)
    assert zoned.fetch("SELECT FROM_UNIXTIME(0) AS x") == {"x": "1970-01-01T02:00:00"}


def test_an_unreachable_server_is_named_without_its_password(server: Database) -> None:
    title = {"postgresql": "PostgreSQL", "mysql": "MySQL"}[server.engine]
    away = Database(server.engine, f"{server.engine}://u:geheim@127.0.0.1:1/crm", server.folder)
    message = f"database 'default': cannot connect to {title} at 127.0.0.1:1, database 'crm': connection refused"
    for loop in ("uvloop", "asyncio"):

        async def main() -> None:
            async with away.open(get="SELECT 1") as source:
                for call in (source.inspect(), source.check_ready(), source.fetch("get", {})):
                    with pytest.raises(SourceError) as caught:
                        await call
                    assert str(caught.value) == message

        run(main(), loop=loop)


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (None, "no answer within 0.2 s"),
        (b"", ".+"),  # the connection is reset, at any moment of its making
        (b"NR\0\0\0\x08\0\0\0\0R", ".+"),
        (b"\x4a\0\0\0\x0a10.11.2-MariaDB\0\x07\0\0\0abcdefgh\0" + b"\xff" * 50, ".+"),
    ],
    ids=["nothing", "reset", "half an answer", "a broken greeting"],
)
def test_what_does_not_speak_as_a_server_is_a_source_that_cannot_be_reached(
    engine: str, says: bytes | None, reason: str, tmp_path: Path
) -> None:
    taken: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if says is None:
            taken.append(writer)
            return
        if not says:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.write(says)
        writer.close()

    async def main() -> None:
        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        where = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        away = Database(engine, f"{engine}://u:geheim@{where}/crm", tmp_path).having(connect_timeout=0.2)
        message = f"^database 'default': cannot connect to \\w+ at {where}, database 'crm': {reason}$"
        async with listening, away.open(get="SELECT 1") as source:
            for _ in range(1 if says is None else 30):
                with pytest.raises(SourceError, match=message) as caught:
                    await asyncio.wait_for(source.fetch("get", {}), 5)
                assert caught.value.transient
        for writer in taken:
            writer.transport.abort()
            with suppress(ConnectionError):
                await writer.wait_closed()

    run(main())


def test_an_unknown_database_is_named(server: Database) -> None:
    away = Database(server.engine, server.url.rpartition("/")[0] + "/no_such_db", server.folder)
    with pytest.raises(SourceError, match=r"database 'no_such_db': .*no_such_db.*"):
        inspect(away, get="SELECT 1")
