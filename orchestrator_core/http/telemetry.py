"""The open telemetry of the service, and the state that it may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog

from orchestrator_core import __version__
from orchestrator_core.http.public import NO_TELEMETRY
from orchestrator_core.logs import LogMask
from orchestrator_core.models import Supervisor
from orchestrator_core.plugin_api import Telemetry, TelemetryContext
from orchestrator_core.reload import Live
from orchestrator_core.snapshot import OpenSource, Snapshot

log = structlog.get_logger("orchestrator.telemetry")


@asynccontextmanager
async def open_telemetry(live: Live) -> AsyncIterator[Telemetry]:
    """Open what the configuration asks for at the start. A reload that asks for something else waits for the next."""
    wanted = live.snapshot.telemetry
    secrets = LogMask(live.snapshot.configuration.redactor)

    def swapped(snapshot: Snapshot) -> None:
        secrets.learn(snapshot.configuration.redactor)
        if snapshot.telemetry != wanted:
            log.warning("telemetry has changed: it does so when the service is started again")

    live.swapped.append(swapped)
    if wanted is None:
        yield NO_TELEMETRY
        return
    context = TelemetryContext(live.folder.resolve(), __version__, lambda: service_state(live), secrets)
    async with wanted.kind.open(wanted.options, context) as telemetry:
        yield telemetry


def service_state(live: Live) -> dict[str, Any]:
    """Return the document that :class:`TelemetryContext` describes."""
    snapshot = live.snapshot
    return {
        "generation": snapshot.generation,
        "endpoints": len(snapshot.plans),
        "requests": {"in_flight": snapshot.running},
        "reloads": dict(live.reloads),
        "sources": [_source(opened) for opened in snapshot.sources.values()],
        "models": [_model(model) for _, _, model in snapshot.models()],
    }


def _source(opened: OpenSource) -> dict[str, Any]:
    return {"source": opened.spec.label, "type": opened.spec.kind.name, "unreachable": bool(opened.unreachable)}


def _model(model: Supervisor) -> dict[str, Any]:
    slot = model.slot
    return {
        "model": slot.label,
        "type": slot.spec.kind.name,
        "state": slot.state,
        "requests": slot.requests,
        "failures": slot.failures,
        "starts": slot.starts,
        "restarts": slot.restarts,
        "falls_back": slot.falls_back,
    }
