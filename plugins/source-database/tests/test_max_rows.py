"""How many rows a result may have, on every engine."""

from __future__ import annotations

import re
from typing import Any

import pytest
from database_kit import Database, run

from orchestrator_core.plugin_api import SourceError

SOME = {"query": "SELECT customer_id AS id FROM customers WHERE customer_id <= :most", "result": "many"}
A_HUNDRED_MILLION = {
    "query": "SELECT a.customer_id FROM customers a, customers b, customers c, customers d",
    "result": "many",
}


def too_many(limit: int) -> str:
    message = (
        f"operation: returned more than {limit} rows, the max_rows of database 'default' or of the operation;"
        " make the query pick fewer, or raise it"
    )
    return f"^{re.escape(message)}$"


def test_as_many_rows_as_may_be_are_a_result_and_one_more_is_an_error(database: Database) -> None:
    assert len(database.having(max_rows=7).fetch(SOME, most=7)) == 7
    with pytest.raises(SourceError, match=too_many(7)) as raised:
        database.having(max_rows=7).fetch(SOME, most=8)
    assert not raised.value.transient


def test_an_operation_has_a_limit_of_its_own(database: Database) -> None:
    assert len(database.having(max_rows=7).fetch({**SOME, "max_rows": 8}, most=8)) == 8
    with pytest.raises(SourceError, match=too_many(8)):
        database.fetch({**SOME, "max_rows": 8}, most=9)


def test_without_a_limit_all_rows_come(database: Database) -> None:
    assert len(database.having(max_rows=None).fetch(SOME, most=100)) == 100


def test_what_is_too_much_is_not_read_to_its_end(database: Database) -> None:
    with pytest.raises(SourceError, match=too_many(1_000)):
        database.having(max_rows=1_000).fetch(A_HUNDRED_MILLION)


def test_by_default_there_may_be_a_hundred_thousand(sqlite: Database) -> None:
    with pytest.raises(SourceError, match=too_many(100_000)):
        sqlite.fetch(A_HUNDRED_MILLION)


def test_one_row_of_too_many_is_still_told_from_a_second(database: Database) -> None:
    with pytest.raises(SourceError, match="returned more than one row"):
        database.having(max_rows=1).fetch({**A_HUNDRED_MILLION, "result": "one"})


def test_a_write_that_returns_too_many_rows_leaves_nothing(database: Database) -> None:
    rows = "(1, 'a', 1), (2, 'b', 2), (3, 'c', 3)"
    insert = f"INSERT INTO accounts (account_id, owner, balance) VALUES {rows} RETURNING account_id"

    async def main() -> list[Any]:
        for result in ("many", "execute"):
            async with database.having(max_rows=2).open(operation={"query": insert, "result": result}) as source:
                with pytest.raises(SourceError, match=too_many(2)):
                    await source.fetch("operation", {})
        return await database.sql("SELECT COUNT(*) FROM accounts")

    assert run(main()) == [(0,)]


def test_what_a_write_reads_for_itself_is_not_limited(database: Database) -> None:
    copy = "INSERT INTO accounts SELECT customer_id, name, credit_score FROM customers"
    assert database.having(max_rows=2).fetch({"query": copy, "result": "execute"}) == {"rowcount": 100}


def test_the_limit_of_many_items_is_that_of_each(database: Database) -> None:
    """On MariaDB and MySQL a limit of the session counts the rows of all: none may be left out for that."""
    keys = [*range(20), 21, 20]

    async def main() -> list[Any]:
        async with database.having(max_rows=20).open(operation=SOME) as source:
            read = source.prepare_many("operation", ["most"])
            assert read is not None
            return list(await read([[key] for key in keys]))

    answers = run(main())
    assert [len(answer) for answer in answers[:20]] == list(range(20))
    assert isinstance(answers[20], SourceError)
    assert re.match(too_many(20), str(answers[20]))
    assert len(answers[21]) == 20
