"""aiohttp, uvloop and orjson as a good engineer writes them: a router, a pool of the driver's, aiohttp's client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import uvloop
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from tests.bench.task import (
    BEHAVIOR,
    BEHAVIOR_REFERENCES,
    FEATURES,
    POOL_SIZE,
    SELECT,
    TIMEOUT_SECONDS,
    Settings,
    answer,
    answer_of_many,
    path,
    settings,
)

Row = Mapping[str, Any]
Find = Callable[[int], Awaitable[Row | None]]
Score = Callable[[Row], Awaitable[tuple[float, int]]]

FIND = web.AppKey("find", Find)
REPORT = web.AppKey("report", Find)
BEHAVE = web.AppKey("behave", Find)
SCORE = web.AppKey("score", Score)


class BackendError(Exception):
    """A backend failed."""


def json_response(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(value), content_type="application/json")


async def noop(request: web.Request) -> web.Response:
    return json_response({"entity_id": request.match_info["entity_id"]})


async def assess(request: web.Request) -> web.Response:
    try:
        customer_id = int(request.match_info["entity_id"])
    except ValueError:
        return json_response({"detail": "customer_id must be an integer"}, 422)
    try:
        customer = await request.app[FIND](customer_id)
        if customer is None:
            return json_response({"detail": f"no customer {customer_id}"}, 404)
        score, label = await request.app[SCORE](customer)
    except BackendError as error:
        return json_response({"detail": str(error)}, 502)
    return json_response(answer(customer, score, label))


async def assess_multi(request: web.Request) -> web.Response:
    try:
        customer_id = int(request.match_info["entity_id"])
    except ValueError:
        return json_response({"detail": "customer_id must be an integer"}, 422)
    try:
        customer, report = await asyncio.gather(request.app[FIND](customer_id), request.app[REPORT](customer_id))
        if customer is None or report is None:
            return json_response({"detail": f"no customer {customer_id}"}, 404)
        features = {name: customer[name] for name in FEATURES}
        features["bureau_score"] = report["score"]
        features["utilization"] = report["utilization"]
        score, label = await request.app[SCORE](features)
    except BackendError as error:
        return json_response({"detail": str(error)}, 502)
    return json_response(answer_of_many(customer, report, score, label, {}))


async def assess_loan(request: web.Request) -> web.Response:
    try:
        customer_id = int(request.match_info["entity_id"])
    except ValueError:
        return json_response({"detail": "customer_id must be an integer"}, 422)
    try:
        customer, report, behavior = await asyncio.gather(
            request.app[FIND](customer_id), request.app[REPORT](customer_id), request.app[BEHAVE](customer_id)
        )
        if customer is None or report is None or behavior is None:
            return json_response({"detail": f"no customer {customer_id}"}, 404)
        features = {name: customer[name] for name in FEATURES}
        features["bureau_score"] = report["score"]
        features["utilization"] = report["utilization"]
        for name in BEHAVIOR:
            features[name] = behavior[name]
        score, label = await request.app[SCORE](features)
    except BackendError as error:
        return json_response({"detail": str(error)}, 502)
    return json_response(answer_of_many(customer, report, score, label, behavior))


async def sqlite(app: web.Application) -> AsyncIterator[None]:
    import aiosqlite

    async with aiosqlite.connect(app[SETTINGS].sqlite) as database:
        database.row_factory = aiosqlite.Row

        async def find(customer_id: int) -> Row | None:
            try:
                async with database.execute(f"{SELECT}?", (customer_id,)) as cursor:
                    return await cursor.fetchone()
            except aiosqlite.Error as error:
                raise BackendError(f"database: {error}") from error

        app[FIND] = find
        yield


async def postgresql(app: web.Application) -> AsyncIterator[None]:
    import asyncpg

    async with asyncpg.create_pool(
        app[SETTINGS].postgresql, min_size=POOL_SIZE, max_size=POOL_SIZE, command_timeout=TIMEOUT_SECONDS
    ) as pool:

        async def find(customer_id: int) -> Row | None:
            try:
                return await pool.fetchrow(f"{SELECT}$1", customer_id)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                raise BackendError(f"database: {error}") from error

        app[FIND] = find
        yield


async def onnx(app: web.Application) -> AsyncIterator[None]:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(app[SETTINGS].model, options, providers=["CPUExecutionProvider"])

    async def score(customer: Row) -> tuple[float, int]:
        features = numpy.array([[customer[name] for name in FEATURES]], dtype=numpy.float32)
        labels, probabilities = session.run(["label", "probabilities"], {"X": features})
        return float(probabilities[0, 1]), int(labels[0])

    app[SCORE] = score
    yield


async def model_server(app: web.Application) -> AsyncIterator[None]:
    url = f"{app[SETTINGS].model_url}/predict"
    async with ClientSession(
        timeout=ClientTimeout(total=TIMEOUT_SECONDS), headers={"Content-Type": "application/json"}
    ) as client:

        async def score(customer: Row) -> tuple[float, int]:
            features = orjson.dumps({name: customer[name] for name in FEATURES})
            try:
                async with client.post(url, data=features) as response:
                    response.raise_for_status()
                    prediction = orjson.loads(await response.read())
                return prediction["score"], prediction["label"]
            except (ClientError, TimeoutError, KeyError, ValueError) as error:
                raise BackendError(f"model: {error}") from error

        app[SCORE] = score
        yield


async def api_and_model_server(app: web.Application) -> AsyncIterator[None]:
    api, url = app[SETTINGS].api_url, f"{app[SETTINGS].model_url}/predict"
    async with ClientSession(timeout=ClientTimeout(total=TIMEOUT_SECONDS)) as client:

        async def report(customer_id: int) -> Row | None:
            try:
                async with client.get(f"{api}/reports/{customer_id}") as response:
                    if response.status == 404:
                        return None
                    response.raise_for_status()
                    found: Row = orjson.loads(await response.read())
                    return found
            except (ClientError, TimeoutError, ValueError) as error:
                raise BackendError(f"bureau: {error}") from error

        async def score(features: Row) -> tuple[float, int]:
            body, headers = orjson.dumps(features), {"Content-Type": "application/json"}
            try:
                async with client.post(url, data=body, headers=headers) as response:
                    response.raise_for_status()
                    prediction = orjson.loads(await response.read())
                return prediction["score"], prediction["label"]
            except (ClientError, TimeoutError, KeyError, ValueError) as error:
                raise BackendError(f"model: {error}") from error

        app[REPORT] = report
        app[SCORE] = score
        yield


async def feature_store(app: web.Application) -> AsyncIterator[None]:
    from feast import FeatureStore
    from redis.exceptions import RedisError

    store = FeatureStore(repo_path=app[SETTINGS].feast)
    await store.initialize()

    async def behave(customer_id: int) -> Row | None:
        try:
            found = await store.get_online_features_async(
                features=BEHAVIOR_REFERENCES, entity_rows=[{"customer_id": customer_id}]
            )
        except (RedisError, OSError, TimeoutError) as error:
            raise BackendError(f"feature store: {error}") from error
        behavior = {name: values[0] for name, values in found.to_dict().items()}
        return None if behavior["payment_history"] is None else behavior

    app[BEHAVE] = behave
    yield
    await store.close()


SETTINGS = web.AppKey("settings", Settings)
BACKENDS = {
    "noop": (),
    "sqlite": (sqlite, onnx),
    "postgresql": (postgresql, onnx),
    "http": (postgresql, model_server),
    "multi": (postgresql, api_and_model_server),
    "loan": (postgresql, api_and_model_server, feature_store),
}
HANDLERS = {"noop": noop, "multi": assess_multi, "loan": assess_loan}


def main() -> None:
    given = settings()
    app = web.Application()
    app[SETTINGS] = given
    app.cleanup_ctx.extend(BACKENDS[given.kind])
    app.router.add_get(path(given.flow) + "{entity_id}", HANDLERS.get(given.kind, assess))
    web.run_app(app, host="127.0.0.1", port=given.port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
