"""PostgreSQL through asyncpg: prepared statements held on each connection, exact parameter and column types."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import urlencode

import asyncpg
from asyncpg import exceptions as pg

from orchestrator_core.plugin_api import (
    Finding,
    InvalidParam,
    OpenContext,
    OrchestratorError,
    SourceError,
)
from orchestrator_source_database import params, values
from orchestrator_source_database.findings import Catalog, finding, missing_column, missing_table
from orchestrator_source_database.many import Different, lateral
from orchestrator_source_database.options import Address, DatabaseOptions
from orchestrator_source_database.params import Converter, Unfit, adapter
from orchestrator_source_database.pool import MEND_SECONDS
from orchestrator_source_database.query import Binding, Query
from orchestrator_source_database.sql import has_words_of
from orchestrator_source_database.values import DECIMALS, Shape, Unreadable

__all__ = ["PostgresConnection", "connector"]

MOST_ITEMS = 1000
SAME_IN_A_LIST = frozenset(
    ("int2", "int4", "int8", "float4", "float8", "numeric", "bool", "text", "varchar", "bpchar", "uuid", "bytea")
) | {"date", "time", "timestamp", "timestamptz"}
AS_NUMBERS = ("date", "timestamp", "timestamptz", "interval")
"""Types of which Python's own have not all values, or take some for others: PostgreSQL's numbers are used."""
TRANSIENT = (
    pg.DeadlockDetectedError,
    pg.SerializationError,
    pg.LockNotAvailableError,
    pg.TooManyConnectionsError,
    pg.CannotConnectNowError,
)
CUT_OFF = (
    pg.PostgresConnectionError,
    pg.AdminShutdownError,
    pg.CrashShutdownError,
    pg.CannotConnectNowError,
    OSError,
)
OUTDATED = (pg.InvalidCachedStatementError, pg.OutdatedSchemaCacheError, pg.InvalidSQLStatementNameError)

# --- parameters: what a prepared statement's type takes ----------------------------------------------------------


def to_text(value: Any) -> str | None:
    if type(value) is str and "\0" not in value:
        return value
    if value is None:
        return None
    if isinstance(value, list | dict | bytes) or "\0" in (text := str(value)):
        raise Unfit("string without NUL characters")
    return text.lower() if isinstance(value, bool) else text


def to_integer(value: Any) -> int | None:
    return value if type(value) is int else params.to_integer(value)  # asyncpg checks the column's range


def to_float(value: Any) -> float | None:
    number = params.to_number(value)
    return None if number is None else float(number)


EPOCH_IN_UTC, MICROSECOND = datetime(2000, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
EPOCH, FIRST_DAY = EPOCH_IN_UTC.replace(tzinfo=None), EPOCH_IN_UTC.toordinal()


def to_day(value: Any) -> tuple[int] | None:
    """Return PostgreSQL's own number of a day: asyncpg takes ``date.max``, a day that there is, for infinity."""
    day = params.to_date(value)
    return None if day is None else (day.toordinal() - FIRST_DAY,)


def to_time(value: Any) -> time | None:
    clock = params.to_time(value)
    return None if clock is None else params.without_offset(clock)


