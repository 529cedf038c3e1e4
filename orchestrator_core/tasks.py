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


def is_panic(error: BaseException) -> bool:
    """Return whether a source or model raised what is no ``Exception`` and nobody's wish to end something.

    Such as the panic of a library that is written in Rust.
    """
    return not isinstance(error, Exception | asyncio.CancelledError | GeneratorExit | KeyboardInterrupt | SystemExit)


def fault_of_panic(error: BaseException) -> SourceError:
    """Return the failure of a source or model that has raised such a thing."""
    failure = SourceError(f"the source is at fault: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def fault_of_exit(error: SystemExit) -> SourceError:
    """Return the failure of a source or model that has called ``sys.exit`` in place of an answer."""
    failure = SourceError(f"the source is at fault: {exit_asked_for(error)}")
    failure.__cause__ = error
    return failure


def fault_of(error: Exception | SystemExit) -> Exception:
    """Return an error as it is, and in place of an exit the failure that it is."""
    return fault_of_exit(error) if isinstance(error, SystemExit) else error


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
    "exit_asked_for",
    "fault_of",
    "fault_of_exit",
    "fault_of_panic",
    "is_panic",
    "is_told_to_end",
    "to_its_end",
]
