"""Many entities in one read give what one read for each gives, errors too, on every store and every way to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from aiohttp import web
from feast_kit import (
    ADA,
    ADA_FEATURES,
    ALL,
    BO,
    NAN,
    OLD,
    UNKNOWN,
    Made,
    moved,
    open_server,
    serving,
    stub,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator_core.plugin_api import (
    EntityNotFound,
    InvalidParam,
    OrchestratorError,
    SourceError,
)
from orchestrator_core.testing import free_port, run

OPERATIONS: Mapping[str, Any] = {
    "get": {"features": ALL},
    "few": {"features": ["customer:tier", "customer:visits"]},
    "allowed": {"features": ["customer:tier", "customer:visits"], "on_missing": "allow"},
    "both": {"features": ["customer:visits", "spending:spent", "market:rate"], "full_feature_names": True},
    "service": {"feature_service": "recommender", "on_missing": "allow"},
    "market": {"features": ["market:rate"]},
    "affinity": {"features": ["customer:category_affinity"]},
    "any": {},
}
PARAMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("get", "few", "allowed", "affinity"), ("entity_id",)),
    **dict.fromkeys(("both", "service"), ("merchant", "entity_id")),
    "market": (),
    "any": ("feature_refs", "entity_id"),
}
ENTITIES = st.sampled_from([ADA, BO, OLD, NAN, UNKNOWN, "1", "2", "x", None, True, 4.0, 4.5, 2**63, [1], "99"])
VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "entity_id": ENTITIES,
    "merchant": st.sampled_from(["shop", "Zoë & co", "bank", None, 7]),
    "feature_refs": st.sampled_from(
        [["customer:tier"], ["customer:tier", "customer:visits"], ["customer:teir"], "customer:tier", ["market:rate"]]
    ),
}


# Feast's server answers 500 to what it cannot convert, and closes the connection under the next request.
SERVED_VALUES: Mapping[str, st.SearchStrategy[Any]] = {
    "entity_id": st.sampled_from([ADA, BO, OLD, UNKNOWN, "1", "2", "99", None, [1]]),
    "merchant": st.sampled_from(["shop", "Zoë & co", "bank"]),
    "feature_refs": VALUES["feature_refs"],
}


def items_of(
    operation: str, values_of: Mapping[str, st.SearchStrategy[Any]]
) -> st.SearchStrategy[tuple[str, list[list[Any]]]]:
    values = [values_of[name] for name in PARAMS[operation]]
    return st.lists(st.tuples(*values).map(list), max_size=12).map(lambda items: (operation, items))


ITEMS = st.sampled_from(sorted(OPERATIONS)).flatmap(lambda name: items_of(name, VALUES))
SERVED_ITEMS = st.sampled_from(sorted({*OPERATIONS} - {"market"})).flatmap(lambda name: items_of(name, SERVED_VALUES))


def shown(answers: Sequence[Any]) -> list[Any]:
    return [
        (type(answer).__name__, str(answer), getattr(answer, "param", ""))
        if isinstance(answer, OrchestratorError)
        else repr(answer)
        for answer in answers
    ]


async def each(call: Callable[..., Any], items: Sequence[Sequence[Any]]) -> list[Any]:
    answers: list[Any] = []
    for values in items:
        try:
            answers.append(await call(*values))
        except OrchestratorError as error:
            answers.append(error)
    return answers


async def check_equal(source: Any, operation: str, items: list[list[Any]]) -> None:
    names = PARAMS[operation]
    one_by_one = await each(source.prepare(operation, names), items)
    assert shown(await at_once(source, operation, items)) == shown(one_by_one)


async def at_once(source: Any, operation: str, items: Sequence[Sequence[Any]]) -> list[Any]:
    """What concerns every item may be raised instead of being answered for each."""
    many = source.prepare_many(operation, PARAMS[operation])
    assert many is not None
    try:
        return list(await many(items))
    except OrchestratorError as error:
        return [error] * len(items)


EXAMPLES = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Kept:
    """A source kept open over the examples of a property test, with the loop that it lives on."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._runner = asyncio.Runner()
        self._opened = opened()
        self.source = self._runner.run(self._opened.__aenter__())

    def run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    def close(self) -> None:
        self._runner.run(self._opened.__aexit__(None, None, None))
        self._runner.close()


