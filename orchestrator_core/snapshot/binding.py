"""Plans to what the engine runs: each step's call of its live source, with its policies around it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from orchestrator_core.answer_cache import Answers
from orchestrator_core.blame import why_unusable
from orchestrator_core.capture import Capture, make_capture, note
from orchestrator_core.catalog import SourceKey
from orchestrator_core.config.model import Configuration
from orchestrator_core.each import AtOnce
from orchestrator_core.errors import ConfigError, OrchestratorError, Problem
from orchestrator_core.guards import Memory, guard, guard_at_once
from orchestrator_core.http_client import current_trace
from orchestrator_core.models import MlSource, Slot
from orchestrator_core.plan import Plan, PlannedStep
from orchestrator_core.plugin_api import JSON, Preparable, PreparesMany, Source
from orchestrator_core.policies.policies import Capture as Noted
from orchestrator_core.snapshot.drafting import Draft
from orchestrator_core.snapshot.problems import masked
from orchestrator_core.snapshot.ready import Call, ReadyPlan
from orchestrator_core.snapshot.sources import OpenSource

Prepared = TypeVar("Prepared")


def bind_plan(plan: Plan, prepared: Draft, opened: Mapping[SourceKey, OpenSource], memory: Memory) -> ReadyPlan:
    """Return the plan bound to what is open. Raises :class:`ConfigError` for operations that no source can prepare."""
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
            noted = note if capture is not None and capture.values else None
            calls[step.name] = _call(source, step, memory, models.get(step.name), noted, of_step)
        except (OrchestratorError, ValueError) as error:
            problems.append(step.located.problem("ORC603", str(error), "operation"))
        except Exception as error:
            message = f"{step.spec.label} cannot prepare the operation '{step.operation}': {why_unusable(error)}"
            hint = f"a defect of {step.spec.plugin}"
            problems.append(step.located.problem("ORC603", message, "operation", hint=hint))
    configuration = prepared.configuration
    if problems:
        raise ConfigError(masked(problems, configuration.redactor))
    ready = ReadyPlan(plan, configuration.generation, calls, capture, configuration.redactor)
    ready.models = models
    if plan.cache is not None:
        ready.answers = Answers(plan.cache, memory.answers[plan.domain, plan.name].state, list(models.values()))
    return ready


def _capture(plan: Plan, configuration: Configuration) -> Capture | None:
    tracking = configuration.app.tracking
    return make_capture(
        plan.config.capture or tracking.capture,
        [(step.name, [name for name, _ in step.params]) for step in plan.steps],
        tracking.redact,
        tracking.max_payload_size,
        configuration.redactor,
    )


def _call(
    source: Source, step: PlannedStep, memory: Memory, slot: Slot | None, noted: Noted | None, traced: int | None
) -> Call:
    """Return what a step awaits; its calls outward carry the id of the step whose index is ``traced``."""
    names = [name for name, _ in step.params]
    if step.for_each is not None and isinstance(source, PreparesMany):
        many = source.prepare_many(step.operation, names)
        if many is not None:
            _prepared(many, "prepare_many")
            return AtOnce(guard_at_once(step, many if traced is None else _in_step(many, traced), memory, slot, noted))
    call = bind(source, step.operation, names)
    return guard(step, call if traced is None else _in_step(call, traced), memory, slot, noted)


def bind(source: Source, operation: str, names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
    """Return the coroutine function that a plan's step awaits with its parameters' values."""
    if isinstance(source, Preparable):
        return _prepared(source.prepare(operation, names), "prepare")
    fetch, keys = source.fetch, tuple(names)

    def call(*values: JSON) -> Awaitable[JSON]:
        return fetch(operation, dict(zip(keys, values, strict=True)))

    return call


def _prepared(call: Prepared, method: str) -> Prepared:
    """Return what a source prepared. Raises ``TypeError`` for what each request would fail on."""
    if not callable(call):
        raise TypeError(f"{method} returned {type(call).__name__}, expected a coroutine function")
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


__all__ = ["bind", "bind_plan"]
