"""Queries on pooled connections to a database server, the same for PostgreSQL and MySQL."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from orchestrator_core.plugin_api import Finding, OperationFacts, OrchestratorError, SourceError
from orchestrator_source_database.findings import facts_of, repeated_column
from orchestrator_source_database.many import CutShort, Different, Rewrite
from orchestrator_source_database.pool import Lent, Pool
from orchestrator_source_database.query import Binding, Query
from orchestrator_source_database.values import Finish, Shape, executed, finisher

__all__ = ["Connection", "Server", "Statement"]


class Statement(Protocol):
    """A statement prepared on one connection."""

    shape: Shape | None
    """How the rows look, known once the statement has run; None when it returns none."""

    def adapt(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Return the driver's arguments. Raise :class:`InvalidParam`."""
        ...

    def run(self, values: Sequence[Any]) -> Awaitable[Sequence[Any]]:
        """Return the awaitable of the rows. Raise :class:`InvalidParam` before anything is sent."""
        ...

    async def execute(self, values: Sequence[Any]) -> tuple[int, Sequence[Any] | None]:
        """Return the count of rows changed or read and the rows, where the statement returns any."""
        ...


class ManyStatement(Protocol):
    """A statement that reads for several items, prepared on one connection."""

    @property
    def shape(self) -> Shape | None: ...

    async def run(self, items: Sequence[Sequence[Any]]) -> Sequence[Sequence[Any]]:
        """Take each item's arguments and return each item's rows.

        Raise :class:`Different` when they are not of the kind that the statement for one item returns, and
        :class:`CutShort` when rows may be missing.
        """
        ...


class Connection(Lent, Protocol):
    """A driver's connection with the statements prepared on it."""

    statements: dict[Binding | tuple[Binding, int], Any]

    async def prepare(self, binding: Binding) -> Statement: ...

    def size_for(self, left: int) -> int:
        """Return how many items the next statement should be for, of so many that are left."""
        ...

    async def many(self, binding: Binding, size: int, given: Sequence[Any]) -> ManyStatement:
        """Return the statement for as many items. That for one is prepared already; ``given`` are values for it.

        Raise :class:`Different` when there is none that would answer as that does.
        """
        ...

    async def begin(self) -> None: ...

    async def commit(self) -> None: ...

    async def ping(self) -> None: ...

    async def columns(self, query: Query) -> tuple[str, ...] | None:
        """Have the server check the statement without running it; return its columns where it tells them."""
        ...

    async def finding(self, query: Query, error: Exception) -> Finding:
        """Say what the server found wrong with the statement; raise the error when it is about something else."""
        ...

    def cut_off(self, error: Exception) -> bool:
        """Tell whether the error means that the connection is gone."""
        ...

    def outdated(self, error: Exception) -> bool:
        """Tell whether the error means that the statement must be prepared anew. Nothing has run then."""
        ...

    def transient(self, error: Exception) -> bool:
        """Tell whether the statement failed for a reason that may pass and is not in its values, such as a lock."""
        ...

    def translate(self, error: Exception, binding: Binding) -> OrchestratorError:
        """Return the error of the request, without the values that drivers quote."""
        ...


async def _results(
    connection: Connection, binding: Binding, items: Sequence[Sequence[Any]], finish: Finish
) -> Sequence[Any]:
    """Read as many items at a time as the connection takes, and make each one's result, or the error that it has."""
    statement = connection.statements.get(binding) or await connection.prepare(binding)
    results: list[Any] = [None] * len(items)
    asked: list[tuple[int, Sequence[Any]]] = []
    for position, values in enumerate(items):
        try:
            asked.append((position, statement.adapt(values)))
        except OrchestratorError as error:
            results[position] = error
    start = 0
    while start < len(asked):
        size = connection.size_for(len(asked) - start)
        part = asked[start : start + size]
        ran: Statement | ManyStatement = statement
        if size == 1:
            found: Sequence[Sequence[Any]] = [await statement.run(items[part[0][0]])]
        else:
            ran = many = await connection.many(binding, size, items[part[0][0]])
            found = await many.run([arguments for _, arguments in part])
        shape = ran.shape
        if shape is None:
            raise SourceError(f"{binding.query.operation}: the statement returns no rows")
        for (position, _), rows in zip(part, found, strict=True):
            try:
                results[position] = finish(shape, rows, items[position])
            except OrchestratorError as error:
                results[position] = error
        start += size
    return results


