"""The registry's part of a lookup. Runs in a thread: Feast's registries are synchronous. Loaded after Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen
from feast import BatchFeatureView, FeatureStore, FeatureView, StreamFeatureView
from feast.feature_view import DUMMY_ENTITY_ID, FeatureViewState
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.utils import _parse_feature_ref

from orchestrator_core.plugin_api import SourceUnavailable, did_you_mean
from orchestrator_source_feast.keys import encoder
from orchestrator_source_feast.lookup import Feature, Flaw, Lookup, OnDemand, Unresolved, View, Wanted, duplicates

__all__ = ["Registered", "resolve"]

DIRECT_VIEWS = (FeatureView, BatchFeatureView, StreamFeatureView)
SAMPLES: Mapping[str, Any] = {"INT32": -3, "INT64": 2**40 + 7, "STRING": "Zoë"}
UUIDS = frozenset({"UUID", "TIME_UUID"})


@frozen(eq=False)
class Registered:
    """What is in the registry now, read once for many lookups."""

    store: FeatureStore
    views: Mapping[str, Any]
    join_keys: Mapping[str, str]
    services: Mapping[str, Any]

    @classmethod
    def read(cls, store: FeatureStore) -> Registered:
        registry, project = store.registry, store.project
        views = {view.name: view for view in registry.list_all_feature_views(project, allow_cache=True)}
        entities = registry.list_entities(project, allow_cache=True)
        services = registry.list_feature_services(project, allow_cache=True)
        return cls(
            store,
            views,
            {entity.name: entity.join_key for entity in entities},
            {service.name: service for service in services},
        )


@frozen(eq=False)
class _Picked:
    """A view and what is asked of it, while references are collected."""

    view: Any
    name: str
    projection: Any = None
    version: int | None = None
    fields: dict[str, str] = field(factory=dict)


def resolve(registered: Registered, wanted: Wanted) -> Lookup:
    """Return the lookup. Raise :class:`Unresolved` with every flaw, or ``SourceUnavailable`` for a view not ready."""
    picked, references, special = _picked(registered, wanted)
    names = [_field(name, feature, wanted.full_names) for name, feature in references]
    if flaws := duplicates([f"{name}:{feature}" for name, feature in references], names):
        raise Unresolved(flaws)
    for (name, feature), output in zip(references, names, strict=True):
        picked[name].fields[feature] = output
    on_demand = [each for each in picked.values() if _is_on_demand(each.view)]
    for each in on_demand:
        _add_sources(registered, each, picked)
    for each in picked.values():
        _check_servable(registered.store, each.view)
    stored = [each for each in picked.values() if not _is_on_demand(each.view)]
    types, mixed = _key_types(registered, stored, on_demand)
    inputs = {name: type_.name for each in on_demand for name, type_ in each.view.get_request_data_schema().items()}
    exact = not (special or mixed) and registered.store.config.entity_key_serialization_version == 3
    return Lookup(
        wanted,
        tuple(names),
        tuple(_view(registered, each, types, exact) for each in stored if each.fields),
        tuple(_on_demand(each) for each in on_demand),
        {name: types[name] for name in sorted(types) if name != DUMMY_ENTITY_ID},
        dict(sorted(inputs.items())),
    )


def _picked(registered: Registered, wanted: Wanted) -> tuple[dict[str, _Picked], list[tuple[str, str]], bool]:
    """Return the views by name, the features in order, and whether only the SDK reads such a service."""
    picked: dict[str, _Picked] = {}
    references: list[tuple[str, str]] = []
    flaws: list[Flaw] = []
    if not wanted.service:
        for index, reference in enumerate(wanted.references):
            view_name, version, feature = _parse_feature_ref(reference)
            view = registered.views.get(view_name)
            if view is None:
                flaws.append(_no_view(registered, view_name, index))
            elif version is None and feature not in (known := _features(view)):
                hint = did_you_mean(feature, known)
                message = f"the feature view '{view_name}' has no feature '{feature}'"
                flaws.append(Flaw(message, index, feature, hint))
            else:
                name = view_name if version is None else f"{view_name}@v{version}"
                picked.setdefault(name, _Picked(view, name, version=version))
                references.append((name, feature))
        if flaws:
            raise Unresolved(flaws)
        return picked, references, False
    service = registered.services.get(wanted.service)
    if service is None:
        message, hint = (
            f"there is no feature service '{wanted.service}'",
            did_you_mean(wanted.service, registered.services),
        )
        raise Unresolved([Flaw(message, None, wanted.service, hint)])
    special = bool(getattr(service, "precompute_online", False))
    for projection in service.feature_view_projections:
        view = registered.views.get(projection.name)
        if view is None:
            raise Unresolved([_no_view(registered, projection.name, None)])
        name = projection.name_to_use()
        picked[name] = _Picked(view, name, projection, projection.version_tag)
        special = special or bool(projection.join_key_map)
        references += [(name, feature.name) for feature in projection.features]
    return picked, references, special


def _no_view(registered: Registered, name: str, index: int | None) -> Flaw:
    return Flaw(f"there is no feature view '{name}'", index, name, did_you_mean(name, registered.views))


def _features(view: Any) -> list[str]:
    return [feature.name for feature in view.features]


def _field(view: str, feature: str, full_names: bool) -> str:
    return f"{view}__{feature}" if full_names else feature


def _is_on_demand(view: Any) -> bool:
    """One that is computed when it is asked for; one that is written to the store is read like any other."""
    return isinstance(view, OnDemandFeatureView) and not view.write_to_online_store


def _add_sources(registered: Registered, on_demand: _Picked, picked: dict[str, _Picked]) -> None:
    for projection in on_demand.view.source_feature_view_projections.values():
        view = registered.views.get(projection.name)
        if view is None:
            raise Unresolved([_no_view(registered, projection.name, None)])
        source = picked.setdefault(projection.name, _Picked(view, projection.name))
        for feature in projection.features:
            source.fields.setdefault(feature.name, "")


def _check_servable(store: FeatureStore, view: Any) -> None:
    """Refuse what the SDK would refuse."""
    if not getattr(view, "enabled", True):
        raise SourceUnavailable(f"the feature view '{view.name}' is disabled")
    state = getattr(view, "state", None)
    servable = {FeatureViewState.STATE_UNSPECIFIED, FeatureViewState.AVAILABLE_ONLINE}
    if getattr(store.registry, "serve_features_while_materializing", False):
        servable.add(FeatureViewState.MATERIALIZING)
    if isinstance(state, FeatureViewState) and state not in servable:
        raise SourceUnavailable(f"the feature view '{view.name}' is {state.name} and serves no features")


def _join_keys(registered: Registered, each: _Picked) -> tuple[str, ...]:
    """The join keys of a view as the caller knows them: a projection may rename them."""
    renamed = each.projection.join_key_map if each.projection else {}
    keys = []
    for entity in each.view.entities or ():
        name = entity if isinstance(entity, str) else entity.name
        if name not in registered.join_keys:
            message, hint = (
                f"there is no entity '{name}', of feature view '{each.name}'",
                did_you_mean(name, registered.join_keys),
            )
            raise Unresolved([Flaw(message, None, name, hint)])
        key = registered.join_keys[name]
        keys.append(renamed.get(key, key))
    return tuple(sorted(keys))


def _key_types(
    registered: Registered, stored: Sequence[_Picked], on_demand: Sequence[_Picked]
) -> tuple[dict[str, str], bool]:
    """Return the value type of each join key, as the SDK finds it, and whether views disagree about one."""
    types: dict[str, str] = {}
    mixed = False
    for each in stored:
        renamed = each.projection.join_key_map if each.projection else {}
        columns = {
            renamed.get(column.name, column.name): column.dtype.to_value_type().name
            for column in getattr(each.view, "entity_columns", ())
        }
        for key in _join_keys(registered, each):
            type_ = columns.get(key, "UNKNOWN")
            mixed = mixed or types.get(key, type_) != type_
            types[key] = type_
    for each in on_demand:
        for key in _join_keys(registered, each):
            types.setdefault(key, "UNKNOWN")
    return types, mixed


def _view(registered: Registered, each: _Picked, types: Mapping[str, str], exact: bool) -> View:
    view, ttl = each.view, getattr(each.view, "ttl", None)
    keys = _join_keys(registered, each)
    declared = {feature.name: feature.dtype.to_value_type().name for feature in view.features}
    direct = exact and type(view) in DIRECT_VIEWS and each.version is None
    direct = direct and _known_layout(registered.store, view, keys, [types[key] for key in keys])
    return View(
        each.name,
        view.name,
        tuple(Feature(name, output, declared.get(name) in UUIDS) for name, output in each.fields.items()),
        keys,
        tuple(types[key] for key in keys),
        ttl.total_seconds() if ttl else None,
        len(view.features),
        direct,
    )


def _known_layout(store: FeatureStore, view: Any, keys: Sequence[str], types: Sequence[str]) -> bool:
    """Hold our key and table name against the SDK's, so that a release that changes them is read by the SDK."""
    versioning = store.config.registry.enable_online_feature_view_versioning
    encode = encoder(keys, list(types))
    if encode is None or compute_table_id(store.project, view, versioning) != f"{store.project}_{view.name}":
        return False
    values = [Value(**{f"{type_.lower()}_val": SAMPLES[type_]}) for type_ in types]
    theirs = serialize_entity_key(EntityKey(join_keys=keys, entity_values=values), entity_key_serialization_version=3)
    return bool(encode(*(SAMPLES[type_] for type_ in types)) == theirs)


def _on_demand(each: _Picked) -> OnDemand:
    sources = [projection.name for projection in each.view.source_feature_view_projections.values()]
    features = tuple(Feature(name, output) for name, output in each.fields.items())
    return OnDemand(each.name, each.view.name, features, tuple(dict.fromkeys(sources)))
