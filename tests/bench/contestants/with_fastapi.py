"""FastAPI on uvicorn (uvloop, httptools), orjson, aiohttp's client, asyncpg or aiosqlite: as it is usually written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import uvicorn
from aiohttp import ClientError, ClientSession, ClientTimeout
from fastapi import FastAPI, HTTPException, Response

from tests.bench.task import FEATURES, POOL_SIZE, SELECT, TIMEOUT_SECONDS, Settings, answer, path, settings

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


def make_app(given: Settings) -> FastAPI:
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
