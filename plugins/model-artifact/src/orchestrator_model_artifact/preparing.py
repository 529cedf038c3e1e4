"""From options to a request to load: the files found, or fetched from an MLflow store, checked, and out of reach."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeAlias

from attrs import asdict

from orchestrator_core.plugin_api import OpenContext, OrchestratorError, SourceError, SourceUnavailable
from orchestrator_model_artifact.loading import Request
from orchestrator_model_artifact.location import Location, has_changed, locate, located
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.pools import Threads
from orchestrator_model_artifact.private import private_folder
from orchestrator_model_artifact.store import Found, Stores, fetch, find, is_movable, is_store_uri, stores_of
from orchestrator_model_artifact.worker import Worker, WorkerDied, worker

log = logging.getLogger(__name__)

Watch: TypeAlias = "Callable[[], Awaitable[bool]]"
"""Asks whether other content lies at the path now."""

STORE_SECONDS = 180.0
"""How long an MLflow store may take to say which version is meant; importing MLflow is part of it."""


async def prepare(
    options: ArtifactOptions, context: OpenContext, stack: AsyncExitStack, threads: Threads
) -> tuple[Request, Watch]:
    """Find the model and check what it is held to; copies of its files live as long as the stack.

    Raises :class:`SourceError` when it cannot be loaded as it is, :class:`SourceUnavailable` when it may later.
    """
    assert options.path is not None
    if is_store_uri(options.path):
        return await _fetched(options.path, options, context, stack, threads)
    location = original = await threads.run(locate, options, context.config_dir)
    if context.kept.get("sha256", location.sha256) != location.sha256:
        log.warning("%s: started again with other files: they have changed since it was loaded", context.name)
    context.kept["sha256"] = location.sha256
    if options.sha256 and not location.is_file:
        # Libraries read some files by their paths: nobody may put others there after they were hashed.
        folder = stack.enter_context(private_folder())
        location = await threads.run(location.copied_to, folder)

    async def changed() -> bool:
        # Other content than what is pinned would be refused: what was loaded stays right.
        # Not in the model's own threads, all of which can be in a model that hangs: a reload would wait for them.
        return not options.sha256 and await asyncio.to_thread(has_changed, original, options, context.config_dir)

    return Request(context.name, options, location), changed


async def _fetched(
    uri: str, options: ArtifactOptions, context: OpenContext, stack: AsyncExitStack, threads: Threads
) -> tuple[Request, Watch]:
    stores = stores_of(options.tracking_uri, options.registry_uri, context.config_dir)
    folder = stack.enter_context(private_folder())
    try:
        async with worker() as asked:
            found, path = await _version(asked, uri, stores, folder, context)
    except WorkerDied as error:
        raise SourceError(f"{uri}: {error} while it fetched the model") from error
    location = await threads.run(located, path, path, options.sha256)

    async def changed() -> bool:
        if not is_movable(uri):
            return False
        try:
            async with worker() as asked:
                return await _asked(asked, uri, stores) != found
        except (OrchestratorError, WorkerDied):
            return False  # a store that is down does not take a model away

    return Request(context.name, options, location, version=found.version), changed


async def _version(asked: Worker, uri: str, stores: Stores, folder: Path, context: OpenContext) -> tuple[Found, Path]:
    """Fetch the version that the URI means, or when a model that was in use is started again, the one that it had.

    What the URI means by then may be a version that a reload has refused, or that nobody has asked for yet.
    """
    note: Any = context.kept.get("found")
    if note is not None:
        found = Found(**note)
        try:
            return found, await asked.call(fetch, uri, found, stores, str(folder))
        except SourceError as error:
            log.warning("%s: the version that it had is gone: %s", context.name, error)
    found = await _asked(asked, uri, stores)
    context.kept["found"] = asdict(found)
    return found, await asked.call(fetch, uri, found, stores, str(folder))


async def _asked(asked: Worker, uri: str, stores: Stores) -> Found:
    call = asyncio.create_task(asked.call(find, uri, stores))
    try:
        await asyncio.wait([call], timeout=STORE_SECONDS)
    finally:
        if late := not call.done():
            asked.kill()
            await asyncio.wait([call])
    if late:
        call.exception()
        raise SourceUnavailable(f"{uri}: {stores.shown} did not answer within {STORE_SECONDS:g} s", started=False)
    return call.result()


def server_location(options: ArtifactOptions, config_dir: Path) -> Location | None:
    """Return where the files are that a model server is given, or None when it is given none."""
    if options.path is None:
        return None
    if is_store_uri(options.path):
        raise SourceError("an MLflow URI cannot be given to startup_command: let the server fetch it, by its own means")
    return locate(options, config_dir)
