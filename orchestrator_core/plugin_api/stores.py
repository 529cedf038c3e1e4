"""Stores of executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Generic, Protocol, runtime_checkable

from attrs import field, frozen

from orchestrator_core.plugin_api.executions import Execution, StorableRun
from orchestrator_core.plugin_api.options import Options


@frozen
class Query:
    """Which executions to return: the newest first. ``since`` and ``until`` are Unix times in seconds.

    ``cursor`` is the one that :class:`Page` had for the page before: the id of its last execution.
    """

    domain: str | None = None
    endpoint: str | None = None
    status: str | None = None
    since: float | None = None
    until: float | None = None
    limit: int = 50
    cursor: str | None = None


@frozen
class Page:
    """Executions and the cursor of the next page, or None after the last."""

    executions: tuple[Execution, ...]
    cursor: str | None


@frozen
class Generation:
    """A configuration that has served: ``id`` is what :class:`Execution` calls its ``generation``.

    ``served_at`` is the Unix time in seconds at which it first did. ``files`` maps each file's name to the SHA-256 of
    its content, ``texts`` to the content itself where it is kept, with every known secret masked.
    """

    id: str
    served_at: float
    files: Mapping[str, str]
    texts: Mapping[str, str] = field(factory=dict, repr=False)


class ExecutionStore(Protocol):
    """Keeps executions. The core calls ``add`` one at a time, the others at any time.

    Raise :class:`SourceUnavailable` while the store takes or gives nothing, such as a database that is locked, full or
    gone: the core tries again. Any other exception of ``add`` says that some execution cannot be stored as it is; one
    of the others that it fails, and is logged. Each method returns within a few seconds, whatever the database does;
    what a cancelled ``add`` began must have ended when it raises, so that what was written can be counted.
    """

    async def add(self, executions: Sequence[Execution]) -> None:
        """Store all of them or none. One whose id is there already is left as it is: a retry stores nothing twice."""
        ...

    async def find(self, query: Query) -> Page:
        """Return the executions that the filters fit, by descending id and without ``captured``.

        Ids sort by the time at which they were given, so pages stay as they are while executions are added.
        """
        ...

    async def get(self, execution_id: str) -> Execution | None: ...

    async def prune(self, before: float | None, keep: int | None) -> int:
        """Delete some of the oldest executions, and return how many: the core asks again until it is 0.

        Those that started before the Unix time ``before`` go, and those beyond the ``keep`` newest. A call deletes so
        few that it holds nothing up.
        """
        ...

    async def add_generation(self, generation: Generation) -> None:
        """Keep a configuration that serves now, unless it is there already.

        The core calls this about once a minute while it serves, and when another one has taken its place: one that
        nobody told of for longer has answered no execution since, and may go with the last one of those before.
        """
        ...

    async def get_generation(self, generation_id: str) -> Generation | None: ...


@runtime_checkable
class AddsRuns(Protocol):
    """An :class:`ExecutionStore` that takes the runs themselves, and so spares the event loop the records.

    The core calls ``add_runs`` in place of ``add``; the same holds for it. The runs are for the event loop's thread.
    """

    async def add_runs(self, runs: Sequence[StorableRun]) -> None: ...


class StoreNotMade(ValueError):
    """The store is not there yet, or has to be brought up to date: the service does either when it starts."""


@frozen
class StoreContext:
    """What a store's kind is given when it is opened.

    ``durable`` says that answers wait for ``add``: when it returns, the executions must survive a crash of the machine.
    ``existing`` says that somebody only asks: a store that is not there, or that would have to be brought up to date
    first, is a :class:`StoreNotMade` then, and nothing in it is changed.
    """

    config_dir: Path
    durable: bool = False
    existing: bool = False

    def path(self, path: str) -> Path:
        """Return the path, taken relative to the configuration folder unless it is absolute."""
        return (self.config_dir / path).resolve()


@frozen
class StoreKind(Generic[Options]):
    """A way to keep executions, as ``type:`` of ``tracking.store``; ``options`` is the attrs class of the rest.

    ``open`` raises :class:`SourceUnavailable` while the store cannot be reached, and is called again then. It raises
    ``ValueError`` for a store that can never be used as it is, such as one of a later version: the service does not
    start then. ``check`` raises ``ValueError``, or :class:`OptionError`, for what can be told without opening anything.
    """

    name: str
    summary: str
    options: type[Options]
    open: Callable[[Options, StoreContext], AbstractAsyncContextManager[ExecutionStore]]
    check: Callable[[Options, StoreContext], None] | None = None


__all__ = ["AddsRuns", "ExecutionStore", "Generation", "Page", "Query", "StoreContext", "StoreKind", "StoreNotMade"]
