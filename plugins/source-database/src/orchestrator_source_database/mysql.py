"""MariaDB and MySQL through asyncmy: server-side prepared statements, so values never meet SQL text."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import date, datetime, time
from functools import partial
from struct import Struct
from typing import Any
from uuid import UUID

import asyncmy
from asyncmy import errors as my
from asyncmy.constants import FIELD_TYPE, FLAG
from asyncmy.protocol import FieldDescriptorPacket

from orchestrator_core.plugin_api import Finding, OpenContext, OrchestratorError, SourceError
from orchestrator_source_database import values
from orchestrator_source_database.findings import Catalog, finding, missing_column, missing_table
from orchestrator_source_database.many import CutShort, Different, union
from orchestrator_source_database.options import Address, DatabaseOptions
from orchestrator_source_database.params import HALF_PAIR, JSONText, adapter, in_utc, scalar, without_offset
from orchestrator_source_database.pool import MEND_SECONDS
from orchestrator_source_database.query import MOST_TO_ASK, Binding, Query
from orchestrator_source_database.values import DECIMALS, Shape, Unreadable

__all__ = ["MySQLConnection", "connector"]

COM_STMT_PREPARE, COM_STMT_CLOSE = 0x16, 0x19
BINARY_CHARSET = 63
# Codes of https://mariadb.com/kb/en/mariadb-error-code-reference/ and MySQL's list of the same numbers.
CUT_OFF = frozenset((1053, 1077, 1152, 1184, 1927, 2006, 2013, 2014, 2055))
TRANSIENT = frozenset((1040, 1203, 1205, 1213, 3572))
TIMED_OUT = frozenset((1317, 1969, 3024))
UNION_SIZES = (64, 16, 4)
WHOLE = frozenset((FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG))
TEXTS = frozenset((FIELD_TYPE.VARCHAR, FIELD_TYPE.VAR_STRING, FIELD_TYPE.STRING, FIELD_TYPE.BLOB))
ONE_KIND = (WHOLE, TEXTS | {FIELD_TYPE.TINY_BLOB, FIELD_TYPE.MEDIUM_BLOB, FIELD_TYPE.LONG_BLOB})
DECIMAL, FRACTIONS = FIELD_TYPE.NEWDECIMAL, (FIELD_TYPE.TIME, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP)
PLAIN_TYPE, AS_BYTES = FIELD_TYPE.STRING, 0
NO_DATE = "0000-00-00"
UNKNOWN_TABLE, UNKNOWN_COLUMN, SYNTAX, UNKNOWN_STATEMENT = 1146, 1054, 1064, 1243


def to_mysql(value: Any) -> Any:
    value = scalar(value)
    if isinstance(value, datetime):
        return in_utc(value)
    if isinstance(value, time):
        return without_offset(value)
    return str(value) if isinstance(value, UUID | JSONText) else value


# --- dates: https://mariadb.com/kb/en/resultset-row/#binary-resultset-row ------------------------------------------

_MOMENTS = {4: Struct("<HBB"), 7: Struct("<HBBBBB"), 11: Struct("<HBBBBBI")}


def _date(sent: bytes) -> date | str:
    try:
        return date(*_MOMENTS[len(sent)].unpack(sent))
    except (KeyError, ValueError):
        return NO_DATE


def _datetime(sent: bytes) -> datetime | str:
    try:
        return datetime(*_MOMENTS[len(sent)].unpack(sent))  # noqa: DTZ001 - MySQL's have no zone
    except (KeyError, ValueError):
        return NO_DATE


MOMENTS: dict[int, Callable[[bytes], Any]] = {
    FIELD_TYPE.DATE: _date,
    FIELD_TYPE.DATETIME: _datetime,
    FIELD_TYPE.TIMESTAMP: _datetime,
}


def iso_moment(moment: date | datetime | str) -> str:
    if isinstance(moment, str):
        raise Unreadable("holds a date that no calendar has, such as 0000-00-00")
    return moment.isoformat()


async def execute(statement: Any, arguments: Sequence[Any], fields: Any, *, again: bool = True) -> Any:
    """Execute a prepared statement whose columns were these so far; return asyncmy's result.

    asyncmy makes None of 0000-00-00, which is no NULL. So it is told to hand over dates as they were sent, from when
    it knows a statement's columns on. A read in whose rows it may have done so before is done ``again``.
    """
    result = await statement.execute(arguments)
    if result.rows is None or result.fields is fields:
        return result
    moments = [index for index, field in enumerate(result.fields) if field.type_code in MOMENTS]
    if moments:
        specs = list(statement._meta[4])
        for index in moments:
            specs[index] = (PLAIN_TYPE, False, AS_BYTES, None, MOMENTS[result.fields[index].type_code])
        statement._meta = (*statement._meta[:4], tuple(specs), *statement._meta[5:])
        if again and any(row[index] is None for row in result.rows for index in moments):
            result = await statement.execute(arguments)
    return result


# --- statements and connections ------------------------------------------------------------------------------------


def stored_bits(sent: bytes) -> int:
    return int.from_bytes(sent, "big")


def computed_bits(bits: int, sent: bytes) -> int:
    """Return a BIT that is no column's own, such as ``MAX(flag)``: MariaDB sends some as they are, most as digits."""
    if not sent.isdigit():
        return stored_bits(sent)
    if len(sent) != -(-bits // 8) or stored_bits(sent) >> bits:
        return int(sent)
    raise Unreadable("is a computed BIT, which the server sends in two ways; cast it to UNSIGNED in the query")


def column_reader(field: Any, decimals: Callable[[Any], Any]) -> Callable[[Any], Any] | None:
    code = field.type_code
    if code in (FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL):
        return decimals
    if code in MOMENTS:
        return iso_moment
    if code == FIELD_TYPE.TIME:
        return values.clock_text
    if code == FIELD_TYPE.JSON:
        return values.json_value
    if code == FIELD_TYPE.BIT:
        return partial(computed_bits, field.length) if field.flags & FLAG.BINARY else stored_bits
    if field.charsetnr == BINARY_CHARSET:
        return lambda data: values.base64_text(data) if isinstance(data, bytes) else data
    return None


class MySQLStatement:
    """A prepared statement; MySQL tells its columns with the first rows, and anew when they have changed."""

    __slots__ = ("_query", "_statement", "adapt", "fields", "shape")

    def __init__(self, statement: Any, binding: Binding) -> None:
        self.shape: Shape | None = None
        self.fields: Any = None
        self._query = binding.query
        self._statement = statement
        self.adapt = adapter(binding, [to_mysql] * len(binding.indices), {to_mysql})

    async def run(self, given: Sequence[Any]) -> Sequence[Any]:
        _, rows = await self.execute(given)
        return rows or ()

    async def execute(self, given: Sequence[Any]) -> tuple[int, Sequence[Any] | None]:
        query = self._query
        result = await execute(self._statement, self.adapt(given), self.fields, again=not query.writes)
        rows = result.rows
        if rows is not None and result.fields is not self.fields:
            decimals = DECIMALS[query.decimals]
            columns = [(field.name, column_reader(field, decimals)) for field in result.fields]
            self.shape = Shape(query.operation, columns)
            self.fields = result.fields
        return result.affected_rows, rows


class MySQLManyStatement:
    """A union of the statement with itself, prepared. The number of the item is its last column."""

    def __init__(self, statement: Any, one: MySQLStatement, most_rows: int) -> None:
        self._fields: Any = None
        self._most_rows = most_rows
        self._one = one
        self._statement = statement

    @property
    def shape(self) -> Shape | None:
        return self._one.shape

    async def run(self, items: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        result = await execute(self._statement, [argument for item in items for argument in item], self._fields)
        if result.fields is not self._fields:
            if [_kind_of(field) for field in result.fields[:-1]] != [_kind_of(field) for field in self._one.fields]:
                raise Different
            self._fields = result.fields
        if self._most_rows and len(result.rows) >= self._most_rows:
            raise CutShort
        found: list[list[Any]] = [[] for _ in items]
        for row in result.rows:
            found[row[-1]].append(row[:-1])
        return found


def _kind_of(field: Any) -> tuple[Any, ...]:
    """Return what a column's values are read by: two columns of one kind give equal values for what is stored."""
    code = field.type_code
    kind = next((kind for kind in ONE_KIND if code in kind), code)
    return field.name, kind, field.charsetnr, field.scale if kind in (DECIMAL, *FRACTIONS) else None


class MySQLConnection:
    """One asyncmy connection and the statements prepared on it.

    The server sends at most ``most_rows`` of a statement, if it is not 0: asyncmy reads all that are sent.
    """

    def __init__(self, connection: Any, connect: Callable[[], Awaitable[Any]], most_rows: int) -> None:
        self.expired = False
        self.statements: dict[Binding | tuple[Binding, int], Any] = {}
        self._connection = connection
        self._connect = connect
        self._most_rows = most_rows
        self._in_transaction = False

    def alive(self) -> bool:
        return self._connection.connected and not self._connection._stream_broken

    async def prepare(self, binding: Binding) -> MySQLStatement:
        statement = MySQLStatement(await self._connection.prepare(binding.query.text), binding)
        self.statements[binding] = statement
        return statement

    def size_for(self, left: int) -> int:
        return next((size for size in UNION_SIZES if size <= left), 1)

    async def many(self, binding: Binding, size: int, given: Sequence[Any]) -> MySQLManyStatement:
        statement = self.statements.get((binding, size))
        if statement is None:
            one = self.statements[binding]
            if one.fields is None:  # told with the first rows
                await one.run(given)
            try:
                prepared = await self._connection.prepare(union(binding.query, size))
            except my.MySQLError as error:
                if self.cut_off(error):
                    raise
                raise Different from error
            statement = self.statements[binding, size] = MySQLManyStatement(prepared, one, self._most_rows)
        return statement

    async def begin(self) -> None:
        self._in_transaction = True
        await self._connection.query("BEGIN")

    async def commit(self) -> None:
        await self._connection.query("COMMIT")
        self._in_transaction = False

    async def ping(self) -> None:
        await self._connection.ping(reconnect=False)

    async def mend(self) -> bool:
        """Roll back. A cancelled statement has closed the connection, but runs on in the server: end it there."""
        async with asyncio.timeout(MEND_SECONDS):
            if self.alive():
                if self._in_transaction:
                    await self._connection.query("ROLLBACK")
                    self._in_transaction = False
                return True
            helper = await self._connect()
            try:
                await helper.query(f"KILL {int(self._connection.thread_id())}")
            except my.MySQLError:
                pass  # it has ended by itself
            finally:
                await helper.ensure_closed()
            return False

    async def close(self) -> None:
        self.statements.clear()
        self._connection.close()

    def cut_off(self, error: Exception) -> bool:
        return _code(error) in CUT_OFF or isinstance(error, OSError) or not self.alive()

    def outdated(self, error: Exception) -> bool:
        return _code(error) == UNKNOWN_STATEMENT

    def transient(self, error: Exception) -> bool:
        return _code(error) in TRANSIENT

    def translate(self, error: Exception, binding: Binding) -> OrchestratorError:
        operation, code = binding.query.operation, _code(error)
        if self.cut_off(error):
            return SourceError(f"{operation}: the connection to the database was lost", transient=True)
        if code in TIMED_OUT:
            return SourceError(f"{operation}: the database gave up: the statement took too long")
        if isinstance(error, my.MySQLError):
            return SourceError(f"{operation}: {_message(error)}", transient=self.transient(error))
        if isinstance(error, UnicodeEncodeError):
            return SourceError(f"{operation}: {HALF_PAIR}")
        return SourceError(f"{operation}: the answer cannot be read ({type(error).__name__})")

    async def columns(self, query: Query) -> tuple[str, ...] | None:
        """Prepare the statement and read its columns, which ``Connection.prepare`` of asyncmy skips."""
        connection = self._connection
        await connection._execute_command(COM_STMT_PREPARE, query.text.encode())
        head = await connection.read_packet()
        head.read_uint8()
        statement, columns, parameters = head.read_uint32(), head.read_uint16(), head.read_uint16()
        for _ in range(parameters + (parameters > 0 and not connection._deprecate_eof)):
            await connection.read_packet()
        names = tuple([(await connection.read_packet(FieldDescriptorPacket)).name for _ in range(columns)])
        if columns and not connection._deprecate_eof:
            await connection.read_packet()
        await connection._execute_command(COM_STMT_CLOSE, statement.to_bytes(4, "little"))
        return None if query.returns else names  # MariaDB does not tell the columns of RETURNING

    async def finding(self, query: Query, error: Exception) -> Finding:
        if not isinstance(error, my.MySQLError) or self.cut_off(error):
            raise SourceError(f"{query.operation}: the database did not check the query", transient=True) from None
        code, message = _code(error), _message(error)
        quoted = re.search(r"'([^']*)'", message)
        name = quoted[1].rpartition(".")[2] if quoted else ""
        if code == UNKNOWN_TABLE:
            return missing_table(query, name, await self._catalog())
        if code == UNKNOWN_COLUMN:
            return missing_column(query, name, await self._catalog())
        near = re.match(r"\w+|\S", quoted[1].strip()) if code == SYNTAX and quoted else None
        return finding(query, message, near=near[0] if near else "")

    async def _catalog(self) -> Catalog:
        await self._connection.query(
            "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = DATABASE()"
            " LIMIT 1000000"  # one of its own, in place of the session's
        )
        catalog: dict[str, list[str]] = {}
        for table, column in self._connection._result.rows:
            catalog.setdefault(table, []).append(column)
        return catalog


def _code(error: Exception) -> int:
    code = error.args[0] if isinstance(error, my.MySQLError) and error.args else 0
    return code if isinstance(code, int) else 0


UNKNOWN_OPTION = re.compile(r"unexpected keyword argument '(\w+)'")
QUOTED = re.compile(r"(entry|value:?|value is out of range) (?:in )?'(?:.*'(?= for (?:key|column) )|.*)", re.DOTALL)


def _message(error: Exception) -> str:
    """The server's message without the advice to read the manual and without what it quotes of the data."""
    whole = str(error.args[-1])
    message = whole.partition("\n")[0]
    if _code(error) == SYNTAX and (near := re.search(r"near '(.*)' at line \d+$", message, re.DOTALL)):
        return f"syntax error near '{near[1]}'" if near[1] else "syntax error at the end of the query"
    return QUOTED.sub(r"\1", whole).partition("\n")[0]


def connector(
    address: Address, options: DatabaseOptions, context: OpenContext
) -> Callable[[], Awaitable[MySQLConnection]]:
    """Return what opens a connection. SQLAlchemy reads the URL, TLS parameters included."""
    _, arguments = address.url.get_dialect()().create_connect_args(address.url)
    arguments = {
        **arguments,
        "autocommit": True,
        "charset": arguments.get("charset", "utf8mb4"),
        "program_name": options.application_name,
        "connect_timeout": options.connect_timeout,
    }

    async def open_driver(settings: Callable[[str], Sequence[str]] = lambda version: ()) -> Any:
        try:
            async with asyncio.timeout(options.connect_timeout):  # asyncmy's own ends before the greeting
                connection = await asyncmy.connect(**arguments)
                try:
                    for setting in settings(connection.get_server_info()):
                        await connection.query(f"SET SESSION {setting}")  # type: ignore[no-untyped-call]
                except BaseException:
                    connection.close()
                    raise
                return connection
        except Exception as error:  # what asyncmy says of a server that does not speak as one can be anything
            message = f"database '{context.name}': cannot connect to {address}: {_why_not(error, options)}"
            raise SourceError(message, transient=True) from None

    most_rows = _most_rows(options, context)

    async def connect() -> MySQLConnection:
        driver = await open_driver(partial(_settings, options, most_rows))
        return MySQLConnection(driver, open_driver, most_rows)

    return connect


def _why_not(error: Exception, options: DatabaseOptions) -> str:
    """Return why no connection could be made."""
    cause = error if isinstance(error, OSError) else error.__cause__  # asyncmy's own wrap what the system says
    if isinstance(cause, TimeoutError):
        return f"no answer within {options.connect_timeout:g} s"
    if isinstance(cause, ConnectionRefusedError) or "Connect call failed" in str(cause):
        return "connection refused"
    if isinstance(cause, OSError) and cause.strerror:  # such as of a host that nobody knows, or a file of ssl_ca
        return cause.strerror
    if unknown := UNKNOWN_OPTION.search(str(error)):
        return f"asyncmy takes no '{unknown[1]}', which stands behind the ? of connection_string"
    reason = str(error.args[-1]) if isinstance(error, my.MySQLError) and error.args else ""
    return reason or "the connection was lost, or what answers is no MariaDB or MySQL"


def _most_rows(options: DatabaseOptions, context: OpenContext) -> int:
    """Return the rows to have sent of any statement at most, 0 for all: what its operation takes is looked at then."""
    limits = [operation.most_rows(options) for operation in context.operations.values()]
    return 0 if None in limits else min(max(limits, default=0), MOST_TO_ASK - 1) + 1


def _settings(options: DatabaseOptions, most_rows: int, version: str) -> Sequence[str]:
    settings = [f"sql_select_limit = {most_rows}"] if most_rows else []
    if options.statement_timeout and "MariaDB" in version:
        settings.append(f"max_statement_time = {options.statement_timeout:f}")
    elif options.statement_timeout:
        settings.append(f"max_execution_time = {round(options.statement_timeout * 1000)}")
    if options.lock_timeout:
        settings.append(f"innodb_lock_wait_timeout = {max(1, round(options.lock_timeout))}")
    if options.read_only:
        settings.append("TRANSACTION READ ONLY")
    return settings