@pytest.fixture(scope="module", params=["sqlite", "redis", "postgresql", "sqlite by the SDK", "redis by the SDK"])
def kept(request: pytest.FixtureRequest, made: Callable[[str], Made]) -> Iterator[Kept]:
    store, _, by_sdk = request.param.partition(" ")
    options = {"direct_reads": False, "timeout": "30s"} if by_sdk else {}
    kept = Kept(lambda: made(store).open(OPERATIONS, **options))
    yield kept
    kept.close()


@EXAMPLES
@given(asked=ITEMS)
def test_many_equal_one_by_one(kept: Kept, asked: tuple[str, list[list[Any]]]) -> None:
    kept.run(check_equal(kept.source, *asked))


@pytest.fixture(scope="module")
def served(made: Callable[[str], Made]) -> Iterator[Kept]:
    with serving(made("sqlite")) as url:
        kept = Kept(lambda: open_server(url, OPERATIONS))
        yield kept
        kept.close()


@EXAMPLES
@given(asked=SERVED_ITEMS)
def test_many_equal_one_by_one_on_a_feature_server(served: Kept, asked: tuple[str, list[list[Any]]]) -> None:
    served.run(check_equal(served.source, *asked))


@pytest.mark.parametrize("direct", [True, False])
def test_errors_stand_in_the_places_of_their_items(repo: Made, direct: bool) -> None:
    async def main() -> None:
        async with repo.open(OPERATIONS, direct_reads=direct) as source:
            many = source.prepare_many("get", ["entity_id"])
            ada, unknown, unfit, again, old = await many([[ADA], [UNKNOWN], ["x"], ["1"], [OLD]])
            assert ada == again == ADA_FEATURES
            assert isinstance(unknown, EntityNotFound)
            assert str(unknown) == "get: there is no customer_id=99 in feature view 'customer' of the online store"
            assert isinstance(unfit, InvalidParam)
            assert str(unfit) == "get: parameter 'entity_id' expected integer, got 'x'"
            assert str(old) == "get: what is stored for customer_id=3 in feature view 'customer' has expired"
            assert list(await many([])) == []

    run(main())


def test_a_thousand_items_are_answered_in_order(repo: Made) -> None:
    async def main() -> None:
        async with repo.open(OPERATIONS) as source:
            many = source.prepare_many("allowed", ["entity_id"])
            answers = await many([[number % 3] for number in range(1_000)])
            expected = [{"tier": None, "visits": None}, {"tier": "gold", "visits": 12}, {"tier": None, "visits": 3}]
            assert list(answers) == [expected[number % 3] for number in range(1_000)]

    run(main())


def test_on_demand_features_are_computed_one_by_one(sqlite: Made) -> None:
    async def main() -> None:
        async with sqlite.open({"get": {"features": ["on_demand:per_visit"]}, "any": {}}) as source:
            assert source.prepare_many("get", ["entity_id", "amount"]) is None
            many = source.prepare_many("any", ["entity_id", "amount", "feature_refs"])
            references = ["on_demand:per_visit"]
            amounts = [(ADA, 6.0), (BO, 6.0), (ADA, None), (ADA, "six")]
            got = await many([[entity, amount, references] for entity, amount in amounts])
            assert got[:2] == [{"per_visit": 0.5}, {"per_visit": 2.0}]
            assert isinstance(got[2], SourceError)
            assert str(got[3]) == "any: parameter 'amount' expected number, got 'six'"

    run(main())


def test_a_store_that_fails_fails_all_items(redis: Made, postgresql: Made, sqlite: Made, tmp_path: Any) -> None:
    port = free_port()
    for made, where in (
        (redis, {"connection_string": f"127.0.0.1:{port},db=3"}),
        (postgresql, {"port": port}),
        (sqlite, {"path": str(tmp_path / "nowhere.db")}),
    ):

        async def main(made: Made = made, where: dict[str, Any] = where) -> None:
            async with moved(made, tmp_path, **where).open(OPERATIONS) as source:
                with pytest.raises(SourceError):
                    await source.prepare_many("get", ["entity_id"])([[ADA], [BO]])

        run(main())


