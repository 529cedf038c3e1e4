"""One configuration generation, open: its plans and its live sources. Built whole, swapped whole, closed whole."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeVar

import attrs
from attrs import define, field, frozen

from orchestrator_core.answer_cache import Answers
from orchestrator_core.applied import defaults_of
from orchestrator_core.capture import Capture, make_capture, note
from orchestrator_core.catalog import Catalog, SourceKey, SourceSpec, build_catalog
from orchestrator_core.codegen import Coroutine, Generated, generate
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import Document
from orchestrator_core.each import AtOnce
from orchestrator_core.errors import ConfigError, OrchestratorError, Problem, SourceError, SourceUnavailable
from orchestrator_core.expressions import Literal, Node, ReferenceNode, references
from orchestrator_core.facts import check_facts, inspect_call
from orchestrator_core.guards import Memory, guard, guard_at_once, open_cache, remember
from orchestrator_core.http_client import HttpClient, current_trace
from orchestrator_core.models import ML, MlSource, Opening, Slot, Supervisor, Trouble, WarmUpFailed, open_models
from orchestrator_core.plan import ITEM_ROOTS, Compiled, Plan, PlannedStep, compile_plan
from orchestrator_core.plugin_api import (
    JSON,
    CallInspection,
    Inspection,
    Inspects,
    Model,
    OpenContext,
    Preparable,
    PreparesMany,
    Source,
)
from orchestrator_core.plugins import Registry
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.policies.policies import Capture as Noted
from orchestrator_core.policies.shared import MissingExtra
from orchestrator_core.stores import StoreSpec, find_store
from orchestrator_core.telemetry import ConfiguredTelemetry, configure_telemetry

T = TypeVar("T")
PlanKey = tuple[str, str]
Call = Callable[..., Awaitable[JSON]] | Guarded | AtOnce


@frozen
class Draft:
    """A configuration compiled and not yet open: what can be known without touching a backend.

    ``plans`` are those that nothing is wrong with, ``endpoints`` all of them.
    """

    configuration: Configuration
    registry: Registry
    catalog: Catalog
    endpoints: tuple[Compiled, ...]
    plans: Mapping[PlanKey, Plan]
    problems: tuple[Problem, ...]
    store: StoreSpec | None = None
    telemetry: ConfiguredTelemetry | None = None

    @property
    def errors(self) -> list[Problem]:
        return [problem for problem in self.problems if problem.severity == "error"]


def draft(configuration: Configuration, registry: Registry) -> Draft:
    """Compile every endpoint. Pure computation: safe to run in a thread."""
    catalog = build_catalog(configuration, registry)
    store, unfit_store = find_store(configuration, registry)
    telemetry, unfit_telemetry = configure_telemetry(configuration, registry)
    problems = [*configuration.problems, *registry.problems, *catalog.problems, *unfit_store, *unfit_telemetry]
    defaults = defaults_of(configuration)
    endpoints: list[Compiled] = []
    plans: dict[PlanKey, Plan] = {}
    for endpoint in configuration.endpoints:
        compiled = compile_plan(endpoint, catalog, registry, incomplete=configuration.incomplete, defaults=defaults)
        unfit = check_facts(compiled, _declared_facts)
        problems += [*compiled.problems, *unfit]
        endpoints.append(compiled)
        if compiled.plan and not unfit:
            plans[endpoint.domain, endpoint.name] = compiled.plan
    found = tuple(sorted(set(problems)))
    return Draft(configuration, registry, catalog, tuple(endpoints), plans, found, store, telemetry)


def _declared_facts(step: PlannedStep) -> CallInspection:
    return CallInspection(step.spec.facts.get(step.operation))


class ReadyPlan:
    """A plan bound to live sources: what the engine runs."""

    __slots__ = (
        "answers",
        "capture",
        "domain",
        "generated",
        "generation",
        "models",
        "name",
        "on_request_only",
        "plan",
        "redact",
        "request_only",
        "run",
        "sequential",
        "step_names",
        "timeout",
    )

    def __init__(
        self,
        plan: Plan,
        generation: str,
        calls: Mapping[str, Call],
        capture: Capture | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.plan = plan
        self.capture = capture
        self.redact = redact
        self.domain = plan.domain
        self.name = plan.name
        self.generation = generation
        self.timeout = float(plan.config.timeout)
        self.step_names = tuple(step.name for step in plan.steps)
        self.sequential = all(
            step.waits_for & set(self.step_names[:index]) for index, step in enumerate(plan.steps) if index
        )
        self.models: dict[str, Slot] = {}
        self.answers: Answers | None = None
        self.request_only = {step.name: _request_only(step) for step in plan.steps}
        self.on_request_only = frozenset(step.name for step in plan.steps if not step.waits_for)
        guarded = {name for name, call in calls.items() if isinstance(call, Guarded)}
        self.generated: Generated = generate(plan, generation, guarded)
        self.run: Coroutine = self.generated.compile(calls)


def _request_only(step: PlannedStep) -> dict[str, str]:
    """Return the parameters whose values come from the request alone, and are the caller's to mend.

    Each has the pointer to its value in the request, or to the parameter where the value is computed.
    """
    listed = () if step.for_each is None else references(step.for_each)
    items_are = bool(listed) and all(reference.root == "request" for reference in listed)
    return {
        name: _pointer(name, node)
        for name, node in step.params
        if not isinstance(node, Literal)
        and all(
            reference.root == "request" or (reference.root in ITEM_ROOTS and items_are)
            for reference in references(node)
        )
    }


def _pointer(name: str, node: Node) -> str:
    if isinstance(node, ReferenceNode) and node.root == "request" and node.path:
        return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in node.path)
    return f"/{name}"


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

    async def release(self) -> None:
        """Give the source up; the last user closes it and waits until it is closed."""
        self.users -= 1
        if self.users <= 0 and self._task is not None:
            self._closing.set()
            await asyncio.wait([self._task])
            self._task = None


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


async def _release(sources: Iterable[OpenSource]) -> None:
    await to_its_end(asyncio.gather(*(source.release() for source in sources)))


class Snapshot:
    """Everything one generation needs. ``running`` counts the requests that are on it."""

    def __init__(
        self,
        configuration: Configuration,
        registry: Registry,
        catalog: Catalog,
        plans: Mapping[PlanKey, ReadyPlan],
        sources: Mapping[SourceKey, OpenSource],
        problems: Sequence[Problem],
        memory: Memory,
        store: StoreSpec | None = None,
        telemetry: ConfiguredTelemetry | None = None,
    ) -> None:
        self.configuration = configuration
        self.registry = registry
        self.catalog = catalog
        self.generation = configuration.generation
        self.plans = plans
        self.sources = sources
        self.problems = tuple(problems)
        self.memory = memory
        self.store = store
        self.telemetry = telemetry
        self.running = 0
        self._idle: asyncio.Event | None = None

    def leave(self) -> None:
        """Note that a request has left the snapshot."""
        self.running -= 1
        if self.running == 0 and self._idle is not None:
            self._idle.set()

    def models(self) -> Iterator[tuple[OpenSource, str, Supervisor]]:
        """Return each model with its source and the operation that calls it."""
        for opened in self.sources.values():
            if isinstance(opened.source, MlSource):
                for operation, model in opened.source.models.items():
                    yield opened, operation, model

    async def drain(self, timeout_seconds: float) -> bool:
        """Wait until no request is on the snapshot. Return whether that came true in time."""
        if self.running == 0:
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Give up all sources; those that no other snapshot uses are closed."""
        for ready in self.plans.values():
            ready.generated.forget()
        await self.memory.release()
        await _release(self.sources.values())


