"""What the contestants call: a table of customers, an ONNX model and a model server, all made here."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import uuid
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
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


# --- the model server, a process of its own ---------------------------------------------------------------------


class ModelServer(asyncio.Protocol):
    """Answers ``POST /predict`` with as little work as can be, so that the client's cost is what is measured."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        if len(body) < length:
            return
        self._received = b""
        answer = orjson.dumps(predict(orjson.loads(body)))
        self._transport.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer)
        )


def predict(features: dict[str, float]) -> dict[str, float]:
    score = round((850 - features["credit_score"]) / 550 * 0.7 + features["debt_ratio"] * 0.3, 6)
    return {"score": score, "label": int(score >= 0.5)}


async def serve_model(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(ModelServer, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import sys

    uvloop.run(serve_model(int(sys.argv[1])))