def to_moment(value: Any) -> tuple[int] | None:
    moment = params.to_datetime(value)
    return None if moment is None else ((moment - (EPOCH_IN_UTC if moment.tzinfo else EPOCH)) // MICROSECOND,)


ISO_DURATION = re.compile(
    r"P(?:(?P<years>\d+)Y)?(?:(?P<months>\d+)M)?(?:(?P<weeks>\d+)W)?(?:(?P<days>\d+)D)?"
    r"(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d{1,6})?)S)?)?"
)


def to_interval(value: Any) -> tuple[int, int, int] | None:
    """ISO 8601 duration to PostgreSQL's months, days and microseconds, which do not convert into each other."""
    if value is None:
        return None
    match = ISO_DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None or not any(match.groups()):
        raise Unfit("ISO 8601 duration such as P1DT12H")
    part = {name: Decimal(text or 0) for name, text in match.groupdict().items()}
    seconds = (part["hours"] * 60 + part["minutes"]) * 60 + part["seconds"]
    return (
        int(part["years"] * 12 + part["months"]),
        int(part["weeks"] * 7 + part["days"]),
        int(seconds * 1_000_000),
    )


def as_it_is(value: Any) -> Any:
    return value


TO_PARAM: dict[str, Converter] = {
    **dict.fromkeys(("int2", "int4", "int8", "oid"), to_integer),
    **dict.fromkeys(("float4", "float8"), to_float),
    **dict.fromkeys(("text", "varchar", "bpchar", "name", "citext", "unknown"), to_text),
    **dict.fromkeys(("json", "jsonb"), params.to_json),
    "numeric": params.to_decimal,
    "bool": params.to_boolean,
    "date": to_day,
    "time": to_time,
    "timetz": params.to_time,
    **dict.fromkeys(("timestamp", "timestamptz"), to_moment),
    "uuid": params.to_uuid,
    "bytea": params.to_bytes,
    "interval": to_interval,
}


def param_converter(kind: asyncpg.Type) -> Converter:
    if kind.kind != "array":
        return TO_PARAM.get(kind.name, as_it_is)
    convert = TO_PARAM.get(kind.name.removesuffix("[]"), as_it_is)

    def to_array(value: Any) -> list[Any] | None:
        if value is None:
            return None
        if not isinstance(value, list):
            raise Unfit("list")
        return [to_array(item) if isinstance(item, list) else convert(item) for item in value]

    return to_array


# --- results: what a column's type becomes in JSON ---------------------------------------------------------------


def iso_duration(parts: tuple[int, int, int]) -> str:
    months, days, microseconds = parts
    years, months = _divide(months, 12)
    seconds, fraction = _divide(microseconds, 1_000_000)
    minutes, seconds = _divide(seconds, 60)
    hours, minutes = _divide(minutes, 60)
    calendar = _units((years, "Y"), (months, "M"), (days, "D"))
    sign = "-" if microseconds < 0 and not seconds else ""
    second = f"{sign}{seconds}.{abs(fraction):06}".rstrip("0") if fraction else seconds
    clock = _units((hours, "H"), (minutes, "M"), (second, "S"))
    return f"P{calendar}{'T' if clock else ''}{clock}" if calendar or clock else "PT0S"


def _divide(number: int, by: int) -> tuple[int, int]:
    """Divide so that both results have the number's sign, as PostgreSQL writes intervals."""
    whole, rest = divmod(abs(number), by)
    return (-whole, -rest) if number < 0 else (whole, rest)


def _units(*amounts: tuple[int | str, str]) -> str:
    return "".join(f"{amount}{unit}" for amount, unit in amounts if amount)


INFINITE_DAYS, INFINITE_MOMENTS = ((-(2**bits), 2**bits - 1) for bits in (31, 63))
INFINITE = "holds an infinite time, which ISO 8601 has no text for"
TIMES = frozenset(each for name in ("time", "timetz") for each in (name, f"{name}[]"))
NO_YEAR = "holds a year before 1 or after 9999, which cannot be read; cast it to text in the query"
NO_TIME = "holds the time 24:00, which cannot be read; cast it to text in the query"


def iso_day(number: tuple[int]) -> str:
    try:
        return date.fromordinal(number[0] + FIRST_DAY).isoformat()
    except (ValueError, OverflowError):
        raise Unreadable(INFINITE if number[0] in INFINITE_DAYS else NO_YEAR) from None


def iso_moment(number: tuple[int]) -> str:
    try:
        return (EPOCH + timedelta(0, 0, number[0])).isoformat()
    except OverflowError:
        raise Unreadable(INFINITE if number[0] in INFINITE_MOMENTS else NO_YEAR) from None


def iso_instant(number: tuple[int]) -> str:
    return f"{iso_moment(number)}+00:00"


def bit_text(bits: asyncpg.BitString) -> str:
    text: str = bits.as_string()
    return text.replace(" ", "")  # asyncpg puts a blank after each four


PLAIN = frozenset(
    ("int2", "int4", "int8", "oid", "text", "varchar", "bpchar", "name", "citext", "bool", "unknown", "xml", "money")
)
READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("float4", "float8"), values.finite),
    **dict.fromkeys(("json", "jsonb"), values.json_value),
    "date": iso_day,
    "timestamp": iso_moment,
    "timestamptz": iso_instant,
    **dict.fromkeys(("time", "timetz"), time.isoformat),
    **dict.fromkeys(("inet", "cidr", "uuid"), str),
    **dict.fromkeys(("bit", "varbit"), bit_text),
    "bytea": values.base64_text,
    "interval": iso_duration,
    "char": lambda char: char.decode("latin-1") if isinstance(char, bytes) else char,
}


