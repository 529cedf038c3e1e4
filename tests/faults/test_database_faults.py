"""A database that is down, dropped in the middle, hanging, locked or full: the answers, and what is left behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from attrs import frozen

from orchestrator_core.testing import RunningService, service
from tests.faults.kit import (
    WITHOUT_POLICIES,
    Relay,
    failed_steps,
    meanwhile,
    no_more_than,
    nothing_left,
    problem,
    relay,
    skip_without,
    warmed,
)

Run = Callable[[Coroutine[Any, Any, None]], None]

POSTGRESQL_URL = os.environ.get("ORCHESTRATOR_TEST_POSTGRESQL_URL", "postgresql://postgres@127.0.0.1:5432")
MYSQL_URL = os.environ.get("ORCHESTRATOR_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306")

DATABASE = """
    database:
      sources:
        default:
          connection_string: "{url}"
          pool_size: 1
          pool_timeout: 200ms
          connect_timeout: 300ms
          {options}
      operations:
        get_customer: {{query: "{query}", params: [customer_id]}}
        sleep: {{query: "{sleep}", params: {{seconds: number}}}}
        write: {{query: "{sleep}", params: {{seconds: number}}, result: execute}}
"""
DOMAIN = """
    endpoints:
      read:
        timeout: 2s
        data_sources:
          - {name: customer, type: database, operation: get_customer, params: {customer_id: 7}}
        response_mapping: {id: "$customer.id"}
      hurried:
        timeout: 300ms
        data_sources:
          - {name: customer, type: database, operation: get_customer, params: {customer_id: 7}}
        response_mapping: {id: "$customer.id"}
      slow:
        timeout: 10s
        data_sources:
          - {name: naps, type: database, operation: sleep, params: {seconds: 30}}
        response_mapping: {done: "$naps != null"}
      written:
        timeout: 10s
        data_sources:
          - {name: naps, type: database, operation: write, params: {seconds: 30}}
        response_mapping: {done: "$naps != null"}
      tolerant:
        timeout: 2s
        data_sources:
          - {name: customer, type: database, operation: get_customer, params: {customer_id: 7}, default: {id: 0}}
        response_mapping: {id: "$customer.id", degraded: "$execution.degraded"}
      other:
        response_mapping: {fine: true}
"""
SOURCE = "database 'database.default'"
READ = "/orchestrator/bank/read"
OTHER = "/orchestrator/bank/other"
HURRIED = "/orchestrator/bank/hurried"


@frozen
class Engine:
    """A database server, as the configuration speaks to it through a relay."""

    name: str
    url: str
    query: str
    sleep: str

    @property
    def address(self) -> tuple[str, int]:
        url = urlsplit(self.url)
        return url.hostname or "127.0.0.1", url.port or 0

    @property
    def database(self) -> str:
        return urlsplit(self.url).path.strip("/")

    def files(self, port: int, options: str = "") -> dict[str, str]:
        url = urlsplit(self.url)
        credentials = url.netloc.rpartition("@")[0]
        through = f"{url.scheme}://{credentials}@127.0.0.1:{port}{url.path}"
        return {
            "config.yaml": WITHOUT_POLICIES,
            "database.yaml": DATABASE.format(url=through, query=self.query, sleep=self.sleep, options=options),
            "domains/bank.yaml": DOMAIN,
        }


ENGINES = [
    Engine(
        "PostgreSQL",
        f"{POSTGRESQL_URL}/postgres",
        "SELECT CAST(:customer_id AS int) AS id",
        "SELECT pg_sleep(:seconds)",
    ),
    Engine("MySQL", f"{MYSQL_URL}/mysql", "SELECT :customer_id AS id", "SELECT SLEEP(:seconds)"),
]


@pytest.fixture(params=ENGINES, ids=lambda engine: engine.name)
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.param
    skip_without(*found.address, found.name)
    return found


@asynccontextmanager
async def serving(engine: Engine, options: str = "") -> AsyncIterator[tuple[RunningService, Relay]]:
    """A service that has read once, behind a relay to the server."""
    async with (
        nothing_left("a database fault"),
        relay(*engine.address) as way,
        service(engine.files(way.port, options)) as served,
    ):
        assert (await served.get(READ)).json == {"id": 7}
        yield served, way


async def mended(served: RunningService, before: tuple[int, int, int]) -> None:
    """The pool's one connection can be had again, and nothing more is held than before."""
    answer = await served.get(READ)
    assert (answer.status, answer.json) == (200, {"id": 7})
    await no_more_than(before)


