"""One configuration generation, open: its plans and its live sources. Built whole, swapped whole, closed whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import orjson
from attrs import frozen

from orchestrator_core.catalog import Catalog, SourceKey
from orchestrator_core.config.model import Configuration
from orchestrator_core.errors import OFFLINE_HINT, ConfigError, Problem
from orchestrator_core.facts import check_facts, inspect_call
from orchestrator_core.guards import Memory, open_cache, remember
from orchestrator_core.http_client import HttpClient
from orchestrator_core.models import MlSource, Opening, Supervisor
from orchestrator_core.plan import PlannedStep
from orchestrator_core.plugin_api import JSON, CallInspection
from orchestrator_core.plugins import Registry
from orchestrator_core.policies.shared import MissingExtra
from orchestrator_core.snapshot.binding import bind_plan
from orchestrator_core.snapshot.drafting import Draft, PlanKey
from orchestrator_core.snapshot.problems import inspection_problems, masked, model_problems, shared_places
from orchestrator_core.snapshot.ready import ReadyPlan
from orchestrator_core.snapshot.sources import OpenSource, open_sources, release
from orchestrator_core.stores import StoreSpec
from orchestrator_core.telemetry import ConfiguredTelemetry


class Snapshot:
    """Everything one generation needs. ``running`` counts the requests that are on it.

    Once it is ``closed``, its plans cannot be run.
    """

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
        self.closed = False
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

    def kept(self) -> dict[str, dict[str, JSON]]:
        """Return what each model has noted for its next start by itself, as far as it is JSON."""
        noted = [(name, _as_json(values)) for _, _, model in self.models() for name, values in model.kept()]
        return {name: values for name, values in noted if values}

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
        self.closed = True
        for ready in self.plans.values():
            ready.generated.forget()
            if not self.running:
                ready.let_go()
        await self.memory.release()
        await release(self.sources.values())


def _as_json(values: dict[str, JSON]) -> dict[str, JSON]:
    """Return what another process will find of the values, nothing where one of them is no JSON."""
    try:
        found: dict[str, JSON] = orjson.loads(orjson.dumps(values))
    except (TypeError, ValueError):
        return {}
    return found


async def open_snapshot(
    prepared: Draft,
    http: HttpClient,
    previous: Snapshot | None = None,
    opening: Opening | None = None,
) -> Snapshot:
    """Open every source, ask what it knows, and bind the plans.

    Sources and models whose configuration did not change are taken from the previous snapshot. A source that cannot
    be reached, or a model that is not available yet, is a warning, for it may come back, unless ``opening`` says
    otherwise, or it is the change that makes it missing. Raises :class:`ConfigError` with all problems, of the draft
    too, masked, and leaves nothing open then.
    """
    opening = opening or Opening()
    opened, problems = await open_sources(prepared, http, previous.sources if previous else {}, opening)
    memory = Memory()
    hint = OFFLINE_HINT if opening.unreachable_is_error else ""
    shared = shared_places(source.spec for source in opened.values())
    try:
        for source in opened.values():
            is_error = opening.unreachable_is_error or (
                bool(source.unreachable) and previous is not None and await _is_missed(previous, source)
            )
            problems += inspection_problems(
                source.spec,
                source.inspection,
                source.unreachable,
                hint,
                unreachable_is_error=is_error,
                shared=shared,
            )
            if isinstance(source.source, MlSource):
                for trouble in source.source.troubles:
                    problems += model_problems(source.spec, trouble, hint)
        known = _Known(opened)
        for endpoint in prepared.endpoints:
            problems += check_facts(endpoint, known)
        problems = masked([*prepared.problems, *problems], prepared.configuration.redactor)
        if any(problem.severity == "error" for problem in problems):
            raise ConfigError(problems)
        memory = await _remember(prepared, opened, previous)
        plans = {key: bind_plan(plan, prepared, opened, memory) for key, plan in prepared.plans.items()}
    except BaseException:
        await memory.release()
        await release(opened.values())
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


async def _is_missed(previous: Snapshot, source: OpenSource) -> bool:
    """Return whether it is the change that makes the source missing: what the previous snapshot has there is there."""
    before = previous.sources.get(source.spec.key)
    if before is None:
        return True
    if before.spec == source.spec:
        return False
    standing = await before.standing()
    return not before.unreachable if standing.state == "open" else standing.state != "unreachable"


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


async def look_at_cache(snapshot: Snapshot) -> list[Problem]:
    """Return a warning if the cache outside this process does not answer: the service does without it."""
    cache, at = snapshot.memory.cache, snapshot.configuration.app_located
    if cache is None or at is None or not (trouble := await cache.cache.trouble()):
        return []
    message = f"the shared cache cannot be reached: {trouble}"
    return [at.problem("ORC604", message, "cache", at_key=True, hint=OFFLINE_HINT).as_warning()]


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


__all__ = ["Snapshot", "look_at_cache", "open_snapshot"]