def column_reader(kind: asyncpg.Type, decimals: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
    name = kind.name.removesuffix("[]")
    read = decimals if name == "numeric" else READERS.get(name)
    if kind.kind == "array":
        each = read or (as_it_is if name in PLAIN else text_only(kind))

        def read_array(items: list[Any]) -> list[Any]:
            return [None if i is None else read_array(i) if isinstance(i, list) else each(i) for i in items]

        return read_array
    return read or (None if name in PLAIN else text_only(kind))


def text_only(kind: asyncpg.Type) -> Callable[[Any], str]:
    """Enumerations and the like are text already; ranges, points and rows have no JSON form of their own."""

    def read(value: Any) -> str:
        if isinstance(value, str):
            return value
        raise Unreadable(f"has the type {kind.name}, which has no JSON form; cast it to text in the query")

    return read


# --- connections -------------------------------------------------------------------------------------------------


class PostgresStatement:
    """A prepared statement. ``run`` and ``execute`` hand the arguments straight to asyncpg's protocol.

    ``PreparedStatement.fetchrow`` wraps the same call in two closures and two checks, 15 % of a read's CPU, and
    cannot ask for two rows, which is how a second row is noticed without reading all of them.
    """

    __slots__ = ("_limit", "_prepared", "_protocol", "_state", "adapt", "run", "shape")

    run: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]]

    def __init__(self, connection: Any, prepared: Any, binding: Binding) -> None:
        query = binding.query
        protocol = self._protocol = connection._protocol
        state = self._state = prepared._state
        self._prepared = prepared  # closes the statement on the server when it is let go
        converters = [param_converter(kind) for kind in prepared.get_parameters()]
        adapt = self.adapt = adapter(binding, converters, {to_integer})
        limit = self._limit = query.enough_rows
        self.shape = _shape(query, prepared.get_attributes())
        self.run = lambda given: protocol.bind_execute(state, adapt(given), "", limit, False, None)

    @property
    def parameters(self) -> Sequence[asyncpg.Type]:
        parameters: Sequence[asyncpg.Type] = self._prepared.get_parameters()
        return parameters

    @property
    def columns(self) -> Sequence[asyncpg.Attribute]:
        columns: Sequence[asyncpg.Attribute] = self._prepared.get_attributes()
        return columns

    async def execute(self, given: Sequence[Any]) -> tuple[int, Sequence[Any] | None]:
        rows, status, _ = await self._protocol.bind_execute(self._state, self.adapt(given), "", self._limit, True, None)
        count = status.split()[-1] if status else b""
        return int(count) if count.isdigit() else 0, rows


