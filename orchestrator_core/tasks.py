"""Tasks and how they end: a request's concurrent branches, what runs beside a block, what has to be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from orchestrator_core.errors import SourceError

T = TypeVar("T")


def exit_asked_for(error: SystemExit) -> str:
    """Return what to say of a plugin or a model that calls ``sys.exit``.

    It must not leave a task: the event loop would end with it, and so would the service.
    """
    return f"it calls sys.exit({error.code!r}), which would end the service"


def ends_task(error: BaseException) -> bool:
    """Return whether what was raised is somebody's wish to end the current task, and no failure of what it called.

    A source can raise a cancellation that nobody asked for, and what is no ``Exception``, such as the panic of a
    library that is written in Rust: see :func:`fault_of`.
    """
    if isinstance(error, asyncio.CancelledError):
        return type(error) is not asyncio.CancelledError or is_told_to_end()
    return isinstance(error, GeneratorExit | KeyboardInterrupt)


def fault_of(error: BaseException) -> Exception:
    """Return an error as it is, and the failure of the source or model in place of what is no ``Exception``."""
    if isinstance(error, Exception):
        return error
    if isinstance(error, asyncio.CancelledError):
        failure = SourceError("the source broke its own call off", transient=True)
    elif isinstance(error, SystemExit):
        failure = SourceError(f"the source is at fault: {exit_asked_for(error)}")
    else:
        failure = SourceError(f"the source is at fault: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


class Branches:
    """The tasks of a plan's concurrent branches: a lean ``asyncio.TaskGroup``.

    The first branch that fails cancels the main line, which then cancels the others and waits for them to end.
    """

    __slots__ = ("_ending", "_error", "_parent", "_tasks", "_told")

    def __init__(self) -> None:
        self._parent = asyncio.current_task()
        self._tasks: list[asyncio.Task[None]] = []
        self._error: BaseException | None = None
        self._told = False
        self._ending = False

    def start(self, branch: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(branch)
        self._tasks.append(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        if self._ending or task.cancelled():
            return
        error = task.exception()
        if error is not None and self._error is None:
            self._error = error
            # The main line is suspended while a callback runs, so it does get this cancellation.
            if self._parent is not None:
                self._told = True
                self._parent.cancel()

    async def end(self, error: BaseException) -> BaseException:
        """End every branch after the main line failed, and return what to raise: the first failure there was."""
        self._ending = True
        pending = [task for task in self._tasks if not task.done()]
        for task in pending:
            task.cancel()
        while pending:
            # Wait on even when cancelled once more: no branch may outlive its request.
            try:
                await asyncio.wait(pending)
            except asyncio.CancelledError as again:
                error = again
            pending = [task for task in pending if not task.done()]
        for task in self._tasks:
            if not task.cancelled():
                task.exception()  # seen: asyncio must not report it as never retrieved
        if self._told and self._parent is not None and self._parent.uncancel() == 0 and self._error is not None:
            return self._error
        return error


@asynccontextmanager
async def beside(doing: Coroutine[Any, Any, Any], name: str) -> AsyncIterator[None]:
    """Run something until the block is left, and cancel it then. What failed it before is raised there."""
    task = asyncio.create_task(doing, name=name)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def is_told_to_end() -> bool:
    """Return whether somebody cancelled the current task.

    A ``CancelledError`` also comes from what it waits for, such as a connection that others have given up.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def to_its_end(future: asyncio.Future[T]) -> T:
    """Wait for the future's end, though the caller is cancelled meanwhile; that is raised then, and not at once.

    For what has to be closed: were it left half-way, nobody would close the rest.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return future.result()
    if not future.cancelled():
        future.exception()  # seen
    raise cancelled


__all__ = [
    "Branches",
    "beside",
    "ends_task",
    "exit_asked_for",
    "fault_of",
    "is_told_to_end",
    "to_its_end",
]
