"""The policies around the calls of live plans: what they remember, kept over reloads, and the guard of each step.

What a source's policies remember (:class:`SourceState`) belongs to the source as it is configured, of an ``ml`` source
to each of its models. A reload that leaves that alone takes it over, whatever else it changes; what cached answers of
an endpoint are kept in belongs to the endpoint with all that it calls.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from hashlib import sha256
from time import perf_counter
from typing import Any

from attrs import define, field, frozen

from orchestrator_core.catalog import SourceKey, SourceSpec
from orchestrator_core.codegen import CACHE_KEY
from orchestrator_core.config.structure import Located
from orchestrator_core.direct import DIRECT
from orchestrator_core.errors import NotLetThrough, OrchestratorError, Refused
from orchestrator_core.models import ML, MlSource, Slot
from orchestrator_core.plan import Plan, PlannedStep
from orchestrator_core.plugin_api import OperationFacts, Source
from orchestrator_core.policies.guard import make_guard, make_guard_at_once
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.policies.options import CacheOptions, SharedCacheOptions
from orchestrator_core.policies.policies import Capture, Policies
from orchestrator_core.policies.shared import SharedCache, open_shared_cache
from orchestrator_core.policies.state import SourceState
from orchestrator_core.time_limits import TimeLimit, Timer, within

__all__ = ["Memory", "OpenCache", "Remembered", "StateKey", "guard", "guard_at_once", "open_cache", "remember"]

Call = Callable[..., Awaitable[Any]]

StateKey = tuple[SourceKey, str]
"""A source, and the operation of one of its models; of an endpoint's answers, ``("", domain, endpoint), ""``."""


@define(eq=False)
class Remembered:
    """What policies remember, and what of; shared by the snapshots that know the same."""

    state: SourceState
    of: Any
    users: int = 1

    async def release(self) -> None:
        """Give it up; with the last user, what goes on beside the requests ends."""
        self.users -= 1
        if self.users <= 0:
            await self.state.close()


@define(eq=False)
class OpenCache:
    """The cache outside this process, shared by the snapshots that configure the same one."""

    options: SharedCacheOptions
    cache: SharedCache
    _stack: AsyncExitStack = field(alias="stack")
    users: int = 1

    async def release(self) -> None:
        self.users -= 1
        if self.users <= 0:
            await self._stack.aclose()


@frozen
class Memory:
    """What all policies of a snapshot remember."""

    states: Mapping[StateKey, Remembered] = field(factory=dict)
    answers: Mapping[tuple[str, str], Remembered] = field(factory=dict)
    cache: OpenCache | None = None

    def of_source(self, key: SourceKey) -> Iterator[tuple[str, SourceState]]:
        """Yield the states of a source: of an ``ml`` source, each model's with its operation."""
        for (source, operation), remembered in self.states.items():
            if source == key:
                yield operation, remembered.state

    async def release(self) -> None:
        for remembered in (*self.states.values(), *self.answers.values()):
            await remembered.release()
        if self.cache is not None:
            await self.cache.release()


async def open_cache(options: SharedCacheOptions | None, before: Memory | None) -> OpenCache | None:
    """Open the shared cache, or take over the one that is open with the same options.

    Raises :class:`orchestrator_core.policies.shared.MissingExtra` without the libraries for it.
    """
    if options is None:
        return None
    if before is not None and before.cache is not None and before.cache.options == options:
        before.cache.users += 1
        return before.cache
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(open_shared_cache(options))
        return OpenCache(options, cache, stack.pop_all())
    raise AssertionError("an exit stack swallows nothing")


def remember(
    specs: Mapping[SourceKey, SourceSpec],
    sources: Mapping[SourceKey, Source],
    plans: Sequence[Plan],
    cache: OpenCache | None,
    before: Memory | None,
) -> Memory:
    """Return what the policies of these sources and plans remember: that of before where nothing has changed."""
    before = before or Memory()
    shared = cache.cache if cache is not None else None
    states: dict[StateKey, Remembered] = {}
    for key, spec in specs.items():
        source = sources.get(key)
        if source is None or spec.kind is DIRECT:
            continue
        if isinstance(source, MlSource):
            for operation, model in source.models.items():
                of, label = model, model.slot.label
                states[key, operation] = _kept(
                    before.states.get((key, operation)), of, label, identity_of(spec, operation), shared
                )
                model.slot.on_ready = states[key, operation].state.recovered
                model.slot.on_call = states[key, operation].state.called if model.spec.common.batch else None
        else:
            states[key, ""] = _kept(before.states.get((key, "")), spec, spec.label, identity_of(spec), shared)
    answers: dict[tuple[str, str], Remembered] = {}
    for plan in plans:
        if plan.cache is not None:
            at, called = (plan.domain, plan.name), [step.spec for step in plan.steps]
            alive = [_alive(step, sources) for step in plan.steps]
            identity = _digest([plan.located.data, *map(identity_of, called)])
            answers[at] = _kept(before.answers.get(at), (plan.located.data, called, alive), plan.id, identity, shared)
    return Memory(states, answers, cache)