async def open_snapshot(
    prepared: Draft,
    http: HttpClient,
    previous: Snapshot | None = None,
    opening: Opening | None = None,
) -> Snapshot:
    """Open every source, ask what it knows, and bind the plans.

    Sources and models whose configuration did not change are taken from the previous snapshot. A source that cannot
    be reached, or a model that is not available yet, is a warning, for it may come back, unless ``opening`` says
    otherwise. Raises :class:`ConfigError` with all problems, of the draft too, and leaves nothing open then.
    """
    opening = opening or Opening()
    opened, problems = await _open_sources(prepared, http, previous, opening)
    memory = Memory()
    try:
        for source in opened.values():
            problems += _inspection_problems(source, unreachable_is_error=opening.unreachable_is_error)
            if isinstance(source.source, MlSource):
                hint = "skip with --offline" if opening.unreachable_is_error else ""
                for trouble in source.source.troubles:
                    problems += _trouble(source.spec, trouble, hint)
        known = _Known(opened)
        for endpoint in prepared.endpoints:
            problems += check_facts(endpoint, known)
        problems = sorted({*prepared.problems, *problems})
        if any(problem.severity == "error" for problem in problems):
            raise ConfigError(problems)
        memory = await _remember(prepared, opened, previous)
        plans = {key: _bind(plan, prepared, opened, memory) for key, plan in prepared.plans.items()}
    except BaseException:
        await memory.release()
        await _release(opened.values())
        raise
    return Snapshot(
        prepared.configuration,
        prepared.registry,
        prepared.catalog,
        plans,
        opened,
        problems,
        memory,
        prepared.store,
        prepared.telemetry,
    )


