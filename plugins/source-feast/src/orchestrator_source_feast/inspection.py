"""What `orchestrator check` is told: the operations, and what each step passes them, held against the registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TypeAlias

from orchestrator_core.plugin_api import (
    JSON,
    CallInspection,
    Finding,
    Inspection,
    OperationFacts,
    SourceUnavailable,
    did_you_mean,
)
from orchestrator_source_feast.asked import Asked, AskedOperation
from orchestrator_source_feast.binding import ENTITY_ID, FEATURE_REFS, not_filled, params_of
from orchestrator_source_feast.keys import CONVERTERS, Unfit, shown, to_present
from orchestrator_source_feast.lookup import Flaw, Lookup, Unresolved, Wanted

__all__ = ["inspect_call", "inspect_operations", "needs_references", "references_findings"]

Resolve: TypeAlias = Callable[[Wanted], Lookup]
"""Raises ``Unresolved`` for what the registry does not have."""


def inspect_operations(asked: Asked, resolve: Resolve, join_keys: Collection[str]) -> Inspection:
    """Hold the source's entity key and each declared operation against the registry."""
    facts: dict[str, OperationFacts] = {}
    findings: list[Finding] = []
    if (key := asked.options.entity_key) is not None and key not in join_keys:
        hint = did_you_mean(key, join_keys)
        findings.append(Finding("", f"the registry has no join key '{key}'", ("entity_key",), key, hint))
    for name in asked.declared:
        operation = asked.of(name)
        if not operation.names_features:
            continue
        try:
            lookup = resolve(operation.wanted())
        except Unresolved as unresolved:
            findings += [_declared(name, flaw) for flaw in unresolved.flaws]
            continue
        if operation.own_entity_key and operation.entity_key not in lookup.join_keys:
            keys = ", ".join(lookup.join_keys) or "none"
            message = f"these features have no join key '{operation.entity_key}' (theirs: {keys})"
            hint = did_you_mean(operation.entity_key or "", lookup.join_keys)
            findings.append(Finding(name, message, ("entity_key",), operation.entity_key or "", hint))
            continue
        facts[name] = OperationFacts(tuple(params_of(lookup, operation.entity_key)), (FEATURE_REFS,), lookup.fields)
    return Inspection(facts, tuple(findings))


def inspect_call(
    operation: AskedOperation,
    resolve: Resolve,
    join_keys: Collection[str],
    names: Sequence[str],
    constants: Mapping[str, JSON],
) -> CallInspection | None:
    """Hold one step's parameters against the registry: the features that it names itself, and its constants."""
    empty: tuple[str, ...] = ()
    if FEATURE_REFS not in names:
        if not operation.names_features:
            return needs_references(operation)
        wanted, required = operation.wanted(), empty
    elif FEATURE_REFS not in constants:
        return CallInspection(OperationFacts((FEATURE_REFS,)))
    else:
        references = operation.references_or_flaws(constants[FEATURE_REFS])
        if isinstance(references, list):
            return CallInspection(findings=tuple(references_findings(operation, references)))
        wanted, required = operation.wanted(references), (FEATURE_REFS,)
    try:
        lookup = resolve(wanted)
    except Unresolved as unresolved:
        if not required:
            return None  # the operation's own findings say so
        return CallInspection(findings=tuple(references_findings(operation, unresolved.flaws)))
    except SourceUnavailable:
        return CallInspection()
    key, own = operation.entity_key, operation.own_entity_key and not required
    if key is not None and key not in (lookup.join_keys if own else join_keys):
        return CallInspection(OperationFacts(fields=lookup.fields))  # the operation's, or the source's, finding says so
    params = params_of(lookup, key)
    optional = empty if required else (FEATURE_REFS,)
    findings = list(_unfit_constants(operation, lookup, params, constants))
    if ENTITY_ID in names and ENTITY_ID not in params and key is not None:
        findings.append(Finding(operation.name, not_filled(lookup, key), (ENTITY_ID,)))
        optional = (*optional, ENTITY_ID)
    return CallInspection(OperationFacts((*params, *required), optional, lookup.fields), tuple(findings))


def needs_references(operation: AskedOperation) -> CallInspection:
    """A step that names no features, of an operation that does not either."""
    return CallInspection(findings=(Finding(operation.name, operation.missing, hint=operation.hint),))


def references_findings(operation: AskedOperation, flaws: Sequence[Flaw]) -> Iterator[Finding]:
    for flaw in flaws:
        at = (FEATURE_REFS,) if flaw.index is None else (FEATURE_REFS, flaw.index)
        yield Finding(operation.name, flaw.message, at, flaw.near, flaw.hint)


def _declared(operation: str, flaw: Flaw) -> Finding:
    at = ("feature_service",) if flaw.index is None else ("features", flaw.index)
    return Finding(operation, flaw.message, at, flaw.near, flaw.hint)


def _unfit_constants(
    operation: AskedOperation, lookup: Lookup, params: Mapping[str, str], constants: Mapping[str, JSON]
) -> Iterator[Finding]:
    for name, key in params.items():
        if name in constants and key in lookup.join_keys:
            try:
                CONVERTERS.get(lookup.join_keys[key], to_present)(constants[name])
            except Unfit as unfit:
                message = f"parameter '{name}' expected {unfit}, got {shown(constants[name])}"
                yield Finding(operation.name, message, (name,))