def _kept(before: Remembered | None, of: Any, label: str, identity: str, shared: SharedCache | None) -> Remembered:
    if before is None or before.of != of:
        return Remembered(SourceState(label, identity=identity, shared=shared), of)
    if before.state.shared is not shared:
        return Remembered(before.state.beside(shared), of)
    before.users += 1
    return before


def _alive(step: PlannedStep, sources: Mapping[SourceKey, Source]) -> object:
    """Return the live model that a step calls, if it calls one: a model that was opened anew is another."""
    source = sources.get(step.spec.key)
    return source.models.get(step.operation) if isinstance(source, MlSource) else None


def identity_of(spec: SourceSpec, operation: str | None = None) -> str:
    """Return a digest of what the source, or one model of it, is configured to be. Policies are no part of that."""
    places = spec.places if operation is None else {operation: spec.places.get(operation)}
    operations = {name: _without_policies(spec, name, place) for name, place in places.items()}
    if spec.kind is ML:  # what a model has of its source; all else stands at the models
        own: Any = spec.options.base_url
    else:
        own = _without_policies(spec, "", spec.located)
    return _digest([spec.key, spec.kind.name, own, operations])


def _without_policies(spec: SourceSpec, operation: str, place: Located | None) -> Any:
    data, said = place.data if place is not None else None, spec.policies.get(operation)
    if said is None or not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if key not in said.located.data}


def _digest(data: Any) -> str:
    # json and not orjson: a file can hold integers of more than 64 bits.
    return sha256(json.dumps(data, default=str).encode()).hexdigest()[:32]


# --- the guard of a step ---------------------------------------------------------------------------------------------


def guard(
    step: PlannedStep, call: Call, memory: Memory, slot: Slot | None, capture: Capture | None = None
) -> Call | Guarded:
    """Return a step's call with its policies around it, and what captures its values; the call itself without both."""
    batched = slot is not None and slot.spec.common.batch is not None
    make = partial(make_guard, each=step.for_each is not None, batched=batched)
    return _around(step, call, memory, slot, capture, _Form(make, _without_key, _or_fallback))


def guard_at_once(
    step: PlannedStep, call: Call, memory: Memory, slot: Slot | None, capture: Capture | None = None
) -> Call | Guarded:
    """Return the same for a call that takes the values of all items."""
    return _around(
        step, call, memory, slot, capture, _Form(make_guard_at_once, _rows_without_key, _or_fallback_at_once)
    )


@frozen
class _Form:
    """What differs between a call of one step's values and one of all items' values."""

    make: Callable[..., Call | Guarded]
    without_key: Callable[[Call], Call]
    or_fallback: Callable[..., Call]


def _around(
    step: PlannedStep, call: Call, memory: Memory, slot: Slot | None, capture: Capture | None, form: _Form
) -> Call | Guarded:
    if not step.policies.any and capture is None:
        return call
    keyed = step.cache_key is not None
    falls_back = slot is not None and slot.fallback is not None
    return form.make(
        form.without_key(call) if keyed else call,
        _policies(step, slot, capture),
        _state(step, memory),
        label=slot.label if slot is not None else step.spec.label,
        operation=_kept_as(step),
        names=[*(name for name, _ in step.params), *([CACHE_KEY] if keyed else [])],
        idempotent=_is_idempotent(step),
        or_else=partial(form.or_fallback, slot=slot, step=step) if falls_back else None,
    )


def _or_fallback(guarded: Call, slot: Slot, step: PlannedStep) -> Call:
    """Return the call, for which the model's fallback answers when the policies refuse it.

    It has what the refused call has left of the step's time.
    """
    seconds = _call_timeout(step)
    limit = None if seconds is None else TimeLimit(seconds)

    async def call(run: Any, index: int, *values: Any) -> Any:
        began = perf_counter() if limit is not None else 0.0
        try:
            return await guarded(run, index, *values)
        except NotLetThrough as refused:
            run.note(index).fell_back = True
            spent_seconds = perf_counter() - began
            return await within(limit, partial(_fall_back, slot, values[0], refused), spent_seconds)

    return call


