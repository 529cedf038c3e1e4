"""A snapshot as the public listener serves it: its routes, its pages, and what is made of it once."""

from __future__ import annotations

from typing import Any

import orjson

from orchestrator_core.config.model import LimitOptions
from orchestrator_core.http.openapi import openapi
from orchestrator_core.http.routing import ROOT, listing, make_routes, paths
from orchestrator_core.logs import request_line
from orchestrator_core.plugin_api import EndpointInfo, StepInfo, Telemetry
from orchestrator_core.snapshot import ReadyPlan, Snapshot

_PAGES = frozenset({"/health/live", "/health/ready", ROOT, f"{ROOT}/", "/openapi.json", "/docs"})


class Serving:
    """A snapshot with its routes and what is made of it once."""

    def __init__(self, snapshot: Snapshot, telemetry: Telemetry) -> None:
        self.snapshot = snapshot
        observing = telemetry.observe
        self.routes = make_routes(
            snapshot.plans.values(), observing and (lambda ready: observing(_endpoint_info(ready)))
        )
        self.redact = snapshot.configuration.redactor
        self.request_line = request_line() if snapshot.configuration.app.logging.requests else None
        self.docs = snapshot.configuration.app.server.docs
        self.domain_names = set(snapshot.configuration.descriptions)
        self.body_timeout = float(snapshot.configuration.app.server.body_timeout)
        self._openapi: bytes | None = None
        self.waits_for = [model.slot for _, _, model in snapshot.models() if model.slot.holds_up]

    def not_yet_ready(self) -> dict[str, str]:
        """Return the states of the preloaded models that have never been ready; not one that dies later."""
        self.waits_for = [slot for slot in self.waits_for if slot.holds_up]
        return {slot.label: slot.state for slot in self.waits_for}

    def template(self, path: str) -> str:
        """Return the template of a page of the service's own; an empty string where there is no such page."""
        if path in _PAGES:
            return path
        if path.startswith("/docs/") and self.docs:
            return "/docs/{asset}"
        return f"{ROOT}/{{domain}}" if path.removeprefix(f"{ROOT}/") in self.domain_names else ""

    def domains(self) -> dict[str, Any]:
        return {
            "generation": self.snapshot.generation,
            "domains": [self.domain(name) for name in sorted(self.domain_names)],
        }

    def domain(self, name: str) -> dict[str, Any]:
        description = self.snapshot.configuration.descriptions.get(name, "")
        return {"domain": name, "description": description, "endpoints": listing(self.snapshot.plans, name)}

    def openapi(self) -> bytes:
        if self._openapi is None:
            plans = {key: ready.plan for key, ready in self.snapshot.plans.items()}
            self._openapi = orjson.dumps(openapi(self.snapshot.configuration, plans))
        return self._openapi


def limit_of(snapshot: Snapshot) -> LimitOptions | None:
    limit = snapshot.configuration.app.server.limit
    return limit if isinstance(limit, LimitOptions) else None


def _endpoint_info(ready: ReadyPlan) -> EndpointInfo:
    steps = tuple(
        StepInfo(step.name, step.spec.label, step.operation, not step.spec.kind.in_process) for step in ready.plan.steps
    )
    return EndpointInfo(ready.domain, ready.name, paths(ready.plan)[0], ready.generation, steps)


__all__ = ["Serving", "limit_of"]
