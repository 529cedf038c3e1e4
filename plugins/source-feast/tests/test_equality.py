"""Direct reads give what the SDK gives, on repositories that hypothesis makes up."""

from __future__ import annotations

import base64
import json
import math
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from attrs import frozen
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType, types
from feast.protos.feast.types import Value_pb2 as pb
from feast_kit import STORES, Made, new_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator_core.plugin_api import EntityNotFound, OrchestratorError, SourceError
from orchestrator_core.testing import run

SECONDS = st.integers(-62135596800, 253402300799)
FLOATS = st.floats(width=64)
FLOATS32 = st.floats(width=32)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
INT32, INT64 = st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1)
JSON_TEXT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=5,
).map(json.dumps)
UUIDS = st.uuids().map(str)
DECIMALS = st.decimals(allow_nan=False, allow_infinity=False).map(str)
SCALARS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "bool": (types.Bool, st.booleans()),
    "bytes": (types.Bytes, st.binary(max_size=200)),
    "double": (types.Float64, FLOATS),
    "float": (types.Float32, FLOATS32),
    "int32": (types.Int32, INT32),
    "int64": (types.Int64, INT64),
    "json": (types.Json, JSON_TEXT | TEXT),
    "string": (types.String, TEXT),
    "unix_timestamp": (types.UnixTimestamp, SECONDS),
    "uuid": (types.Uuid, UUIDS),
    "decimal": (types.Decimal, DECIMALS),
}


def scalar(name: str) -> st.SearchStrategy[tuple[Any, pb.Value]]:
    dtype, values = SCALARS[name]
    return values.map(lambda value: (dtype, pb.Value(**{f"{name}_val": value})))


def listed(name: str) -> st.SearchStrategy[tuple[Any, pb.Value]]:
    dtype, values = SCALARS[name]
    message = type(getattr(pb.Value(), f"{name}_list_val"))
    return st.lists(values, max_size=4).map(
        lambda items: (types.Array(dtype), pb.Value(**{f"{name}_list_val": message(val=items)}))
    )


def unique(name: str) -> st.SearchStrategy[tuple[Any, pb.Value]]:
    dtype, values = SCALARS[name]
    message = type(getattr(pb.Value(), f"{name}_set_val"))
    return st.lists(values, max_size=4).map(
        lambda items: (types.Set(dtype), pb.Value(**{f"{name}_set_val": message(val=items)}))
    )


INNER = st.one_of(scalar("double"), scalar("string"), scalar("int64"), listed("string"), listed("double")).map(
    lambda pair: pair[1]
)
MAPS = st.dictionaries(TEXT, INNER, max_size=3).map(lambda items: (types.Map, pb.Value(map_val=pb.Map(val=items))))
OLD_UUIDS = UUIDS.map(lambda text: (types.Uuid, pb.Value(string_val=text.upper())))
NULLS = st.sampled_from([(types.Float64, pb.Value()), (types.Array(types.String), pb.Value())])
VALUES = st.one_of(
    *map(scalar, SCALARS),
    *(listed(name) for name in SCALARS),
    *(unique(name) for name in ("double", "int64", "string", "unix_timestamp")),
    MAPS,
    OLD_UUIDS,
    NULLS,
)
KEYS = st.one_of(
    st.tuples(st.just((ValueType.INT64, types.Int64, "int64_val")), INT64),
    st.tuples(st.just((ValueType.INT32, types.Int32, "int32_val")), INT32),
    st.tuples(st.just((ValueType.STRING, types.String, "string_val")), TEXT.filter(bool)),
)
NOT_STORED = object()


@frozen
class Row:
    """What is stored for the entity: its keys, its features (some never stored), its age and the view's ttl."""

    keys: dict[str, tuple[Any, Any]]
    features: dict[str, Any]
    age: timedelta
    ttl: timedelta | None


