"""The open telemetry of the service, and the state that it may ask for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import structlog

from orchestrator_core import __version__
from orchestrator_core.errors import ConfigError
from orchestrator_core.guards import Memory
from orchestrator_core.http.limit import UNLIMITED, Limit
from orchestrator_core.http.public import NO_TELEMETRY
from orchestrator_core.logs import LogMask
from orchestrator_core.models import Supervisor
from orchestrator_core.plugin_api import Telemetry, TelemetryContext
from orchestrator_core.reload import Live
from orchestrator_core.snapshot import OpenSource, Snapshot, masked
from orchestrator_core.telemetry import unusable_telemetry
from orchestrator_core.tracking import ExecutionLog

log = structlog.get_logger("orchestrator.telemetry")


@asynccontextmanager
async def open_telemetry(live: Live, state: ServiceState) -> AsyncIterator[Telemetry]:
    """Open what the configuration asks for at the start. A reload that asks for something else waits for the next.

    Raises :class:`ConfigError` when it cannot be opened.
    """
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
    context = TelemetryContext(live.folder.resolve(), __version__, state, secrets)
    async with AsyncExitStack() as stack:
        try:
            telemetry = await stack.enter_async_context(wanted.kind.open(wanted.options, context))
            if not isinstance(telemetry, Telemetry):
                raise TypeError(f"what was opened is a {type(telemetry).__name__}, expected Telemetry")
        except Exception as error:  # whatever ails it, the plugin is named
            redact = live.snapshot.configuration.redactor
            raise ConfigError(masked([unusable_telemetry(wanted, error)], redact)) from error
        yield telemetry


class ServiceState:
    """Returns the document that :class:`TelemetryContext` describes. ``limit`` is set once there is a listener."""

    def __init__(self, live: Live, executions: ExecutionLog) -> None:
        self.limit: Limit | None = None
        self._live = live
        self._executions = executions

    def __call__(self) -> dict[str, Any]:
        live, snapshot = self._live, self._live.snapshot
        return {
            "generation": snapshot.generation,
            "endpoints": len(snapshot.plans),
            "requests": {} if self.limit is None else _requests(self.limit),
            "connections": {} if self.limit is None else _connections(self.limit),
            "reloads": dict(live.reloads),
            "tracking": _tracking(self._executions),
            "sources": [part for opened in snapshot.sources.values() for part in _source(opened, snapshot.memory)],
            "answers": [
                {"endpoint": f"{domain}.{name}", **remembered.state.describe()}
                for (domain, name), remembered in snapshot.memory.answers.items()
            ],
            "models": [_model(model) for _, _, model in snapshot.models()],
        }


def _requests(limit: Limit) -> dict[str, int]:
    most = {} if limit.most >= UNLIMITED else {"limit": limit.most}
    return {"in_flight": limit.in_flight, "shed": limit.shed, **most}


def _connections(limit: Limit) -> dict[str, int]:
    return {"open": limit.connections, "refused": limit.connections_refused}


def _tracking(executions: ExecutionLog) -> dict[str, Any]:
    if executions.writer is None:
        return {}
    counts = executions.writer.counts
    dropped = {"dropped": counts.dropped, "dropped_by_reason": counts.reasons}
    return {"written": counts.written, **dropped, "queued": counts.waiting}


def _source(opened: OpenSource, memory: Memory) -> Iterator[dict[str, Any]]:
    """Yield an entry for the source, or one for each model of a source of models, which have policies each."""
    spec = opened.spec
    facts = {"source": spec.label, "type": spec.kind.name, "unreachable": bool(opened.unreachable)}
    states = list(memory.of_source(spec.key))
    if not states:
        yield facts
    for _, state in states:
        yield {**facts, "source": state.label, **state.describe()}


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
