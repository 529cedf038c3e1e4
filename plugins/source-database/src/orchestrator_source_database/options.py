"""What may be written under ``database:``, and the database URLs that are understood."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Literal, TypeAlias

from attrs import Attribute, field, frozen
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator_core.plugin_api import Duration, did_you_mean, option
from orchestrator_source_database.sql import param_names

__all__ = ["Address", "DatabaseOptions", "Decimals", "OperationOptions", "ParamType"]

ParamType: TypeAlias = Literal[
    "string",
    "integer",
    "number",
    "boolean",
    "date",
    "datetime",
    "time",
    "decimal",
    "uuid",
    "bytes",
    "json",
]
Decimals: TypeAlias = Literal["number", "rounded", "string"]
DISTRIBUTION = "orchestrator-api-source-database"


@frozen
class Driver:
    """The driver that speaks to one kind of database, and the distribution's extra that installs it."""

    title: str
    dialect: str
    module: str
    spellings: tuple[str, ...]
    default_port: int = 0
    extra: str = ""


SQLITE = Driver("SQLite", "sqlite+pysqlite", "sqlite3", ("", "pysqlite", "aiosqlite"))
POSTGRESQL = Driver("PostgreSQL", "postgresql+asyncpg", "asyncpg", ("", "asyncpg"), 5432, "postgresql")
MYSQL = Driver("MySQL", "mysql+asyncmy", "asyncmy", ("", "asyncmy"), 3306, "mysql")
MARIADB = Driver("MariaDB", "mysql+asyncmy", "asyncmy", ("", "asyncmy"), 3306, "mysql")
DRIVERS = {"sqlite": SQLITE, "postgresql": POSTGRESQL, "mysql": MYSQL, "mariadb": MARIADB}


@frozen
class Address:
    """A connection string, parsed: the driver to use and SQLAlchemy's URL, which holds the password."""

    driver: Driver
    url: URL = field(repr=False)

    @property
    def port(self) -> int:
        return self.url.port or self.driver.default_port

    def __str__(self) -> str:
        """The database in words, without user and password: ``PostgreSQL at db.internal:5432, database 'crm'``."""
        if self.driver is SQLITE:
            return f"SQLite database {self.url.database or ':memory:'}"
        host = self.url.host or self.url.query.get("host") or self.url.query.get("unix_socket") or "localhost"
        return f"{self.driver.title} at {host}:{self.port}, database '{self.url.database or ''}'"


def parse_address(connection_string: str) -> Address:
    """Return the address, or raise ``ValueError`` saying what is wrong with the URL, without quoting it."""
    try:
        url = make_url(connection_string)
    except (ArgumentError, ValueError):
        raise ValueError(
            "connection_string is not a database URL; expected sqlite:///path, postgresql://user@host/database"
            " or mysql://user@host/database"
        ) from None
    name, _, spelled_driver = url.drivername.partition("+")
    driver = DRIVERS.get(name)
    if driver is None:
        raise ValueError(f"'{name}' is not a supported database; {did_you_mean(name, DRIVERS)}")
    if spelled_driver not in driver.spellings:
        known = " or ".join(f"{name}+{each}://" if each else f"{name}://" for each in driver.spellings)
        raise ValueError(f"'{name}+{spelled_driver}' is not a supported driver; use {known}")
    if driver is SQLITE and url.query:
        raise ValueError("sqlite URLs take no ?parameters here; use the options read_only, create and lock_timeout")
    if driver is SQLITE and (url.host or url.username):
        raise ValueError("a sqlite URL has no host; write sqlite:///relative/path or sqlite:////absolute/path")
    if driver is not SQLITE and connection_string.count("@") > 1:  # the end of a password would be in every message
        raise ValueError("connection_string has more than one @; write %40 for each but the one before the host")
    if find_spec(driver.module) is None:
        raise ValueError(
            f"{name}:// needs the driver {driver.module}, which is not installed;"
            f' pip install "{DISTRIBUTION}[{driver.extra}]"'
        )
    return Address(driver, url.set(drivername=driver.dialect))


def _is_address(_: object, __: Attribute[str], value: str) -> None:
    parse_address(value)


def _show_address(value: str) -> str:
    return f"<{parse_address(value)}>"


