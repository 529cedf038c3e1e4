"""The admin listener's pages on models: what state each is in, its output, and starting or unloading it by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from attrs import frozen

from orchestrator_core.documents import identity_json
from orchestrator_core.errors import EntityNotFound, InvalidRequest, did_you_mean
from orchestrator_core.models import Slot, Supervisor
from orchestrator_core.plugin_api import ModelFacts
from orchestrator_core.snapshot import OpenSource, Snapshot
from orchestrator_core.tracking import ExecutionLog

DEFAULT_LINES = 100
MAX_LINES = 10_000
ACTIONS = ("restart", "unload", "load")
_LINES = re.compile(r"[0-9]{1,9}\Z")
_PATH = re.compile(r"/models/(?P<id>.+?)(/(?P<page>logs|restart|unload|load))?\Z")


@frozen
class ModelPath:
    """``/models/{id}`` and what may follow it: ``page`` is ``logs``, an action, or empty."""

    id: str
    page: str

    @property
    def is_action(self) -> bool:
        return self.page in ACTIONS


def parse_model_path(path: str) -> ModelPath | None:
    match = _PATH.match(path)
    return ModelPath(match["id"], match["page"] or "") if match else None


@frozen
class ListedModel:
    """A model of the snapshot that serves, under the id that its pages have."""

    id: str
    source: OpenSource
    model: Supervisor


def models_of(snapshot: Snapshot) -> list[ListedModel]:
    return [ListedModel(_id(source, model.spec.name), source, model) for source, _, model in snapshot.models()]


def _id(source: OpenSource, model: str) -> str:
    """Return ``credit_model``, ``churn_model.challenger``, or ``shop:credit_model`` for a source of one domain."""
    scope, _, source_id = source.spec.key
    name = source_id if model == "default" else f"{source_id}.{model}"
    return f"{scope}:{name}" if scope else name


def find_model(snapshot: Snapshot, wanted: str) -> ListedModel:
    """Return the model of the id. Raises :class:`EntityNotFound` with those there are."""
    models = models_of(snapshot)
    found = next((listed for listed in models if listed.id == wanted), None)
    if found is None:
        known = [listed.id for listed in models]
        hint = did_you_mean(wanted, known) or ("GET /models lists them" if known else "there are no models")
        raise EntityNotFound(f"no such model '{wanted}': {hint}")
    return found


def model_json(listed: ListedModel, executions: ExecutionLog) -> dict[str, Any]:
    """Return what ``GET /models`` shows of a model. Times are ISO 8601 in UTC, latencies in milliseconds."""
    slot = listed.model.slot
    spec = slot.spec
    identity = slot.identity
    return {
        "id": listed.id,
        "source": listed.source.spec.label,
        "model": spec.name,
        "type": spec.kind.name,
        "state": slot.state,
        "since": _moment(slot.since),
        "identity": identity_json(identity) if identity else None,
        "preload": spec.common.preload,
        "starts": slot.starts,
        "restarts": slot.restarts,
        "next_try": _moment(slot.next_try),
        "last_error": slot.last_error or None,
        "last_error_at": _moment(slot.last_error_at),
        "fallback": "none" if spec.fallback is None else "in use" if slot.falls_back else "ready",
        "requests": slot.requests,
        "failures": slot.failures,
        "latency": latency_json(executions.call_seconds(slot)),
        **_facts(slot.facts),
    }


def _facts(facts: ModelFacts | None) -> dict[str, Any]:
    if facts is None:
        return {"inputs": None, "outputs": None}
    inputs = {"features": list(facts.inputs)} if facts.inputs is not None else {}
    return {"inputs": inputs, "outputs": list(facts.outputs) if facts.outputs is not None else None}


def latency_json(seconds: list[float]) -> dict[str, Any] | None:
    """Return the latency of the latest calls: those of the executions that are kept."""
    if not seconds:
        return None
    ranked = sorted(seconds)
    return {
        "calls": len(ranked),
        "mean_ms": round(sum(ranked) / len(ranked) * 1000, 3),
        "p50_ms": round(ranked[len(ranked) // 2] * 1000, 3),
        "p99_ms": round(ranked[len(ranked) * 99 // 100] * 1000, 3),
    }


def _moment(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds") if seconds else None


async def model_logs(listed: ListedModel, query: str) -> str:
    """Return the model's last lines of output; of one that is not open, what it said when it ended."""
    lines = _lines(query)
    kept = listed.model.keeps_logs()
    if kept:
        return await listed.model.logs(lines)
    slot: Slot = listed.model.slot
    if kept is False:
        raise EntityNotFound(f"the model {slot.label} keeps no logs: it is of type {slot.spec.kind.name}")
    if not slot.last_error:
        raise EntityNotFound(f"the model {slot.label} is {slot.state}: there is no output to show")
    return "\n".join(slot.last_error.splitlines()[-lines:]) + "\n"


def _lines(query: str) -> int:
    given: Mapping[str, list[str]] = parse_qs(query, keep_blank_values=True)
    for name in given:
        if name != "lines":
            raise InvalidRequest(
                f"/{name} unknown parameter", [{"pointer": f"/{name}", "message": "unknown parameter"}]
            )
    text = given.get("lines", [str(DEFAULT_LINES)])[-1]
    if not _LINES.match(text) or not 1 <= int(text) <= MAX_LINES:
        message = f"expected a number from 1 to {MAX_LINES}"
        raise InvalidRequest(f"/lines {message}", [{"pointer": "/lines", "message": message}])
    return int(text)


def act(listed: ListedModel, action: str) -> None:
    """Restart, unload or load a model. Returns at once: the model's page shows what comes of it."""
    {"restart": listed.model.restart, "unload": listed.model.unload, "load": listed.model.load}[action]()
