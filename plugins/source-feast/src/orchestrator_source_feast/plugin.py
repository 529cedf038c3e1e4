"""The ``feast`` source kind, which the core finds under ``orchestrator.plugins``. Feast is imported when one opens."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from orchestrator_core.plugin_api import OpenContext, Source, SourceError, SourceKind, hookimpl
from orchestrator_source_feast.asked import Asked
from orchestrator_source_feast.options import FeastOptions, OperationOptions
from orchestrator_source_feast.server import open_server

__all__ = ["FEAST", "orchestrator_source_kinds"]


@asynccontextmanager
async def open_feast(options: FeastOptions, context: OpenContext) -> AsyncIterator[Source]:
    """Open the repository, or the connections to the feature server.

    Raises ``SourceError`` without a repository and ``SourceUnavailable`` without its registry.
    """
    if options.server_url is not None:
        async with open_server(options, context, Asked(options, context.operations)) as server:
            yield server
        return
    try:  # in a thread: importing Feast takes seconds
        source = await asyncio.to_thread(importlib.import_module, "orchestrator_source_feast.source")
    except Exception as error:  # Feast and its many dependencies may be missing, at odds with each other, or too new
        reason = f"Feast cannot be imported: {type(error).__name__}: {error}"
        raise SourceError(f"{reason}; look at `pip check`, or use server_url, which needs no Feast here") from error
    async with source.open_repository(options, context) as repository:
        yield repository


FEAST: SourceKind[Any] = SourceKind(
    name="feast",
    summary="Features from a Feast online store, through the SDK in process or a feature server.",
    options=FeastOptions,
    operation=OperationOptions,
    open=open_feast,
    undeclared_operations=True,
    in_process=True,
    idempotent=True,
)


@hookimpl
def orchestrator_source_kinds() -> Iterable[SourceKind[Any]]:
    return [FEAST]
