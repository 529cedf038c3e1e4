"""What the contestants call: a table of customers, an ONNX model, and a process that is an API and a model server."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import orjson
import uvloop

from tests.bench.task import COLUMNS, FEATURES

CUSTOMERS = 10_000
TABLE = (
    "CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, segment TEXT NOT NULL, region TEXT NOT NULL,"
    " age INTEGER NOT NULL, annual_income DOUBLE PRECISION NOT NULL, credit_score INTEGER NOT NULL,"
    " debt_ratio DOUBLE PRECISION NOT NULL, loan_amount DOUBLE PRECISION NOT NULL, months_employed INTEGER NOT NULL,"
    " open_accounts INTEGER NOT NULL, late_payments INTEGER NOT NULL)"
)

Customer = tuple[int | float | str, ...]


def make_customers() -> list[Customer]:
    """Return the same customers each time."""
    chance = random.Random(7)
    return [
        (
            number,
            chance.choice(("retail", "business", "student", "private")),
            chance.choice(("north", "east", "south", "west")),
            chance.randint(18, 80),
            round(chance.lognormvariate(10.7, 0.5), 2),
            chance.randint(300, 850),
            round(chance.random() * 0.9, 4),
            float(chance.randrange(1_000, 60_000, 500)),
            chance.randint(0, 420),
            chance.randint(0, 20),
            min(12, int(chance.expovariate(0.8))),
        )
        for number in range(1, CUSTOMERS + 1)
    ]


def make_sqlite(file: Path, customers: list[Customer]) -> None:
    database = sqlite3.connect(file)
    with database:
        database.execute(TABLE)
        database.executemany(f"INSERT INTO customers VALUES ({', '.join('?' * len(COLUMNS))})", customers)
    database.close()


@asynccontextmanager
async def postgresql_database(server_url: str, customers: list[Customer]) -> AsyncIterator[str]:
    """Make a database of the bench's own with the table in it, and drop it in the end. Yields its URL."""
    import asyncpg

    name = f"orchestrator_bench_{uuid.uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))
    admin = await asyncpg.connect(server_url, timeout=5)
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        try:
            connection = await asyncpg.connect(url)
            await connection.execute(TABLE)
            await connection.copy_records_to_table("customers", records=customers, columns=COLUMNS)
            await connection.execute("ANALYZE customers")
            await connection.close()
            yield url
        finally:
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


def make_model(file: Path, customers: list[Customer]) -> None:
    """Train a small gradient boosting on the customers and write it as ONNX."""
    import numpy
    from skl2onnx import to_onnx
    from sklearn.ensemble import GradientBoostingClassifier

    table = numpy.array([row[-len(FEATURES) :] for row in customers], dtype=numpy.float32)
    age, _, credit_score, debt_ratio, _, _, _, late_payments = table.T
    risk = (700 - credit_score) / 100 + 3 * debt_ratio + 0.6 * late_payments - age / 60
    defaulted = (risk + numpy.random.default_rng(7).normal(size=len(risk)) > 2.0).astype(int)
    model = GradientBoostingClassifier(n_estimators=50, max_depth=3, random_state=7).fit(table, defaulted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = to_onnx(model, table[:1], options={"zipmap": False})
    file.write_bytes(converted.SerializeToString())


# --- the API and the model server, in a process of their own ------------------------------------------------------


class Answering(asyncio.Protocol):
    """Answers with as little work as can be, so that the client's cost is what is measured.

    ``GET /reports/7`` is the API's, what has a body is for the model, and anything else asks whether it is well.
    """

    def __init__(self, api_seconds: float = 0.0, model_seconds: float = 0.0) -> None:
        self._api_seconds = api_seconds
        self._model_seconds = model_seconds

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.WriteTransport = transport  # type: ignore[assignment]
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        if head.startswith(REPORT):
            self._received = b""
            report = report_of(int(head[len(REPORT) :].partition(b" ")[0]))
            self._answer(b"404 Not Found" if report is None else b"200 OK", report, self._api_seconds)
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._received = b""
        if not length:  # whether the model server is well
            self._answer(b"200 OK", {}, 0.0)
            return
        self._answer(b"200 OK", predict(orjson.loads(body)), self._model_seconds)

    def _answer(self, status: bytes, value: Any, seconds: float) -> None:
        body = orjson.dumps(value)
        answer = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self._transport.write, answer % (status, len(body), body))
        else:
            self._transport.write(answer % (status, len(body), body))


REPORT = b"GET /reports/"


def report_of(customer: int) -> dict[str, int | float | str] | None:
    """Return what the credit bureau knows of a customer."""
    if customer > CUSTOMERS:
        return None
    return {
        "customer_id": customer,
        "score": 300 + customer * 7919 % 551,
        "grade": "ABCDE"[customer % 5],
        "utilization": customer * 104_729 % 1000 / 1000,
        "inquiries": customer % 7,
    }


def predict(features: dict[str, float]) -> dict[str, float]:
    score = (850 - features["credit_score"]) / 550 * 0.7 + features["debt_ratio"] * 0.3
    if "bureau_score" in features:
        score = 0.5 * score + 0.5 * (850 - features["bureau_score"]) / 550 * features["utilization"]
    if "payment_history" in features:
        score *= 1 - 0.3 * features["payment_history"]
    score = round(score, 6)
    return {"score": score, "label": int(score >= 0.5)}


async def serve(port: int, api_seconds: float, model_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answering(api_seconds, model_seconds), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import sys

    api_seconds, model_seconds = float(sys.argv[2]), float(sys.argv[3])
    # uvloop's timers are whole milliseconds and can be early by one; asyncio's are never early.
    main = asyncio.run if api_seconds or model_seconds else uvloop.run
    main(serve(int(sys.argv[1]), api_seconds, model_seconds))