class Server:
    """The operations of a source on a database server."""

    def __init__(self, pool: Pool[Connection], can_be_many: Rewrite, at_once: int) -> None:
        self._pool = pool
        self._can_be_many = can_be_many
        self._at_once = at_once

    def call(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        if binding.query.result == "execute" or binding.query.writes:
            return self._write(binding)
        return self._read(binding)

    def _read(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        """A read runs on its own, outside of any transaction, and once more when it met a dead connection.

        That is one that was at rest: whether a call that a new connection broke off is made again, the policy says.
        """
        pool, free, finish = self._pool, self._pool.free, finisher(binding)

        async def read(*values: Any) -> Any:
            for last in (False, True):
                rested = bool(free)
                connection = free.pop() if rested else await pool.acquire()
                try:
                    statement = connection.statements.get(binding) or await connection.prepare(binding)
                    rows = await statement.run(values)
                except OrchestratorError:
                    pool.release(connection)
                    raise
                except Exception as error:
                    lost = connection.cut_off(error) and not rested
                    again = self._put_back(connection, error)
                    if last or lost or not again:
                        # Not chained: the drivers' messages quote parameters and rows.
                        raise connection.translate(error, binding) from None
                except BaseException as error:
                    pool.mend(connection, error)
                    raise
                else:
                    pool.release(connection)
                    shape = statement.shape
                    if shape is None:
                        raise SourceError(f"{binding.query.operation}: the statement returns no rows")
                    return finish(shape, rows, values)
            raise AssertionError

        return read

    def many(self, binding: Binding) -> Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]] | None:
        """Return the read for many items, if it can be one statement that answers as one for each item would."""
        if not self._can_be_many(binding.query):
            return None
        pool, free, finish, read_one = self._pool, self._pool.free, finisher(binding), self._read(binding)
        possible = True

        async def read(items: Sequence[Sequence[Any]]) -> Sequence[Any]:
            nonlocal possible
            for last in (False, True):
                if not possible:
                    break
                rested = bool(free)
                connection = free.pop() if rested else await pool.acquire()
                try:
                    results = await _results(connection, binding, items, finish)
                except Different:
                    possible = False
                    pool.release(connection)
                except CutShort:
                    pool.release(connection)
                    break
                except OrchestratorError:
                    pool.release(connection)
                    raise
                except Exception as error:
                    lost = connection.cut_off(error) and not rested
                    again = self._put_back(connection, error)
                    if not again and not connection.transient(error):
                        break  # one item's values are enough to fail the statement: see which
                    if last or lost or not again:
                        raise connection.translate(error, binding) from None
                except BaseException as error:
                    pool.mend(connection, error)
                    raise
                else:
                    pool.release(connection)
                    return results
            return await self._one_by_one(read_one, items)

        return read

    async def _one_by_one(self, read: Callable[..., Awaitable[Any]], items: Sequence[Sequence[Any]]) -> Sequence[Any]:
        """Read each item by itself, as many at once as there are connections."""
        results: list[Any] = [None] * len(items)
        todo = deque(enumerate(items))

        async def work() -> None:
            while todo:
                position, values = todo.popleft()
                try:
                    results[position] = await read(*values)
                except OrchestratorError as error:
                    results[position] = error

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(self._at_once, len(items))):
                workers.create_task(work())
        return results

    def _write(self, binding: Binding) -> Callable[..., Awaitable[Any]]:
        """A write is one statement, so it is a transaction of its own. One that returns rows is committed only
        when all of them could be read."""
        query, pool, finish = binding.query, self._pool, finisher(binding)

        async def run(connection: Connection, values: Sequence[Any]) -> Any:
            statement = connection.statements.get(binding) or await connection.prepare(binding)
            if query.returns:
                await connection.begin()
            if query.result == "execute":
                count, rows = await statement.execute(values)
                result: Any = executed(query, statement.shape, count, rows)
            else:
                found = await statement.run(values)
                if statement.shape is None:
                    raise SourceError(f"{query.operation}: the statement returns no rows; use result: execute")
                result = finish(statement.shape, found, values)
            if query.returns:
                await connection.commit()
            return result

        async def write(*values: Any) -> Any:
            for last in (False, True):
                connection = await pool.acquire()
                try:
                    result = await run(connection, values)
                except OrchestratorError:
                    pool.mend(connection)
                    raise
                except Exception as error:
                    outdated = connection.outdated(error)
                    if outdated:
                        connection.statements.clear()
                    pool.mend(connection)
                    if last or not outdated:
                        raise connection.translate(error, binding) from None  # as in read
                except BaseException as error:
                    pool.mend(connection, error)
                    raise
                else:
                    pool.release(connection)
                    return result
            raise AssertionError

        return write

    def _put_back(self, connection: Connection, error: Exception) -> bool:
        """Give the connection back after a failed read, and tell whether the read is worth a second try."""
        if connection.cut_off(error):
            self._pool.discard(connection)
            self._pool.discard_free()
            return True
        outdated = connection.outdated(error)
        if outdated:
            connection.statements.clear()
        self._pool.mend(connection)
        return outdated

    async def check_ready(self) -> None:
        self._pool.refuse_if_busy()
        for last in (False, True):
            connection = await self._pool.acquire()
            try:
                await connection.ping()
            except Exception as error:
                again = self._put_back(connection, error)
                if last or not again:
                    raise SourceError("the database does not answer", transient=True) from None
            except BaseException:
                self._pool.mend(connection)
                raise
            else:
                self._pool.release(connection)
                return

    async def look_at(self, query: Query) -> OperationFacts | Finding:
        """Let the server check the query; return the facts of a good one, or what is wrong with it."""
        connection = await self._pool.acquire()
        try:
            try:
                columns = await connection.columns(query)
            except OrchestratorError:
                raise
            except Exception as error:
                return await connection.finding(query, error)
            return repeated_column(query, columns or ()) or facts_of(query, columns)
        finally:
            self._pool.mend(connection)
