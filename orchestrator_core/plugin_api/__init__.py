"""Everything that the author of a plugin imports.

A plugin is a module (or a single file in a plugins folder) with hooks marked by :data:`hookimpl`. The hooks answer
once, at start-up, with *kinds*: frozen values that name a type, say what its options are, and open it. What runs
for each request is a small class of your own, with one coroutine to write::

    from contextlib import asynccontextmanager

    from attrs import frozen

    from orchestrator_core.plugin_api import SourceKind, hookimpl, option


    @frozen
    class GreetingOptions:
        greeting: str = option("hello", help="The word to greet with.")


    class GreetingSource:
        def __init__(self, options):
            self.options = options

        async def fetch(self, operation, params):
            return {"text": f"{self.options.greeting} {params['name']}"}


    @asynccontextmanager
    async def open_greeting(options, context):
        yield GreetingSource(options)


    @hookimpl
    def orchestrator_source_kinds():
        return [SourceKind(name="greeting", summary="Greets.", options=GreetingOptions, open=open_greeting)]

With this in the configuration::

    greeting:
      sources:
        default: {greeting: "good morning"}

a step ``{name: welcome, type: greeting, operation: greet, params: {name: "$request.name"}}`` calls ``fetch``.

The abilities in :mod:`orchestrator_core.plugin_api.abilities` are optional. A source has one by having the method;
there is nothing to register and nothing to inherit.
"""

from __future__ import annotations

import pluggy

from orchestrator_core.bounds import at_least_one, not_negative, positive
from orchestrator_core.depth import check_depth, check_integers
from orchestrator_core.errors import (
    EntityNotFound,
    ExpressionError,
    InvalidParam,
    MissingReference,
    OrchestratorError,
    SourceError,
    SourceUnavailable,
    did_you_mean,
)
from orchestrator_core.expressions import CompiledValue, Reference, compile_value
from orchestrator_core.http_client import (
    EgressOptions,
    HttpClient,
    HttpOptions,
    HttpOrigin,
    HttpResponse,
    TlsOptions,
    TraceParent,
    check_headers,
    parse_traceparent,
    trace_lines,
)
from orchestrator_core.leases import Lease, hold_lease, if_unheld, is_held, lease_domain
from orchestrator_core.plugin_api.abilities import (
    CallInspection,
    Changes,
    Describes,
    Endable,
    EndedByOthers,
    Ends,
    Finding,
    Identified,
    Identity,
    Inspection,
    Inspects,
    InspectsCalls,
    KeepsLogs,
    ModelFacts,
    PredictsOne,
    Preparable,
    PreparesMany,
    ReadyCheck,
)
from orchestrator_core.plugin_api.calls import Degraded, Model, OperationFacts, Source
from orchestrator_core.plugin_api.executions import (
    Captured,
    Execution,
    ExecutionStatus,
    FailedAttempt,
    FinishedRun,
    Kept,
    Noted,
    RunPlan,
    StepRecord,
    StepStatus,
    StorableRun,
)
from orchestrator_core.plugin_api.kinds import ModelKind, OpenContext, SourceKind, TransformerKind
from orchestrator_core.plugin_api.options import JSON, Duration, OptionError, Size, option
from orchestrator_core.plugin_api.stores import (
    AddsRuns,
    ExecutionStore,
    Generation,
    Page,
    Query,
    StoreContext,
    StoreKind,
    StoreNotMade,
)
from orchestrator_core.plugin_api.telemetry import (
    EndpointInfo,
    Exposition,
    Finished,
    StepInfo,
    Telemetry,
    TelemetryContext,
    TelemetryKind,
    Trace,
)

__all__ = [
    "JSON",
    "AddsRuns",
    "CallInspection",
    "Captured",
    "Changes",
    "CompiledValue",
    "Degraded",
    "Describes",
    "Duration",
    "EgressOptions",
    "Endable",
    "EndedByOthers",
    "EndpointInfo",
    "Ends",
    "EntityNotFound",
    "Execution",
    "ExecutionStatus",
    "ExecutionStore",
    "Exposition",
    "ExpressionError",
    "FailedAttempt",
    "Finding",
    "Finished",
    "FinishedRun",
    "Generation",
    "HttpClient",
    "HttpOptions",
    "HttpOrigin",
    "HttpResponse",
    "Identified",
    "Identity",
    "Inspection",
    "Inspects",
    "InspectsCalls",
    "InvalidParam",
    "KeepsLogs",
    "Kept",
    "Lease",
    "MissingReference",
    "Model",
    "ModelFacts",
    "ModelKind",
    "Noted",
    "OpenContext",
    "OperationFacts",
    "OptionError",
    "OrchestratorError",
    "Page",
    "PredictsOne",
    "Preparable",
    "PreparesMany",
    "Query",
    "ReadyCheck",
    "Reference",
    "RunPlan",
    "Size",
    "Source",
    "SourceError",
    "SourceKind",
    "SourceUnavailable",
    "StepInfo",
    "StepRecord",
    "StepStatus",
    "StorableRun",
    "StoreContext",
    "StoreKind",
    "StoreNotMade",
    "Telemetry",
    "TelemetryContext",
    "TelemetryKind",
    "TlsOptions",
    "Trace",
    "TraceParent",
    "TransformerKind",
    "at_least_one",
    "check_depth",
    "check_headers",
    "check_integers",
    "compile_value",
    "did_you_mean",
    "hold_lease",
    "hookimpl",
    "if_unheld",
    "is_held",
    "lease_domain",
    "not_negative",
    "option",
    "parse_traceparent",
    "positive",
    "trace_lines",
]

PROJECT = "orchestrator"
hookimpl = pluggy.HookimplMarker(PROJECT)
