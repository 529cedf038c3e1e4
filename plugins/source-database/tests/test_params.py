"""Parameters are checked and converted before anything is sent."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import Any

import pytest
from database_kit import Database, run
from hypothesis import given, settings
from hypothesis import strategies as st
from orchestrator_source_database.options import OperationOptions
from orchestrator_source_database.params import DECLARED, HALF_PAIR, Unfit
from orchestrator_source_database.plugin import DATABASE, DatabaseOptions, DatabaseSource

from orchestrator_core.plugin_api import InvalidParam, OperationFacts, OrchestratorError

TYPED = "SELECT customer_id FROM customers WHERE customer_id = :id"


def test_a_declared_integer_is_made_from_a_string(database: Database) -> None:
    assert database.fetch({"query": TYPED, "params": {"id": "integer"}}, id="42") == {"customer_id": 42}


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("integer", "abc", "operation: parameter 'id' expected integer, got 'abc'"),
        ("integer", "४२", "operation: parameter 'id' expected integer, got '४२'"),
        ("integer", 1.5, "operation: parameter 'id' expected integer, got 1.5"),
        ("integer", True, "operation: parameter 'id' expected integer, got true"),
        ("integer", 2**70, f"operation: parameter 'id' expected integer of at most 64 bits, got {2**70}"),
        ("number", "NaN", "operation: parameter 'id' expected number, got 'NaN'"),
        ("boolean", "yes", "operation: parameter 'id' expected boolean, got 'yes'"),
        ("string", 5, "operation: parameter 'id' expected string, got 5"),
        ("date", "31.1.2024", "operation: parameter 'id' expected date such as 2024-01-31, got '31.1.2024'"),
        (
            "datetime",
            "soon",
            "operation: parameter 'id' expected datetime such as 2024-01-31T12:30:00, got 'soon'",
        ),
        ("time", "12", "operation: parameter 'id' expected time such as 12:30:00, got a list"),
        ("decimal", "1,5", "operation: parameter 'id' expected decimal, got '1,5'"),
        ("uuid", "42", "operation: parameter 'id' expected uuid, got '42'"),
        ("bytes", "§", "operation: parameter 'id' expected bytes in base64, got '§'"),
        ("integer", "x" * 5000, "operation: parameter 'id' expected integer, got 5002 characters"),
        ("integer", {"a": 1}, "operation: parameter 'id' expected integer, got an object"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(database: Database, kind: Any, value: Any, message: str) -> None:
    value = [value] if kind == "time" else value
    with pytest.raises(InvalidParam, match=f"^{re.escape(message)}$") as caught:
        database.fetch({"query": TYPED, "params": {"id": kind}}, id=value)
    assert caught.value.param == "id"


def test_an_undeclared_object_is_refused(database: Database) -> None:
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'id' expected "):
        database.fetch(TYPED, id={"a": 1})
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'id' expected "):
        database.fetch(TYPED, id=[1])


@pytest.mark.parametrize("kind", [{}, {"params": {"name": "string"}}])
def test_what_is_no_unicode_text_is_an_error_that_does_not_quote_it(database: Database, kind: Any) -> None:
    """What a driver cannot encode: in the first read, and in a later one, which SQLite does elsewhere."""
    query = {"query": "SELECT customer_id FROM customers WHERE name = :name", "result": "many", **kind}

    async def main() -> list[str]:
        async with database.open(operation=query) as source:
            return [await told(source, name) for name in ("half \ud800", "ada", "half \ud800", "ada")]

    async def told(source: DatabaseSource, name: str) -> str:
        try:
            await source.fetch("operation", {"name": name})
        except OrchestratorError as error:
            return str(error)
        return ""

    first, good, second, good_again = run(main())
    assert good == good_again == ""
    assert first == second
    said = "operation: parameter 'name' has a value that the type text cannot hold"
    assert first == (said if database.engine == "postgresql" else f"operation: {HALF_PAIR}")


def test_postgresql_tells_the_types_of_undeclared_parameters(postgresql: Database) -> None:
    query = "SELECT customer_id FROM customers WHERE customer_id = :id AND name = :name AND annual_income > :income"
    assert postgresql.fetch(query, id="7", name="customer 7", income="12.5") == {"customer_id": 7}
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'id' expected integer, got 'abc'$"):
        postgresql.fetch(query, id="abc", name="x", income=1)
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'id' has a value that the type int4 cannot hold$"):
        postgresql.fetch(query, id=2**40, name="x", income=1)


def test_postgresql_takes_numbers_for_text_and_lists_for_arrays(postgresql: Database) -> None:
    assert postgresql.fetch("SELECT CAST(:x AS text) AS x", x=42) == {"x": "42"}
    query = "SELECT customer_id AS id FROM customers WHERE customer_id = ANY(:ids) ORDER BY 1"
    assert postgresql.fetch({"query": query, "result": "many"}, ids=["3", 1]) == [{"id": 1}, {"id": 3}]
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'ids' expected list, got 3$"):
        postgresql.fetch({"query": query, "result": "many"}, ids=3)


def test_postgresql_takes_a_cast_right_behind_a_parameter(postgresql: Database) -> None:
    """For one item as for many, and not where the same characters stand in a literal."""
    query = "SELECT :id::int::text || :x::varchar(3) AS a, ':id::int' AS b, $q$ ':id::int $q$ AS c, '1'::int AS d"
    expected = {"a": "42abc", "b": ":id::int", "c": " ':id::int ", "d": 1}
    assert postgresql.fetch(query, id="42", x="abcd") == expected

    async def main() -> None:
        read = "SELECT name FROM customers WHERE customer_id = :id::int"
        async with postgresql.open(read=read) as source:
            many = source.prepare_many("read", ["id"])
            assert many is not None
            assert await many([("1",), ("2",)]) == [await source.fetch("read", {"id": key}) for key in (1, 2)]

    run(main())


@pytest.mark.parametrize(
    ("kind", "value", "cast", "expected"),
    [
        ("date", "2024-02-29", "date", "2024-02-29"),
        ("time", "12:30:15", "time", "12:30:15"),
        ("datetime", "2024-02-29T12:30:15+02:00", "timestamp", "2024-02-29T10:30:15"),
        ("datetime", "2024-02-29T12:30:15", "timestamptz", "2024-02-29T12:30:15+00:00"),
        ("datetime", "2024-02-29T12:30:15.5+02:00", "timestamptz", "2024-02-29T10:30:15.500000+00:00"),
        ("datetime", "1999-12-31T23:59:59.000001", "timestamp", "1999-12-31T23:59:59.000001"),
        ("date", "9999-12-31", "date", "9999-12-31"),
        ("date", "0001-01-01", "date", "0001-01-01"),
        ("datetime", "9999-12-31T23:59:59.999999", "timestamp", "9999-12-31T23:59:59.999999"),
        ("datetime", "9999-12-31T23:59:59.999999Z", "timestamptz", "9999-12-31T23:59:59.999999+00:00"),
        ("datetime", "0001-01-01T00:00:00", "timestamp", "0001-01-01T00:00:00"),
        ("datetime", "0001-01-01T00:00:00Z", "timestamptz", "0001-01-01T00:00:00+00:00"),
        ("decimal", "12345.67", "numeric", 12345.67),
        ("uuid", "0c7dc8a8-2c3c-4a8a-93c7-2d8f2e6a3a11", "uuid", "0c7dc8a8-2c3c-4a8a-93c7-2d8f2e6a3a11"),
        ("bytes", "AP8=", "bytea", "AP8="),
        ("json", {"a": [1, None, "x"]}, "jsonb", {"a": [1, None, "x"]}),
        ("boolean", "true", "bool", True),
        ("number", "1.5", "float8", 1.5),
    ],
)
def test_declared_types_reach_postgresql_as_what_they_are(
    postgresql: Database, kind: Any, value: Any, cast: str, expected: Any
) -> None:
    query = {"query": f"SELECT CAST(:x AS {cast}) AS x", "params": {"x": kind}}
    assert postgresql.fetch(query, x=value) == {"x": expected}


def test_postgresql_finds_the_last_and_the_first_day_that_there_is(postgresql: Database) -> None:
    """One by one, many items at once, and in a list."""
    days = "(VALUES (DATE '9999-12-31'), ('infinity'), ('0001-01-01')) AS days (x)"
    one = rf"SELECT x\:\:text AS x FROM {days} WHERE x = :day"
    each = one.replace("= :day", "= ANY(:days) ORDER BY 1")

    async def main() -> None:
        async with postgresql.open(one=one, each={"query": each, "result": "many"}) as source:
            many = source.prepare_many("one", ["day"])
            assert many is not None
            ends = ["0001-01-01", "9999-12-31"]
            assert await many([(day,) for day in ends]) == [{"x": day} for day in ends]
            assert [await source.fetch("one", {"day": day}) for day in ends] == [{"x": day} for day in ends]
            assert await source.fetch("each", {"days": ends}) == [{"x": day} for day in ends]

    run(main())


def test_a_time_is_not_stripped_of_its_offset(server: Database) -> None:
    query = {"query": "SELECT CAST(:x AS time) AS x", "params": {"x": "time"}}
    with pytest.raises(
        InvalidParam, match=r"^operation: parameter 'x' expected time without an offset such as 12:30:00"
    ):
        server.fetch(query, x="12:30:15+02:00")


def test_a_datetime_that_utc_has_no_year_for_is_refused_but_by_postgresql(database: Database) -> None:
    query = {"query": "SELECT CAST(:x AS char(30)) AS x", "params": {"x": "datetime"}}
    if database.engine == "postgresql":
        query["query"] = r"SELECT :x\:\:timestamptz = '0001-12-31 19:00:00Z BC' AS x"
        assert database.fetch(query, x="0001-01-01T00:00:00+05:00") == {"x": True}
        return
    with pytest.raises(
        InvalidParam, match=r"^operation: parameter 'x' expected datetime whose year is 1 to 9999 in UTC"
    ):
        database.fetch(query, x="0001-01-01T00:00:00+05:00")


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("date", "2024-02-29", "2024-02-29"),
        ("datetime", "2024-02-29T12:30:15+02:00", "2024-02-29 10:30:15"),
        ("decimal", "12345.67", 12345.67),
        ("uuid", "0C7DC8A8-2c3c-4a8a-93c7-2d8f2e6a3a11", "0c7dc8a8-2c3c-4a8a-93c7-2d8f2e6a3a11"),
        ("bytes", "AP8=", "AP8="),
        ("json", {"a": 1}, '{"a":1}'),
        ("boolean", "true", 1),
    ],
)
def test_declared_types_reach_sqlite_as_it_stores_them(sqlite: Database, kind: Any, value: Any, expected: Any) -> None:
    assert sqlite.fetch({"query": "SELECT :x AS x", "params": {"x": kind}}, x=value) == {"x": expected}


@settings(max_examples=200)
@given(st.integers(-(2**63), 2**64 - 1))
def test_an_integer_survives_being_a_string(number: int) -> None:
    assert DECLARED["integer"](str(number)) == DECLARED["integer"](number) == number


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(DECLARED)),
    st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none(), st.lists(st.text())),
)
def test_any_value_is_converted_or_refused_in_words(kind: Any, value: Any) -> None:
    with suppress(Unfit):  # any other exception is a defect
        DECLARED[kind](value)


def test_integers_and_text_make_the_round_trip(database: Database) -> None:
    cast = {"sqlite": "INTEGER", "postgresql": "bigint", "mysql": "SIGNED"}[database.engine]
    text = {"sqlite": "TEXT", "postgresql": "text", "mysql": "CHAR"}[database.engine]

    async def main() -> None:
        query = f"SELECT CAST(:n AS {cast}) AS n, CAST(:t AS {text}) AS t"
        async with database.open(echo={"query": query, "params": {"n": "integer", "t": "string"}}) as source:
            echo = source.prepare("echo", ["n", "t"])
            examples: list[tuple[int, str]] = []
            kept = settings(max_examples=60, deadline=None, database=None)
            characters = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
            kept(given(st.integers(-(2**63), 2**63 - 1), characters)(lambda n, t: examples.append((n, t))))()
            for number, string in examples:
                assert await echo(number, string) == {"n": number, "t": string}

    run(main())


def test_facts_name_the_parameters_without_a_database() -> None:
    operations = {
        "get": OperationOptions("SELECT a FROM t WHERE b = :b AND c = :c OR b > :b"),
        "all": OperationOptions("SELECT a FROM t", result="many"),
        "typed": OperationOptions("SELECT a FROM t WHERE b = :b", params={"b": "integer"}),
    }
    options = DatabaseOptions("postgresql://nowhere.invalid/x")
    assert DATABASE.facts is not None
    assert DATABASE.facts(options, operations) == {
        "get": OperationFacts(required=("b", "c"), optional=(), idempotent=True),
        "all": OperationFacts(required=(), optional=(), many=True, idempotent=True),
        "typed": OperationFacts(required=("b",), optional=(), idempotent=True),
    }
