"""FastAPI on uvicorn (uvloop, httptools), orjson, aiohttp's client, asyncpg or aiosqlite: as it is usually written."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import uvicorn
from aiohttp import ClientError, ClientSession, ClientTimeout
from fastapi import FastAPI, HTTPException, Response

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


class BackendError(Exception):
    """A backend failed."""


def json_response(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


@asynccontextmanager
async def sqlite(given: Settings) -> AsyncIterator[Find]:
    import aiosqlite

    async with aiosqlite.connect(given.sqlite) as database:
        database.row_factory = aiosqlite.Row

        async def find(customer_id: int) -> Row | None:
            try:
                async with database.execute(f"{SELECT}?", (customer_id,)) as cursor:
                    return await cursor.fetchone()
            except aiosqlite.Error as error:
                raise BackendError(f"database: {error}") from error

        yield find


@asynccontextmanager
async def postgresql(given: Settings) -> AsyncIterator[Find]:
    import asyncpg

    async with asyncpg.create_pool(
        given.postgresql, min_size=POOL_SIZE, max_size=POOL_SIZE, command_timeout=TIMEOUT_SECONDS
    ) as pool:

        async def find(customer_id: int) -> Row | None:
            try:
                return await pool.fetchrow(f"{SELECT}$1", customer_id)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
                raise BackendError(f"database: {error}") from error

        yield find


@asynccontextmanager
async def onnx(given: Settings) -> AsyncIterator[Score]:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])

    async def score(customer: Row) -> tuple[float, int]:
        features = numpy.array([[customer[name] for name in FEATURES]], dtype=numpy.float32)
        labels, probabilities = session.run(["label", "probabilities"], {"X": features})
        return float(probabilities[0, 1]), int(labels[0])

    yield score


@asynccontextmanager
async def model_server(given: Settings) -> AsyncIterator[Score]:
    url = f"{given.model_url}/predict"
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

        yield score


@asynccontextmanager
async def api_and_model_server(given: Settings) -> AsyncIterator[tuple[Find, Score]]:
    api, url = given.api_url, f"{given.model_url}/predict"
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

        yield report, score


@asynccontextmanager
async def feature_store(given: Settings) -> AsyncIterator[Find]:
    from feast import FeatureStore
    from redis.exceptions import RedisError

    store = FeatureStore(repo_path=given.feast)
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

    yield behave
    await store.close()


def make_app_of_many(given: Settings) -> FastAPI:
    """The flows that ask an API, and a feature store too, while the database answers."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app.state.find = await stack.enter_async_context(postgresql(given))
            app.state.report, app.state.score = await stack.enter_async_context(api_and_model_server(given))
            if given.kind == "loan":
                app.state.behave = await stack.enter_async_context(feature_store(given))
            yield

    app = FastAPI(lifespan=lifespan)

    async def multi(entity_id: int) -> Response:
        try:
            customer, report = await asyncio.gather(app.state.find(entity_id), app.state.report(entity_id))
            if customer is None or report is None:
                raise HTTPException(404, f"no customer {entity_id}")
            features = {name: customer[name] for name in FEATURES}
            features["bureau_score"] = report["score"]
            features["utilization"] = report["utilization"]
            score, label = await app.state.score(features)
        except BackendError as error:
            raise HTTPException(502, str(error)) from error
        return json_response(answer_of_many(customer, report, score, label, {}))

    async def loan(entity_id: int) -> Response:
        try:
            customer, report, behavior = await asyncio.gather(
                app.state.find(entity_id), app.state.report(entity_id), app.state.behave(entity_id)
            )
            if customer is None or report is None or behavior is None:
                raise HTTPException(404, f"no customer {entity_id}")
            features = {name: customer[name] for name in FEATURES}
            features["bureau_score"] = report["score"]
            features["utilization"] = report["utilization"]
            for name in BEHAVIOR:
                features[name] = behavior[name]
            score, label = await app.state.score(features)
        except BackendError as error:
            raise HTTPException(502, str(error)) from error
        return json_response(answer_of_many(customer, report, score, label, behavior))

    app.get(path(given.flow) + "{entity_id}")(loan if given.kind == "loan" else multi)
    return app


def make_app(given: Settings) -> FastAPI:
    if given.kind in ("multi", "loan"):
        return make_app_of_many(given)
    if given.flow == "noop":
        app = FastAPI()

        @app.get(path(given.flow) + "{entity_id}")
        async def noop(entity_id: str) -> Response:
            return json_response({"entity_id": entity_id})

        return app

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            database = sqlite if given.flow == "sqlite" else postgresql
            model = model_server if given.flow == "http" else onnx
            app.state.find = await stack.enter_async_context(database(given))
            app.state.score = await stack.enter_async_context(model(given))
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get(path(given.flow) + "{entity_id}")
    async def assess(entity_id: int) -> Response:
        try:
            customer = await app.state.find(entity_id)
            if customer is None:
                raise HTTPException(404, f"no customer {entity_id}")
            score, label = await app.state.score(customer)
        except BackendError as error:
            raise HTTPException(502, str(error)) from error
        return json_response(answer(customer, score, label))

    return app


if __name__ == "__main__":
    given = settings()
    uvicorn.run(
        make_app(given),
        host="127.0.0.1",
        port=given.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