def test_a_database_that_is_down_is_a_bad_gateway_until_it_is_back(engine: Engine, run: Run) -> None:
    async def main() -> None:
        async with serving(engine) as (served, way):
            before = await warmed(served, OTHER)
            await way.refuse()
            for _ in range(3):
                answer = await served.get(READ)
                assert answer.status == 502
                said = answer.json["detail"]
                assert answer.json == problem(answer, said, "customer", "source failed", READ)
                where = f"{engine.name} at 127.0.0.1:{way.port}, database '{engine.database}'"
                assert said == f"step 'customer': {SOURCE}: cannot connect to {where}: connection refused"
                ((name, status, error),) = await failed_steps(served)
                assert (name, status, f"step 'customer': {error}") == ("customer", "failed", said)
            tolerant = await served.get("/orchestrator/bank/tolerant")
            assert (tolerant.status, tolerant.json) == (200, {"id": 0, "degraded": True})
            assert (await served.get(OTHER)).json == {"fine": True}
            await way.listen()
            await mended(served, before)

    run(main())


def test_a_connection_that_is_dropped_in_the_middle_fails_its_request_and_is_replaced(engine: Engine, run: Run) -> None:
    """A read is sent once more on a new connection, and a second loss fails it; a write is not sent again."""

    async def main() -> None:
        async with serving(engine) as (served, way):
            before = await warmed(served, OTHER)
            for target, losses in (("slow", 2), ("written", 1)):
                napping = asyncio.ensure_future(served.get(f"/orchestrator/bank/{target}"))
                for _ in range(losses):
                    await asyncio.sleep(0.3)
                    assert not napping.done()
                    await way.cut()
                answer = await napping
                assert answer.status == 502
                said = answer.json["detail"]
                assert answer.json == problem(answer, said, "naps", "source failed", f"/orchestrator/bank/{target}")
                operation = "sleep" if target == "slow" else "write"
                assert said == f"step 'naps': {operation}: the connection to the database was lost"
                await mended(served, before)

    run(main())


def test_a_read_that_a_new_connection_breaks_off_is_not_sent_again_by_itself(engine: Engine, run: Run) -> None:
    """Whether it is tried again is for the policy to say, within its budget."""

    async def main() -> None:
        async with serving(engine) as (served, way):
            before = await warmed(served, OTHER)
            for losses in (2, 1, 1):  # after the first there is no connection at rest
                napping = asyncio.ensure_future(served.get("/orchestrator/bank/slow"))
                for _ in range(losses):
                    await asyncio.sleep(0.3)
                    assert not napping.done()
                    await way.cut()
                answer = await napping
                assert (answer.status, answer.json["step"]) == (502, "naps")
            await mended(served, before)

    run(main())


def test_an_idle_connection_that_was_dropped_costs_no_request(engine: Engine, run: Run) -> None:
    async def main() -> None:
        async with serving(engine) as (served, way):
            before = await warmed(served, OTHER)
            for _ in range(3):
                await way.cut()
                await asyncio.sleep(0.05)
                await mended(served, before)

    run(main())


