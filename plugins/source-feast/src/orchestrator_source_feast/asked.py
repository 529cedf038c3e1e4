"""What an operation asks for: its own options over the source's, and a step's ``feature_refs`` over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import InvalidParam, did_you_mean
from orchestrator_source_feast.binding import FEATURE_REFS
from orchestrator_source_feast.lookup import Wanted
from orchestrator_source_feast.options import FeastOptions, OperationOptions, split_reference

__all__ = ["Asked", "AskedOperation"]

UNDECLARED = OperationOptions()


@frozen
class AskedOperation:
    """One operation with everything decided but the features of a step that passes ``feature_refs``."""

    name: str
    features: tuple[str, ...]
    service: str
    entity_key: str | None
    own_entity_key: bool
    allow_missing: bool
    full_names: bool
    max_age_seconds: float | None
    missing: str

    @property
    def names_features(self) -> bool:
        return bool(self.features or self.service)

    def wanted(self, references: tuple[str, ...] | None = None) -> Wanted:
        """Raise ``InvalidParam`` when neither the operation nor the step names features."""
        if references is not None:
            return Wanted(references, full_names=self.full_names)
        if not self.names_features:
            raise InvalidParam(FEATURE_REFS, self.missing)
        return Wanted(self.features, self.service, self.full_names)

    def references(self, value: Any) -> tuple[str, ...]:
        """Return a step's ``feature_refs``; raise ``InvalidParam`` when they are none."""
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value) or not value:
            expected = "a list of feature references such as feature_view:feature"
            raise InvalidParam(FEATURE_REFS, f"{self.name}: parameter '{FEATURE_REFS}' expected {expected}")
        for reference in value:
            try:
                split_reference(reference)
            except ValueError as error:
                raise InvalidParam(FEATURE_REFS, f"{self.name}: {error}") from None
        return tuple(value)


@frozen
class Asked:
    """The operations of one source, declared or not."""

    options: FeastOptions
    declared: Mapping[str, OperationOptions]

    def of(self, operation: str) -> AskedOperation:
        options, own = self.options, self.declared.get(operation, UNDECLARED)
        if operation in self.declared:
            missing = f"{operation}: it declares no features, so the parameter '{FEATURE_REFS}' is needed"
        else:
            hint = did_you_mean(operation, self.declared)
            missing = f"{operation}: this operation is not declared, so the parameter '{FEATURE_REFS}' is needed" + (
                f"; {hint}" if hint else ""
            )
        return AskedOperation(
            operation,
            own.features,
            own.feature_service or "",
            own.entity_key or options.entity_key,
            own.entity_key is not None,
            (own.on_missing or options.on_missing) == "allow",
            options.full_feature_names if own.full_feature_names is None else own.full_feature_names,
            own.max_age or options.max_age,
            missing,
        )
