"""Feast's own feature server, run for real, and one that answers what it should not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from aiohttp import web
from feast_kit import ADA, ADA_FEATURES, ALL, BO, NAN, OLD, UNKNOWN, Made, open_server, serving, stub
from orchestrator_source_feast.plugin import FEAST

from orchestrator_core.plugin_api import (
    CallInspection,
    EntityNotFound,
    Finding,
    InvalidParam,
    OperationFacts,
    SourceError,
)
from orchestrator_core.testing import Call, SourceConformance, run

# The server writes timestamps as seconds.
SERVED = ADA_FEATURES | {"signed_up": 1709209800}


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def url(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Iterator[str]:
    with serving(made(request.param)) as url:
        yield url


def fetch(url: str, operation: dict[str, Any], params: dict[str, Any], **options: Any) -> Any:
    async def main() -> Any:
        async with open_server(url, {"get": operation}, **options) as source:
            return await source.fetch("get", params)

    return run(main())


class TestFeatureServer(SourceConformance):
    kind = FEAST
    operations: ClassVar[dict[str, Any]] = {
        "get": {"features": ALL},
        "both": {"features": ["customer:visits", "spending:spent", "market:rate"], "full_feature_names": True},
        "known": {"features": ["customer:tier", "customer:visits"], "on_missing": "allow"},
        "service": {"feature_service": "recommender"},
    }
    calls = (
        Call("get", {"entity_id": "1"}, SERVED),
        Call(
            "both",
            {"entity_id": ADA, "merchant": "shop"},
            {"customer__visits": 12, "spending__spent": 9.5, "market__rate": 0.0425},
        ),
        Call("known", {"entity_id": 99}, {"tier": None, "visits": None}),
        Call("undeclared", {"entity_id": 2, "feature_refs": ["customer:visits"]}, {"visits": 3}),
        Call(
            "service",
            {"entity_id": ADA, "merchant": "shop"},
            {"purchase_history": [3, 1, 2], "category_affinity": 0.25, "spent": 9.5},
        ),
        Call(
            "get",
            {"entity_id": 99},
            error=EntityNotFound,
            message="get: there is no customer_id=99 in feature view 'customer' of the online store",
        ),
    )

    @pytest.fixture(autouse=True)
    def server(self, url: str) -> None:
        self.options = {"server_url": url, "entity_key": "customer_id", "timeout": "10s", "pool_size": 20}


def test_null_and_missing(url: str) -> None:
    assert fetch(url, {"features": ["customer:tier", "customer:visits"]}, {"entity_id": BO}) == {
        "tier": None,
        "visits": 3,
    }
    with pytest.raises(EntityNotFound) as caught:
        fetch(url, {"feature_service": "recommender"}, {"entity_id": UNKNOWN, "merchant": "bank"})
    expected = "get: there is no customer_id=99, merchant='bank' in feature service 'recommender' of the online store"
    assert str(caught.value) == expected


def test_features_of_the_same_name(url: str) -> None:
    references = ["customer:visits", "customer:visits"]
    with pytest.raises(InvalidParam, match="get: 'customer:visits' is asked for twice"):
        fetch(url, {}, {"entity_id": ADA, "feature_refs": references})


def test_max_age_stands_in_for_the_ttl_that_the_server_does_not_tell(url: str) -> None:
    operation = {"features": ["customer:tier"], "max_age": "24h"}
    assert fetch(url, operation, {"entity_id": ADA}) == {"tier": "gold"}
    with pytest.raises(EntityNotFound) as caught:
        fetch(url, operation, {"entity_id": OLD})
    assert str(caught.value) == "get: what is stored for customer_id=3 in feature view 'customer' has expired"
    assert fetch(url, operation | {"on_missing": "allow"}, {"entity_id": OLD}) == {"tier": None}


def test_on_demand_features_with_a_request_time_input(url: str) -> None:
    operation = {"features": ["on_demand:per_visit", "frames:doubled", "customer:tier"]}
    got = fetch(url, operation, {"entity_id": ADA, "amount": 6.0})
    assert got == {"per_visit": 0.5, "doubled": 24, "tier": "gold"}


def test_infinity_is_an_error_that_names_the_feature(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(url, {"features": ["customer:category_affinity"]}, {"entity_id": NAN})
    expected = "get: feature 'category_affinity' holds NaN or Infinity, which JSON has no number for"
    assert str(caught.value) == expected


def test_inspect_asks_the_server_about_each_operation(url: str) -> None:
    async def main() -> None:
        operations: dict[str, Any] = {
            "good": {"features": ["customer:visits"]},
            "wrong": {"features": ["customer:visits", "custmer:tier"]},
            "service": {"feature_service": "recomender"},
            "keys": {"features": ["spending:spent", "customer:tier"], "full_feature_names": True},
        }
        async with open_server(url, operations) as source:
            inspection = await source.inspect()
        assert inspection.facts == {
            "good": OperationFacts(("entity_id",), None, ("visits",)),
            "keys": OperationFacts(("entity_id",), None, ("spending__spent", "customer__tier")),
        }
        wrong, service = inspection.findings
        assert (wrong.operation, wrong.at, wrong.near) == ("wrong", ("features", 1), "custmer")
        assert wrong.message.startswith("Feature view custmer does not exist in project ")
        assert isinstance(service, Finding)
        assert service.at == ("feature_service",)
        assert service.message.startswith("Feature service recomender does not exist")

    run(main())


def test_inspect_call_tells_the_fields_of_the_features_that_a_step_names(url: str) -> None:
    async def main() -> None:
        async with open_server(url, {"get": {"features": ["customer:visits"]}}) as source:
            names, references = ["entity_id", "feature_refs"], ["customer:tier", "market:rate"]
            told = source.inspect_call("any", names, {"feature_refs": references})
            assert told == CallInspection(OperationFacts(("entity_id", "feature_refs"), None, ("tier", "rate")))
            assert source.inspect_call("any", names, {}) == CallInspection(
                OperationFacts(("entity_id", "feature_refs"), None, None)
            )
            assert source.inspect_call("get", ["entity_id"], {}) is None
            wrong = source.inspect_call("any", names, {"feature_refs": ["tier", "a:b", "c"]})
            assert [(finding.at, finding.near) for finding in wrong.findings] == [
                (("feature_refs", 0), "tier"),
                (("feature_refs", 2), "c"),
            ]
            twice = source.inspect_call("any", names, {"feature_refs": ["a:b", "c:b"]})
            assert [finding.message for finding in twice.findings] == ["'a:b' and 'c:b' are both named 'b'"]
            needed = source.inspect_call("gte", ["entity_id"], {})
            assert [finding.hint for finding in needed.findings] == ["did you mean 'get'?"]

    run(main())


def test_what_the_server_refuses_is_a_source_error_with_its_reason(url: str) -> None:
    with pytest.raises(SourceError) as caught:
        fetch(url, {}, {"entity_id": 1, "feature_refs": ["custmer:tier"]})
    start = f"POST {url}/get-online-features: the feature server answered 404: Feature view custmer does not exist"
    assert str(caught.value).startswith(start)


def test_entity_id_needs_an_entity_key(url: str) -> None:
    with pytest.raises(InvalidParam) as caught:
        fetch(url, {"features": ["customer:tier"]}, {"entity_id": 1}, entity_key=None)
    assert str(caught.value) == "get: set entity_key on the source, to say which join key entity_id fills"
    assert fetch(url, {"features": ["customer:tier"]}, {"customer_id": 1}, entity_key=None) == {"tier": "gold"}


GOOD = {
    "metadata": {"feature_names": ["tier"]},
    "results": [{"values": ["gold"], "statuses": ["PRESENT"], "event_timestamps": ["2024-01-01T00:00:00Z"]}],
}


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, "<html>", "the answer is not JSON: "),
        (200, "[" * 201 + "]" * 201, "the answer is not JSON: it is nested more than 200 deep"),
        (200, "[]", "get: the feature server's answer has not the shape it should have (TypeError: "),
        (200, "{}", "get: the feature server's answer has not the shape it should have (KeyError: 'metadata')"),
        (500, "", "the feature server answered 500"),
        (503, '"busy"', "the feature server answered 503: busy"),
        (422, '{"detail": [{"msg": "no"}]}', 'the feature server answered 422: [{"msg":"no"}]'),
    ],
)
def test_answers_that_cannot_be_used(status: int, body: str, message: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=status, text=body, headers={"Retry-After": "7"})

    async def main() -> None:
        async with stub(answer) as url, open_server(url, {"get": {"features": ["customer:tier"]}}) as source:
            with pytest.raises(SourceError) as caught:
                await source.fetch("get", {"entity_id": 1})
            assert message in str(caught.value)
            assert caught.value.transient == (status == 503)
            assert caught.value.retry_after_seconds == (7 if status == 503 else None)

    run(main())


SHAPE = "get: the feature server's answer has not the shape it should have (ValueError: "


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"statuses": ["STALE"]}, f"{SHAPE}the status 'STALE')"),
        ({"statuses": [None]}, f"{SHAPE}the status 'None')"),
        ({"event_timestamps": ["yesterday"]}, "get: feature 'tier' has an event_timestamp that is no time"),
        ({"event_timestamps": [1704067200]}, "get: feature 'tier' has an event_timestamp that is no time"),
        ({"event_timestamps": [None]}, "get: feature 'tier' has an event_timestamp that is no time"),
    ],
)
def test_a_feature_that_nobody_can_tell_to_be_there_is_a_source_error(told: Any, message: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({**GOOD, "results": [{**GOOD["results"][0], **told}]})

    async def main() -> None:
        operation = {"features": ["customer:tier"], "max_age": "24h"}
        async with stub(answer) as url, open_server(url, {"get": operation}) as source:
            with pytest.raises(SourceError) as caught:
                await source.fetch("get", {"entity_id": 1})
            assert str(caught.value) == message

    run(main())


@pytest.mark.parametrize("status", ["NOT_FOUND", "OUTSIDE_MAX_AGE"])
def test_statuses_of_other_feature_servers_are_heeded(status: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        assert await request.json() == {
            "features": ["customer:tier"],
            "entities": {"customer_id": [1]},
            "full_feature_names": False,
        }
        assert request.headers["Authorization"] == "Bearer t"
        return web.json_response({**GOOD, "results": [{**GOOD["results"][0], "statuses": [status]}]})

    async def main() -> None:
        options = {"headers": {"Authorization": "Bearer t"}}
        async with stub(answer) as url, open_server(url, {"get": {"features": ["customer:tier"]}}, **options) as source:
            with pytest.raises(EntityNotFound):
                await source.fetch("get", {"entity_id": 1})

    run(main())


def test_a_server_that_is_down_is_a_source_error() -> None:
    with pytest.raises(SourceError, match=r"POST http://127\.0\.0\.1:9/get-online-features: "):
        fetch("http://127.0.0.1:9", {"features": ["customer:tier"]}, {"entity_id": 1})
