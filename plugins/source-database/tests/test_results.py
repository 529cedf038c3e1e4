"""What each result kind gives, on every engine."""

from __future__ import annotations

import re
from typing import Any

import pytest
from database_kit import Database, run

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam, SourceError

CUSTOMER = "SELECT customer_id, credit_score, annual_income FROM customers WHERE customer_id = :customer_id"
SCORE = "SELECT credit_score FROM customers WHERE customer_id = :customer_id"


def test_one_gives_the_only_row_as_an_object(database: Database) -> None:
    assert database.fetch(CUSTOMER, customer_id=7) == {
        "customer_id": 7,
        "credit_score": 507,
        "annual_income": 7003.5,
    }


def test_a_number_in_a_path_string_finds_the_row(database: Database) -> None:
    assert database.fetch(CUSTOMER, customer_id="42")["customer_id"] == 42


def test_many_gives_a_list_of_objects(database: Database) -> None:
    query = "SELECT customer_id AS id FROM customers WHERE customer_id <= :most ORDER BY customer_id"
    assert database.fetch({"query": query, "result": "many"}, most=3) == [{"id": 1}, {"id": 2}, {"id": 3}]


def test_many_with_no_rows_is_an_empty_list(database: Database) -> None:
    query = "SELECT customer_id FROM customers WHERE customer_id < :least"
    assert database.fetch({"query": query, "result": "many"}, least=0) == []


def test_value_gives_the_first_column(database: Database) -> None:
    assert database.fetch({"query": SCORE, "result": "value"}, customer_id=7) == 507


@pytest.mark.parametrize("result", ["one", "value"])
def test_a_missing_row_is_not_found_and_names_the_key(database: Database, result: str) -> None:
    with pytest.raises(EntityNotFound, match=r"^operation: nothing found for customer_id=4711$"):
        database.fetch({"query": SCORE, "result": result}, customer_id=4711)


@pytest.mark.parametrize("result", ["one", "value"])
def test_a_missing_row_that_is_allowed_gives_null(database: Database, result: str) -> None:
    assert database.fetch({"query": SCORE, "result": result, "on_missing": "allow"}, customer_id=4711) is None


@pytest.mark.parametrize("result", ["one", "value"])
def test_a_second_row_is_an_error_and_not_a_silent_choice(database: Database, result: str) -> None:
    message = "operation: returned more than one row; make the query pick one, or use result: many"
    with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
        database.fetch({"query": "SELECT credit_score FROM customers", "result": result})


def test_a_repeated_parameter_is_passed_everywhere(database: Database) -> None:
    query = "SELECT customer_id FROM customers WHERE customer_id = :id AND credit_score = :score AND :id > 0"
    query = query.replace(":id > 0", "customer_id + 0 = :id")
    assert database.fetch(query, id=7, score=507) == {"customer_id": 7}


def test_prepared_values_are_taken_in_the_order_of_the_names(database: Database) -> None:
    query = "SELECT customer_id FROM customers WHERE customer_id > :above AND credit_score = :score"

    async def main() -> list[Any]:
        async with database.open(get=query) as source:
            return [
                await source.prepare("get", ["above", "score"])(3, 507),
                await source.prepare("get", ["score", "above"])(507, 3),
            ]

    assert run(main()) == [{"customer_id": 7}, {"customer_id": 7}]


def test_two_columns_of_one_name_are_an_error(database: Database) -> None:
    message = "operation: the query returns two columns named 'customer_id'; rename one with AS"
    query = "SELECT a.customer_id, b.customer_id FROM customers a JOIN customers b ON a.customer_id = b.customer_id"
    with pytest.raises(SourceError, match=f"^{message}$"):
        database.fetch({"query": query + " WHERE a.customer_id = 1", "result": "many"})


def test_a_parameter_that_is_missing_or_unknown_is_named(database: Database) -> None:
    with pytest.raises(InvalidParam, match=r"^operation: parameter 'customer_id' is missing$"):
        database.fetch(CUSTOMER)
    message = "operation: there is no parameter 'customr_id'; did you mean 'customer_id'?"
    with pytest.raises(InvalidParam, match=re.escape(message)):
        database.fetch(CUSTOMER, customer_id=1, customr_id=1)


@pytest.mark.parametrize(
    "attack",
    [
        "1' OR '1'='1",
        "'; DROP TABLE customers; --",
        '" OR 1=1 --',
        "\\' OR 1=1 -- ",
        "%s %d {0}",
        "x\\",
        ":name",
        "$1 ?",
    ],
)
def test_sql_in_a_value_is_only_a_value(database: Database, attack: str) -> None:
    query = "SELECT customer_id FROM customers WHERE name = :name"
    assert database.fetch({"query": query, "on_missing": "allow"}, name=attack) is None
    echo = "SELECT COUNT(*) AS n FROM customers WHERE name <> :name"
    assert database.fetch(echo, name=attack) == {"n": 100}


def test_text_comes_out_as_it_went_in(database: Database) -> None:
    text = 'Zoë\'s "quoted" \\ 50% 😀 \n\t;--'

    async def main() -> Any:
        insert = {
            "query": "INSERT INTO accounts (account_id, owner, balance) VALUES (1, :owner, 0)",
            "result": "execute",
        }
        async with database.open(add=insert, get="SELECT owner FROM accounts WHERE owner = :owner") as source:
            await source.fetch("add", {"owner": text})
            return await source.fetch("get", {"owner": text})

    assert run(main()) == {"owner": text}


def test_null_goes_in_and_comes_out(database: Database) -> None:
    query = "SELECT COALESCE(:income, annual_income) AS income, NULL AS gap FROM customers WHERE customer_id = 2"
    assert database.fetch(query, income=None) == {"income": 2001.0, "gap": None}


def test_a_colon_that_is_no_parameter_is_escaped(database: Database) -> None:
    query = r"SELECT name FROM customers WHERE customer_id = :id AND name <> '\:x'"
    assert database.fetch(query, id=1) == {"name": "customer 1"}


def test_both_event_loops_work(database: Database) -> None:
    async def main() -> Any:
        async with database.open(get=CUSTOMER) as source:
            await source.check_ready()
            return [await source.fetch("get", {"customer_id": key}) for key in (1, 2, 3)]

    assert run(main(), loop="asyncio") == run(main(), loop="uvloop")
