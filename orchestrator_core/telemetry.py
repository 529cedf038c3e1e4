"""The section ``telemetry`` of the configuration, held against the plugin that reads it."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from orchestrator_core.config.model import Configuration
from orchestrator_core.config.structure import kind_of, structure
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import TelemetryKind
from orchestrator_core.plugins import Registry


@frozen
class ConfiguredTelemetry:
    """The telemetry that the configuration asks for: the plugin's kind and its options."""

    kind: TelemetryKind[Any]
    options: Any

    @property
    def traces(self) -> bool:
        """Return whether calls outward carry the ids of their steps."""
        return self.kind.traces(self.options)


def configure_telemetry(
    configuration: Configuration, registry: Registry
) -> tuple[ConfiguredTelemetry | None, list[Problem]]:
    """Return what is asked for, None when it is off or not there, and the problems of the section.

    ``telemetry: false`` is off. No section, null and ``true`` are the plugin's defaults, if it is installed.
    """
    located = configuration.telemetry
    data = None if located is None else located.data
    if data is False:
        return None, []
    provided = registry.telemetry
    if provided is None:
        if located is None or data is None:
            return None, []
        code, message, hint = registry.missing("section", "telemetry", ())
        return None, [located.problem(code, message, at_key=True, hint=hint)]
    if located is None or data is None or data is True:
        return ConfiguredTelemetry(provided.kind, provided.kind.options()), []
    if not isinstance(data, dict):
        message = f"expected a mapping, or true or false, got {kind_of(data)}"
        return None, [located.problem("ORC202", message, hint="write false" if data in ("no", "off") else "")]
    options, problems = structure(provided.kind.options, located)
    return (None if options is None else ConfiguredTelemetry(provided.kind, options)), problems
