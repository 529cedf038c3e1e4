"""Live sources, each opened and closed in one task of its own, and shared by the snapshots that need it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

import attrs
import structlog
from attrs import define, field, frozen

from orchestrator_core.catalog import SourceKey, SourceSpec, facts_told, findings_told
from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import Document
from orchestrator_core.errors import ConfigError, OrchestratorError, Problem, SourceError, SourceUnavailable
from orchestrator_core.http_client import HttpClient
from orchestrator_core.models import ML, MlSource, Opening, open_models
from orchestrator_core.plugin_api import Inspection, Inspects, Model, OpenContext, ReadyCheck, Source
from orchestrator_core.plugins import Registry
from orchestrator_core.snapshot.drafting import Draft
from orchestrator_core.snapshot.problems import opening_problems
from orchestrator_core.tasks import exit_asked_for, to_its_end

log = structlog.get_logger("orchestrator")

READY_SECONDS = 5.0
OPEN_SECONDS = 600.0
"""How long a source may take to open: long for one that opens, short for one that hangs. A model has its own limit."""

CLOSE_SECONDS = 8.0
"""How long a source may take to close: a reload waits for it, ``check``, or the end of the service, which has 10 s."""

INSPECT_SECONDS = 30.0
"""How long a source may take for what is asked of it once, at load; a table can be locked for as long as one likes."""

Opener = Callable[[Any, OpenContext], AbstractAsyncContextManager[Source]]


@frozen
class Standing:
    """What a source says of itself: ``open`` if it does not tell. ``error`` is why it is busy or cannot be reached."""

    state: Literal["open", "ready", "busy", "unreachable"]
    error: str = ""


@define(eq=False)
class OpenSource:
    """A live source, shared by the snapshots that need it. It is opened and closed in one task of its own."""

    spec: SourceSpec
    source: Source
    inspection: Inspection
    unreachable: str = ""
    users: int = 0
    _closing: asyncio.Event = field(factory=asyncio.Event, alias="closing")
    _task: asyncio.Task[None] | None = field(default=None, alias="task")

    async def standing(self) -> Standing:
        """Ask the source whether it can be reached now."""
        if not isinstance(self.source, ReadyCheck):
            return Standing("open")
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self.source.check_ready()
        except OrchestratorError as error:
            busy = isinstance(error, SourceUnavailable) and error.busy
            return Standing("busy" if busy else "unreachable", str(error))
        except TimeoutError:
            return Standing("unreachable", f"no answer within {READY_SECONDS:g} s")
        except (Exception, SystemExit) as error:  # a source of whoever wrote it: the others are to be told of
            return Standing("unreachable", f"{type(error).__name__}: {error}")
        return Standing("ready")

    async def release(self) -> None:
        """Give the source up; the last user closes it and waits until it is closed, or hangs."""
        self.users -= 1
        if self.users <= 0 and self._task is not None:
            self._closing.set()
            await _closed(self._task, self.spec)
            self._task = None


async def _closed(task: asyncio.Task[None], spec: SourceSpec) -> None:
    """Wait until a source is closed. One that hangs is broken off, and then left to itself."""
    patience = None if spec.kind is ML else CLOSE_SECONDS  # models have limits of their own
    done, _ = await asyncio.wait([task], timeout=patience)
    if not done:
        log.error("a source does not close: it is broken off", source=spec.label, seconds=CLOSE_SECONDS)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=1.0)
    if done and not task.cancelled() and (error := task.exception()):
        log.error("a source failed when it was closed", source=spec.label, exc_info=error)


async def open_sources(
    prepared: Draft, http: HttpClient, previous: Mapping[SourceKey, OpenSource], opening: Opening
) -> tuple[dict[SourceKey, OpenSource], list[Problem]]:
    """Open the sources, side by side; those of before that are the same are taken over.

    What cannot be opened is among the problems. Whatever it raises, nothing that it opened stays open.
    """
    opened: dict[SourceKey, OpenSource] = {}
    problems: list[Problem] = []
    fresh: list[tuple[SourceSpec, Opener]] = []
    for key, spec in prepared.catalog.specs.items():
        before = previous.get(key)
        if spec.kind is ML:
            fresh.append((spec, _models_of(spec, prepared, opening, before.source if before else None)))
        elif before and before.spec == spec and not before.unreachable:
            before.users += 1
            opened[key] = before
        else:
            fresh.append((spec, spec.kind.open))
    tasks = [asyncio.create_task(_open_source(spec, opener, prepared, http)) for spec, opener in fresh]
    try:
        for (spec, _), result in zip(fresh, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
            if isinstance(result, OpenSource):
                opened[spec.key] = result
            elif isinstance(result, Exception):
                problems += opening_problems(spec, result)
            else:
                raise result
    except BaseException:
        await to_its_end(asyncio.ensure_future(_give_up(tasks, opened.values())))
        raise
    return opened, problems


async def release(sources: Iterable[OpenSource]) -> None:
    """Give sources up, to the end though the caller is cancelled meanwhile."""
    await to_its_end(asyncio.gather(*(source.release() for source in sources)))


async def _give_up(tasks: Sequence[asyncio.Task[OpenSource]], opened: Iterable[OpenSource]) -> None:
    for task in tasks:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    leftover = {id(source): source for source in [*opened, *done] if isinstance(source, OpenSource)}
    await release(leftover.values())


def _models_of(spec: SourceSpec, prepared: Draft, opening: Opening, before: Source | None) -> Opener:
    """Return what opens a source of models, each of which is taken over from the source before if it is the same."""
    if opening.used_only:
        steps = [step for plan in prepared.plans.values() for step in plan.steps]
        opening = attrs.evolve(opening, only={step.operation for step in steps if step.spec.key == spec.key})

    def opener(options: Any, context: OpenContext) -> AbstractAsyncContextManager[Source]:
        return open_models(options, context, opening, before if isinstance(before, MlSource) else None)

    return opener


async def _open_source(spec: SourceSpec, opener: Opener, prepared: Draft, http: HttpClient) -> OpenSource:
    """Start the task that holds a source open, and wait until it is."""
    context = _context(spec, prepared, http)
    ready: asyncio.Future[Source] = asyncio.get_running_loop().create_future()
    closing = asyncio.Event()
    held = _hold_open(opener(spec.options, context), ready, closing)
    task = asyncio.create_task(held, name=f"source {spec.label}")
    try:
        async with asyncio.timeout(None if spec.kind is ML else OPEN_SECONDS):
            source = await asyncio.shield(ready)
    except (asyncio.CancelledError, TimeoutError) as error:
        if isinstance(error, TimeoutError) and ready.done():
            raise  # it is the source's own
        task.cancel()
        await asyncio.wait([task])
        if isinstance(error, TimeoutError):
            raise SourceUnavailable(f"it did not open within {OPEN_SECONDS:g} s") from None
        raise
    opened = OpenSource(spec, source, Inspection(), users=1, closing=closing, task=task)
    try:
        if not callable(getattr(source, "fetch", None)):
            raise TypeError(f"what was opened has no fetch: it is a {type(source).__name__}")
        if isinstance(source, Inspects):
            async with asyncio.timeout(INSPECT_SECONDS):
                inspection = await source.inspect()
            if not isinstance(inspection, Inspection):
                raise TypeError(f"inspect returned {type(inspection).__name__}, expected Inspection")
            facts_told(inspection.facts, "inspect")
            findings_told(inspection.findings, "inspect")
            opened.inspection = inspection
    except TimeoutError:
        opened.unreachable = f"no answer within {INSPECT_SECONDS:g} s"
    except (SourceUnavailable, SourceError) as error:
        opened.unreachable = str(error)
    except SystemExit as error:
        await opened.release()
        raise SourceError(exit_asked_for(error)) from error
    except BaseException:
        await opened.release()
        raise
    return opened


async def _hold_open(
    opening: AbstractAsyncContextManager[Source], ready: asyncio.Future[Source], closing: asyncio.Event
) -> None:
    try:
        async with opening as source:
            if not ready.done():
                ready.set_result(source)
            await closing.wait()
    except SystemExit as error:
        refused = SourceError(exit_asked_for(error))
        if ready.done():
            raise refused from error
        ready.set_exception(refused)
    except Exception as error:
        if ready.done():
            raise
        ready.set_exception(error)


def _context(spec: SourceSpec, prepared: Draft, http: HttpClient) -> OpenContext:
    folder = prepared.configuration.folder.resolve()
    registry = prepared.registry  # the context lives as long as the source, which outlives the draft

    def open_model(kind: str, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Model]:
        return _open_model(kind, options, registry, context)

    context = OpenContext(spec.label, folder, http, spec.operations, open_model=open_model)
    return context


@asynccontextmanager
async def _open_model(
    kind: str, data: Mapping[str, Any], registry: Registry, context: OpenContext
) -> AsyncIterator[Model]:
    provided = registry.models.get(kind)
    if provided is None:
        code, message, hint = registry.missing("model type", kind, registry.models)
        raise ConfigError([Problem(code=code, message=message, hint=hint)])
    options, problems = structure(provided.kind.options, Located(Document(context.name, ""), (), dict(data)))
    if options is None:
        raise ConfigError(problems)
    async with provided.kind.open(options, context.named(context.name)) as model:
        yield model


__all__ = ["OpenSource", "open_sources", "release"]
