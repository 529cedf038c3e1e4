"""The hooks that a plugin can implement. All are synchronous; none is called while a request runs, but the last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

from orchestrator_core.plugin_api import (
    PROJECT,
    Execution,
    ModelKind,
    SourceKind,
    StoreKind,
    TelemetryKind,
    TransformerKind,
)

hookspec = pluggy.HookspecMarker(PROJECT)


@hookspec
def orchestrator_source_kinds() -> Iterable[SourceKind[Any]]:  # type: ignore[empty-body]
    """Return the source types that the plugin provides.

    Called once when plugins are discovered. Two plugins that provide the same type are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def orchestrator_model_kinds() -> Iterable[ModelKind[Any]]:  # type: ignore[empty-body]
    """Return the ways to bring a model that the plugin provides.

    Called once when plugins are discovered. Two plugins that provide the same kind are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def orchestrator_transformers() -> Iterable[TransformerKind[Any]]:  # type: ignore[empty-body]
    """Return the transformers that the plugin provides.

    Called once when plugins are discovered. Two plugins that provide the same name are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def orchestrator_execution_stores() -> Iterable[StoreKind[Any]]:  # type: ignore[empty-body]
    """Return the stores of executions that the plugin provides.

    Called once when plugins are discovered. Two plugins that provide the same type are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def orchestrator_telemetry() -> Iterable[TelemetryKind[Any]]:  # type: ignore[empty-body]
    """Return the telemetry that the plugin provides: metrics, traces, or both.

    Called once when plugins are discovered. Two plugins that provide telemetry are an error that names both.

    .. versionadded:: 0.1
    """


@hookspec
def orchestrator_execution_finished(execution: Execution) -> None:
    """Observe one finished execution, after its answer was made.

    Called on the event loop for every execution: hand over anything slow. What it raises is logged, and the other
    observers are still told.

    .. versionadded:: 0.1
    """
