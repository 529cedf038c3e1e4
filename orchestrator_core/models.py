"""The built-in ``ml`` source type: the models of one source, and the batching of concurrent requests.

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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import islice
from typing import Any

from attrs import field, frozen

from orchestrator_core.plugin_api import (
    JSON,
    Describes,
    Duration,
    Identified,
    Identity,
    Inspection,
    InvalidParam,
    Model,
    ModelKind,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    PredictsOne,
    ReadyCheck,
    SourceError,
    SourceKind,
    hookimpl,
    option,
)

DEFAULT_MODEL = "default"
PREDICT = "predict"
FEATURES = "features"


def _at_least_one(instance: Any, attribute: Any, value: int) -> None:
    if value < 1:
        raise ValueError(f"expected at least 1, got {value}")


@frozen
class BatchOptions:
    """Micro-batching: concurrent requests share one call of the model."""

    max_size: int = option(32, help="Most rows in one call.", validator=_at_least_one)
    max_wait: Duration = option(Duration(0.002), help="Longest time that the first row waits for others.")


@frozen
class CommonOptions:
    """What every model takes besides its kind's own options."""

    type: str = option("http", help="Model type: http, artifact, docker, ecr or another that a plugin provides.")
    batch: BatchOptions | None = option(None, help="Micro-batching of concurrent requests; off by default.")


@frozen
class MlOptions:
    """One source of models."""

    source: Mapping[str, Any] | None = option(None, help="The one model; short for models: {default: …}.")
    base_url: str | None = option(None, help="Base URL of the models of type http.")
    models: Mapping[str, Mapping[str, Any]] = option(factory=dict, help="The models by name.")


@frozen
class ModelSpec:
    """A model as it is configured: its kind and options, checked."""

    name: str
    kind: ModelKind[Any]
    options: Any
    common: CommonOptions = field(factory=CommonOptions)


def entries(options: MlOptions) -> dict[str, tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Return each model's data by name, with its path below the source."""
    found: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
        name: (("models", name), data) for name, data in options.models.items()
    }
    if options.source is not None:
        found[DEFAULT_MODEL] = (("source",), options.source)
    return found


def operation_of(model: str) -> str:
    return PREDICT if model == DEFAULT_MODEL else model


def model_of(operation: str) -> str:
    return DEFAULT_MODEL if operation == PREDICT else operation


