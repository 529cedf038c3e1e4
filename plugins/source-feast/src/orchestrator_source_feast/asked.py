"""What an operation asks for: its own options over the source's, and a step's ``feature_refs`` over both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import InvalidParam, did_you_mean
from orchestrator_source_feast.binding import FEATURE_REFS
from orchestrator_source_feast.lookup import Flaw, Wanted
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
    hint: str

    @property
    def names_features(self) -> bool:
        return bool(self.features or self.service)

    def wanted(self, references: tuple[str, ...] | None = None) -> Wanted:
        """Raise ``InvalidParam`` when neither the operation nor the step names features."""
        if references is not None:
            return Wanted(references, full_names=self.full_names)
        if not self.names_features:
            reason = f"{self.name}: {self.missing}{f'; {self.hint}' if self.hint else ''}"
            raise InvalidParam(FEATURE_REFS, reason)
        return Wanted(self.features, self.service, self.full_names)

    def references(self, value: Any) -> tuple[str, ...]:
        """Return a step's ``feature_refs``; raise ``InvalidParam`` when they are none."""
        references = self.references_or_flaws(value)
        if isinstance(references, list):
            raise InvalidParam(FEATURE_REFS, f"{self.name}: {references[0]}")
        return references

    def references_or_flaws(self, value: Any) -> tuple[str, ...] | list[Flaw]:
        """Return a step's ``feature_refs``, or everything that keeps them from being references."""
        if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value) or not value:
            expected = "a list of feature references such as feature_view:feature"
            return [Flaw(f"parameter '{FEATURE_REFS}' expected {expected}", None)]
        flaws = []
        for index, reference in enumerate(value):
            try:
                split_reference(reference)
            except ValueError as error:
                flaws.append(Flaw(str(error), index, reference))
        return flaws or tuple(value)


@frozen
class Asked:
    """The operations of one source, declared or not."""

    options: FeastOptions
    declared: Mapping[str, OperationOptions]

    def of(self, operation: str) -> AskedOperation:
        options, own = self.options, self.declared.get(operation, UNDECLARED)
        if operation in self.declared:
            missing, hint = f"it declares no features, so the parameter '{FEATURE_REFS}' is needed", ""
        else:
            missing = f"this operation is not declared, so the parameter '{FEATURE_REFS}' is needed"
            hint = did_you_mean(operation, self.declared)
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
            hint,
        )
