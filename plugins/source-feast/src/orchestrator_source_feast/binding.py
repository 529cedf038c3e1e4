"""Parameters of a step to join keys and request-time inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from orchestrator_core.plugin_api import InvalidParam, did_you_mean
from orchestrator_source_feast.keys import (
    CONVERTERS,
    INPUT_CONVERTERS,
    Converter,
    Unfit,
    as_it_is,
    shown,
    to_present,
)
from orchestrator_source_feast.lookup import Lookup, View

__all__ = ["ENTITY_ID", "FEATURE_REFS", "Binding", "bind", "not_filled", "params_of"]

ENTITY_ID = "entity_id"
FEATURE_REFS = "feature_refs"


@frozen(eq=False)
class Binding:
    """The order in which a caller passes the values. ``keys`` and ``inputs`` hold name, index and converter."""

    operation: str
    names: tuple[str, ...]
    keys: tuple[tuple[str, int, Converter], ...]
    inputs: tuple[tuple[str, int, Converter], ...]

    def convert(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the entity by join key, in the types of the keys."""
        try:
            return {key: convert(values[index]) for key, index, convert in self.keys}
        except Unfit:
            raise self.invalid(values) from None

    def row(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the entity and the request-time inputs by name, in the types that the registry has for them."""
        try:
            return {name: convert(values[index]) for name, index, convert in (*self.keys, *self.inputs)}
        except Unfit:
            raise self.invalid(values) from None

    def invalid(self, values: Sequence[Any]) -> InvalidParam:
        for _, index, convert in (*self.keys, *self.inputs):
            try:
                convert(values[index])
            except Unfit as unfit:
                name = self.names[index]
                message = f"{self.operation}: parameter '{name}' expected {unfit}, got {shown(values[index])}"
                return InvalidParam(name, message)
        raise AssertionError("every value fits")

    def entity(self, values: Sequence[Any], view: View) -> str:
        """The entity that a view was asked for, in words."""
        pairs = [(key, values[index]) for key, index, _ in self.keys if key in view.join_keys]
        return ", ".join(f"{key}={shown(value)}" for key, value in pairs) or "row"


def params_of(lookup: Lookup, entity_key: str | None) -> dict[str, str]:
    """Return the parameters that the lookup needs, each with the join key or request-time input that it fills."""
    keys = list(lookup.join_keys)
    if entity_key is None and len(keys) == 1:
        entity_key = keys[0]
    params = {ENTITY_ID if key == entity_key else key: key for key in keys}
    params.update((name, name) for name in lookup.inputs if name not in keys)
    return params


def not_filled(lookup: Lookup, entity_key: str) -> str:
    keys = ", ".join(lookup.join_keys) or "none"
    return f"entity_id fills the join key '{entity_key}', which these features do not have (theirs: {keys})"


def bind(operation: str, lookup: Lookup, entity_key: str | None, names: Sequence[str]) -> Binding:
    """Raise ``InvalidParam`` when the names are not those that the lookup needs."""
    params = params_of(lookup, entity_key)
    for name in names:
        if name in params or name == FEATURE_REFS:
            continue
        if name == ENTITY_ID and entity_key:
            raise InvalidParam(name, f"{operation}: {not_filled(lookup, entity_key)}")
        hint = "it is filled by entity_id" if name in params.values() else did_you_mean(name, params)
        raise InvalidParam(name, f"{operation}: there is no parameter '{name}'{f'; {hint}' if hint else ''}")
    for name, target in params.items():
        if name not in names:
            what = f" (the join key '{target}')" if name != target else ""
            raise InvalidParam(name, f"{operation}: parameter '{name}'{what} is missing")
    index = {name: position for position, name in enumerate(names)}
    types: Mapping[str, str] = lookup.join_keys
    return Binding(
        operation,
        tuple(names),
        tuple(
            (target, index[name], CONVERTERS.get(types[target], to_present))
            for name, target in params.items()
            if target in types
        ),
        tuple(
            (target, index[name], INPUT_CONVERTERS.get(lookup.inputs[target], as_it_is))
            for name, target in params.items()
            if target not in types
        ),
    )
