"""A feature store as a source: operations to lookups, lookups to calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from copy import copy
from functools import partial
from typing import Any, TypeAlias

from attrs import frozen

from orchestrator_core.plugin_api import (
    JSON,
    Finding,
    Inspection,
    InvalidParam,
    OpenContext,
    OperationFacts,
    OrchestratorError,
    SourceError,
)
from orchestrator_source_feast.answer import Answer
from orchestrator_source_feast.asked import Asked, AskedOperation
from orchestrator_source_feast.binding import FEATURE_REFS, Binding, bind, params_of
from orchestrator_source_feast.keys import Encoder, Unfit, encoder
from orchestrator_source_feast.lookup import Lookup, OnDemand, Unresolved, Wanted
from orchestrator_source_feast.options import FeastOptions
from orchestrator_source_feast.repository import Repository
from orchestrator_source_feast.stores import Found, Store
from orchestrator_source_feast.threads import Threads
from orchestrator_source_feast.values import Unreadable, from_bytes, from_message

__all__ = ["FeastSource", "open_repository"]

Call: TypeAlias = Callable[..., Awaitable[JSON]]
Find: TypeAlias = Callable[[Sequence[Any]], Awaitable[Sequence[Found]]]
Build: TypeAlias = Callable[[Sequence[Found], Sequence[Any]], dict[str, Any]]
Key: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...] | None]
OPEN_SECONDS = 300.0
MOST_FEATURE_LISTS = 256
DUMMY_ENTITY_ID = "__dummy_id"
log = logging.getLogger(__name__)


class FeastSource:
    """A feature repository. ``fetch`` and what ``prepare`` returns may be called concurrently."""

    def __init__(
        self,
        asked: Asked,
        repository: Repository,
        store: Store | None,
        threads: Threads,
        registry_thread: Threads,
        name: str,
    ) -> None:
        self._asked = asked
        self._repository = repository
        self._store = store
        self._threads = threads
        self._registry_thread = registry_thread
        self._name = name
        self._calls: dict[tuple[str, tuple[str, ...]], Call] = {}
        self._bound: dict[Key, Bound] = {}

    # --- the contract ------------------------------------------------------------------------------------------------

    def prepare(self, operation: str, param_names: Sequence[str]) -> Call:
        """Return the coroutine function that takes the values in the order of the names.

        Raises ``InvalidParam`` when the names are not those of the operation, and ``SourceError`` when the registry
        does not have its features.
        """
        names = tuple(param_names)
        call = self._calls.get((operation, names))
        if call is None:
            asked = self._asked.of(operation)
            if FEATURE_REFS in names:
                call = self._by_references(asked, names)
            else:
                call = self._by_declaration(operation, names, asked.wanted())
            self._calls[operation, names] = call
        return call

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        names = sorted(params)
        return await self.prepare(operation, names)(*[params[name] for name in names])

    async def check_ready(self) -> None:
        if self._store is not None:
            await self._store.check_ready()

    async def inspect(self) -> Inspection:
        """Hold each declared operation against the registry."""
        facts: dict[str, OperationFacts] = {}
        findings: list[Finding] = []
        for operation in self._asked.declared:
            asked = self._asked.of(operation)
            if not asked.names_features:
                continue
            try:
                lookup = self._repository.resolve(asked.wanted())
            except Unresolved as unresolved:
                findings += _findings(operation, unresolved)
                continue
            if asked.own_entity_key and asked.entity_key not in lookup.join_keys:
                keys = ", ".join(lookup.join_keys) or "none"
                message = f"these features have no join key '{asked.entity_key}' (theirs: {keys})"
                findings.append(Finding(operation, message, ("entity_key",), asked.entity_key or ""))
                continue
            facts[operation] = OperationFacts(
                required=tuple(params_of(lookup, asked.entity_key)), optional=(FEATURE_REFS,), fields=lookup.fields
            )
        return Inspection(facts, tuple(findings))

    # --- calls -------------------------------------------------------------------------------------------------------

    def _by_declaration(self, operation: str, names: tuple[str, ...], wanted: Wanted) -> Call:
        bound, key = self._bound, (operation, names, None)
        bound[key] = self._bind(operation, names, wanted)

        def call(*values: Any) -> Awaitable[JSON]:
            return bound[key].call(*values)

        return call

    def _by_references(self, asked: AskedOperation, names: tuple[str, ...]) -> Call:
        """Features that each request names, usually always the same ones: what they come to is kept."""
        at = names.index(FEATURE_REFS)

        async def call(*values: Any) -> JSON:
            references = asked.references(values[at])
            key = (asked.name, names, references)
            bound = self._bound.get(key)
            if bound is None:
                bound = await self._registry_thread.run(
                    partial(self._bind, asked.name, names, asked.wanted(references))
                )
                lists = [other for other in self._bound if other[2] is not None]
                if len(lists) >= MOST_FEATURE_LISTS:
                    del self._bound[lists[0]]
                self._bound[key] = bound
            return await bound.call(*values)

        return call

    def _bind(self, operation: str, names: tuple[str, ...], wanted: Wanted) -> Bound:
        try:
            lookup = self._repository.resolve(wanted)
        except Unresolved as unresolved:
            if FEATURE_REFS in names:
                raise InvalidParam(FEATURE_REFS, f"{operation}: {unresolved}") from None
            raise SourceError(f"{operation}: {unresolved}") from None
        return Bound(wanted, lookup, self._call(self._asked.of(operation), names, lookup))

    def _call(self, asked: AskedOperation, names: tuple[str, ...], lookup: Lookup) -> Call:
        binding = bind(asked.name, lookup, asked.entity_key, names)
        direct = self._store if lookup.direct else None
        build = Answer.of(
            asked.name,
            lookup.views,
            from_bytes if direct else from_message,
            allow_missing=asked.allow_missing,
            entity=binding.entity,
        ).build
        if not lookup.on_demand and direct and lookup.views:
            keys_of, read = _keys_of(binding, lookup), direct.bind(lookup.views, asked.max_age_seconds)

            async def call(*values: Any) -> JSON:
                return build(await read(keys_of(values)), values)

            return call
        find = self._finder(binding, lookup, direct, asked.max_age_seconds)
        if lookup.on_demand:
            return self._computing(binding, lookup, find, build)

        async def call_sdk(*values: Any) -> JSON:
            return build(await find(values), values)

        return call_sdk

    def _finder(self, binding: Binding, lookup: Lookup, store: Store | None, max_age_seconds: float | None) -> Find:
        """Return what reads the stored features, those that on-demand features are computed from among them."""
        if store is not None and lookup.views:
            keys_of, read = _keys_of(binding, lookup), store.bind(lookup.views, max_age_seconds)

            async def find(values: Sequence[Any]) -> Sequence[Found]:
                return await read(keys_of(values))

            return find

        async def find_by_sdk(values: Sequence[Any]) -> Sequence[Found]:
            entity = binding.convert(values)
            return await self._threads.run(partial(self._repository.read, lookup, entity, max_age_seconds))

        return find_by_sdk

    def _computing(self, binding: Binding, lookup: Lookup, find: Find, build: Build) -> Call:
        views = {view.name: view for view in lookup.views}

        def is_there(each: OnDemand, found: Mapping[str, Found]) -> bool:
            return all(
                found[name][0].get(feature.name) is not None
                for name in each.sources
                if name in views
                for feature in views[name].features
            )

        async def call(*values: Any) -> JSON:
            found = await find(values)
            result = build(found, values)
            by_view = dict(zip(views, found, strict=True))
            computed = [each.name for each in lookup.on_demand if is_there(each, by_view)]
            row = binding.convert(values) | {name: values[index] for name, index in binding.inputs}
            messages = {}
            if computed:
                messages = await self._threads.run(partial(self._repository.compute, lookup, computed, row))
            for each in lookup.on_demand:
                for feature in each.features:
                    message = messages.get((each.name, feature.name))
                    try:
                        result[feature.field] = None if message is None else from_message(message)
                    except Unreadable as unreadable:
                        raise SourceError(f"{binding.operation}: feature '{feature.name}' {unreadable}") from None
            return result

        return call

    # --- the registry, in the background -----------------------------------------------------------------------------

    async def refresh_for_ever(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except Exception:  # whatever a registry raises: what was read before goes on serving
                log.warning("feast '%s': the registry could not be read anew", self._name, exc_info=True)

    async def refresh(self) -> None:
        """Read the registry anew and bind anew what has changed; calls go on meanwhile with what was there."""
        if self._store is not None:
            self._store.refresh()
        if not await self._registry_thread.run(self._repository.refresh):
            return
        for key, before in list(self._bound.items()):
            operation, names, _ = key
            try:
                lookup = await self._registry_thread.run(partial(self._repository.resolve, before.wanted))
                if lookup != before.lookup:
                    self._bound[key] = Bound(
                        before.wanted, lookup, self._call(self._asked.of(operation), names, lookup)
                    )
            except Unresolved as unresolved:
                self._bound[key] = _failing(before.wanted, SourceError(f"{operation}: {unresolved}"))
            except OrchestratorError as error:  # a feature view that is not ready, or parameters that no longer fit
                self._bound[key] = _failing(before.wanted, error)


@frozen(eq=False)
class Bound:
    """A call with what it was made from; without a lookup the registry no longer has what is wanted."""

    wanted: Wanted
    lookup: Lookup | None
    call: Call


def _failing(wanted: Wanted, error: OrchestratorError) -> Bound:
    async def call(*values: Any) -> JSON:
        raise copy(error)

    return Bound(wanted, None, call)


def _keys_of(binding: Binding, lookup: Lookup) -> Callable[[Sequence[Any]], Sequence[bytes]]:
    """Return what makes the entity key of each view from the caller's values."""
    encoders: list[tuple[tuple[str, ...], Encoder]] = []
    for view in lookup.views:
        encode = encoder(view.join_keys, list(view.types))
        assert encode is not None, view  # a direct view has one
        encoders.append((view.join_keys, encode))
    encode_only = encoders[0][1]
    if len(encoders) == 1 and len(binding.keys) == 1:
        ((_, index, convert),) = binding.keys

        def one_key(values: Sequence[Any]) -> Sequence[bytes]:
            try:
                return (encode_only(convert(values[index])),)
            except Unfit:
                raise binding.invalid(values) from None

        return one_key

    def keys(values: Sequence[Any]) -> Sequence[bytes]:
        entity = binding.convert(values)
        entity[DUMMY_ENTITY_ID] = ""
        return [encode(*[entity[key] for key in join_keys]) for join_keys, encode in encoders]

    return keys


