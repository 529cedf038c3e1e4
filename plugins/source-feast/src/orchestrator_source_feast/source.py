"""A feature store as a source: operations to lookups, lookups to calls."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

from attrs import frozen

from orchestrator_core.plugin_api import (
    JSON,
    CallInspection,
    Inspection,
    InvalidParam,
    OpenContext,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
)
from orchestrator_source_feast.answer import Answer
from orchestrator_source_feast.asked import Asked, AskedOperation
from orchestrator_source_feast.binding import FEATURE_REFS, Binding, bind
from orchestrator_source_feast.inspection import inspect_call, inspect_operations
from orchestrator_source_feast.keys import CONVERTERS, Encoder, Unfit, encoder
from orchestrator_source_feast.lookup import Lookup, OnDemand, Unresolved, Wanted
from orchestrator_source_feast.many import Answers, CallMany, again, in_turns, one_by_one, shared_out
from orchestrator_source_feast.options import FeastOptions
from orchestrator_source_feast.repository import Repository
from orchestrator_source_feast.stores import Found, Store
from orchestrator_source_feast.threads import CLOSE_SECONDS, Threads
from orchestrator_source_feast.values import Unreadable, from_bytes, from_message

__all__ = ["FeastSource", "open_repository"]

Call: TypeAlias = Callable[..., Awaitable[JSON]]
Find: TypeAlias = Callable[[Sequence[Any]], Awaitable[Sequence[Found]]]
FindMany: TypeAlias = Callable[[Sequence[Any]], Awaitable[Sequence[Sequence[Found] | OrchestratorError]]]
Build: TypeAlias = Callable[[Sequence[Found], Sequence[Any]], dict[str, Any]]
Key: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...] | None]
OPEN_SECONDS = 300.0
MOST_FEATURE_LISTS = 256
ROWS_AT_ONCE = 500  # in one call of the SDK
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
        """Hold the source and each declared operation against the registry."""
        return inspect_operations(self._asked, self._repository.resolve, self._repository.join_keys)

    def inspect_call(
        self, operation: str, param_names: Sequence[str], constants: Mapping[str, JSON]
    ) -> CallInspection | None:
        """Hold one step's ``feature_refs`` and constants against the registry."""
        repository = self._repository
        return inspect_call(self._asked.of(operation), repository.resolve, repository.join_keys, param_names, constants)

    def prepare_many(self, operation: str, param_names: Sequence[str]) -> CallMany | None:
        """Return what reads many entities at once, or None for on-demand features, which are computed one by one.

        Computed together they may come out otherwise: a data frame's column has one type for all its rows.
        """
        self.prepare(operation, param_names)
        names = tuple(param_names)
        if FEATURE_REFS in names:
            return self._many_by_references(self._asked.of(operation), names)
        bound, key = self._bound, (operation, names, None)
        if (lookup := bound[key].lookup) is not None and lookup.on_demand:
            return None

        async def many(items: Sequence[Sequence[Any]]) -> Answers:
            return await bound[key].many(items)

        return many

    # --- calls -------------------------------------------------------------------------------------------------------

    def _by_declaration(self, operation: str, names: tuple[str, ...], wanted: Wanted) -> Call:
        bound, key = self._bound, (operation, names, None)
        try:
            bound[key] = self._bind(operation, names, wanted)
        except SourceUnavailable as unavailable:  # a feature view that is not ready may be after a refresh
            bound[key] = _failing(wanted, unavailable)

        def call(*values: Any) -> Awaitable[JSON]:
            return bound[key].call(*values)

        return call

    def _by_references(self, asked: AskedOperation, names: tuple[str, ...]) -> Call:
        at = names.index(FEATURE_REFS)

        async def call(*values: Any) -> JSON:
            bound = await self._bound_by(asked, names, asked.references(values[at]))
            return await bound.call(*values)

        return call

    def _many_by_references(self, asked: AskedOperation, names: tuple[str, ...]) -> CallMany:
        """Items of the same features, which usually all of them are, are read at once."""
        at = names.index(FEATURE_REFS)

        async def of_same(references: tuple[str, ...], items: Sequence[Sequence[Any]]) -> Answers:
            return await (await self._bound_by(asked, names, references)).many(items)

        return shared_out(lambda values: asked.references(values[at]), of_same)

    async def _bound_by(self, asked: AskedOperation, names: tuple[str, ...], references: tuple[str, ...]) -> Bound:
        """Features that each request names, usually always the same ones: what they come to is kept."""
        key = (asked.name, names, references)
        bound = self._bound.get(key)
        if bound is None:
            bound = await self._registry_thread.run(partial(self._bind, asked.name, names, asked.wanted(references)))
            lists = [other for other in self._bound if other[2] is not None]
            if len(lists) >= MOST_FEATURE_LISTS:
                del self._bound[lists[0]]
            self._bound[key] = bound
        return bound

    def _bind(self, operation: str, names: tuple[str, ...], wanted: Wanted) -> Bound:
        try:
            lookup = self._repository.resolve(wanted)
        except Unresolved as unresolved:
            if FEATURE_REFS in names:
                raise InvalidParam(FEATURE_REFS, f"{operation}: {unresolved}") from None
            raise SourceError(f"{operation}: {unresolved}") from None
        return self._bound_to(operation, names, lookup)

    def _bound_to(self, operation: str, names: tuple[str, ...], lookup: Lookup) -> Bound:
        asked = self._asked.of(operation)
        binding = bind(asked.name, lookup, asked.entity_key, names)
        direct = self._store if lookup.direct else None
        build = Answer.of(
            asked.name,
            lookup.views,
            from_bytes if direct else from_message,
            allow_missing=asked.allow_missing,
            entity=binding.entity,
        ).build
        if direct and lookup.views:
            way = _directly(direct, lookup, binding, build, asked.max_age_seconds)
        else:
            way = self._by_sdk(lookup, binding, build, asked.max_age_seconds)
        call = self._computing(binding, lookup, way.find, build) if lookup.on_demand else way.call
        many = way.many
        if lookup.on_demand or not all(type_ in CONVERTERS for type_ in lookup.join_keys.values()):
            # The SDK reads a column of keys by the type of one of them.
            many = partial(one_by_one, call, most=self._asked.options.pool_size)
        return Bound(lookup.wanted, lookup, call, many)

    def _by_sdk(self, lookup: Lookup, binding: Binding, build: Build, max_age_seconds: float | None) -> Way:
        async def find_many(entities: Sequence[Mapping[str, Any]]) -> list[Sequence[Found]]:
            found: list[Sequence[Found]] = []
            for start in range(0, len(entities), ROWS_AT_ONCE):
                part = entities[start : start + ROWS_AT_ONCE]
                found += await self._threads.run(partial(self._repository.read, lookup, part, max_age_seconds))
            return found

        async def find(values: Sequence[Any]) -> Sequence[Found]:
            return (await find_many([binding.convert(values)]))[0]

        async def call(*values: Any) -> JSON:
            return build(await find(values), values)

        return Way(call, find, _many(call, binding.convert, find_many, build))

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
            row = binding.row(values)
            found = await find(values)
            result = build(found, values)
            by_view = dict(zip(views, found, strict=True))
            computed = [each.name for each in lookup.on_demand if is_there(each, by_view)]
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
        reason = ""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except Exception as error:  # whatever a registry raises: what was read before goes on serving
                before, reason = reason, f"{type(error).__name__}: {error}"
                if reason != before:
                    what = "the registry cannot be read, and what was read before stays in use"
                    log.warning("feast '%s': %s: %s", self._name, what, reason)
            else:
                if reason:
                    log.warning("feast '%s': the registry can be read again", self._name)
                reason = ""

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
                    self._bound[key] = self._bound_to(operation, names, lookup)
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
    many: CallMany


