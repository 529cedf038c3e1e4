"""Noticing that a container has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from orchestrator_core.plugin_api import EndedByOthers, SourceError, SourceUnavailable
from orchestrator_model_docker import containers
from orchestrator_model_docker.engine import Engine

LOOK_AGAIN_SECONDS = 0.25
_CONNECT_SECONDS = 1.0


async def until_ended(engine: Engine, container: Mapping[str, Any], address: tuple[str, int]) -> str:
    """Wait until a container has ended, and return how. ``container`` is what the engine told of it when it ran.

    The engine tells of the end. While the engine itself is away, such as during its own restart, a container may live
    on: it counts as ended when nothing answers at its address any more.
    """
    while True:
        try:
            async with engine.end_of(container["Id"]) as heard:
                found = await containers.find(engine, container["Id"])
                if found is None:
                    return EndedByOthers("the container was removed")
                if not containers.is_running(found):
                    how = await containers.describe_end(engine, found)
                    return EndedByOthers(how) if containers.ended_by_others(found) else how
                if found["State"]["StartedAt"] != container["State"]["StartedAt"]:
                    return EndedByOthers("the container was restarted by somebody, maybe with another port")
                await heard
        except (SourceUnavailable, SourceError) as error:
            if not await _answers(address):
                return EndedByOthers(f"the container went away with the Docker engine: {error}")
            await asyncio.sleep(LOOK_AGAIN_SECONDS)


async def _answers(address: tuple[str, int]) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(*address)
    except (OSError, TimeoutError):
        return False
    writer.close()
    return True