def _at_least(least: float) -> object:
    def check(_: object, attribute: Attribute[float], value: float | None) -> None:
        if value is not None and value < least:
            raise ValueError(f"{attribute.name} must be at least {least:g}, not {value:g}")

    return check


def _positive(_: object, attribute: Attribute[float], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be more than 0 seconds, not {value:g}")


@frozen
class DatabaseOptions:
    """One database: ``database.sources.<source_id>``."""

    connection_string: str = field(
        validator=_is_address,
        repr=_show_address,
        metadata={
            "help": "URL of the database: `sqlite:///path` (relative to the configuration folder), `sqlite://` (in "
            "memory), `postgresql://user:password@host:port/database`, `mysql://…` or `mariadb://…`. The async driver "
            "is picked."
        },
    )
    pool_size: int = option(5, help="Connections at most.", validator=_at_least(1))
    pool_timeout: Duration = option(
        Duration(30.0),
        help="How long a request waits for a free connection before it is answered 503.",
        validator=_positive,
    )
    pool_recycle: Duration | None = option(
        None, help="Age at which a connection is replaced; by default connections are kept.", validator=_positive
    )
    connect_timeout: Duration = option(
        Duration(5.0), help="How long opening a connection may take.", validator=_positive
    )
    statement_timeout: Duration | None = option(
        None, help="How long the database may work on one statement; by default its own setting.", validator=_positive
    )
    lock_timeout: Duration | None = option(
        None,
        help="How long a statement waits for a lock; by default the server's setting, and 5 s for SQLite.",
        validator=_positive,
    )
    application_name: str = option("orchestrator-api", help="Name under which a server lists the connections.")
    max_rows: int | None = option(
        100_000,
        help="Most rows of one result, of each item's in a `for_each`: a query that returns more fails with 502, before"
        " all of them are read; null for no limit.",
        validator=_at_least(1),
    )
    read_only: bool = option(False, help="Let the database refuse every write on this source.")
    create: bool = option(False, help="Create a SQLite file that does not exist, instead of reporting it missing.")
    decimals: Decimals = option(
        "number",
        help="DECIMAL values as `number` (refusing one that a JSON number cannot hold exactly), `rounded` to the "
        "nearest number, or as `string`.",
    )

    @property
    def address(self) -> Address:
        return parse_address(self.connection_string)


def _is_query(_: object, __: Attribute[str], value: str) -> None:
    if not value.strip():
        raise ValueError("query is empty")


def _params_are_used(
    operation: OperationOptions, _: Attribute[object], declared: tuple[str, ...] | Mapping[str, ParamType]
) -> None:
    used = param_names(operation.query)
    if repeated := sorted({name for name in declared if list(declared).count(name) > 1}):
        raise ValueError(f"params names {_quoted(repeated)} more than once")
    if unused := [name for name in declared if name not in used]:
        hint = did_you_mean(unused[0], used) or f"write :{unused[0]} where its value stands"
        raise ValueError(f"params names {_quoted(unused)}, which the query does not use; {hint}")
    if declared and (undeclared := [name for name in used if name not in declared]):
        raise ValueError(f"the query uses {_quoted(f':{name}' for name in undeclared)}, which params does not name")


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


@frozen
class OperationOptions:
    """One query: ``database.operations.<name>``."""

    query: str = option(
        help="One SQL statement, with parameters written `:name`; write `\\:` for a colon that is none.",
        validator=_is_query,
    )
    params: tuple[str, ...] | Mapping[str, ParamType] = option(
        (),
        help="The query's parameters: a list of names, or `{name: type}` to have values converted and checked.",
        validator=_params_are_used,
    )
    result: Literal["one", "many", "value", "execute"] = option(
        "one",
        help="What the step gets: the only row as an object (`one`), a list of objects (`many`), the first column of "
        "the only row (`value`), or the count of changed rows (`execute`).",
    )
    on_missing: Literal["error", "allow"] = option(
        "error", help="When `one` or `value` finds no row: answer 404 (`error`), or go on with null (`allow`)."
    )
    max_rows: int | None = option(None, help="The source's max_rows, for this query.", validator=_at_least(1))
    decimals: Decimals | None = option(None, help="The source's decimals, for this query.")

    def most_rows(self, source: DatabaseOptions) -> int | None:
        return source.max_rows if self.max_rows is None else self.max_rows
