"""SQLite: fast reads on the event loop under guard, everything else on threads that own a connection each.

Handing a read to a thread and back costs several times what a read by key takes, so a query that has proven fast
on a thread runs on the loop. There it never waits for a lock (it is handed to a thread at once) and never works
for longer than a millisecond (SQLite's progress handler stops it, and a thread runs it from the start). A query
that was stopped stays on the threads until it is fast again.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from math import inf
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote
from uuid import UUID

from orchestrator_core.plugin_api import (
    Finding,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    SourceError,
)
from orchestrator_source_database import values
from orchestrator_source_database.findings import (
    Catalog,
    facts_of,
    finding,
    missing_column,
    missing_table,
    repeated_column,
)
from orchestrator_source_database.options import DatabaseOptions
from orchestrator_source_database.params import HALF_PAIR, JSONText, Unfit, adapter, in_utc, scalar
from orchestrator_source_database.pool import Pool
from orchestrator_source_database.query import Binding, Query
from orchestrator_source_database.sql import has_words_of
from orchestrator_source_database.values import Build, Shape, Unreadable, executed, finisher, row_builder

__all__ = ["Sqlite"]

LOOP_SECONDS = 0.001
PROVEN_SECONDS = 0.0005
STEPS_BETWEEN_LOOKS = 1_000
LOCK_SECONDS = 5.0
GREATEST = 2**63 - 1
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
NOT_ON_THE_LOOP = (*BUSY, sqlite3.SQLITE_INTERRUPT)
DRIVER_ERRORS = (sqlite3.Error, UnicodeEncodeError)
NOT_UTF8 = re.compile(r"Could not decode to UTF-8 (column '.*?') with text '.*", re.DOTALL)
QUOTED = re.compile(r"(?<=no such column: ).+|(?<=near )['\"].*|(?<=bad JSON path: ).+", re.DOTALL)
"""What FTS5 and the JSON functions quote of the values that they are called with, and SQLite of a query."""


def to_sqlite(value: Any) -> Any:
    """SQLite stores neither decimals nor dates: they go in as numbers and as the text its own functions use."""
    value = scalar(value)
    if value is None or isinstance(value, str | int | float | bytes):
        if type(value) is int and value > GREATEST:
            raise Unfit("integer of at most 64 bits with sign")
        return str(value) if isinstance(value, JSONText) else value
    if isinstance(value, Decimal):
        try:
            number = values.exact_number(value)
        except Unreadable:
            number = GREATEST + 1
        if type(number) is int and number > GREATEST:
            raise Unfit("decimal of at most 15 digits, which is what SQLite holds exactly")
        return number
    if isinstance(value, datetime):
        return in_utc(value).isoformat(sep=" ")
    return value.isoformat() if isinstance(value, date | time) else str(value) if isinstance(value, UUID) else value


class Rows(Shape):
    """SQLite's columns have no type of their own: rows are made by the types of their values."""

    __slots__ = ("_builders",)

    PLAIN = frozenset((int, str, float, type(None)))
    LEARNT = 32

    def __init__(self, operation: str, names: tuple[str, ...]) -> None:
        super().__init__(operation, [(name, None) for name in names])
        self._builders: dict[tuple[type[Any], ...], Build] = {}
        known = self._builders.get

        def build(row: Sequence[Any]) -> dict[str, Any]:
            kinds = tuple(map(type, row))
            return (known(kinds) or self._learn(kinds))(row)

        self.build = build

    def _learn(self, kinds: tuple[type[Any], ...]) -> Build:
        """Return what makes rows of these types, and keep it unless there are too many kinds of rows."""
        if len(self._builders) >= self.LEARNT or not self.PLAIN.issuperset(kinds):
            return self._build_slowly
        floats = tuple(index for index, kind in enumerate(kinds) if kind is float)
        made = self._builders[kinds] = row_builder(self.names, floats, {}, self._build_slowly)
        return made

    def _build_slowly(self, row: Sequence[Any]) -> dict[str, Any]:
        return {name: self._read(name, value) for name, value in zip(self.names, row, strict=True)}

    def _read(self, name: str, value: Any) -> Any:
        try:
            if isinstance(value, float):
                return values.finite(value)
        except Unreadable as unreadable:
            raise self.unreadable(name, unreadable) from None
        return values.base64_text(value) if isinstance(value, bytes) else value