class PostgresManyStatement:
    """A prepared statement that takes a list of each argument, and numbers the items of its rows from 1."""

    __slots__ = ("_prepared", "_protocol", "_state", "shape")

    def __init__(self, connection: Any, prepared: Any, binding: Binding) -> None:
        self._prepared = prepared  # as in PostgresStatement
        self._protocol = connection._protocol
        self._state = prepared._state
        self.shape = _shape(binding.query, prepared.get_attributes()[1:])

    async def run(self, items: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        lists = tuple(map(list, zip(*items, strict=True)))
        found: list[list[Any]] = [[] for _ in items]
        for number, *row in await self._protocol.bind_execute(self._state, lists, "", 0, False, None):
            found[number - 1].append(row)
        return found


def _shape(query: Query, attributes: Sequence[Any]) -> Shape | None:
    decimals = DECIMALS[query.decimals]
    columns = [(column.name, column_reader(column.type, decimals)) for column in attributes]
    return Shape(query.operation, columns) if columns else None


class PostgresConnection:
    """One asyncpg connection and the statements prepared on it."""

    def __init__(self, connection: Any) -> None:
        self.expired = False
        self.statements: dict[Binding | tuple[Binding, int], Any] = {}
        self._connection = connection

    def alive(self) -> bool:
        return not self._connection.is_closed()

    async def prepare(self, binding: Binding) -> PostgresStatement:
        prepared = await self._connection.prepare(binding.query.text)
        statement = PostgresStatement(self._connection, prepared, binding)
        self.statements[binding] = statement
        return statement

    def size_for(self, left: int) -> int:
        return min(left, MOST_ITEMS)

    async def many(self, binding: Binding, size: int, given: Sequence[Any]) -> PostgresManyStatement:
        statement = self.statements.get((binding, 0))
        if statement is None:
            types = [kind.name for kind in self.statements[binding].parameters]
            if not SAME_IN_A_LIST.issuperset(types):
                raise Different
            try:
                prepared = await self._connection.prepare(lateral(binding.query, types))
            except asyncpg.PostgresError as error:
                if self.cut_off(error):
                    raise
                raise Different from error  # such as an aggregate of parameters alone, which would be the join's
            statement = self.statements[binding, 0] = PostgresManyStatement(self._connection, prepared, binding)
        return statement

    async def begin(self) -> None:
        await self._connection.execute("BEGIN")

    async def commit(self) -> None:
        await self._connection.execute("COMMIT")

    async def ping(self) -> None:
        await self._connection.execute("SELECT 1")

    async def mend(self) -> bool:
        """Wait until a cancelled statement has ended (asyncpg asks the server to end it), and roll back."""
        connection = self._connection
        async with asyncio.timeout(MEND_SECONDS):
            if connection.is_closed():
                return False
            # The request to cancel can arrive this late, and a failed transaction answers nothing else.
            with suppress(pg.QueryCanceledError, pg.InFailedSQLTransactionError):
                await connection.execute("SELECT 1")
            if connection.is_in_transaction():
                await connection.execute("ROLLBACK")
        return not connection.is_closed()

    async def close(self) -> None:
        self.statements.clear()
        self._connection.terminate()

    def cut_off(self, error: Exception) -> bool:
        return isinstance(error, CUT_OFF) or self._connection.is_closed()

    def outdated(self, error: Exception) -> bool:
        return isinstance(error, OUTDATED)

    def transient(self, error: Exception) -> bool:
        return isinstance(error, TRANSIENT)

    def translate(self, error: Exception, binding: Binding) -> OrchestratorError:
        operation = binding.query.operation
        if isinstance(error, pg.DataError) and (argument := re.search(r"query argument \$(\d+)", str(error))):
            name = binding.query.positions[int(argument[1]) - 1]
            kind = self.statements[binding].parameters[int(argument[1]) - 1].name
            return InvalidParam(name, f"{operation}: parameter '{name}' has a value that the type {kind} cannot hold")
        if self.cut_off(error):
            return SourceError(f"{operation}: the connection to the database was lost", transient=True)
        if isinstance(error, pg.QueryCanceledError):
            return SourceError(f"{operation}: the database gave up: {_said(error, binding.query)}")
        if isinstance(error, asyncpg.PostgresError):
            return SourceError(f"{operation}: {_said(error, binding.query)}", transient=self.transient(error))
        if isinstance(error, ValueError | OverflowError) and not isinstance(error, UnicodeError):
            times = [column.name for column in self.statements[binding].columns if column.type.name in TIMES]
            if times:
                named = " or ".join(f"'{name}'" for name in times)
                return SourceError(f"{operation}: column {named} {NO_TIME}")
        return SourceError(f"{operation}: the answer cannot be read ({type(error).__name__})")

    async def columns(self, query: Query) -> tuple[str, ...] | None:
        prepared = await self._connection.prepare(query.text)
        return tuple(column.name for column in prepared.get_attributes())

    async def finding(self, query: Query, error: Exception) -> Finding:
        if not isinstance(error, asyncpg.PostgresError) or self.cut_off(error):
            raise SourceError(f"{query.operation}: the database did not check the query", transient=True) from None
        primary = _primary(error)
        near = _word_at(query.text, int(getattr(error, "position", None) or 0))
        if near.startswith("$"):
            near = f":{query.positions[int(near[1:]) - 1]}"
        quoted = re.search(r'"([^"]+)"', primary)
        if isinstance(error, pg.UndefinedTableError) and quoted:
            return missing_table(query, quoted[1].rpartition(".")[2], await self._catalog())
        if isinstance(error, pg.UndefinedColumnError):
            name = quoted[1] if quoted else primary.split()[1]
            return missing_column(query, name.rpartition(".")[2], await self._catalog())
        if isinstance(error, pg.IndeterminateDatatypeError) and (number := re.search(r"\$(\d+)", primary)):
            name = query.positions[int(number[1]) - 1]
            message = f"the database cannot tell the type of parameter ':{name}'"
            return finding(query, message, near=f":{name}", hint=f"write CAST(:{name} AS integer), or its other type")
        if isinstance(error, pg.PostgresSyntaxError) and quoted:
            return finding(query, f"syntax error near '{quoted[1]}'", near=quoted[1])
        return finding(query, primary, near=near, hint=getattr(error, "hint", None) or "")

    async def _catalog(self) -> Catalog:
        rows = await self._connection.fetch(
            "SELECT c.relname, array_agg(a.attname::text) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
            " JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped"
            " WHERE pg_table_is_visible(c.oid) AND c.relkind IN ('r', 'v', 'm', 'f', 'p')"
            " AND n.nspname NOT IN ('pg_catalog', 'information_schema') GROUP BY 1"
        )
        return {row[0]: row[1] for row in rows}


def _primary(error: Any, *, whole: bool = False) -> str:
    """The server's message, or its first line, without what class 22 quotes of the data after ``: "``."""
    message = str(error.message or type(error).__name__)
    message = message if whole else message.partition("\n")[0]
    return message.partition(': "')[0] if str(error.sqlstate or "").startswith("22") else message


def _said(error: Any, query: Query) -> str:
    """The server's message while the statement ran, which can quote a value anywhere, such as one cast to regclass.

    What stands in the query is no value, nor is what class 23 quotes: the names of constraints, columns and tables.
    """
    before, *quoted = _primary(error, whole=True).split('"')
    sqlstate = str(error.sqlstate or "")
    if sqlstate.startswith("23") or not quoted or has_words_of(query.text, " ".join(quoted[::2])):
        return '"'.join((before, *quoted)).partition("\n")[0]
    return f'{before}"…"{quoted[-1]}'.partition("\n")[0]


def _word_at(text: str, position: int) -> str:
    match = re.compile(r"\$\d+|\w+").match(text, position - 1) if position else None
    return match[0] if match else ""


def connector(
    address: Address, options: DatabaseOptions, context: OpenContext
) -> Callable[[], Awaitable[PostgresConnection]]:
    """Return what opens a connection, with SQLAlchemy's reading of the URL and libpq's of its parameters."""
    spoken = dict(address.url.query)
    if "ssl" in spoken:
        spoken["sslmode"] = spoken.pop("ssl")
    _, arguments = address.url.get_dialect()().create_connect_args(address.url.set(query={}))
    settings = {"application_name": options.application_name}
    if options.statement_timeout:
        settings["statement_timeout"] = str(round(options.statement_timeout * 1000))
    if options.lock_timeout:
        settings["lock_timeout"] = str(round(options.lock_timeout * 1000))
    if options.read_only:
        settings["default_transaction_read_only"] = "on"

    async def open_driver() -> asyncpg.Connection[Any]:
        connection = await asyncpg.connect(
            dsn=f"postgresql://?{urlencode(spoken, doseq=True)}",
            **arguments,
            timeout=options.connect_timeout,
            server_settings=settings,
        )
        try:
            for name in AS_NUMBERS:
                await connection.set_type_codec(
                    name, schema="pg_catalog", encoder=as_it_is, decoder=as_it_is, format="tuple"
                )
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def connect() -> PostgresConnection:
        try:
            async with asyncio.timeout(options.connect_timeout):
                return PostgresConnection(await open_driver())
        except Exception as error:  # what asyncpg says of a server that does not speak as one can be anything
            message = f"database '{context.name}': cannot connect to {address}: {_why_not(error, options)}"
            raise SourceError(message, transient=True) from None

    return connect


def _why_not(error: Exception, options: DatabaseOptions) -> str:
    """Return why no connection could be made."""
    if isinstance(error, TimeoutError):
        return f"no answer within {options.connect_timeout:g} s"
    if isinstance(error, ConnectionRefusedError) or "Connect call failed" in str(error):
        return "connection refused"
    if isinstance(error, pg.ClientConfigurationError):  # about what stands behind the ? of the URL
        return str(error.args[0])
    if isinstance(error, asyncpg.InterfaceError | ValueError):
        return type(error).__name__
    reason = error.message if isinstance(error, asyncpg.PostgresError) else getattr(error, "strerror", None)
    return reason or "the connection was lost, or what answers is no PostgreSQL"