async def _remember(prepared: Draft, opened: Mapping[SourceKey, OpenSource], previous: Snapshot | None) -> Memory:
    configuration, before = prepared.configuration, previous.memory if previous else None
    try:
        cache = await open_cache(configuration.app.cache, before)
    except MissingExtra as error:
        at = configuration.app_located
        assert at is not None, "a cache that is configured stands somewhere"
        raise ConfigError([*prepared.problems, at.problem("ORC601", str(error), "cache", at_key=True)]) from error
    sources = {key: source.source for key, source in opened.items()}
    return remember(prepared.catalog.specs, sources, list(prepared.plans.values()), cache, before)


@frozen
class _Known:
    """What the open sources know of a step: of its call where they look at calls, else of its operation."""

    opened: Mapping[SourceKey, OpenSource]

    def __call__(self, step: PlannedStep) -> CallInspection:
        source = self.opened.get(step.spec.key)
        if source is None or source.unreachable:
            return CallInspection()
        looked = inspect_call(source.source, step)
        return looked or CallInspection(source.inspection.facts.get(step.operation))


def _capture(plan: Plan, configuration: Configuration) -> Capture | None:
    tracking = configuration.app.tracking
    return make_capture(
        plan.config.capture or tracking.capture,
        [(step.name, [name for name, _ in step.params]) for step in plan.steps],
        tracking.redact,
        tracking.max_payload_size,
        configuration.redactor,
    )


def _bind(plan: Plan, prepared: Draft, opened: Mapping[SourceKey, OpenSource], memory: Memory) -> ReadyPlan:
    problems: list[Problem] = []
    calls: dict[str, Call] = {}
    models: dict[str, Slot] = {}
    traced = prepared.telemetry is not None and prepared.telemetry.traces
    capture = _capture(plan, prepared.configuration)
    for index, step in enumerate(plan.steps):
        source = opened[step.spec.key].source
        if isinstance(source, MlSource) and step.operation in source.models:
            models[step.name] = source.models[step.operation].slot
        try:
            of_step = index if traced and not step.spec.kind.in_process else None
            noted = note if capture else None
            calls[step.name] = _call(source, step, memory, models.get(step.name), noted, of_step)
        except (OrchestratorError, ValueError) as error:
            problems.append(step.located.problem("ORC603", str(error), "operation"))
    if problems:
        raise ConfigError(problems)
    configuration = prepared.configuration
    ready = ReadyPlan(plan, configuration.generation, calls, capture, configuration.redactor)
    ready.models = models
    if plan.cache is not None:
        ready.answers = Answers(plan.cache, memory.answers[plan.domain, plan.name].state, list(models.values()))
    return ready


def _call(
    source: Source, step: PlannedStep, memory: Memory, slot: Slot | None, noted: Noted | None, traced: int | None
) -> Call:
    """Return what a step awaits; its calls outward carry the id of the step whose index is ``traced``."""
    names = [name for name, _ in step.params]
    if step.for_each is not None and isinstance(source, PreparesMany):
        many = source.prepare_many(step.operation, names)
        if many is not None:
            return AtOnce(guard_at_once(step, many if traced is None else _in_step(many, traced), memory, slot, noted))
    call = bind(source, step.operation, names)
    return guard(step, call if traced is None else _in_step(call, traced), memory, slot, noted)


