"""Values come out exactly, or as an error that names the column."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any

import pytest
from database_kit import Database, run
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_source_database import values

from orchestrator_core.plugin_api import SourceError

COLUMN = "operation: column 'x'"
TOO_MANY_DIGITS = (
    "operation: column 'x' has more digits than a JSON number holds exactly;"
    " round it in the query, or set decimals: rounded or string"
)
NO_YEAR = f"{COLUMN} holds a year before 1 or after 9999, which cannot be read; cast it to text in the query"
NO_TIME = f"{COLUMN} holds the time 24:00, which cannot be read; cast it to text in the query"
INFINITE = f"{COLUMN} holds an infinite time, which ISO 8601 has no text for"
NOT_FINITE = "operation: column 'x' holds NaN or Infinity, which JSON has no number for"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CAST(1234.56 AS numeric(12,2))", 1234.56),
        ("CAST(12 AS numeric(12,2))", 12.0),
        ("CAST(9007199254740993 AS numeric(20,0))", 9007199254740993),
        ("CAST('12345678901234567890' AS numeric)", 12345678901234567890),
        ("CAST(0.1 AS numeric)", 0.1),
        ("9223372036854775807", 9223372036854775807),
        ("CAST(0.1 AS float8)", 0.1),
        ("true", True),
        ("DATE '2024-02-29'", "2024-02-29"),
        ("DATE '9999-12-31'", "9999-12-31"),
        ("TIMESTAMP '9999-12-31 23:59:59.999999'", "9999-12-31T23:59:59.999999"),
        ("TIME '12:30:15.25'", "12:30:15.250000"),
        ("TIMESTAMP '2024-02-29 12:30:15'", "2024-02-29T12:30:15"),
        ("TIMESTAMPTZ '2024-02-29 12:30:15+02'", "2024-02-29T10:30:15+00:00"),
        ("INTERVAL '1 year 2 months 3 days 4 hours 5.25 seconds'", "P1Y2M3DT4H5.25S"),
        ("INTERVAL '-90 seconds'", "PT-1M-30S"),
        ("INTERVAL '0'", "PT0S"),
        ("CAST('0c7dc8a8-2c3c-4a8a-93c7-2d8f2e6a3a11' AS uuid)", "0c7dc8a8-2c3c-4a8a-93c7-2d8f2e6a3a11"),
        (r"CAST('\\x00ff' AS bytea)", "AP8="),
        ("""CAST('{"a": [1, 2.5, null]}' AS jsonb)""", {"a": [1, 2.5, None]}),
        ("CAST('[1]' AS json)", [1]),
        (r"""CAST('["\ud83d\ude00"]' AS json)""", ["\U0001f600"]),
        ("ARRAY[1, NULL, 3]", [1, None, 3]),
        ("ARRAY[[1.5, 2], [3, 4]]", [[1.5, 2], [3, 4]]),
        ("ARRAY[DATE '2024-02-29']", ["2024-02-29"]),
        ("CAST('10.0.0.1' AS inet)", "10.0.0.1"),
        ("CAST('10.0.0.0/8' AS cidr)", "10.0.0.0/8"),
        ("B'101'", "101"),
        ("CAST('1010110101' AS varbit)", "1010110101"),
        ("ARRAY[B'11110']", ["11110"]),
        ("CAST('x' AS \"char\")", "x"),
        ("NULL", None),
    ],
)
def test_postgresql_values(postgresql: Database, expression: str, expected: Any) -> None:
    expression = expression.replace(r"\\", "\\")
    result = postgresql.fetch({"query": f"SELECT {expression} AS x", "result": "value"})
    assert result == expected
    assert type(result) is type(expected)
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("CAST('NaN' AS float8)", NOT_FINITE),
        ("CAST('-Infinity' AS float8)", NOT_FINITE),
        ("CAST('NaN' AS numeric)", NOT_FINITE),
        ("CAST('infinity' AS timestamptz)", INFINITE),
        ("CAST('-infinity' AS timestamp)", INFINITE),
        ("CAST('infinity' AS date)", INFINITE),
        ("ARRAY[CAST('-infinity' AS date)]", INFINITE),
        ("CAST('0044-03-15 BC' AS date)", NO_YEAR),
        ("CAST('10000-01-01' AS timestamp)", NO_YEAR),
        ("ARRAY[CAST('24:00' AS time)]", NO_TIME),
        ("CAST('12345678901234567890.12' AS numeric)", TOO_MANY_DIGITS),
        ("int4range(1, 5)", f"{COLUMN} has the type int4range, which has no JSON form; cast it to text in the query"),
        (
            """CAST('{"a": 123456789012345678901}' AS json)""",
            f"{COLUMN} holds JSON with an integer of more than 64 bits",
        ),
        (
            r"""CAST('{"a": ["\ud83d\ude00 \uDEAD"]}' AS json)""",
            f"{COLUMN} holds JSON with half of a surrogate pair, which is no Unicode text",
        ),
        ("CAST(repeat('9', 5000) AS json)", f"{COLUMN} holds JSON with an integer of more than 64 bits"),
        ("CAST(repeat('[', 201) || repeat(']', 201) AS json)", f"{COLUMN} holds JSON that is nested too deep"),
        ("CAST(repeat('[', 5000) || repeat(']', 5000) AS json)", f"{COLUMN} holds JSON that is nested too deep"),
    ],
)
def test_what_has_no_exact_json_form_names_its_column(postgresql: Database, expression: str, message: str) -> None:
    expression = expression.replace('": ', r'"\: ')
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        postgresql.fetch(f"SELECT {expression} AS x")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("CAST(1234.56 AS DECIMAL(12,2))", 1234.56),
        ("CAST(9007199254740993 AS DECIMAL(20,0))", 9007199254740993),
        ("CAST(18446744073709551615 AS UNSIGNED)", 18446744073709551615),
        ("CAST('2024-02-29' AS DATE)", "2024-02-29"),
        ("CAST('2024-02-29 12:30:15.5' AS DATETIME(3))", "2024-02-29T12:30:15.500000"),
        ("CAST('-100:30:15' AS TIME)", "-100:30:15"),
        ("CAST(X'00ff' AS BINARY(2))", "AP8="),
        ("b'101'", "BQ=="),
        ("'é'", "é"),
        ("1.5e0", 1.5),
        ("NULL", None),
    ],
)
def test_mysql_values(mysql: Database, expression: str, expected: Any) -> None:
    assert mysql.fetch({"query": f"SELECT {expression} AS x", "result": "value"}) == expected


def test_bits_that_mysql_computes_are_the_number_that_they_are(mysql: Database) -> None:
    """MariaDB sends what is stored as bytes, and of what is computed some as bytes and some as digits."""

    async def main() -> None:
        await mysql.sql(
            "DROP TABLE IF EXISTS bits", "CREATE TABLE bits (id INT, flag BIT(1), many BIT(8), most BIT(64))"
        )
        await mysql.sql("INSERT INTO bits VALUES (1, 0, 12, 0), (2, 1, 200, ~0)")
        highest = "SELECT MAX(flag) AS flag, MAX(many) AS many, MAX(most) AS most FROM bits"
        queries = {
            "stored": "SELECT flag, many, most FROM bits WHERE id = :id",
            "highest": f"{highest} WHERE id = :id",
            "grouped": f"{highest} WHERE id = :id GROUP BY id",
            "inner": "SELECT (SELECT flag) AS flag, COALESCE(many) AS many, most FROM bits WHERE id = :id",
        }
        async with mysql.open(**queries) as source:
            for name in queries:
                assert await source.fetch(name, {"id": 1}) == {"flag": 0, "many": 12, "most": 0}, name
                assert await source.fetch(name, {"id": 2}) == {"flag": 1, "many": 200, "most": 2**64 - 1}, name
                many = source.prepare_many(name, ["id"])
                if many is not None:
                    assert await many([(1,), (2,)]) == [await source.fetch(name, {"id": key}) for key in (1, 2)]

    run(main())


def test_a_computed_bit_that_can_be_two_numbers_names_its_column(mysql: Database) -> None:
    run(mysql.sql("DROP TABLE IF EXISTS bits", "CREATE TABLE bits (many BIT(8))", "INSERT INTO bits VALUES (7)"))
    assert mysql.fetch("SELECT many FROM bits") == {"many": 7}
    assert mysql.fetch("SELECT CAST(MAX(many) AS UNSIGNED) AS many FROM bits") == {"many": 7}
    told = "is a computed BIT, which the server sends in two ways; cast it to UNSIGNED in the query"
    with pytest.raises(SourceError, match=f"^operation: column 'many' {told}$"):
        mysql.fetch("SELECT MAX(many) AS many FROM bits")


DATES = {
    1: ("2024-02-29", "2024-02-29T00:00:00", "2024-02-29T12:30:15.000250"),
    2: ("0001-01-01", "9999-12-31T23:59:59", "1999-12-31T23:59:59"),
    3: (None, None, None),
}
ZERO_DATES = {
    4: ("0000-00-00", "2024-02-29", "2024-02-29", "day"),
    5: ("2024-02-00", "2024-02-29", "2024-02-29", "day"),
    6: ("2024-02-29", "0000-00-00", "2024-02-29", "moment"),
    7: ("2024-02-29", "2024-02-29", "0000-00-00", "stamp"),
}


def test_mysql_dates_that_no_calendar_has_are_no_null(mysql: Database) -> None:
    """In the first read of a connection as in the others, and in a read of many items."""
    rows = {**DATES, **{key: row[:3] for key, row in ZERO_DATES.items()}}
    values = [
        f"({key}, {', '.join('NULL' if each is None else repr(each.replace('T', ' ')) for each in row)})"
        for key, row in rows.items()
    ]

    async def main() -> None:
        await mysql.sql(
            "SET SESSION sql_mode = ''",
            "CREATE TABLE days (id int PRIMARY KEY, day date, moment datetime, stamp timestamp(6) NULL)",
            f"INSERT INTO days VALUES {', '.join(values)}",
        )
        for first in rows:
            async with mysql.open(read="SELECT day, moment, stamp FROM days WHERE id = :id") as source:
                for key in (first, *rows):
                    assert await told(source.fetch("read", {"id": key})) == expected(key)
        async with mysql.open(read="SELECT day, moment, stamp FROM days WHERE id = :id") as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            for _ in range(2):
                assert [shown(each) for each in await many([(key,) for key in rows])] == [expected(key) for key in rows]

    async def told(reading: Awaitable[Any]) -> Any:
        try:
            return await reading
        except SourceError as error:
            return shown(error)

    def shown(result: Any) -> Any:
        return str(result) if isinstance(result, SourceError) else result

    def expected(key: int) -> Any:
        if key in DATES:
            return dict(zip(("day", "moment", "stamp"), DATES[key], strict=True))
        return f"read: column '{ZERO_DATES[key][3]}' holds a date that no calendar has, such as 0000-00-00"

    run(main())


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x'00ff'", "AP8="),
        ("1.5", 1.5),
        ("9223372036854775807", 9223372036854775807),
        ("'2024-02-29'", "2024-02-29"),
        ("NULL", None),
    ],
)
def test_sqlite_values_come_out_as_they_are_stored(sqlite: Database, expression: str, expected: Any) -> None:
    assert sqlite.fetch({"query": f"SELECT {expression} AS x", "result": "value"}) == expected


def test_sqlite_infinity_names_its_column(sqlite: Database) -> None:
    with pytest.raises(SourceError, match=f"^{re.escape(NOT_FINITE)}$"):
        sqlite.fetch("SELECT 9e999 AS x")


def test_sqlite_text_that_is_not_utf8_names_its_column_and_is_not_quoted(sqlite: Database) -> None:
    with pytest.raises(SourceError, match=r"^operation: column 'x' holds text that is not UTF-8$"):
        sqlite.fetch("SELECT CAST(x'636166e9' AS TEXT) AS x")


def test_sqlite_rows_of_many_types_come_out_the_same(sqlite: Database) -> None:
    """More kinds of rows than are learnt, each of them twice, and an infinite one of a kind that is known."""
    values = [1, 1.5, "x", None]
    rows = [(a, b, c) for a in values for b in values for c in values] * 2
    union = " UNION ALL ".join(f"SELECT {_sql(a)} AS a, {_sql(b)} AS b, {_sql(c)} AS c" for a, b, c in rows)
    expected = [{"a": a, "b": b, "c": c} for a, b, c in rows]
    assert sqlite.fetch({"query": union, "result": "many"}) == expected
    with pytest.raises(SourceError, match=r"column 'b' holds NaN or Infinity"):
        sqlite.fetch({"query": f"{union} UNION ALL SELECT 1.5, -9e999, 'x'", "result": "many"})


def _sql(value: Any) -> str:
    return "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)


def test_column_names_are_data(sqlite: Database) -> None:
    odd = "a'); import os #\\ {x} \n"
    assert sqlite.fetch(f'SELECT 1 AS "{odd}", 2 AS "class"') == {odd: 1, "class": 2}


def test_decimals_can_be_rounded_or_text(server: Database) -> None:
    third = {"postgresql": "1::numeric / 3", "mysql": "CAST(1 AS DECIMAL(30,20)) / 3"}[server.engine]
    with pytest.raises(SourceError, match=f"^{re.escape(TOO_MANY_DIGITS)}$"):
        server.fetch(f"SELECT {third} AS x")
    assert server.fetch({"query": f"SELECT {third} AS x", "decimals": "rounded"}) == {"x": 1 / 3}
    text = server.having(decimals="string").fetch(f"SELECT {third} AS x")["x"]
    assert re.fullmatch(r"0\.3{16,}", text)


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_a_decimal_is_the_same_number_or_refused(number: Decimal) -> None:
    try:
        result = values.exact_number(number)
    except values.Unreadable:
        assert Decimal(repr(float(number))) != number
    else:
        assert Decimal(repr(result)) == number
    assert Decimal(values.decimal_text(number)) == number


@given(st.decimals(min_value=Decimal("-9999999999999.99"), max_value=Decimal("9999999999999.99"), places=2))
def test_money_is_always_exact(amount: Decimal) -> None:
    assert Decimal(str(values.exact_number(amount))) == amount


def test_decimals_of_a_column_make_the_round_trip(server: Database) -> None:
    async def main() -> None:
        query = {"query": "SELECT CAST(:x AS DECIMAL(14,2)) AS x", "params": {"x": "decimal"}, "result": "value"}
        async with server.open(echo=query) as source:
            echo = source.prepare("echo", ["x"])
            for cents in (0, 1, -1, 99, 10**13 - 1, 12345678901, -(10**12) + 7):
                assert await echo(str(Decimal(cents) / 100)) == cents / 100

    run(main())
