"""What comes out: fields, nulls, what is missing, services, several entities, on-demand views, odd values."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from feast_kit import ADA, ADA_FEATURES, ALL, BO, NAN, OLD, UNKNOWN, Made
from orchestrator_source_feast.keys import INPUT_CONVERTERS, Unfit

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam, SourceError
from orchestrator_core.testing import run


def test_a_feature_that_is_null_in_the_store_is_null(repo: Made) -> None:
    expected = dict.fromkeys(ADA_FEATURES) | {"visits": 3, "vip": False, "photo": "", "ratios": []}
    got = repo.fetch({"features": ALL}, {"entity_id": BO})
    assert got == expected | {"purchase_history": got["purchase_history"]}
    assert got["purchase_history"] in (None, [])  # Feast's materialisation writes an absent list as an empty one


def test_the_same_comes_out_through_the_sdk(repo: Made) -> None:
    for entity in (ADA, BO):
        directly = repo.fetch({"features": ALL}, {"entity_id": entity})
        assert repo.fetch({"features": ALL}, {"entity_id": entity}, direct_reads=False) == directly


@pytest.mark.parametrize("direct", [True, False])
def test_an_unknown_entity_is_not_found(repo: Made, direct: bool) -> None:
    with pytest.raises(EntityNotFound) as caught:
        repo.fetch({"features": ["customer:visits"]}, {"entity_id": UNKNOWN}, direct_reads=direct)
    assert str(caught.value) == "get: there is no customer_id=99 in feature view 'customer' of the online store"


@pytest.mark.parametrize("direct", [True, False])
def test_expired_values_count_as_missing(repo: Made, direct: bool) -> None:
    with pytest.raises(EntityNotFound) as caught:
        repo.fetch({"features": ["customer:tier"]}, {"entity_id": OLD}, direct_reads=direct)
    assert str(caught.value) == "get: what is stored for customer_id=3 in feature view 'customer' has expired"


@pytest.mark.parametrize("direct", [True, False])
def test_on_missing_allow_gives_null_for_what_is_unknown_or_expired(repo: Made, direct: bool) -> None:
    operation = {"features": ["customer:tier", "customer:visits"], "on_missing": "allow"}
    for entity in (UNKNOWN, OLD):
        got = repo.fetch(operation, {"entity_id": entity}, direct_reads=direct)
        assert got == {"tier": None, "visits": None}


@pytest.mark.parametrize("direct", [True, False])
def test_max_age_is_a_ttl_of_ones_own(repo: Made, direct: bool) -> None:
    operation = {"features": ["spending:spent"], "max_age": "1ms"}
    with pytest.raises(EntityNotFound) as caught:
        repo.fetch(operation, {"entity_id": ADA, "merchant": "shop"}, direct_reads=direct)
    expected = "get: what is stored for customer_id=1, merchant='shop' in feature view 'spending' has expired"
    assert str(caught.value) == expected


def test_one_view_that_lacks_the_entity_is_enough_to_miss_it(repo: Made) -> None:
    operation = {"features": ["customer:visits", "spending:spent"]}
    with pytest.raises(EntityNotFound) as caught:
        repo.fetch(operation, {"entity_id": ADA, "merchant": "bank"})
    expected = "get: there is no customer_id=1, merchant='bank' in feature view 'spending' of the online store"
    assert str(caught.value) == expected
    got = repo.fetch(operation | {"on_missing": "allow"}, {"entity_id": ADA, "merchant": "bank"})
    assert got == {"visits": 12, "spent": None}


def test_a_feature_that_was_never_stored_is_named(repo: Made) -> None:
    from datetime import UTC, datetime

    from feast.protos.feast.types.Value_pb2 import Value

    repo.write("customer", {"customer_id": Value(int64_val=7)}, {"visits": Value(int64_val=1)}, datetime.now(UTC))
    with pytest.raises(EntityNotFound) as caught:
        repo.fetch({"features": ["customer:visits", "customer:tier"]}, {"entity_id": 7})
    assert str(caught.value) == "get: nothing is stored for customer_id=7 as feature 'customer:tier'"


@pytest.mark.parametrize("direct", [True, False])
def test_infinity_is_an_error_that_names_the_feature(repo: Made, direct: bool) -> None:
    with pytest.raises(SourceError) as caught:
        repo.fetch({"features": ["customer:category_affinity"]}, {"entity_id": NAN}, direct_reads=direct)
    expected = "get: feature 'category_affinity' holds NaN or Infinity, which JSON has no number for"
    assert str(caught.value) == expected


def test_several_entity_keys_and_full_names(repo: Made) -> None:
    operation = {"features": ["spending:spent", "customer:tier", "market:rate"], "full_feature_names": True}
    got = repo.fetch(operation, {"entity_id": BO, "merchant": "Zoë & co"})
    assert got == {"spending__spent": 20.25, "customer__tier": None, "market__rate": 0.0425}


@pytest.mark.parametrize("direct", [True, False])
def test_a_view_without_entities_needs_none(repo: Made, direct: bool) -> None:
    assert repo.fetch({"features": ["market:rate"]}, {}, direct_reads=direct) == {"rate": 0.0425}


@pytest.mark.parametrize("direct", [True, False])
def test_a_feature_service_with_a_renamed_view(repo: Made, direct: bool) -> None:
    params = {"entity_id": ADA, "merchant": "shop"}
    got = repo.fetch({"feature_service": "recommender"}, params, direct_reads=direct)
    assert got == {"purchase_history": [3, 1, 2], "category_affinity": 0.25, "spent": 9.5}
    named = repo.fetch({"feature_service": "recommender", "full_feature_names": True}, params, direct_reads=direct)
    assert list(named) == ["customer__purchase_history", "customer__category_affinity", "bought__spent"]


@pytest.mark.parametrize("full", [True, False])
def test_on_demand_features_from_a_stored_one_and_a_request_time_input(repo: Made, full: bool) -> None:
    operation = {
        "features": ["on_demand:per_visit", "customer:tier", "frames:doubled"],
        "full_feature_names": full,
    }
    got = repo.fetch(operation, {"entity_id": ADA, "amount": 6.0})
    names = ["on_demand__per_visit", "customer__tier", "frames__doubled"]
    expected = dict(zip(names, [0.5, "gold", 24], strict=True))
    assert got == {name if full else name.partition("__")[2]: value for name, value in expected.items()}


def test_a_request_time_input_from_a_query_string_gets_the_type_of_the_registry(repo: Made) -> None:
    for amount in ("6", "6.0", 6):
        got = repo.fetch({"features": ["on_demand:per_visit"]}, {"entity_id": str(ADA), "amount": amount})
        assert got == {"per_visit": 0.5}


@pytest.mark.parametrize(
    ("type_", "value", "converted"),
    [
        ("BOOL", "true", True),
        ("BOOL", False, False),
        ("FLOAT", "2.5", 2.5),
        ("DOUBLE", 3, 3),
        ("INT64", "7", 7),
        ("INT32", 7.0, 7),
        ("STRING", "7", "7"),
        ("STRING", None, None),
    ],
)
def test_the_types_of_request_time_inputs(type_: str, value: Any, converted: Any) -> None:
    got = INPUT_CONVERTERS[type_](value)
    assert (got, type(got)) == (converted, type(converted))


@pytest.mark.parametrize(("type_", "value"), [("BOOL", "yes"), ("BOOL", 1), ("INT32", "2.5"), ("STRING", 7)])
def test_values_that_are_not_of_a_request_time_input_s_type(type_: str, value: Any) -> None:
    with pytest.raises(Unfit):
        INPUT_CONVERTERS[type_](value)


def test_a_feature_service_with_an_on_demand_view(repo: Made) -> None:
    got = repo.fetch({"feature_service": "priced"}, {"entity_id": "1", "amount": 24.0})
    assert got == {"visits": 12, "per_visit": 2.0}


def test_an_on_demand_feature_of_an_unknown_entity_is_not_computed(repo: Made) -> None:
    operation: dict[str, Any] = {"features": ["on_demand:per_visit"]}
    for entity, what in ((UNKNOWN, "there is no"), (OLD, "what is stored for")):
        with pytest.raises(EntityNotFound, match=f"get: {what} customer_id={entity} in feature view 'customer'"):
            repo.fetch(operation, {"entity_id": entity, "amount": 1.0})
        assert repo.fetch(operation | {"on_missing": "allow"}, {"entity_id": entity, "amount": 1.0}) == {
            "per_visit": None
        }


def test_what_an_on_demand_view_raises_is_a_source_error(sqlite: Made) -> None:
    with pytest.raises(SourceError) as caught:
        sqlite.fetch({"features": ["on_demand:per_visit"]}, {"entity_id": ADA, "amount": None})
    assert str(caught.value).startswith("feast 'default': TypeError: unsupported operand type(s) for /")


@pytest.mark.parametrize(
    ("params", "param", "message"),
    [
        ({}, "entity_id", "get: parameter 'entity_id' (the join key 'customer_id') is missing"),
        ({"customer_id": 1}, "customer_id", "get: there is no parameter 'customer_id'; it is filled by entity_id"),
        ({"entity_id": 1, "ammount": 2}, "ammount", "get: there is no parameter 'ammount'; did you mean 'amount'?"),
        ({"entity_id": 1}, "amount", "get: parameter 'amount' is missing"),
        ({"entity_id": None, "amount": 1.0}, "entity_id", "get: parameter 'entity_id' expected integer, got null"),
        ({"entity_id": True, "amount": 1.0}, "entity_id", "get: parameter 'entity_id' expected integer, got true"),
        ({"entity_id": [1], "amount": 1.0}, "entity_id", "get: parameter 'entity_id' expected integer, got a list"),
        (
            {"entity_id": 2**63, "amount": 1.0},
            "entity_id",
            "get: parameter 'entity_id' expected integer of at most 64 bits, got 9223372036854775808",
        ),
        ({"entity_id": 1, "amount": "six"}, "amount", "get: parameter 'amount' expected number, got 'six'"),
        ({"entity_id": 1, "amount": "nan"}, "amount", "get: parameter 'amount' expected number, got 'nan'"),
        ({"entity_id": 1, "amount": True}, "amount", "get: parameter 'amount' expected number, got true"),
        ({"entity_id": 1, "amount": [6.0]}, "amount", "get: parameter 'amount' expected number, got a list"),
    ],
)
def test_parameters_that_do_not_fit(sqlite: Made, params: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidParam) as caught:
        sqlite.fetch({"features": ["customer:visits", "on_demand:per_visit"]}, params)
    assert (caught.value.param, str(caught.value)) == (param, message)


def test_entity_id_for_features_that_have_no_such_join_key(sqlite: Made) -> None:
    with pytest.raises(InvalidParam) as caught:
        sqlite.fetch({"features": ["market:rate"]}, {"entity_id": 1})
    expected = "get: entity_id fills the join key 'customer_id', which these features do not have (theirs: none)"
    assert str(caught.value) == expected


def test_an_operation_has_an_entity_key_of_its_own(sqlite: Made) -> None:
    operation = {"features": ["spending:spent"], "entity_key": "merchant"}
    assert sqlite.fetch(operation, {"entity_id": "shop", "customer_id": 1}) == {"spent": 9.5}


def test_feature_refs_override_the_list_and_need_no_declaration(repo: Made) -> None:
    async def main() -> None:
        async with repo.open({"get": {"features": ["customer:visits"]}}) as source:
            for operation in ("get", "another"):
                params = {"entity_id": "1", "feature_refs": ["customer:tier", "customer:vip"]}
                assert await source.fetch(operation, params) == {"tier": "gold", "vip": True}
            call = source.prepare("another", ["feature_refs", "entity_id"])
            assert await call(["customer:visits"], 2) == {"visits": 3}
            lists = [list(some) for some in permutations(ALL, 3)]
            assert len(lists) > 256  # more than are kept
            for some in lists:
                assert list(await call(some, 1)) == [reference.partition(":")[2] for reference in some]

    run(main())


@pytest.mark.parametrize(
    ("references", "message"),
    [
        ("customer:visits", "get: parameter 'feature_refs' expected a list of feature references such as "),
        ([], "get: parameter 'feature_refs' expected a list of feature references such as "),
        (["visits"], "get: 'visits' is not a feature reference; expected feature_view:feature"),
        (["custmer:visits"], "get: there is no feature view 'custmer'; did you mean 'customer'?"),
        (["customer:visit"], "get: the feature view 'customer' has no feature 'visit'; did you mean 'visits'?"),
        (["customer:visits"] * 2, "get: 'customer:visits' is asked for twice"),
    ],
)
def test_feature_refs_that_are_none(sqlite: Made, references: Any, message: str) -> None:
    with pytest.raises(InvalidParam) as caught:
        sqlite.fetch({}, {"entity_id": 1, "feature_refs": references})
    assert caught.value.param == "feature_refs"
    assert str(caught.value).startswith(message)


def test_without_features_an_operation_needs_feature_refs(sqlite: Made) -> None:
    async def main() -> None:
        async with sqlite.open({"get": {"features": ["customer:visits"]}, "bare": {}}) as source:
            with pytest.raises(InvalidParam) as caught:
                source.prepare("gte", ["entity_id"])
            expected = (
                "gte: this operation is not declared, so the parameter 'feature_refs' is needed; did you mean 'get'?"
            )
            assert str(caught.value) == expected
            with pytest.raises(InvalidParam) as caught:
                source.prepare("bare", ["entity_id"])
            assert str(caught.value) == "bare: it declares no features, so the parameter 'feature_refs' is needed"

    run(main())
