"""The built-in ``ml`` source type: the models of one source, each supervised by itself.

In YAML a source has one model or several by name; a model is its kind's options with a few of the core's own::

    ml:
      sources:
        credit_model:
          source: {type: artifact, path: "../models/credit_risk", batch: {max_size: 32, max_wait: 2ms}}
        churn_model:
          base_url: "http://127.0.0.1:9002"
          models:
            default: {endpoint: /predict, timeout: 2s}

``source: X`` is short for ``models: {default: X}``. The operation ``predict`` is the model ``default``; any other
operation is the model of that name.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

from attrs import evolve, frozen

from orchestrator_core.models.options import FEATURES, MlOptions, ModelSpec
from orchestrator_core.models.slot import Slot
from orchestrator_core.models.supervision import Kept, Supervisor, is_definite
from orchestrator_core.plugin_api import (
    JSON,
    Degraded,
    Inspection,
    InvalidParam,
    ModelFacts,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    SourceKind,
    hookimpl,
)

PROGRESS_SECONDS = 1.0


@frozen
class Opening:
    """What is waited for when a configuration is opened, and what is made of a model that is not to be had.

    ``wait_seconds`` is how long each preloaded model may take to its first outcome before it is left to itself; None
    is without end. ``unavailable_is_error`` says so of a model that may come later, ``unreachable_is_error`` of any
    other source. ``look`` takes what a kind can tell of a model without starting it. ``used_only`` loads the models
    that steps call, whatever ``preload`` says, and leaves the others alone: ``only`` are their operations in this
    source. ``progress`` is told what is waited for. ``kept`` is what models begin with that another process had open.
    """

    wait_seconds: float | None = None
    unavailable_is_error: bool = False
    unreachable_is_error: bool = False
    look: bool = False
    used_only: bool = False
    only: Collection[str] | None = None
    progress: Callable[[str], None] | None = None
    kept: Kept | None = None


@frozen
class Trouble:
    """A model that could not be had when its source was opened; ``fatal`` if the source must not be served so."""

    operation: str
    error: Exception
    fatal: bool
    of_fallback: bool = False


class MlSource:
    """The models of one ``ml`` source, by operation."""

    def __init__(self, models: Mapping[str, Supervisor], troubles: Sequence[Trouble] = ()) -> None:
        self.models = models
        self.troubles = tuple(troubles)

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        result = await self.prepare(operation, tuple(params))(*params.values())
        return result.result if isinstance(result, Degraded) else result

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[Any]]:
        if tuple(param_names) != (FEATURES,):
            raise InvalidParam(FEATURES, f"a model takes one parameter, 'features', not {', '.join(param_names)}")
        slot = self.models[operation].slot

        def predict(features: Any) -> Awaitable[Any]:  # not a coroutine of its own: one less for each request
            slot.requests += 1
            return slot.predict_one(features) if type(features) is dict else _predict_list(slot, features)

        return predict

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[[Sequence[Sequence[JSON]]], Awaitable[Sequence[Any]]]:
        """Return the call for many items, whose rows go to the model together, ``batch.max_size`` at a time."""
        self.prepare(operation, param_names)  # which refuses other names
        model = self.models[operation]
        slot = model.slot
        most = model.spec.common.batch.max_size if model.spec.common.batch else None

        async def predict(items: Sequence[Sequence[JSON]]) -> Sequence[Any]:
            slot.requests += 1
            return await predict_items(slot, [features for (features,) in items], most)

        return predict

    async def inspect(self) -> Inspection:
        return Inspection(facts={name: _facts(model.spec, model.slot.facts) for name, model in self.models.items()})

    async def check_ready(self) -> None:
        for model in self.models.values():
            common = model.spec.common
            if common.preload and common.is_enabled and model.slot.state != "ready":
                raise model.slot.not_ready()


async def _predict_list(slot: Slot, features: Any) -> Any:
    if type(features) is list and all(type(row) is dict for row in features):
        if not features:
            return []
        slot.called()
        return await slot.predict_rows(features)
    raise InvalidParam(FEATURES, "features must be an object, or a list of objects")


async def predict_items(slot: Slot, items: Sequence[Any], most: int | None) -> Sequence[Any]:
    """Score items, each of which is a row or a list of rows, in one call of the model.

    Where that cannot be done because a value is unfit, each item is scored by itself, so that it fails alone.
    """
    rows: list[Mapping[str, JSON]] = []
    for features in items:
        rows += features if type(features) is list else [features]
    try:
        if not all(type(row) is dict for row in rows):
            raise InvalidParam(FEATURES, "features must be an object, or a list of objects")
        most = most or len(rows)
        parts = [await slot.predict_rows(rows[start : start + most]) for start in range(0, len(rows), most or 1)]
    except InvalidParam:
        return [await _outcome(slot, features) for features in items]
    degraded = any(type(part) is Degraded for part in parts)
    results = iter([result for part in parts for result in _plain(part)])
    answers = [list(islice(results, len(item))) if type(item) is list else next(results) for item in items]
    return [Degraded(answer) for answer in answers] if degraded else answers


async def _outcome(slot: Slot, features: Any) -> Any:
    try:
        if type(features) is not dict:
            return await _predict_list(slot, features)
        results = await slot.predict_rows([features])
    except OrchestratorError as error:
        return error
    (result,) = _plain(results)
    return Degraded(result) if type(results) is Degraded else result


def _plain(results: Any) -> Any:
    return results.result if type(results) is Degraded else results


def _facts(spec: ModelSpec, facts: ModelFacts | None) -> OperationFacts:
    kind = spec.kind
    known = OperationFacts(
        required=(FEATURES,),
        optional=(),
        degrades=spec.fallback is not None,
        idempotent=kind.idempotent or None,  # asking twice may do harm, but a cache of it is for who configures one
        in_process=kind.in_process is not None and kind.in_process(spec.options),
    )
    if facts is None:
        return known
    inputs = {FEATURES: facts.inputs} if facts.inputs is not None else {}
    return evolve(known, fields=facts.outputs, inputs=inputs)


def label_of(source: str, model: str) -> str:
    """Return how messages name a model: by its source, and by its own name where it is not the only one."""
    return source if model == "default" else f"{source} {model}"


# --- opening --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def open_models(
    options: MlOptions, context: OpenContext, opening: Opening | None = None, before: MlSource | None = None
) -> AsyncIterator[MlSource]:
    """Open the models side by side, and yield when each has had its first outcome or its time is over.

    A model of ``before`` that is configured the same, and whose content is the same as far as it can tell, is taken
    over as it is, whatever its state. Nothing is raised for a model that cannot be had: see ``troubles``.
    """
    opening = opening or Opening()
    models: dict[str, Supervisor] = {}
    troubles: list[Trouble] = []
    try:
        await _take_over(models, context.operations, before)
        held = set(models)
        for name, spec in context.operations.items():
            if name not in held:
                own = context.named(f"{context.name}.{spec.name}")
                models[name] = Supervisor(spec, label_of(context.name, spec.name), own, opening.kept)
        fresh = {name: model for name, model in models.items() if name not in held}
        enabled = {name: model for name, model in fresh.items() if model.spec.common.is_enabled}
        looks = {name for name, model in enabled.items() if opening.look and model.spec.kind.look is not None}
        awaited = []
        for name, model in fresh.items():
            wanted = model.spec.common.preload or opening.look if opening.only is None else name in opening.only
            load = wanted and name in enabled and name not in looks
            fallback = model.fallback if opening.only is None or wanted else None
            model.start(load=load, fallback=fallback is not None)
            awaited += [model] if load else []
            awaited += [fallback] if fallback is not None else []
        troubles += [found for found in await asyncio.gather(*(_look(name, models[name]) for name in looks)) if found]
        await _outcomes(awaited, opening)
        for name, model in models.items():
            if model.outcome.failure is not None:
                fatal = name not in held and _is_fatal(model, opening, before.models.get(name) if before else None)
                troubles.append(Trouble(name, model.outcome.failure, fatal))
            if model.fallback is not None and model.fallback.outcome.failure is not None:
                fatal = name not in held and is_definite(model.fallback.outcome.failure)
                troubles.append(Trouble(name, model.fallback.outcome.failure, fatal, of_fallback=True))
        yield MlSource({name: models[name] for name in context.operations}, troubles)
    finally:
        await asyncio.gather(*(model.release() for model in models.values()))


async def _take_over(models: dict[str, Supervisor], specs: Mapping[str, ModelSpec], before: MlSource | None) -> None:
    """Take the models that are configured as before. They are held while they are asked whether they have changed."""
    same = {
        name: model
        for name, model in (before.models.items() if before else ())
        if not model.slot.closed and specs.get(name) == model.spec
    }
    for model in same.values():
        model.users += 1
    models.update(same)
    changed = await asyncio.gather(*(model.changed() for model in same.values()))
    for name, has_changed in zip(same, changed, strict=True):
        if has_changed:
            await models.pop(name).release()


async def _look(name: str, model: Supervisor) -> Trouble | None:
    try:
        model.slot.facts = await model.look()
    except Exception as error:  # what is wrong with the model; it is told as a problem
        return Trouble(name, error, fatal=model.spec.fallback is None)
    return None


async def _outcomes(models: Collection[Supervisor], opening: Opening) -> None:
    """Wait until each model has had its first outcome."""
    labels = {model.outcome.first: model.slot for model in models}
    pending = set(labels)
    for model in models:
        model.outcome.reported = not model.outcome.first.done()
    loop = asyncio.get_running_loop()
    started = loop.time()
    while pending:
        passed = loop.time() - started
        left = None if opening.wait_seconds is None else opening.wait_seconds - passed
        if left is not None and left <= 0:
            break
        step = PROGRESS_SECONDS if opening.progress else None
        timeout = min((seconds for seconds in (left, step) if seconds is not None), default=None)
        _, pending = await asyncio.wait(pending, timeout=timeout)
        if opening.progress:
            for outcome in pending:
                slot = labels[outcome]
                opening.progress(f"waiting for the model {slot.label}: {slot.state} ({loop.time() - started:.0f} s)")
    for model in models:
        model.outcome.reported = False


def _is_fatal(model: Supervisor, opening: Opening, earlier: Supervisor | None) -> bool:
    """Return whether a model that cannot be had keeps the configuration from being served.

    One with a fallback does not, unless it would take the place of one that works.
    """
    if model.spec.fallback is not None:
        return earlier is not None and earlier.slot.state == "ready"
    assert model.outcome.failure is not None
    return opening.unavailable_is_error or (is_definite(model.outcome.failure) and model.slot.state == "failed")


def model_facts(options: MlOptions, operations: Mapping[str, Any]) -> Mapping[str, OperationFacts]:
    """Return what is known before a model is loaded: that it takes features."""
    return {name: _facts(spec, None) for name, spec in operations.items()}


ML = SourceKind(
    name="ml",
    summary="Models, which a plugin for their type brings.",
    options=MlOptions,
    open=open_models,
    operation=ModelSpec,
    facts=model_facts,
)


class MlPlugin:
    """The built-in plugin of the ``ml`` source type."""

    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        return [ML]
