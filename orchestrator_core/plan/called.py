"""What a step calls: the source and the operation that its file names."""

from __future__ import annotations

from orchestrator_core.catalog import Catalog, SourceSpec
from orchestrator_core.config.load import CORE_KEYS
from orchestrator_core.config.model import StepConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.errors import did_you_mean
from orchestrator_core.plan.reading import Reading
from orchestrator_core.plugins import Registry


def source_of(
    reading: Reading, catalog: Catalog, registry: Registry, config: StepConfig, located: Located, *, incomplete: bool
) -> SourceSpec | None:
    """Return the source that a step names. ``incomplete``: what is not there may stand in an unreadable file."""
    type_name, source_id, scope = config.type, config.source_id, reading.endpoint.scope
    provided = registry.sources.get(type_name)
    if provided is None:
        code, message, hint = registry.missing("source type", type_name, registry.sources)
        reading.report(located, code, message, "type", hint=hint)
        return None
    if type_name in CORE_KEYS:  # its section would be that of config.yaml
        message = f"a source type cannot be called '{type_name}', as that is a key of config.yaml"
        reading.report(located, "ORC403", message, "type", hint=f"a defect of {provided.plugin}")
        return None
    spec = catalog.find(scope, type_name, source_id)
    if spec or catalog.is_broken(scope, type_name, source_id) or incomplete:
        return spec
    ids = catalog.ids(scope, type_name)
    at = "source_id" if "source_id" in located.data else "type"
    if ids:
        message, hint = f"there is no {type_name} source '{source_id}'", did_you_mean(source_id, ids)
        if at == "type":
            hint = f"give a source_id: {', '.join(sorted(ids))}"
    else:
        message = f"there is no {type_name} source"
        hint = f"configure it: {type_name}: {{sources: {{{source_id}: …}}}}"
    reading.report(located, "ORC405", message, at, hint=hint)
    return None


def operation_of(reading: Reading, spec: SourceSpec, config: StepConfig, located: Located) -> str | None:
    if config.operation is None:
        if len(spec.operations) == 1:
            return next(iter(spec.operations))
        if not spec.operations and spec.kind.operation is None:
            return ""
        hint = f"expected one of: {', '.join(sorted(spec.operations))}" if spec.operations else ""
        reading.report(located, "ORC203", "'operation' is missing", at_key=True, hint=hint)
        return None
    operation = config.operation
    if spec.kind.name == "ml" and operation == "default" and "predict" in spec.operations:
        operation = "predict"
    if spec.takes(operation):
        return operation
    if spec.places.get(operation) is None:
        hint = did_you_mean(operation, spec.operations)
        message = f"the source {spec.label} has no operation '{operation}'"
        reading.report(located, "ORC406", message, "operation", hint=hint)
    return None


__all__ = ["operation_of", "source_of"]
