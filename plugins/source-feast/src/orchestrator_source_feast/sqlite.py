"""Feast's SQLite store, read directly: on the event loop under guard, or on a thread.

A read that was quick on a thread runs on the loop from then on. There it never waits for a lock and is stopped after a
millisecond; a thread then runs it from the start, and the next ones until one is quick again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from math import inf
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import quote

from orchestrator_core.plugin_api import OrchestratorError, SourceError
from orchestrator_source_feast.lookup import View
from orchestrator_source_feast.many import in_turns
from orchestrator_source_feast.stores import Found, Read, ReadMany, age_limits, oldest
from orchestrator_source_feast.threads import Threads

__all__ = ["SqliteStore"]

T = TypeVar("T")
LOOP_SECONDS = 0.001
PROVEN_SECONDS = 0.0005
STEPS_BETWEEN_LOOKS = 1_000
BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
LOCK_SHARE = 0.8
"""Of the timeout, how long a lock is waited for: so that a lock is told from a store that does not answer at all."""
MOST_KEYS = 256  # in one statement
NOT_ON_THE_LOOP = (*BUSY, sqlite3.SQLITE_INTERRUPT)


class _Statement:
    """The read of one view."""

    def __init__(self, project: str, view: View, limit: float | None) -> None:
        table = f"{project}_{view.table}".replace('"', '""')
        columns = "feature_name, value" if limit is None else "feature_name, value, event_ts"
        self._names = tuple(feature.name for feature in view.features)
        self._limit = limit
        # A search by the table's key costs about twice what reading one more row of the entity does.
        if 2 * len(self._names) <= view.count:
            which = f" AND feature_name IN ({', '.join('?' * len(self._names))})"
        else:
            which, self._names = "", ()
        self._sql = f'SELECT {columns} FROM "{table}" WHERE entity_key = ?{which}'
        self._sql_many = f'SELECT entity_key, {columns} FROM "{table}" WHERE entity_key IN (%s){which}'

    def run(self, connection: sqlite3.Connection, key: bytes) -> Found:
        return self.found(connection.execute(self._sql, (key, *self._names)).fetchall())

    def run_many(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, list[tuple[Any, ...]]]:
        """Return the rows of each key that has any, for :meth:`found`."""
        rows: dict[bytes, list[tuple[Any, ...]]] = {}
        for start in range(0, len(keys), MOST_KEYS):
            part = list(keys[start : start + MOST_KEYS])
            part += part[-1:] * (_power_of_two(len(part)) - len(part))  # few lengths: the statements stay prepared
            statement = self._sql_many % ", ".join("?" * len(part))
            for key, *row in connection.execute(statement, (*part, *self._names)):
                rows.setdefault(key, []).append(tuple(row))
        return rows

    def found(self, rows: Sequence[tuple[Any, ...]]) -> Found:
        """Take apart the rows of one entity."""
        if self._limit is None:
            return dict(rows), False
        limit, found, expired = oldest(self._limit), {}, False
        last, fresh = None, True
        for name, value, stamp in rows:
            if stamp != last:
                last, fresh = stamp, _unix_time(stamp) >= limit
            if fresh:
                found[name] = value
            else:
                expired = True
        return found, expired


def _power_of_two(least: int) -> int:
    return 1 << max(0, least - 1).bit_length()


def _unix_time(stamp: Any) -> float:
    """Feast stores UTC as if it were local time, and reads it likewise."""
    if not isinstance(stamp, int):
        raise SourceError(f"the online store has the event timestamp {stamp!r}, where Feast writes whole seconds")
    return datetime.fromtimestamp(stamp).replace(tzinfo=UTC).timestamp()  # noqa: DTZ006  # local on purpose


class SqliteStore:
    """The tables of one project in a SQLite file."""

    def __init__(self, file: Path, name: str, project: str, threads: Threads, lock_seconds: float) -> None:
        self._file = file
        self._name = name
        self._project = project
        self._threads = threads
        self._lock_seconds = lock_seconds
        self._on_loop: sqlite3.Connection | None = None
        self._loop_until = inf
        self._free: list[sqlite3.Connection] = []
        self._generation = 0
        self._inode = self._stat()

    def bind(self, views: Sequence[View], max_age_seconds: float | None) -> Read:
        limits = age_limits(views, max_age_seconds)
        statements = [_Statement(self._project, view, limit) for view, limit in zip(views, limits, strict=True)]
        quick = False

        def on_thread(connection: sqlite3.Connection, keys: Sequence[bytes]) -> list[Found]:
            nonlocal quick
            started = perf_counter()
            found = [statement.run(connection, key) for statement, key in zip(statements, keys, strict=True)]
            quick = perf_counter() - started < PROVEN_SECONDS
            return found

        async def read(keys: Sequence[bytes]) -> list[Found]:
            nonlocal quick
            if quick:
                self._loop_until = until = perf_counter() + LOOP_SECONDS
                try:
                    connection = self._on_loop or self._connect_on_loop()
                    found = [statement.run(connection, key) for statement, key in zip(statements, keys)]  # noqa: B905
                except sqlite3.Error as error:
                    if getattr(error, "sqlite_errorcode", 0) & 0xFF not in NOT_ON_THE_LOOP:
                        raise self._translate(error) from None
                    quick = False
                else:
                    if perf_counter() > until:
                        quick = False
                    return found
            return await self._on_thread(partial(on_thread, keys=keys))

        return read

    def bind_many(self, views: Sequence[View], max_age_seconds: float | None) -> ReadMany:
        """Return what reads on a thread, whose statements give the loop its turns."""
        limits = age_limits(views, max_age_seconds)
        statements = [_Statement(self._project, view, limit) for view, limit in zip(views, limits, strict=True)]

        def job(connection: sqlite3.Connection, keys: Sequence[Sequence[bytes]]) -> list[dict[bytes, list[Any]]]:
            return [statement.run_many(connection, each) for statement, each in zip(statements, keys, strict=True)]

        async def read_many(entities: Sequence[Sequence[bytes]]) -> Sequence[Sequence[Found] | OrchestratorError]:
            if not entities:
                return []
            keys = [list(dict.fromkeys(column)) for column in zip(*entities, strict=True)]
            rows = await self._on_thread(partial(job, keys=keys))

            def found(entity: Sequence[bytes]) -> list[Found] | OrchestratorError:
                try:
                    return [
                        statement.found(of.get(key, ()))
                        for statement, of, key in zip(statements, rows, entity, strict=True)
                    ]
                except OrchestratorError as error:
                    return error

            return await in_turns(entities, found)

        return read_many

    async def check_ready(self) -> None:
        self._threads.refuse_if_busy()
        await self._on_thread(lambda connection: connection.execute("PRAGMA schema_version").fetchall())

    def refresh(self) -> None:
        """Drop the connections when the file was replaced by another one."""
        inode = self._stat()
        if inode != self._inode:
            self._inode = inode
            self._generation += 1
            self._drop()

    async def close(self) -> None:
        self._generation += 1
        self._drop()

    def _drop(self) -> None:
        if self._on_loop is not None:
            self._on_loop.close()
            self._on_loop = None
        while self._free:
            self._free.pop().close()

    def _stat(self) -> tuple[int, int]:
        try:
            stat = os.stat(self._file)
        except OSError:
            return 0, 0
        return stat.st_dev, stat.st_ino

    def _connect_on_loop(self) -> sqlite3.Connection:
        connection = self._on_loop = self._connect(0)
        connection.set_progress_handler(lambda: perf_counter() > self._loop_until, STEPS_BETWEEN_LOOKS)
        return connection

    def _connect(self, lock_seconds: float) -> sqlite3.Connection:
        uri = (
            f"file:{quote(str(self._file))}?mode=rw"  # not ro: a journal left by a crash is rolled back; never created
        )
        connection = sqlite3.connect(uri, uri=True, timeout=lock_seconds, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA query_only = 1")
        return connection

    async def _on_thread(self, job: Callable[[sqlite3.Connection], T]) -> T:
        generation = self._generation
        lent: list[sqlite3.Connection] = []
        lending = Lock()  # a connection that was put back may be another's already: it must not be interrupted

        def run() -> T:
            connection = self._free.pop() if self._free else self._connect(self._lock_seconds * LOCK_SHARE)
            lent.append(connection)
            try:
                return job(connection)
            finally:
                with lending:
                    lent.clear()
                if generation == self._generation:
                    self._free.append(connection)
                else:
                    connection.close()

        def give_up() -> None:
            with lending:
                for connection in lent:
                    connection.interrupt()

        try:
            return await self._threads.run(run, give_up=give_up)
        except sqlite3.Error as error:
            raise self._translate(error) from None

    def _translate(self, error: sqlite3.Error) -> OrchestratorError:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in BUSY:
            seconds = self._lock_seconds
            return SourceError(
                f"feast '{self._name}': the online store stayed locked for {seconds:g} s", transient=True
            )
        if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB):
            return SourceError(f"feast '{self._name}': cannot open the online store {self._file}: {error}")
        if str(error).startswith("no such table: "):
            return SourceError(f"feast '{self._name}': the online store has {error}; has `feast apply` been run?")
        return SourceError(f"feast '{self._name}': the online store failed: {error}")
