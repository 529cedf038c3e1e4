"""A store in memory that fails when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Any

from attrs import define, field, frozen

from orchestrator_core.plugin_api import (
    Execution,
    Generation,
    Page,
    Query,
    SourceUnavailable,
    StorableRun,
    StoreContext,
    StoreKind,
    hookimpl,
    option,
)


@frozen
class ScriptedOptions:
    """What a test may say in YAML."""

    size: int = option(1, help="How large.")


@define(eq=False)
class ScriptedStore:
    """``failure`` is raised by every call, ``add_failure`` by those that add executions, ``generation_failure`` by
    those that add a generation, ``prune_failure`` by those that delete.

    ``refused`` are endpoints of executions that can never be stored.
    ``room`` is how many executions it can hold.
    """

    kept: dict[str, Execution] = field(factory=dict)
    batches: list[int] = field(factory=list)
    generations: list[Generation] = field(factory=list)
    pruned: list[tuple[float | None, int | None]] = field(factory=list)
    failure: Exception | None = None
    add_failure: Exception | None = None
    generation_failure: Exception | None = None
    prune_failure: Exception | None = None
    open_failure: Exception | None = None
    close_failure: Exception | None = None
    refused: str = ""
    room: float = inf
    options: ScriptedOptions | None = None
    context: StoreContext | None = None
    closed: bool = False
    attempts: int = 0
    going_on: asyncio.Event = field(factory=asyncio.Event)

    def __attrs_post_init__(self) -> None:
        self.going_on.set()

    async def add(self, executions: Sequence[Execution]) -> None:
        self.attempts += 1
        await self.going_on.wait()
        if failure := self.failure or self.add_failure:
            raise failure
        if any(execution.endpoint == self.refused for execution in executions):
            raise TypeError("it cannot be stored")
        if len(self.kept) + len(executions) > self.room:
            raise SourceUnavailable("it is full")
        self.batches.append(len(executions))
        for execution in executions:
            self.kept.setdefault(execution.id, execution)

    async def find(self, query: Query) -> Page:
        if self.failure is not None:
            raise self.failure
        kept = sorted(self.kept, reverse=True)
        rest = [self.kept[id_] for id_ in kept if query.cursor is None or id_ < query.cursor]
        page = rest[: query.limit]
        return Page(tuple(page), page[-1].id if len(rest) > query.limit else None)

    async def get(self, execution_id: str) -> Execution | None:
        if self.failure is not None:
            raise self.failure
        return self.kept.get(execution_id)

    async def prune(self, before: float | None, keep: int | None) -> int:
        self.pruned.append((before, keep))
        if failure := self.failure or self.prune_failure:
            raise failure
        return 0

    async def add_generation(self, generation: Generation) -> None:
        if self.generation_failure is not None:
            raise self.generation_failure
        self.generations.append(generation)

    async def get_generation(self, generation_id: str) -> Generation | None:
        if self.failure is not None:
            raise self.failure
        return next((each for each in self.generations if each.id == generation_id), None)

    # --- the plugin ---------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def open(self, options: ScriptedOptions, context: StoreContext) -> AsyncIterator[ScriptedStore]:
        if self.open_failure is not None:
            raise self.open_failure
        self.options, self.context = options, context
        yield self
        self.closed = True
        if self.close_failure is not None:
            raise self.close_failure

    @hookimpl
    def orchestrator_execution_stores(self) -> Iterable[StoreKind[Any]]:
        return [StoreKind("scripted", "Does as it is told.", ScriptedOptions, self.open)]


@define(eq=False)
class StoreOfRuns(ScriptedStore):
    """The same, which is given the runs themselves."""

    runs: int = 0
    seen: Callable[[Sequence[StorableRun]], None] = lambda runs: None

    async def add_runs(self, runs: Sequence[StorableRun]) -> None:
        self.runs += len(runs)
        self.seen(runs)
        await self.add([run.record() for run in runs])


def down() -> SourceUnavailable:
    return SourceUnavailable("it is down")