def test_one_key_of_another_kind_in_redis_is_that_items_error(redis: Made) -> None:
    from feast.infra.online_stores.helpers import _redis_key
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value
    from feast_kit import REDIS, REDIS_DATABASE
    from redis import Redis

    host, _, port = REDIS.partition(":")
    key = _redis_key(redis.sdk.project, EntityKey(join_keys=["customer_id"], entity_values=[Value(int64_val=78)]))
    with Redis(host, int(port), db=REDIS_DATABASE) as client:
        client.set(key, "text")
        try:

            async def main() -> None:
                async with redis.open(OPERATIONS) as source:
                    await check_equal(source, "few", [[ADA], [78], [BO]])
                    _, wrong, _ = await source.prepare_many("few", ["entity_id"])([[ADA], [78], [BO]])
                    assert "answered: WRONGTYPE" in str(wrong)

            run(main())
        finally:
            client.delete(key)


# --- how often a backend is asked ------------------------------------------------------------------------------------


def test_a_feature_server_is_asked_once(sqlite: Made) -> None:
    asked: list[Any] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        asked.append(body["entities"])
        count = len(body["entities"]["customer_id"])
        vector = {
            "values": [f"tier {value}" for value in body["entities"]["customer_id"]],
            "statuses": ["PRESENT"] * count,
            "event_timestamps": ["2024-01-01T00:00:00Z"] * count,
        }
        return web.json_response({"metadata": {"feature_names": ["tier"]}, "results": [vector]})

    async def main() -> None:
        async with stub(answer) as url, open_server(url, {"get": {"features": ["customer:tier"]}}) as source:
            many = source.prepare_many("get", ["entity_id"])
            assert list(await many([[1], [2], [1]])) == [{"tier": "tier 1"}, {"tier": "tier 2"}, {"tier": "tier 1"}]
            assert asked == [{"customer_id": [1, 2, 1]}]

    run(main())


def test_items_that_a_feature_server_refuses_together_are_asked_for_one_by_one() -> None:
    async def answer(request: web.Request) -> web.Response:
        ids = (await request.json())["entities"]["customer_id"]
        if 13 in ids:
            return web.json_response("no luck", status=500)
        vector = {"values": ids, "statuses": ["PRESENT"] * len(ids)}
        return web.json_response({"metadata": {"feature_names": ["tier"]}, "results": [vector]})

    async def main() -> None:
        async with stub(answer) as url, open_server(url, {"get": {"features": ["customer:tier"]}}) as source:
            first, unlucky, last = await source.prepare_many("get", ["entity_id"])([[1], [13], [3]])
            assert (first, last) == ({"tier": 1}, {"tier": 3})
            assert str(unlucky) == f"POST {url}/get-online-features: the feature server answered 500: no luck"

    run(main())


def test_the_sdk_is_asked_once(sqlite: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with sqlite.open(OPERATIONS, direct_reads=False) as source:
            sdk = source._repository._sdk
            rows: list[Any] = []
            read = sdk.get_online_features
            monkeypatch.setattr(
                sdk, "get_online_features", lambda **asked: rows.append(asked["entity_rows"]) or read(**asked)
            )
            await source.prepare_many("few", ["entity_id"])([[ADA], ["x"], [BO]])
            assert rows == [{"customer_id": [ADA, BO]}]

    run(main())


def test_postgresql_is_asked_once(postgresql: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with postgresql.open(OPERATIONS) as source:
            asked: list[Any] = []
            lent = source._store._lent

            async def counted(job: Any) -> Any:
                asked.append(job)
                return await lent(job)

            monkeypatch.setattr(source._store, "_lent", counted)
            await source.prepare_many("both", ["entity_id", "merchant"])([[ADA, "shop"], [BO, "Zoë & co"]])
            assert len(asked) == 1

    run(main())


def test_others_have_their_turn_while_a_long_list_is_read(repo: Made) -> None:
    async def turning(turns: list[int]) -> None:
        while True:
            turns.append(len(turns))
            await asyncio.sleep(0)

    async def main() -> None:
        async with repo.open({"get": {"features": ALL, "on_missing": "allow"}}) as source:
            many = source.prepare_many("get", ["entity_id"])
            turns: list[int] = []
            task = asyncio.create_task(turning(turns))
            await many([[1 + number % 2] for number in range(1_000)])
            task.cancel()
            assert len(turns) >= 4  # about every third of a millisecond

    run(main())
