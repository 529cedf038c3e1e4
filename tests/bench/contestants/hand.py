"""aiohttp, uvloop and orjson as a good engineer writes them: a router, a pool of the driver's, aiohttp's client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import orjson
import uvloop
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from tests.bench.task import FEATURES, POOL_SIZE, SELECT, TIMEOUT_SECONDS, Settings, answer, path, settings

Row = Mapping[str, Any]
Find = Callable[[int], Awaitable[Row | None]]
Score = Callable[[Row], Awaitable[tuple[float, int]]]

FIND = web.AppKey("find", Find)
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


SETTINGS = web.AppKey("settings", Settings)
BACKENDS = {
    "noop": (),
    "sqlite": (sqlite, onnx),
    "postgresql": (postgresql, onnx),
    "http": (postgresql, model_server),
}


def main() -> None:
    given = settings()
    app = web.Application()
    app[SETTINGS] = given
    app.cleanup_ctx.extend(BACKENDS[given.flow])
    app.router.add_get(path(given.flow) + "{entity_id}", noop if given.flow == "noop" else assess)
    web.run_app(app, host="127.0.0.1", port=given.port, access_log=None, print=None, loop=uvloop.new_event_loop())


if __name__ == "__main__":
    main()