def _findings(operation: str, unresolved: Unresolved) -> list[Finding]:
    return [
        Finding(
            operation,
            flaw.message,
            ("feature_service",) if flaw.index is None else ("features", flaw.index),
            flaw.near,
            flaw.hint,
        )
        for flaw in unresolved.flaws
    ]


@asynccontextmanager
async def open_repository(options: FeastOptions, context: OpenContext) -> AsyncIterator[FeastSource]:
    """Open the SDK and the registry in a thread. The online store need not be up."""
    assert options.repo_path is not None
    path, name = context.path(options.repo_path), context.name
    async with AsyncExitStack() as stack:
        registry_thread = await stack.enter_async_context(
            Threads(name, 1, wait_seconds=OPEN_SECONDS, call_seconds=OPEN_SECONDS)
        )
        threads = await stack.enter_async_context(
            Threads(name, options.pool_size, wait_seconds=options.pool_timeout, call_seconds=options.timeout)
        )
        repository = await registry_thread.run(partial(Repository, name, path))
        stack.push_async_callback(registry_thread.run, repository.close)
        store = repository.open_store(options, threads)
        if store is not None:
            stack.push_async_callback(store.close)
        source = FeastSource(Asked(options, context.operations), repository, store, threads, registry_thread, name)
        seconds = options.registry_refresh or repository.refresh_seconds
        refreshing = asyncio.create_task(source.refresh_for_ever(seconds), name=f"feast {name} registry")
        stack.push_async_callback(_end, refreshing)
        yield source


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