ROWS = st.builds(
    Row,
    st.dictionaries(st.sampled_from(["customer_id", "a", "Zoë", "b_2"]), KEYS, min_size=1, max_size=3),
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9_]{0,8}x", fullmatch=True),
        st.one_of(VALUES, VALUES, VALUES, st.just(NOT_STORED)),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([timedelta(0), timedelta(minutes=30), timedelta(days=400)]),
    st.sampled_from([None, timedelta(0), timedelta(hours=1)]),
)


def plain(value: Any) -> Any:
    """The SDK's Python value as JSON, as docs/sources/feast.md says."""
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, uuid.UUID | Decimal):
        return str(value)
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | set) else ()
    return all(map(is_finite, parts))


@pytest.fixture(params=STORES, scope="module")
def empty(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp(request.param)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Made(request.param, folder, new_store(request.param, folder))
        yield made
        made.take_down()


def stored_view(made: Made, row: Row) -> FeatureView:
    """Apply a feature view of the row's types and write the row."""
    name = f"view_{uuid.uuid4().hex[:8]}"
    entities = [
        Entity(name=f"{name}_{key}", join_keys=[key], value_type=kind[0]) for key, (kind, _) in row.keys.items()
    ]
    schema = [Field(name=key, dtype=kind[1]) for key, (kind, _) in row.keys.items()]
    schema += [
        Field(name=each, dtype=types.Int64 if pair is NOT_STORED else pair[0]) for each, pair in row.features.items()
    ]
    source = FileSource(name=name, path=str(made.folder / "none.parquet"), timestamp_field="event_timestamp")
    view = FeatureView(name=name, entities=entities, ttl=row.ttl, source=source, schema=schema)
    store: FeatureStore = made.sdk
    store.apply([*entities, view])
    keys = {key: pb.Value(**{kind[2]: value}) for key, (kind, value) in row.keys.items()}
    values = {each: pair[1] for each, pair in row.features.items() if pair is not NOT_STORED}
    if values:
        made.write(name, keys, values, datetime.now(UTC) - row.age)
    return view


def outcome_of(made: Made, params: dict[str, Any], operation: dict[str, Any], **options: Any) -> Any:
    async def main() -> Any:
        async with made.open({"get": operation}, entity_key=None, timeout="30s", **options) as source:
            try:
                # Twice: the first read of SQLite is on a thread, the second on the loop.
                first, second = await source.fetch("get", params), await source.fetch("get", params)
            except OrchestratorError as error:
                return type(error), str(error)
            assert repr(first) == repr(second)
            assert all(bound.lookup.direct for bound in source._bound.values())
            return second

    return run(main())


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(row=ROWS)
def test_a_direct_read_equals_the_sdk(empty: Made, row: Row) -> None:
    view = stored_view(empty, row)
    references = [f"{view.name}:{name}" for name in row.features]
    entity = {name: value for name, (_, value) in row.keys.items()}
    response = empty.sdk.get_online_features(features=references, entity_rows=[entity])
    theirs = {name: values[0] for name, values in response.to_dict().items()}
    params = {"entity_id": next(iter(entity.values()))} if len(entity) == 1 else entity

    ours = outcome_of(empty, params, {"features": references, "on_missing": "allow"})

    expired = row.ttl is not None and row.ttl and row.age > row.ttl
    expected = {name: None if expired else theirs[name] for name in row.features}
    if not all(is_finite(value) for value in expected.values()):
        assert ours[0] is SourceError
        assert "holds NaN or Infinity, which JSON has no number for" in ours[1]
        return
    sets = {name for name, value in expected.items() if isinstance(value, set)}
    got = {name: sorted(value, key=repr) if name in sets else value for name, value in ours.items()}
    assert repr(got) == repr(plain(expected))

    strictly = outcome_of(empty, params, {"features": references})
    whole = not expired and all(pair is not NOT_STORED for pair in row.features.values())
    if whole:
        assert repr(strictly) == repr(ours)
    else:
        assert strictly[0] is EntityNotFound, strictly
    through_sdk = outcome_of(empty, params, {"features": references, "on_missing": "allow"}, direct_reads=False)
    assert repr(through_sdk) == repr(ours)
