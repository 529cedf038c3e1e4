"""What may be written, and what is said when it is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from database_kit import Database, run
from orchestrator_source_database import options as options_module
from orchestrator_source_database.options import DatabaseOptions, OperationOptions

from orchestrator_core.plugin_api import SourceError

MORE_THAN_ONE = "connection_string has more than one @; write %40 for each but the one before the host"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (
            "customers.db",
            (
                "connection_string is not a database URL; expected sqlite:///path, postgresql://user@host/database"
                " or mysql://user@host/database"
            ),
        ),
        ("postgres://u:geheim@h/d", "'postgres' is not a supported database; did you mean 'postgresql'?"),
        (
            "oracle://u:geheim@h/d",
            "'oracle' is not a supported database; expected one of: mariadb, mysql, postgresql, sqlite",
        ),
        (
            "postgresql+psycopg2://u:geheim@h/d",
            "'postgresql+psycopg2' is not a supported driver; use postgresql:// or postgresql+asyncpg://",
        ),
        (
            "sqlite:///x.db?mode=ro",
            "sqlite URLs take no ?parameters here; use the options read_only, create and lock_timeout",
        ),
        ("postgresql://u:p@geheim@h/d", MORE_THAN_ONE),
        ("mysql://u:p@geh/e?i#m@h/d", MORE_THAN_ONE),
        ("sqlite://x.db", "a sqlite URL has no host; write sqlite:///relative/path or sqlite:////absolute/path"),
    ],
)
def test_an_unusable_url_is_refused_in_words_and_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DatabaseOptions(url)


def test_a_missing_driver_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module, "find_spec", lambda _: None)
    message = (
        "postgresql:// needs the driver asyncpg, which is not installed;"
        ' pip install "orchestrator-api-source-database[postgresql]"'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        DatabaseOptions("postgresql://h/d")


@pytest.mark.parametrize("url", ["postgresql://u:geheim@h:1/d", "mariadb+asyncmy://u:geheim@h/d?ssl_key=geheim"])
def test_a_password_is_in_no_repr(url: str) -> None:
    options = DatabaseOptions(url)
    assert "geheim" not in repr(options)
    assert "geheim" not in repr(options.address)
    assert "geheim" not in str(options.address)


def test_the_repr_says_which_database_it_is() -> None:
    assert "<PostgreSQL at h:5432, database 'd'>" in repr(DatabaseOptions("postgresql://u:p@h/d"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool_size": 0}, "pool_size must be at least 1, not 0"),
        ({"pool_timeout": 0}, "pool_timeout must be more than 0 seconds, not 0"),
        ({"statement_timeout": -1}, "statement_timeout must be more than 0 seconds, not -1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        DatabaseOptions("sqlite://", **options)


@pytest.mark.parametrize(
    ("query", "params", "message"),
    [
        ("  ", (), "query is empty"),
        (
            "SELECT 1 WHERE :customer_id > 0",
            ("customr_id",),
            "params names 'customr_id', which the query does not use; did you mean 'customer_id'?",
        ),
        (
            "SELECT 1 WHERE %(id)s > 0",
            ("id",),
            "params names 'id', which the query does not use; write :id where its value stands",
        ),
        ("SELECT :a, :b", ("a",), "the query uses ':b', which params does not name"),
        ("SELECT :a", ("a", "a"), "params names 'a' more than once"),
    ],
)
def test_params_that_do_not_fit_the_query_are_refused(query: str, params: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        OperationOptions(query, params=params)


def test_a_missing_sqlite_file_is_reported_and_not_created(tmp_path: Path) -> None:
    database = Database("sqlite", "sqlite:///data/none.db", tmp_path)
    message = f"database 'default': there is no SQLite file {tmp_path / 'data/none.db'}"

    async def main() -> None:
        async with database.open(get="SELECT 1", put="DELETE FROM t") as source:
            for call in (source.fetch("get", {}), source.fetch("put", {}), source.check_ready(), source.inspect()):
                with pytest.raises(SourceError, match=f"^{re.escape(message)}$"):
                    await call

    run(main())
    assert not list(tmp_path.iterdir())


def test_create_makes_the_sqlite_file(tmp_path: Path) -> None:
    database = Database("sqlite", "sqlite:///new.db", tmp_path).having(create=True)
    assert database.fetch({"query": "CREATE TABLE t (a INTEGER)", "result": "execute"}) == {"rowcount": 0}
    assert (tmp_path / "new.db").is_file()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_has_one_connection_for_all(tmp_path: Path, url: str) -> None:
    async def main() -> object:
        operations = {
            "make": {"query": "CREATE TABLE t (a INTEGER)", "result": "execute"},
            "add": {"query": "INSERT INTO t VALUES (:a)", "result": "execute"},
            "sum": {"query": "SELECT SUM(a) FROM t", "result": "value"},
        }
        async with Database("sqlite", url, tmp_path).open(**operations) as source:
            await source.fetch("make", {})
            for number in range(10):
                await source.fetch("add", {"a": number})
            return await source.fetch("sum", {})

    assert run(main()) == 45


def test_an_absolute_sqlite_path_is_taken_as_it_is(sqlite: Database, tmp_path: Path) -> None:
    elsewhere = Database("sqlite", f"sqlite:///{sqlite.folder / 'test.db'}", tmp_path)
    assert elsewhere.fetch("SELECT COUNT(*) AS n FROM customers") == {"n": 100}


def test_read_only_lets_the_database_refuse_writes(database: Database) -> None:
    messages = {
        "sqlite": "operation: attempt to write a readonly database",
        "postgresql": "operation: cannot execute DELETE in a read-only transaction",
        "mysql": "operation: Cannot execute statement in a READ ONLY transaction",
    }
    with pytest.raises(Exception, match=f"^{messages[database.engine]}$"):
        database.having(read_only=True).fetch({"query": "DELETE FROM customers", "result": "execute"})
    assert database.fetch("SELECT COUNT(*) AS n FROM customers") == {"n": 100}