def bind(source: Source, operation: str, names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
    """Return the coroutine function that a plan's step awaits with its parameters' values."""
    if isinstance(source, Preparable):
        return source.prepare(operation, names)
    fetch, keys = source.fetch, tuple(names)

    def call(*values: JSON) -> Awaitable[JSON]:
        return fetch(operation, dict(zip(keys, values, strict=True)))

    return call


def _in_step(call: Callable[..., Awaitable[Any]], index: int) -> Callable[..., Awaitable[Any]]:
    """Return the call as one whose calls outward carry the id of its step."""

    async def call_in_step(*values: Any) -> Any:
        trace = current_trace.get()
        if trace is None:
            return await call(*values)
        token = current_trace.set(trace.of_step(index))
        try:
            return await call(*values)
        finally:
            current_trace.reset(token)

    return call_in_step


# --- opening --------------------------------------------------------------------------------------------------------


async def _open_sources(
    prepared: Draft, http: HttpClient, previous: Snapshot | None, opening: Opening
) -> tuple[dict[SourceKey, OpenSource], list[Problem]]:
    opened: dict[SourceKey, OpenSource] = {}
    problems: list[Problem] = []
    fresh: list[tuple[SourceSpec, Opener]] = []
    for key, spec in prepared.catalog.specs.items():
        before = previous.sources.get(key) if previous else None
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
                problems += _open_problems(spec, result)
            else:
                raise result
    except BaseException:
        await to_its_end(asyncio.ensure_future(_give_up(tasks, opened.values())))
        raise
    return opened, problems


async def _give_up(tasks: Sequence[asyncio.Task[OpenSource]], opened: Iterable[OpenSource]) -> None:
    for task in tasks:
        task.cancel()
    done = await asyncio.gather(*tasks, return_exceptions=True)
    leftover = {id(source): source for source in [*opened, *done] if isinstance(source, OpenSource)}
    await _release(leftover.values())


Opener = Callable[[Any, OpenContext], AbstractAsyncContextManager[Source]]


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
        source = await asyncio.shield(ready)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    opened = OpenSource(spec, source, Inspection(), users=1, closing=closing, task=task)
    if isinstance(source, Inspects):
        try:
            opened.inspection = await source.inspect()
        except (SourceUnavailable, SourceError) as error:
            opened.unreachable = str(error)
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
    except Exception as error:
        if ready.done():
            raise
        ready.set_exception(error)


def _context(spec: SourceSpec, prepared: Draft, http: HttpClient) -> OpenContext:
    folder = prepared.configuration.folder.resolve()
    _, type_name, source_id = spec.key
    registry = prepared.registry  # the context lives as long as the source, which outlives the draft

    def open_model(kind: str, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Model]:
        return _open_model(kind, options, registry, context)

    context = OpenContext(f"{type_name}.{source_id}", folder, http, spec.operations, open_model=open_model)
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


def _trouble(spec: SourceSpec, trouble: Trouble, hint: str) -> list[Problem]:
    """Return the problems of a model that could not be had: warnings where the source is served without it.

    ``hint`` is what one can do about a backend that is only not there.
    """
    error, operation = trouble.error, trouble.operation
    place = spec.places.get(operation)
    if trouble.of_fallback:
        found = [_at(spec, "ORC601" if trouble.fatal else "ORC604", f"the fallback of {spec.label}: {error}")]
    elif isinstance(error, WarmUpFailed) and place is not None and error.index < len(place.data.get("warm_up") or ()):
        found = [place.problem("ORC601", f"{spec.label} cannot be opened: {error}", "warm_up", error.index)]
    elif isinstance(error, SourceUnavailable):
        named = spec.label in str(error)
        message = str(error) if named else f"{spec.label} cannot be reached: {error}"
        found = [_at(spec, "ORC604", message, hint)]
    else:
        found = _open_problems(spec, error, operation)
    return found if trouble.fatal else [problem.as_warning() for problem in found]


def _open_problems(spec: SourceSpec, error: BaseException, operation: str = "") -> list[Problem]:
    if isinstance(error, ConfigError):
        return list(error.problems)
    if isinstance(error, OrchestratorError | ValueError | OSError):
        message = f"{spec.label} cannot be opened: {error}"
        hint = ""
    else:
        message = f"{spec.label} cannot be opened: {type(error).__name__}: {error}"
        where = traceback.extract_tb(error.__traceback__)[-1]
        hint = f"raised in {where.name}, line {where.lineno}: a defect of {spec.plugin}"
    place = spec.places.get(operation)
    if place is None:
        return [_at(spec, "ORC601", message, hint)]
    at = ("path",) if "path" in place.data else ()
    return [place.problem("ORC601", message, *at, at_key=not at, hint=hint)]


def _at(spec: SourceSpec, code: str, message: str, hint: str = "") -> Problem:
    if spec.located is None:
        return Problem(code=code, message=message, hint=hint)
    return spec.located.problem(code, message, at_key=True, hint=hint)


def _inspection_problems(source: OpenSource, *, unreachable_is_error: bool) -> Iterable[Problem]:
    if source.unreachable:
        named = source.spec.label in source.unreachable
        message = source.unreachable if named else f"{source.spec.label} cannot be reached: {source.unreachable}"
        problem = _at(source.spec, "ORC604", message, "" if not unreachable_is_error else "skip with --offline")
        yield problem if unreachable_is_error else problem.as_warning()
    for finding in source.inspection.findings:
        place = source.spec.places.get(finding.operation) if finding.operation else source.spec.located
        if place is None:
            yield _at(source.spec, "ORC602", finding.message, finding.hint)
        else:
            yield place.problem("ORC602", finding.message, *finding.at, near=finding.near, hint=finding.hint)


__all__ = ["Draft", "OpenSource", "ReadyPlan", "Snapshot", "bind", "draft", "open_snapshot"]