def _fall_back(slot: Slot, features: Any, refused: Refused, timer: Timer | None) -> Awaitable[Any]:
    return slot.fall_back(features, refused)


def _or_fallback_at_once(guarded: Call, slot: Slot, step: PlannedStep) -> Call:
    """Return the same for a call for all items, which the fallback answers one by one, so many at once as the step may.

    One that it cannot answer fails alone.
    """
    at_most = step.config.max_concurrency

    async def call(run: Any, index: int, rows: Sequence[Sequence[Any]]) -> Any:
        try:
            answers = list(await guarded(run, index, rows))
        except NotLetThrough as refused:
            answers = [refused] * len(rows)
        todo = deque((place, answer) for place, answer in enumerate(answers) if isinstance(answer, NotLetThrough))
        if not todo:
            return answers
        run.note(index).fell_back = True

        async def work() -> None:
            while todo:
                place, refused = todo.popleft()
                answers[place] = await _item_of_fallback(slot, rows[place][0], refused)

        async with asyncio.TaskGroup() as workers:
            for _ in range(min(at_most, len(todo))):
                workers.create_task(work())
        return answers

    return call


async def _item_of_fallback(slot: Slot, features: Any, refused: Refused) -> Any:
    try:
        return await slot.fall_back(features, refused)
    except OrchestratorError as error:  # it is this item's
        return error


def _state(step: PlannedStep, memory: Memory) -> SourceState:
    states, key = memory.states, step.spec.key
    if step.spec.kind is DIRECT:
        return SourceState(step.spec.label)  # it has no policies, and so nothing to remember
    found = states.get((key, step.operation)) or states[key, ""]
    return found.state


def _kept_as(step: PlannedStep) -> str:
    """Return what the step's results are kept as, for all that call with parameters of these names: its operation.

    A step whose own key leaves parameters out knows what they are: it shares with no other, nor with what it was before
    a reload that changed them.
    """
    key = step.config.cache.key if isinstance(step.config.cache, CacheOptions) else None
    if key is None or (step.cache_key is None and {*step.config.params} <= {*([key] if isinstance(key, str) else key)}):
        return step.operation
    place = f"{step.located.document.name} {'.'.join(map(str, step.located.path))}"
    return f"{step.operation} of {place} {_digest([step.config.params, step.config.for_each])}"


def _is_idempotent(step: PlannedStep) -> bool:
    facts = step.spec.facts.get(step.operation) or OperationFacts()
    return bool(facts.idempotent) or step.spec.kind.idempotent


def _policies(step: PlannedStep, slot: Slot | None, capture: Capture | None) -> Policies:
    applied = step.policies
    cache = applied.cache.options
    key = _cache_key(step, slot) if cache is not None else None
    return Policies(
        timeout=applied.timeout.options,
        step_timeout=_call_timeout(step),
        retry=applied.retry.options,
        circuit_breaker=applied.circuit_breaker.options,
        concurrency=applied.concurrency.options,
        cache=cache,
        cache_key=key,
        capture=capture,
    )


def _call_timeout(step: PlannedStep) -> float | None:
    """Return the step's timeout where it is for one call: one with for_each bounds all of its items together."""
    return step.config.timeout if step.for_each is None else None


def _cache_key(step: PlannedStep, slot: Slot | None) -> Callable[[Sequence[Any]], Any] | None:
    """Return what makes a key of a call's values; None where the values do, or a choice of them by name."""
    by = _values_key(step)
    if slot is None:
        return by

    def with_model(values: Sequence[Any]) -> Any:  # what another version has said is not kept for this one
        identity = slot.identity
        return [by(values) if by else list(values), identity and [identity.version, identity.digest]]

    return with_model


def _values_key(step: PlannedStep) -> Callable[[Sequence[Any]], Any] | None:
    if step.cache_key is not None:
        return lambda values: values[-1]
    names = tuple(name for name, _ in step.params)
    if (expression := step.source_cache_key) is not None:
        evaluate = expression.evaluate
        return lambda values: evaluate(dict(zip(names, values, strict=True)))
    return None


def _without_key(call: Call) -> Call:
    def without_key(*values: Any) -> Awaitable[Any]:
        return call(*values[:-1])

    return without_key


def _rows_without_key(call: Call) -> Call:
    def without_key(rows: Sequence[Sequence[Any]]) -> Awaitable[Any]:
        return call([row[:-1] for row in rows])

    return without_key
