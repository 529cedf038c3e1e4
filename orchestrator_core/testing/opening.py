"""Opening one source or model the way the service does, from options as they stand in YAML."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import evolve

from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import Document
from orchestrator_core.errors import ConfigError
from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import JSON, Model, ModelFacts, ModelKind, OpenContext, Source, SourceKind


def structured(cls: Any, data: Mapping[str, Any], what: str = "options") -> Any:
    """Return the options class filled from YAML data, as strictly as a configuration is.

    Raises :class:`ConfigError` with every problem.
    """
    value, problems = structure(cls, Located(Document(what, ""), (), dict(data)))
    if value is None:
        raise ConfigError(problems)
    return value


def structured_operations(kind: SourceKind[Any], operations: Mapping[str, Any]) -> dict[str, Any]:
    if kind.operation is None:
        return dict(operations)
    return {name: structured(kind.operation, data, name) for name, data in operations.items()}


@asynccontextmanager
async def open_source(
    kind: SourceKind[Any],
    options: Mapping[str, Any],
    operations: Mapping[str, Any] | None = None,
    *,
    folder: Path,
    name: str = "default",
    models: Iterable[ModelKind[Any]] = (),
) -> AsyncIterator[Source]:
    """Open a source as the service would; ``options`` and ``operations`` are what stands in YAML.

    ``folder`` is the configuration folder, ``models`` the kinds that ``context.open_model`` finds.
    """
    async with HttpClient() as http:
        context = _context(name, folder, http, models, structured_operations(kind, operations or {}))
        async with kind.open(structured(kind.options, options), context) as source:
            yield source


@asynccontextmanager
async def open_model(
    kind: ModelKind[Any],
    options: Mapping[str, Any],
    *,
    folder: Path,
    name: str = "default",
    models: Iterable[ModelKind[Any]] = (),
    kept: dict[str, JSON] | None = None,
) -> AsyncIterator[Model]:
    """Open a model as the service would; ``options`` is what stands in YAML, without ``type`` and ``batch``.

    ``kept`` is where it finds and leaves what its next start by itself begins with.
    """
    async with HttpClient() as http:
        context = evolve(_context(name, folder, http, models, {}), kept={} if kept is None else kept)
        async with kind.open(structured(kind.options, options), context) as model:
            yield model


async def look_at_model(
    kind: ModelKind[Any],
    options: Mapping[str, Any],
    *,
    folder: Path,
    name: str = "default",
    models: Iterable[ModelKind[Any]] = (),
) -> ModelFacts | None:
    """Look at a model as ``orchestrator check`` would, without opening it."""
    assert kind.look is not None, f"the kind {kind.name} has no look"
    async with HttpClient() as http:
        return await kind.look(structured(kind.options, options), _context(name, folder, http, models, {}))


def _context(
    name: str, folder: Path, http: HttpClient, models: Iterable[ModelKind[Any]], operations: Mapping[str, Any]
) -> OpenContext:
    known = {alias: kind for kind in models for alias in (kind.name, *kind.aliases)}

    def open_other(other: str, options: Mapping[str, Any]) -> AbstractAsyncContextManager[Model]:
        kind = known[other]
        return kind.open(structured(kind.options, options), context.named(name))

    context = OpenContext(name, folder.resolve(), http, operations, open_model=open_other)
    return context
