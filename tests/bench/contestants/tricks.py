"""The same with every trick: aiohttp's bare server, held prepared statements, SQLite on the loop, reused buffers."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvloop
from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web
from multidict import CIMultiDict, CIMultiDictProxy

from tests.bench.task import FEATURES, POOL_SIZE, SELECT, TIMEOUT_SECONDS, Settings, path, settings

Row = Sequence[Any]
Find = Callable[[int], Awaitable[Row | None]]
Score = Callable[[Row], Awaitable[tuple[float, int]]]

JSON_HEADERS = CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"}))
dumps = orjson.dumps


class BackendError(Exception):
    """A backend failed."""


def response(body: bytes, status: int = 200) -> web.Response:
    return web.Response(body=body, status=status, headers=JSON_HEADERS)


def failure(status: int, detail: str) -> web.Response:
    return response(dumps({"detail": detail}), status)


def noop(prefix: str) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    length = len(prefix)

    async def handle(request: web.BaseRequest) -> web.Response:
        target = request.path
        if not target.startswith(prefix):
            return failure(404, "no such route")
        return response(dumps({"entity_id": target[length:]}))

    return handle


def assess(prefix: str, find: Find, score: Score) -> Callable[[web.BaseRequest], Awaitable[web.Response]]:
    length = len(prefix)

    async def handle(request: web.BaseRequest) -> web.Response:
        target = request.path
        if not target.startswith(prefix):
            return failure(404, "no such route")
        try:
            customer_id = int(target[length:])
        except ValueError:
            return failure(422, "customer_id must be an integer")
        try:
            row = await find(customer_id)
            if row is None:
                return failure(404, f"no customer {customer_id}")
            probability, label = await score(row)
        except BackendError as error:
            return failure(502, str(error))
        return response(
            dumps(
                {
                    "customer_id": row[0],
                    "segment": row[1],
                    "region": row[2],
                    "age": row[3],
                    "annual_income": row[4],
                    "credit_score": row[5],
                    "debt_ratio": row[6],
                    "loan_amount": row[7],
                    "score": probability,
                    "label": label,
                    "band": "low" if probability < 0.2 else "medium" if probability < 0.5 else "high",
                    "decision": "approve" if probability < 0.5 else "refer",
                }
            )
        )

    return handle


@asynccontextmanager
async def sqlite(given: Settings) -> AsyncIterator[Find]:
    import sqlite3

    database = sqlite3.connect(f"file:{given.sqlite}?mode=ro", uri=True, isolation_level=None)
    execute, query = database.execute, f"{SELECT}?"

    async def find(customer_id: int) -> Row | None:
        try:
            return execute(query, (customer_id,)).fetchone()
        except sqlite3.Error as error:
            raise BackendError(f"database: {error}") from error

    yield find
    database.close()


@asynccontextmanager
async def postgresql(given: Settings) -> AsyncIterator[Find]:
    import asyncpg

    connections = [await asyncpg.connect(given.postgresql) for _ in range(POOL_SIZE)]
    free = [(await connection.prepare(f"{SELECT}$1")).fetchrow for connection in connections]
    waiting: asyncio.Queue[None] = asyncio.Queue()
    waiters = 0

    async def find(customer_id: int) -> Row | None:
        nonlocal waiters
        while not free:
            waiters += 1
            try:
                await waiting.get()
            finally:
                waiters -= 1
        fetchrow = free.pop()
        try:
            return await fetchrow(customer_id)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise BackendError(f"database: {error}") from error
        finally:
            free.append(fetchrow)
            if waiters:
                waiting.put_nowait(None)

    yield find
    await asyncio.gather(*(connection.close() for connection in connections))


@asynccontextmanager
async def onnx(given: Settings) -> AsyncIterator[Score]:
    import numpy
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(given.model, options, providers=["CPUExecutionProvider"])
    features = numpy.empty((1, len(FEATURES)), dtype=numpy.float32)
    feed, names = {"X": features}, ["label", "probabilities"]
    # InferenceSession.run checks its arguments in Python before it calls this.
    run = session._sess.run

    async def score(row: Row) -> tuple[float, int]:
        features[0] = row[3:]
        label, probabilities = run(names, feed, None)
        return probabilities.item(1), label.item(0)

    yield score


@asynccontextmanager
async def model_server(given: Settings) -> AsyncIterator[Score]:
    from yarl import URL

    url = URL(f"{given.model_url}/predict")
    connector = TCPConnector(limit=0, force_close=False)
    timeout = ClientTimeout(total=TIMEOUT_SECONDS)
    skipped = ("User-Agent", "Accept-Encoding", "Accept")
    async with ClientSession(
        connector=connector, timeout=timeout, headers=JSON_HEADERS, skip_auto_headers=skipped, auto_decompress=False
    ) as client:

        async def score(row: Row) -> tuple[float, int]:
            body = dumps(dict(zip(FEATURES, row[3:], strict=True)))
            try:
                async with client.post(url, data=body, allow_redirects=False) as answer:
                    if answer.status != 200:
                        raise BackendError(f"model: {answer.status}")
                    prediction = orjson.loads(await answer.read())
                return prediction["score"], prediction["label"]
            except (ClientError, TimeoutError, KeyError, ValueError) as error:
                raise BackendError(f"model: {error}") from error

        yield score


async def serve(given: Settings, handle: Callable[[web.BaseRequest], Awaitable[web.Response]]) -> None:
    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", given.port).start()
    gc.collect()
    gc.freeze()
    await asyncio.Event().wait()


async def run(given: Settings) -> None:
    if given.flow == "noop":
        await serve(given, noop(path(given.flow)))
        return
    database = sqlite if given.flow == "sqlite" else postgresql
    model = model_server if given.flow == "http" else onnx
    async with database(given) as find, model(given) as score:
        await serve(given, assess(path(given.flow), find, score))


if __name__ == "__main__":
    uvloop.run(run(settings()))