class Batcher:
    """Collects rows of concurrent callers into calls of at most ``max_size`` rows.

    The first row of a batch waits at most ``max_wait``; a full batch goes at once. Each caller gets its own row's
    answer. A call that fails fails all of its callers; a caller that is cancelled leaves the others alone.
    """

    def __init__(self, model: Model, options: BatchOptions) -> None:
        self._model = model
        self._options = options
        self._waiting: list[tuple[Mapping[str, JSON], asyncio.Future[JSON]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def predict_one(self, row: Mapping[str, JSON]) -> JSON:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[JSON] = loop.create_future()
        self._waiting.append((row, answer))
        if len(self._waiting) >= self._options.max_size:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._options.max_wait, self._send)
        return await answer

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        batch = [(row, answer) for row, answer in self._waiting if not answer.done()]
        self._waiting.clear()
        if batch:
            call = asyncio.ensure_future(self._call(batch))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _call(self, batch: list[tuple[Mapping[str, JSON], asyncio.Future[JSON]]]) -> None:
        try:
            results = await predict_rows(self._model, [row for row, _ in batch])
        except InvalidParam:
            await self._one_by_one(batch)
        except Exception as error:  # it belongs to the callers, who wait for it
            for _, answer in batch:
                if not answer.done():
                    answer.set_exception(error)
        else:
            for (_, answer), result in zip(batch, results, strict=True):
                if not answer.done():
                    answer.set_result(result)

    async def _one_by_one(self, batch: list[tuple[Mapping[str, JSON], asyncio.Future[JSON]]]) -> None:
        """Score each row by itself, so that one caller's unfit row does not fail the others."""
        for row, answer in batch:
            if answer.done():
                continue
            try:
                (result,) = await predict_rows(self._model, [row])
            except Exception as error:  # it belongs to the caller, who waits for it
                if not answer.done():
                    answer.set_exception(error)
            else:
                if not answer.done():
                    answer.set_result(result)

    async def close(self) -> None:
        """Give up what still waits. Called when no request is left."""
        if self._timer is not None:
            self._timer.cancel()
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for _, answer in self._waiting:
            answer.cancel()


async def predict_rows(model: Model, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
    """Call the model, and hold it to one result for each row."""
    results = await model.predict(rows)
    if len(results) != len(rows):
        raise SourceError(f"the model returned {len(results)} results for {len(rows)} rows")
    return results


async def _predict_list(model: Model, features: Any) -> JSON:
    if type(features) is list and all(type(row) is dict for row in features):
        return await predict_rows(model, features) if features else []
    raise InvalidParam(FEATURES, "features must be an object, or a list of objects")


async def predict_items(model: Model, items: Sequence[Any], most: int | None) -> Sequence[JSON | OrchestratorError]:
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
        parts = [await predict_rows(model, rows[start : start + most]) for start in range(0, len(rows), most or 1)]
    except InvalidParam:
        return [await _outcome(model, features) for features in items]
    results = iter([result for part in parts for result in part])
    return [list(islice(results, len(item))) if type(item) is list else next(results) for item in items]


async def _outcome(model: Model, features: Any) -> JSON | OrchestratorError:
    try:
        if type(features) is not dict:
            return await _predict_list(model, features)
        (result,) = await predict_rows(model, [features])
    except OrchestratorError as error:
        return error
    return result


@frozen
class LoadedModel:
    """An open model with how one row reaches it."""

    spec: ModelSpec
    model: Model
    predict_one: Callable[[Mapping[str, JSON]], Awaitable[JSON]]


class MlSource:
    """The open models of one ``ml`` source."""

    def __init__(self, models: Mapping[str, LoadedModel]) -> None:
        self.models = models

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        return await self.prepare(operation, tuple(params))(*params.values())

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        if tuple(param_names) != (FEATURES,):
            raise InvalidParam(FEATURES, f"a model takes one parameter, 'features', not {', '.join(param_names)}")
        loaded = self.models[operation]
        model, predict_one = loaded.model, loaded.predict_one

        def predict(features: Any) -> Awaitable[JSON]:  # not a coroutine of its own: one less for each request
            return predict_one(features) if type(features) is dict else _predict_list(model, features)

        return predict

    def prepare_many(
        self, operation: str, param_names: Sequence[str]
    ) -> Callable[[Sequence[Sequence[JSON]]], Awaitable[Sequence[JSON | OrchestratorError]]]:
        """Return the call for many items, whose rows go to the model together, ``batch.max_size`` at a time."""
        self.prepare(operation, param_names)  # which refuses other names
        loaded = self.models[operation]
        most = loaded.spec.common.batch.max_size if loaded.spec.common.batch else None

        async def predict(items: Sequence[Sequence[JSON]]) -> Sequence[JSON | OrchestratorError]:
            return await predict_items(loaded.model, [features for (features,) in items], most)

        return predict

    async def inspect(self) -> Inspection:
        await self.check_ready()
        return Inspection(facts={name: _facts(loaded.model) for name, loaded in self.models.items()})

    async def check_ready(self) -> None:
        for loaded in self.models.values():
            if isinstance(loaded.model, ReadyCheck):
                await loaded.model.check_ready()

    def identities(self) -> Mapping[str, Identity]:
        """Return which model answers each operation."""
        return {
            name: loaded.model.identity() if isinstance(loaded.model, Identified) else Identity(loaded.spec.name)
            for name, loaded in self.models.items()
        }


def _facts(model: Model) -> OperationFacts:
    if not isinstance(model, Describes):
        return OperationFacts(required=(FEATURES,), optional=())
    facts = model.facts()
    inputs = {FEATURES: facts.inputs} if facts.inputs is not None else {}
    return OperationFacts(required=(FEATURES,), optional=(), fields=facts.outputs, inputs=inputs)


class ModelNotOpened(Exception):
    """Which model of a source could not be opened; why is its cause."""

    def __init__(self, operation: str) -> None:
        super().__init__(operation)
        self.operation = operation


@asynccontextmanager
async def open_models(options: MlOptions, context: OpenContext) -> AsyncIterator[MlSource]:
    async with AsyncExitStack() as stack:
        models = {}
        for operation, spec in context.operations.items():
            opening = spec.kind.open(spec.options, context.named(f"{context.name}.{spec.name}"))
            try:
                model = await stack.enter_async_context(opening)
            except Exception as error:
                raise ModelNotOpened(operation) from error
            models[operation] = LoadedModel(spec, model, await _one_row(model, spec.common.batch, stack))
        yield MlSource(models)


async def _one_row(
    model: Model, batch: BatchOptions | None, stack: AsyncExitStack
) -> Callable[[Mapping[str, JSON]], Awaitable[JSON]]:
    if batch:
        batcher = Batcher(model, batch)
        stack.push_async_callback(batcher.close)
        return batcher.predict_one
    if isinstance(model, PredictsOne):
        return model.predict_one

    async def predict_one(row: Mapping[str, JSON]) -> JSON:
        (result,) = await predict_rows(model, (row,))
        return result

    return predict_one


def model_facts(options: MlOptions, operations: Mapping[str, Any]) -> Mapping[str, OperationFacts]:
    """Return what is known before a model is loaded: that it takes features."""
    return {name: OperationFacts(required=(FEATURES,), optional=()) for name in operations}


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