def _failing(wanted: Wanted, error: OrchestratorError) -> Bound:
    async def call(*values: Any) -> Any:
        raise again(error)

    return Bound(wanted, None, call, call)


def _many(call: Call, key_of: Callable[[Sequence[Any]], Any], find_many: FindMany, build: Build) -> CallMany:
    """Return what reads many items at once; ``key_of`` makes of an item what ``find_many`` takes."""

    def key_or_error(values: Sequence[Any]) -> Any:
        try:
            return key_of(values)
        except OrchestratorError as error:
            return error

    def answer(pair: tuple[Sequence[Found] | OrchestratorError, Sequence[Any]]) -> JSON | OrchestratorError:
        found, values = pair
        if isinstance(found, OrchestratorError):
            return found
        try:
            return build(found, values)
        except OrchestratorError as error:
            return error

    async def many(items: Sequence[Sequence[Any]]) -> Answers:
        if len(items) == 1:
            return await one_by_one(call, items, 1)
        answers: list[Any] = await in_turns(items, key_or_error)
        places = [place for place, key in enumerate(answers) if not isinstance(key, OrchestratorError)]
        if places:
            found = await find_many([answers[place] for place in places])
            built = await in_turns(zip(found, [items[place] for place in places], strict=True), answer)
            for place, each in zip(places, built, strict=True):
                answers[place] = each
        return answers

    return many


@frozen(eq=False)
class Way:
    """How stored features are read: to a result, as they are found, and those of many items."""

    call: Call
    find: Find
    many: CallMany


def _directly(store: Store, lookup: Lookup, binding: Binding, build: Build, max_age_seconds: float | None) -> Way:
    keys_of, read = _keys_of(binding, lookup), store.bind(lookup.views, max_age_seconds)

    async def find(values: Sequence[Any]) -> Sequence[Found]:
        return await read(keys_of(values))

    async def call(*values: Any) -> JSON:
        return build(await read(keys_of(values)), values)

    return Way(call, find, _many(call, keys_of, store.bind_many(lookup.views, max_age_seconds), build))


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


@asynccontextmanager
async def open_repository(options: FeastOptions, context: OpenContext) -> AsyncIterator[FeastSource]:
    """Open the SDK and the registry in a thread. The online store need not be up."""
    assert options.repo_path is not None
    path, name = context.path(options.repo_path), context.name.removeprefix("feast.")
    async with AsyncExitStack() as stack:
        registry_thread = await stack.enter_async_context(
            Threads(name, 1, wait_seconds=OPEN_SECONDS, call_seconds=OPEN_SECONDS)
        )
        threads = await stack.enter_async_context(
            Threads(name, options.pool_size, wait_seconds=options.pool_timeout, call_seconds=options.timeout)
        )
        repository = await registry_thread.run(partial(Repository, name, path, options.connect_timeout))
        stack.push_async_callback(_close, repository, registry_thread)
        store = repository.open_store(options, threads)
        if store is not None:
            stack.push_async_callback(store.close)
        source = FeastSource(Asked(options, context.operations), repository, store, threads, registry_thread, name)
        seconds = options.registry_refresh or repository.refresh_seconds
        refreshing = asyncio.create_task(source.refresh_for_ever(seconds), name=f"feast {name} registry")
        stack.push_async_callback(_end, refreshing)
        yield source


async def _close(repository: Repository, registry_thread: Threads) -> None:
    """Close the repository, unless its registry hangs: the thread that reads it is then left to itself."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await registry_thread.run(repository.close)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
