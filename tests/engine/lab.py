"""A source whose steps do what a test tells them, and plans that are compiled and run without HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from attrs import define, evolve, field, frozen

from orchestrator_core.config.load import load_configuration
from orchestrator_core.engine import execute
from orchestrator_core.errors import ConfigError
from orchestrator_core.expressions import MISSING
from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import SourceKind, StepRecord, TransformerKind, hookimpl
from orchestrator_core.plugins import Registry, discover
from orchestrator_core.reload import BUILTINS
from orchestrator_core.run import Request, Run, clock
from orchestrator_core.snapshot import ReadyPlan, draft, open_snapshot
from orchestrator_core.turns import NO_TURNS, Turns

OFF = {"circuit_breaker": False, "retry": False}

Behaviour = Callable[[Mapping[str, Any]], Any]


@frozen
class LabOptions:
    """Nothing to configure."""


@define
class Lab:
    """``behaviours`` are coroutine functions by operation; an operation without one returns its params."""

    behaviours: dict[str, Behaviour] = field(factory=dict)
    events: list[tuple[str, str]] = field(factory=list)
    running: set[str] = field(factory=set)

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        self.events.append(("start", operation))
        self.running.add(operation)
        try:
            behaviour = self.behaviours.get(operation)
            return await behaviour(params) if behaviour else dict(params)
        finally:
            self.running.discard(operation)
            self.events.append(("end", operation))

    async def started(self, operations: Iterable[str]) -> None:
        """Wait until just these operations are under way."""
        while self.running != set(operations):  # noqa: ASYNC110  # the turns of the loop are what is waited for
            await asyncio.sleep(0)

    @asynccontextmanager
    async def open(self, options: LabOptions, context: Any) -> AsyncIterator[Lab]:
        yield self

    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        return [SourceKind("lab", "Does what a test tells it.", LabOptions, self.open)]

    @hookimpl
    def orchestrator_transformers(self) -> Iterable[TransformerKind[Any]]:
        def build(options: dict[str, str]) -> Callable[[Any], Any]:
            return lambda value: {options.get(key, key): item for key, item in value.items()}

        return [
            TransformerKind("lab_rename", "Renames fields.", dict[str, str], build),
            TransformerKind("lab_wrap", "Puts the value into a list.", LabOptions, lambda _: lambda value: [value]),
        ]


@cache
def _discovered() -> Registry:
    """Discovering takes several times what a plan takes; the lab of the moment is put in its place."""
    return discover(None, BUILTINS, {"lab": Lab()})


def _registry_with(lab: Lab) -> Registry:
    registry = _discovered()
    (kind,) = lab.orchestrator_source_kinds()
    return evolve(registry, sources={**registry.sources, "lab": evolve(registry.sources["lab"], kind=kind)})


def step(name: str, *, type: str = "lab", **more: Any) -> dict[str, Any]:  # the key's own name
    """Return a step that calls the operation of its own name."""
    return {"name": name, "type": type, "operation": name, **more}


@asynccontextmanager
async def planned(
    lab: Lab, *steps: Mapping[str, Any], policies: Mapping[str, Any] | None = None, **endpoint: Any
) -> AsyncIterator[ReadyPlan]:
    """Compile an endpoint, as it would stand in ``domains/d.yaml`` as ``e``, and bind it to the lab.

    There are no policies around the calls unless ``policies`` says so as ``config.yaml`` would.
    """
    registry = _registry_with(lab)
    document = {"endpoints": {"e": {"data_sources": list(steps), **endpoint}}}
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "domains").mkdir()
        (folder / "config.yaml").write_text(json.dumps({"policies": policies or OFF}))
        (folder / "domains/d.yaml").write_text(json.dumps(document))  # YAML 1.2 takes JSON as it is
        prepared = draft(load_configuration(folder), registry)
        if prepared.errors:
            raise ConfigError(prepared.problems)
        async with HttpClient() as http:
            snapshot = await open_snapshot(prepared, http)
            try:
                yield snapshot.plans["d", "e"]
            finally:
                await snapshot.close()


def request(body: Any = MISSING, **query: str) -> Request:
    return Request({}, query, {}, body)


@define
class Ran:
    """How a run ended: its answer or its error, and its steps by name."""

    result: Any
    error: BaseException | None
    run: Run

    @property
    def steps(self) -> dict[str, StepRecord]:
        return {record.name: record for record in self.run.record().steps}

    @property
    def statuses(self) -> dict[str, str]:
        return {name: record.status for name, record in self.steps.items()}


async def ran(ready: ReadyPlan, given: Request | None = None, turns: Turns = NO_TURNS) -> Ran:
    """Execute a plan once. No task may be left when it returns."""
    before = asyncio.all_tasks()
    run = Run(ready, "x", turns=turns)
    result, error = None, None
    try:
        result = await execute(ready, given or request(), run)
    except Exception as failed:  # what a test looks at
        error = failed
    run.ended = clock()
    run.http_status = 200 if error is None else 500
    left = asyncio.all_tasks() - before
    assert not left, left
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    return Ran(result, error, run)
