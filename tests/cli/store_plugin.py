"""A single-file plugin for the tests: a strict source type, a model type and a transformer, without a backend."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

from attrs import frozen

from orchestrator_core.plugin_api import (
    JSON,
    Duration,
    Execution,
    Finding,
    Inspection,
    ModelKind,
    OpenContext,
    OperationFacts,
    SourceError,
    SourceKind,
    SourceUnavailable,
    TransformerKind,
    hookimpl,
    option,
)


@frozen
class StoreOptions:
    url: str = option(help="Where the store is.")
    pool_size: int = option(5, help="How many connections.")
    timeout: Duration = option(Duration(1), help="Longest time for a call.")


@frozen
class StoreOperation:
    query: str = option(help="What is asked.")
    params: tuple[str, ...] = option((), help="The parameters.")
    result: Literal["one", "many"] = option("one", help="How many rows.")
    fields: tuple[str, ...] | None = option(None, help="The fields of a row.")
    asks: tuple[str, ...] | None = option(None, help="The keys of the parameter 'features'.")


class Store:
    def __init__(self, options: StoreOptions, operations: Mapping[str, StoreOperation]) -> None:
        self.options = options
        self.operations = operations

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        if self.options.url == "store://down":
            raise SourceError("the store is down")
        return {**params, "score": 700}

    def prepare(self, operation: str, param_names: Sequence[str]) -> Callable[..., Awaitable[JSON]]:
        names = tuple(param_names)
        if "?" in self.operations[operation].query:
            raise ValueError(f"the query of '{operation}' has a parameter without a name")

        async def call(*values: JSON) -> JSON:
            return await self.fetch(operation, dict(zip(names, values, strict=True)))

        return call

    async def inspect(self) -> Inspection:
        if self.options.url == "store://far":
            raise SourceUnavailable("connection refused")
        found = (
            Finding(name, "there is no shelf 'shoos'", at=("query",), near="shoos", hint="did you mean 'shoes'?")
            for name, operation in self.operations.items()
            if "shoos" in operation.query
        )
        return Inspection(findings=tuple(found))


@asynccontextmanager
async def open_store(options: StoreOptions, context: OpenContext) -> AsyncIterator[Store]:
    if options.url == "store://nowhere":
        raise SourceError(f"no store at {options.url}")
    yield Store(options, context.operations)


def facts(_: StoreOptions, operations: Mapping[str, Any]) -> Mapping[str, OperationFacts]:
    return {
        name: OperationFacts(
            required=operation.params,
            optional=(),
            fields=operation.fields,
            many=operation.result == "many",
            inputs={} if operation.asks is None else {"features": operation.asks},
        )
        for name, operation in operations.items()
    }


@frozen
class LinearOptions:
    path: str = option(help="Where the weights are.")


@asynccontextmanager
async def open_linear(options: LinearOptions, context: OpenContext) -> AsyncIterator[Any]:
    raise SourceError(f"no weights at {options.path}")
    yield


def rename(options: Mapping[str, str]) -> Callable[[JSON], JSON]:
    def apply(value: JSON) -> JSON:
        assert isinstance(value, Mapping)
        return {options.get(name, name): item for name, item in value.items()}

    return apply


@hookimpl
def orchestrator_source_kinds() -> Iterable[SourceKind[Any]]:
    return [SourceKind("store", "A store for tests.", StoreOptions, open_store, StoreOperation, facts=facts)]


@hookimpl
def orchestrator_model_kinds() -> Iterable[ModelKind[Any]]:
    return [ModelKind("linear", "A linear model for tests.", LinearOptions, open_linear, aliases=("line",))]


@hookimpl
def orchestrator_transformers() -> Iterable[TransformerKind[Any]]:
    return [TransformerKind("rename", "Renames fields.", dict[str, str], rename)]


@hookimpl
def orchestrator_execution_finished(execution: Execution) -> None:
    pass
