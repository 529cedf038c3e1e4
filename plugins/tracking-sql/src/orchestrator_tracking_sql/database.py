"""The connections to the database, each with a thread of its own."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DataError, IntegrityError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_tracking_sql.migrate import check, migrate
from orchestrator_tracking_sql.options import SqlOptions, parse_url
from orchestrator_tracking_sql.silence import Silence

T = TypeVar("T")
Work = Callable[[Connection], T]

_NOT_A_DATABASE = ("file is not a database", "database disk image is malformed")

LOOK_SECONDS = 1.0
"""How often somebody looks whether a server still says something."""

__all__ = ["Database", "file_of"]


def file_of(options: SqlOptions, resolve: Callable[[str], Path]) -> Path | None:
    """Return the file of a SQLite database."""
    url = parse_url(options.url)
    return resolve(url.database or "") if url.get_dialect().name == "sqlite" else None


class Database:
    """One connection that writes and one that reads. What runs on them are functions of a SQLAlchemy connection."""

    def __init__(self, options: SqlOptions, resolve: Callable[[str], Path], durable: bool) -> None:
        url = parse_url(options.url)
        self.dialect = url.get_dialect().name
        self.path = file_of(options, resolve)
        if self.path is not None:
            url = url.set(database=str(self.path))
        timeout = options.statement_timeout if self.dialect == "postgresql" else None
        self._writer = _Line("tracking-writer", _engine(url, options, durable=durable, writes=True), timeout)
        self._reader = _Line("tracking-reader", _engine(url, options, durable=durable, writes=False), timeout)
        self._file: tuple[int, int] | None = None
        self._log: tuple[int, int] | None = None
        self._prepared = False
        self._opened = False

    async def open(self) -> None:
        """Connect, and make or update the tables. Raises ``SourceUnavailable``, or ``ValueError`` for good."""
        await self.write(lambda connection: None)

    async def look(self) -> None:
        """Connect to what somebody only reads; change nothing. Raises as :meth:`open` does, for an older schema too."""
        await self.read(check)

    async def write(self, work: Work[T]) -> T:
        """Run a function in a transaction and commit it. Raises ``SourceUnavailable`` when the database fails."""
        return await self._writer.run(self._write, work)

    async def read(self, work: Work[T]) -> T:
        return await self._reader.run(self._read, work)

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()

    # --- in the threads -----------------------------------------------------------------------------------------

    def _write(self, engine: Engine, work: Work[T]) -> T:
        self._find_file(engine)
        try:
            with engine.begin() as connection:
                if not self._prepared:
                    self._migrate(connection)
                result = work(connection)
        except Exception as error:
            self._prepared = False
            raise _translated(error, self.path) from error
        self._prepared = self._opened = True
        if self.path is not None:
            now = _identity(self.path)
            if now is None or self._file not in (None, now):
                # SQLite goes on writing into a file that has been deleted or replaced.
                raise SourceUnavailable(f"{self.path.name} was deleted while it was written")
            self._file, self._log = now, _identity(_beside(self.path, "-wal"))
        return result

    def _migrate(self, connection: Connection) -> None:
        try:
            migrate(connection)
        except ValueError as error:
            if not self._opened:
                raise
            # A later version was started beside this one, which may be taken back.
            raise SourceUnavailable(str(error)) from error

    def _read(self, engine: Engine, work: Work[T]) -> T:
        try:
            with engine.connect() as connection:
                return work(connection)
        except Exception as error:
            raise _translated(error, self.path) from error

    def _find_file(self, engine: Engine) -> None:
        """Begin anew with the file that is there now, or none, if it is another than before.

        SQLite leaves the log of the one before beside it, and would put what is in that into the one that is there now.
        """
        if self.path is not None and self._file is not None and self._file != _identity(self.path):
            _delete_empty(self.path)
            engine.dispose()
            if self._log is not None and self._log == _identity(_beside(self.path, "-wal")):
                try:
                    for suffix in ("-wal", "-shm"):
                        _beside(self.path, suffix).unlink(missing_ok=True)
                except OSError as error:
                    raise SourceUnavailable(f"the log of the file before cannot be deleted: {error}") from error
            self._file, self._log, self._prepared = None, None, False


class _Line:
    """An engine with one connection, used from one thread only; to a server whose statements have a time limit."""

    def __init__(self, name: str, engine: Engine, statement_timeout: float | None) -> None:
        self._engine = engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._silence = None if statement_timeout is None else Silence(engine, statement_timeout)

    async def run(self, call: Callable[[Engine, Work[T]], T], work: Work[T]) -> T:
        """Run the call in the thread. Cancelled, it still waits for the call to end: nothing can stop that."""
        silence = self._silence
        if silence is not None:
            silence.begin()
        done = asyncio.get_running_loop().run_in_executor(self._thread, call, self._engine, work)
        try:
            await self._ended(done)
        except asyncio.CancelledError:
            await self._ended(done)
            done.exception()  # nobody is there to be told: asyncio need not say so
            raise
        if silence is not None and silence.is_over and (error := done.exception()) is not None:
            raise SourceUnavailable(f"the database said nothing for {silence.seconds:g} s") from error
        return done.result()

    async def _ended(self, done: asyncio.Future[Any]) -> None:
        while not (await asyncio.wait([done], timeout=LOOK_SECONDS))[0]:
            if self._silence is not None:
                self._silence.look()

    async def close(self) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._engine.dispose)
        self._thread.shutdown()


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return which file is there. An empty one is none: somebody has made it so, as SQLite's have a header."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return (stat.st_dev, stat.st_ino) if stat.st_size else None


def _delete_empty(path: Path) -> None:
    """Delete a file that was made empty: closing it, SQLite would put into it what is in its log, which is not all."""
    try:
        if os.stat(path).st_size == 0:
            path.unlink()
    except OSError:
        return


def _engine(url: URL, options: SqlOptions, *, durable: bool, writes: bool) -> Engine:
    if url.get_dialect().name == "postgresql":
        return _postgresql(url, options, durable=durable)
    # One thread uses it, though not the one that closes it when the service ends early.
    arguments = {"timeout": float(options.lock_timeout), "isolation_level": None, "check_same_thread": False}
    # Who reads keeps no connection: it would be one to a file that somebody may have put another in the place of.
    pool: Any = {"pool_size": 1, "max_overflow": 0} if writes else {"poolclass": NullPool}
    engine = create_engine(url, connect_args=arguments, pool_reset_on_return=None, **pool)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        if writes:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            if options.max_size is not None:
                (page_size,) = cursor.execute("PRAGMA page_size").fetchone()
                cursor.execute(f"PRAGMA max_page_count={max(1, options.max_size // page_size)}")
        else:
            cursor.execute("PRAGMA query_only=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that writes says so at once: one that finds out later cannot wait for the lock.
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql(url: URL, options: SqlOptions, *, durable: bool) -> Engine:
    settings = {
        "lock_timeout": round(options.lock_timeout * 1000),
        "statement_timeout": round(options.statement_timeout * 1000),
        "idle_in_transaction_session_timeout": round(options.statement_timeout * 1000),
        **({"synchronous_commit": "on"} if durable else {}),
    }
    own = url.query.get("options", ())  # such as -csearch_path=tracking
    arguments = {
        "connect_timeout": max(2, round(options.connect_timeout)),  # libpq takes whole seconds, and 2 for 1
        "options": " ".join(
            [*((own,) if isinstance(own, str) else own), *(f"-c {name}={value}" for name, value in settings.items())]
        ),
        "tcp_user_timeout": round(options.statement_timeout * 1000),
        "client_encoding": "utf8",  # the driver makes bytes of every text where it is SQL_ASCII, as the server's can be
        "application_name": url.query.get("application_name", "orchestrator tracking"),
    }
    # A connection that was ended while nobody used it, as by a restart of the server, is no failure of the store.
    return create_engine(url, connect_args=arguments, pool_size=1, max_overflow=0, pool_pre_ping=True)


def _translated(error: Exception, path: Path | None) -> Exception:
    """Return the error as the core knows it: a failure of the database, or one of the values."""
    if not isinstance(error, SQLAlchemyError | sqlite3.Error):
        return error
    text = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
    if isinstance(error, DataError | IntegrityError | sqlite3.DataError | sqlite3.IntegrityError):
        return SourceError(text)
    if path is not None and text == "unable to open database file":  # all that SQLite says
        text = f"{text} {path}" if path.parent.is_dir() else f"there is no folder {path.parent}"
    elif path is not None and text == "attempt to write a readonly database":  # said to who only reads, too
        text = f"{text}: {path}, beside which SQLite writes files of its own, even to read it"
    elif path is not None and text in _NOT_A_DATABASE:
        text = f"{text}: {path}"
    return SourceUnavailable(text)