def test_a_database_that_hangs_is_given_up_at_the_deadline_while_others_go_on(engine: Engine, run: Run) -> None:
    async def main() -> None:
        async with serving(engine) as (served, way):
            before = await warmed(served, OTHER, at_once=4)
            way.swallows = True
            started = time.monotonic()
            hanging = [asyncio.ensure_future(served.get(HURRIED)) for _ in range(3)]
            others = await meanwhile(hanging, lambda: served.get(OTHER))
            assert time.monotonic() - started < 2
            assert [answer.json for answer in others] == [{"fine": True}] * len(others)
            answers = sorted((call.result() for call in hanging), key=lambda answer: answer.status)
            # The pool has one connection: who waits for it is told after pool_timeout that there is none.
            busy = f"step 'customer': {SOURCE}: all 1 connections are in use, and none came free within 0.2 s"
            for answer in answers[:2]:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
                assert answer.json["step"] == "customer"
                assert answer.json["detail"] == busy
            late = "the request took longer than its 0.3 s in step 'customer'"
            assert answers[2].json == problem(answers[2], late, "customer", "deadline passed", HURRIED)
            assert answers[2].status == 504
            async with asyncio.timeout(2):  # while it still hangs: what mends the connection gives up too
                await no_more_than(before)
            way.swallows = False
            await way.cut()
            await mended(served, before)

    run(main())


def test_a_statement_that_takes_too_long_is_ended_by_the_database(engine: Engine, run: Run) -> None:
    async def main() -> None:
        async with serving(engine, "statement_timeout: 300ms") as (served, _):
            before = await warmed(served, OTHER)
            answer = await served.get("/orchestrator/bank/slow")
            if engine.name == "MySQL" and answer.status == 200:
                pytest.skip("SLEEP returns early where max_statement_time passes")
            assert (answer.status, answer.json["step"]) == (502, "naps")
            assert answer.json["detail"].startswith("step 'naps': sleep: ")
            await mended(served, before)

    run(main())


# --- SQLite -----------------------------------------------------------------------------------------------------------


# A process of its own: within one, SQLite's locks and file descriptors are shared by all connections.
BLOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def on_file(folder: Path, options: str = "lock_timeout: 200ms") -> AsyncIterator[tuple[RunningService, Path]]:
    file = folder / "bank.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY)")
        connection.execute("INSERT INTO customers VALUES (7)")
    connection.close()
    engine = Engine("SQLite", "", "SELECT id FROM customers WHERE id = :customer_id", "SELECT :seconds")
    files = engine.files(0, options)
    files["database.yaml"] = DATABASE.format(
        url=f"sqlite:///{file}", query=engine.query, sleep=engine.sleep, options=options
    )
    async with nothing_left("a fault of SQLite"), service(files) as served:
        for _ in range(2):  # on a thread first, and then on the loop: each has a connection of its own
            assert (await served.get(READ)).json == {"id": 7}
        yield served, file


def test_a_locked_file_is_a_bad_gateway_after_the_lock_timeout_while_others_go_on(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with on_file(tmp_path) as (served, file):
            before = await warmed(served, OTHER, at_once=2)
            blocker = await asyncio.create_subprocess_exec(
                sys.executable, "-c", BLOCKER, str(file), stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            assert blocker.stdout
            await blocker.stdout.readline()
            started = time.monotonic()
            locked = asyncio.ensure_future(served.get(READ))
            others = await meanwhile([locked], lambda: served.get(OTHER))
            assert 0.15 < time.monotonic() - started < 2
            assert [answer.json for answer in others] == [{"fine": True}] * len(others)
            answer = locked.result()
            said = answer.json["detail"]
            assert answer.json == problem(answer, said, "customer", "source failed", READ)
            assert (answer.status, said) == (502, "step 'customer': get_customer: the database stayed locked for 0.2 s")
            await blocker.communicate(b"enough")
            await mended(served, before)

    run(main())


def test_a_file_that_is_removed_or_no_database_is_a_bad_gateway(tmp_path: Path, run: Run) -> None:
    async def main() -> None:
        async with on_file(tmp_path) as (served, file):
            file.write_bytes(b"this is no database, but long enough to be taken for one" * 100)
            answer = await served.get(READ)
            said = f"step 'customer': {SOURCE}: cannot open {file}: file is not a database"
            assert answer.json == problem(answer, said, "customer", "source failed", READ)
            assert answer.status == 502

    run(main())