class Statement:
    """A binding's query with how its rows look; ``quick`` says that its last run was fast enough for the loop."""

    __slots__ = ("_limit", "_query", "_shape", "adapt", "quick")

    def __init__(self, binding: Binding) -> None:
        self.adapt = adapter(binding, [to_sqlite] * len(binding.indices), {to_sqlite})
        self.quick = False
        self._query = binding.query
        self._shape: Rows | None = None
        self._limit = binding.query.enough_rows

    def run(self, connection: sqlite3.Connection, arguments: Sequence[Any]) -> tuple[Rows | None, list[Any], int]:
        """Return the shape, the rows and the count of changed rows."""
        cursor = connection.execute(self._query.text, arguments)
        rows = cursor.fetchmany(self._limit) if self._limit else cursor.fetchall()
        shape = self._shape
        if (shape is None or self._query.columns_vary) and cursor.description:
            names = tuple([column[0] for column in cursor.description])
            if shape is None or shape.names != names:
                shape = self._shape = Rows(self._query.operation, names)
        return shape, rows, cursor.rowcount


class Worker:
    """A thread with a connection of its own, lent by a pool and given one job at a time."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], timeout_seconds: float | None) -> None:
        self.expired = False
        self.stop_at = inf
        self._connection: sqlite3.Connection | None = None
        self._jobs: SimpleQueue[tuple[asyncio.Future[Any], Callable[[sqlite3.Connection], Any]] | None] = SimpleQueue()
        self._ended = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = timeout_seconds
        self._thread = threading.Thread(target=self._serve, args=(connect,), name="sqlite", daemon=True)
        self._thread.start()

    def run(self, job: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        return self._start(self._loop.create_future(), job)

    def _start(self, future: asyncio.Future[Any], job: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        self._idle.clear()
        self._jobs.put((future, job))
        return future

    def run_all(self, jobs: Sequence[Callable[[sqlite3.Connection], Any]]) -> asyncio.Future[Any]:
        """Run jobs one after the other, each within the time for a statement, until nobody waits any more."""

        future = self._loop.create_future()

        def run_each(connection: sqlite3.Connection) -> list[Any]:
            results = []
            for job in jobs:
                if future.cancelled():
                    break
                if self._timeout_seconds:
                    self.stop_at = perf_counter() + self._timeout_seconds
                results.append(job(connection))
            return results

        return self._start(future, run_each)

    def alive(self) -> bool:
        return self._thread.is_alive()

    async def mend(self) -> bool:
        """End what is running: a job notices that nobody waits for it and rolls back."""
        if self._connection is not None and not self._idle.is_set():
            self._connection.interrupt()
        await self._idle.wait()
        return True

    async def close(self) -> None:
        self._jobs.put(None)
        await self._ended.wait()
        self._thread.join()  # its last instruction was to set the event

    def _serve(self, connect: Callable[[], sqlite3.Connection]) -> None:
        while (item := self._jobs.get()) is not None:
            future, job = item
            result: Any = None
            error: Exception | None = None
            try:
                if self._connection is None:
                    self._connection = connect()
                    if self._timeout_seconds:
                        self._connection.set_progress_handler(lambda: perf_counter() > self.stop_at, 10_000)
                if self._timeout_seconds:
                    self.stop_at = perf_counter() + self._timeout_seconds
                if not future.cancelled():
                    result = job(self._connection)
            except Exception as raised:  # whatever it is belongs to who waits for the job
                error = raised
            self._loop.call_soon_threadsafe(self._done, future, result, error)
            del item, future, job, result, error
        if self._connection is not None:
            self._connection.close()
        self._loop.call_soon_threadsafe(self._ended.set)

    def _done(self, future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
        self._idle.set()
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class Sqlite(AbstractAsyncContextManager["Sqlite"]):
    """The operations of a source on a SQLite file, or on a database in memory, which has one connection only."""

    def __init__(self, options: DatabaseOptions, context: OpenContext) -> None:
        self._options = options
        self._name = context.name
        database = options.address.url.database or ":memory:"
        self._file: Path | None = None if database == ":memory:" else context.path(database)
        self._stack = AsyncExitStack()
        self._on_loop: sqlite3.Connection | None = None
        self._loop_until = inf

    async def __aenter__(self) -> Self:
        size = self._options.pool_size if self._file else 1
        self._readers = await self._stack.enter_async_context(self._pool(size, writes=self._file is None))
        # SQLite has one writer at a time: a queue of our own is fair, its busy handler is not.
        self._writers = self._readers
        if self._file:
            self._writers = await self._stack.enter_async_context(self._pool(1, writes=True))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._on_loop is not None:
            self._on_loop.close()
        await self._stack.aclose()

    def _pool(self, size: int, *, writes: bool) -> Pool[Worker]:
        async def start() -> Worker:
            return Worker(
                lambda: self._connect(lock_seconds=self._options.lock_timeout or LOCK_SECONDS, writes=writes),
                self._options.statement_timeout,
            )

        return Pool(
            start,
            name=self._name,
            size=size,
            timeout_seconds=self._options.pool_timeout,
            recycle_seconds=self._options.pool_recycle if self._file else None,
        )

    def _connect(self, *, lock_seconds: float, writes: bool) -> sqlite3.Connection:
        writes = writes and not self._options.read_only
        target = ":memory:"
        if self._file is not None:
            if not self._file.is_file() and not self._options.create:
                raise SourceError(f"database '{self._name}': there is no SQLite file {self._file}", transient=True)
            mode = "rwc" if self._options.create else "rw"
            target = f"file:{quote(str(self._file))}?mode={mode}"
        connection = sqlite3.connect(
            target, uri=True, timeout=lock_seconds, isolation_level=None, check_same_thread=False
        )
        connection.execute(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.execute("PRAGMA foreign_keys = ON")
        return connection

    def call(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        if binding.query.result == "execute" or binding.query.writes:
            return self._write(binding)
        return self._read(binding)

    def _read(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        statement, finish = Statement(binding), finisher(binding)
        adapt = statement.adapt
        operation = binding.query.operation

        def timed(connection: sqlite3.Connection, arguments: Sequence[Any], given: Sequence[Any]) -> Any:
            started = perf_counter()
            shape, rows, _ = statement.run(connection, arguments)
            # A connection in memory is the only one, so its reads cannot have one for the loop.
            statement.quick = self._file is not None and perf_counter() - started < PROVEN_SECONDS
            if shape is None:
                raise SourceError(f"{operation}: the statement returns no rows")
            return finish(shape, rows, given)

        async def read(*given: Any) -> Any:
            arguments = adapt(given)
            if statement.quick:
                self._loop_until = until = perf_counter() + LOOP_SECONDS
                try:
                    shape, rows, _ = statement.run(self._on_loop or self._connect_on_loop(), arguments)
                except DRIVER_ERRORS as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in NOT_ON_THE_LOOP:
                        raise self._translate(error, binding) from None
                    statement.quick = False
                else:
                    if perf_counter() > until:
                        statement.quick = False
                    return finish(shape, rows, given)  # type: ignore[arg-type]  # known since the first run
            return await self._on_thread(self._readers, binding, lambda connection: timed(connection, arguments, given))

        return read

    def _connect_on_loop(self) -> sqlite3.Connection:
        connection = self._on_loop = self._connect(lock_seconds=0, writes=False)
        connection.set_progress_handler(lambda: perf_counter() > self._loop_until, STEPS_BETWEEN_LOOKS)
        return connection

    def _write(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        statement, finish, query = Statement(binding), finisher(binding), binding.query

        def run(connection: sqlite3.Connection, arguments: Sequence[Any], given: Sequence[Any]) -> Any:
            if not query.writes:
                return make_result(connection, arguments, given)
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = make_result(connection, arguments, given)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            return result

        def make_result(connection: sqlite3.Connection, arguments: Sequence[Any], given: Sequence[Any]) -> Any:
            shape, rows, count = statement.run(connection, arguments)
            if query.result == "execute":
                return executed(query, shape, max(count, 0) if query.writes else len(rows), rows)
            if shape is None:
                raise SourceError(f"{query.operation}: the statement returns no rows; use result: execute")
            return finish(shape, rows, given)

        async def write(*given: Any) -> Any:
            arguments = statement.adapt(given)
            return await self._on_thread(self._writers, binding, lambda connection: run(connection, arguments, given))

        return write

    def many(self, binding: Binding) -> Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]] | None:
        """Return the read for many items: the statement runs for each, on one connection and without coming back.

        There is no way to the database that one statement for all could save: running it again takes less than a union
        or a join with the keys does, and is the same statement.
        """
        if binding.query.result == "execute" or binding.query.writes:
            return None
        statement, finish = Statement(binding), finisher(binding)
        operation = binding.query.operation

        def read_one(connection: sqlite3.Connection, given: Sequence[Any], closed: list[OrchestratorError]) -> Any:
            if closed:
                return closed[0]
            try:
                shape, rows, _ = statement.run(connection, statement.adapt(given))
                if shape is None:
                    raise SourceError(f"{operation}: the statement returns no rows")
                return finish(shape, rows, given)
            except OrchestratorError as error:
                return error
            except DRIVER_ERRORS as error:
                failed = self._translate(error, binding)
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in BUSY:
                    closed.append(failed)  # the others do not wait for the lock as well
                return failed

        async def read(items: Sequence[Sequence[Any]]) -> Sequence[Any]:
            closed: list[OrchestratorError] = []
            jobs = [partial(read_one, given=given, closed=closed) for given in items]
            results: Sequence[Any] = await self._lend(self._readers, binding, lambda worker: worker.run_all(jobs))
            return results

        return read

    async def _on_thread(
        self, pool: Pool[Worker], binding: Binding | None, job: Callable[[sqlite3.Connection], Any]
    ) -> Any:
        return await self._lend(pool, binding, lambda worker: worker.run(job))

    async def _lend(
        self, pool: Pool[Worker], binding: Binding | None, start: Callable[[Worker], asyncio.Future[Any]]
    ) -> Any:
        worker = await pool.acquire()
        try:
            result = await start(worker)
        except DRIVER_ERRORS as error:
            pool.release(worker)
            raise self._translate(error, binding) from None  # not chained: no driver's words with values in them
        except Exception:
            pool.release(worker)
            raise
        except BaseException as error:
            pool.mend(worker, error)
            raise
        pool.release(worker)
        return result

    def _translate(self, error: Exception, binding: Binding | None) -> OrchestratorError:
        operation = binding.query.operation if binding else f"database '{self._name}'"
        if isinstance(error, UnicodeEncodeError):
            return SourceError(f"{operation}: {HALF_PAIR}")
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in BUSY:
            seconds = self._options.lock_timeout or LOCK_SECONDS
            return SourceError(f"{operation}: the database stayed locked for {seconds:g} s", transient=True)
        if code == sqlite3.SQLITE_INTERRUPT:
            return SourceError(f"{operation}: the database gave up: the statement took too long")
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB):
            return SourceError(f"database '{self._name}': cannot open {self._file}: {error}", transient=True)
        said = NOT_UTF8.sub(r"\1 holds text that is not UTF-8", str(error))
        if (quoted := QUOTED.search(said)) and not (binding and has_words_of(binding.query.text, quoted[0])):
            said = f"{said[: quoted.start()]}…"
        return SourceError(f"{operation}: {said}")

    async def check_ready(self) -> None:
        self._readers.refuse_if_busy()
        await self._on_thread(self._readers, None, lambda connection: connection.execute("PRAGMA schema_version"))

    async def look_at(self, query: Query) -> OperationFacts | Finding:
        def look(connection: sqlite3.Connection) -> OperationFacts | Finding:
            if re.match(r"pragma\b", query.source, re.IGNORECASE):
                return facts_of(query)  # a pragma acts while it is prepared
            nothing = (None,) * len(query.positions)
            try:
                connection.execute(f"EXPLAIN {query.text}", nothing).close()
                if query.writes:
                    return facts_of(query, None if query.returns else ())
                columns = connection.execute(f"SELECT * FROM (\n{query.text}\n) LIMIT 0", nothing).description
            except sqlite3.OperationalError as error:
                return _finding(query, str(error), connection)
            names = tuple(column[0] for column in columns)
            # SQLite tells a second column of the same name apart by a number.
            plain = [re.sub(r":\d+$", "", name) if name.partition(":")[0] in names else name for name in names]
            return repeated_column(query, plain) or facts_of(query, names)

        looked: OperationFacts | Finding = await self._on_thread(self._readers, None, look)
        return looked


def _finding(query: Query, message: str, connection: sqlite3.Connection) -> Finding:
    if match := re.fullmatch(r"no such table: (.+)", message):
        return missing_table(query, match[1].rpartition(".")[2], _catalog(connection))
    if match := re.fullmatch(r"no such column: (.+)|table \S+ has no column named (.+)", message):
        return missing_column(query, (match[1] or match[2]).rpartition(".")[2], _catalog(connection))
    if match := re.fullmatch(r'near "(.+)": syntax error', message):
        return finding(query, f"syntax error near '{match[1]}'", near=match[1])
    if match := re.fullmatch(r"no such function: (\w+)", message):
        return finding(query, f"there is no function '{match[1]}'", near=match[1])
    return finding(query, message)


def _catalog(connection: sqlite3.Connection) -> Catalog:
    rows = connection.execute(
        "SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c"
        " WHERE m.type IN ('table', 'view') AND m.name NOT LIKE 'sqlite!_%' ESCAPE '!'"
    )
    catalog: dict[str, list[str]] = {}
    for table, column in rows:
        catalog.setdefault(table, []).append(column)
    return catalog
