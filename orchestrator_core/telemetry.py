"""The section ``telemetry`` of the configuration, held against the plugin that reads it."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from orchestrator_core.blame import is_defect, why_unusable
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.structure import Located, kind_of, structure
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import TelemetryKind
from orchestrator_core.plugins import Plugin, Registry


@frozen
class ConfiguredTelemetry:
    """The telemetry that the configuration asks for: the plugin's kind, and its options with their place if given."""

    kind: TelemetryKind[Any]
    options: Any
    plugin: Plugin = field(eq=False)
    located: Located | None = field(default=None, eq=False, repr=False)

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
        return ConfiguredTelemetry(provided.kind, provided.kind.options(), provided.plugin), []
    if not isinstance(data, dict):
        message = f"expected a mapping, or true or false, got {kind_of(data)}"
        return None, [located.problem("ORC202", message, hint="write false" if data in ("no", "off") else "")]
    options, problems = structure(provided.kind.options, located)
    if options is None:
        return None, problems
    return ConfiguredTelemetry(provided.kind, options, provided.plugin, located), problems


def unusable_telemetry(configured: ConfiguredTelemetry, error: Exception) -> Problem:
    """Return the problem of telemetry that could not be opened."""
    message = f"telemetry cannot be opened: {why_unusable(error)}"
    hint = f"a defect of {configured.plugin}" if is_defect(error) else ""
    if configured.located is None:
        return Problem(code="ORC601", message=message, hint=hint)
    return configured.located.problem("ORC601", message, at_key=True, hint=hint)
