"""A snapshot as the public listener serves it: its routes, its pages, and what requests need of its settings."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from orchestrator_core.config.model import LimitOptions
from orchestrator_core.http.pages import Pages
from orchestrator_core.http.routing import make_routes, paths
from orchestrator_core.logs import request_line
from orchestrator_core.plugin_api import EndpointInfo, Finished, StepInfo, Telemetry
from orchestrator_core.snapshot import ReadyPlan, Snapshot

log = structlog.get_logger("orchestrator.http")


class Serving:
    """A snapshot with what is made of it once."""

    def __init__(self, snapshot: Snapshot, telemetry: Telemetry) -> None:
        self.snapshot = snapshot
        self.routes = make_routes(snapshot.plans.values(), _observer(telemetry.observe))
        self.redact = snapshot.configuration.redactor
        self.request_line = request_line() if snapshot.configuration.app.logging.requests else None
        self.body_timeout = float(snapshot.configuration.app.server.body_timeout)
        self.pages = Pages(snapshot)


def limit_of(snapshot: Snapshot) -> LimitOptions | None:
    limit = snapshot.configuration.app.server.limit
    return limit if isinstance(limit, LimitOptions) else None


def _observer(
    observe: Callable[[EndpointInfo], Finished] | None,
) -> Callable[[ReadyPlan], Finished | None] | None:
    """Return what tells telemetry of an endpoint, and returns what is called with its runs, None if that failed."""
    if observe is None:
        return None

    def tell(ready: ReadyPlan) -> Finished | None:
        try:
            return observe(_endpoint_info(ready))
        except (Exception, SystemExit):  # telemetry must not keep a configuration from being served
            log.exception("telemetry failed", endpoint=f"{ready.domain}.{ready.name}")
            return None

    return tell


def _endpoint_info(ready: ReadyPlan) -> EndpointInfo:
    steps = tuple(
        StepInfo(step.name, step.spec.label, step.operation, not step.spec.kind.in_process) for step in ready.plan.steps
    )
    return EndpointInfo(ready.domain, ready.name, paths(ready.plan)[0], ready.generation, steps)


__all__ = ["Serving", "limit_of"]
