"""Time for reading N rows by key: one statement for all, and one by one, eight at once. Run: ``python bench_many.py``.

Prints medians of interleaved rounds in milliseconds, and CPU time of this process per item in microseconds.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import uvloop
from database_kit import Database, drop, make

ROUNDS, SIZES, AT_ONCE = 31, (4, 16, 100, 1000), 8
READ = {
    "query": "SELECT customer_id, credit_score, annual_income FROM customers WHERE customer_id = :customer_id",
    "params": {"customer_id": "integer"},
}


async def several(read: Callable[..., Awaitable[Any]], items: list[tuple[int]]) -> list[Any]:
    """What the core does where a source has no call for many."""
    results: list[Any] = [None] * len(items)
    todo = deque(enumerate(items))

    async def work() -> None:
        while todo:
            position, values = todo.popleft()
            results[position] = await read(*values)

    await asyncio.gather(*(work() for _ in range(min(AT_ONCE, len(items)))))
    return results


async def measure(database: Database) -> None:
    async with database.open(read=READ) as source:
        many, one = source.prepare_many("read", ["customer_id"]), source.prepare("read", ["customer_id"])
        assert many is not None
        contestants: dict[str, Callable[[list[tuple[int]]], Awaitable[Any]]] = {
            "one statement": many,
            "one by one, 8 at once": lambda items: several(one, items),
        }
        for size in SIZES:
            items = [(number % 100 + 1,) for number in range(size)]
            wall: dict[str, list[float]] = {name: [] for name in contestants}
            cpu: dict[str, list[float]] = {name: [] for name in contestants}
            for _ in range(ROUNDS):
                for name, contestant in contestants.items():
                    started, worked = time.perf_counter(), time.process_time()
                    await contestant(items)
                    wall[name].append((time.perf_counter() - started) * 1e3)
                    cpu[name].append((time.process_time() - worked) / size * 1e6)
            for name in contestants:
                figures = (
                    f"{statistics.median(wall[name]):8.2f} ms {statistics.median(cpu[name]):7.1f} µs of CPU per item"
                )
                print(f"{database.engine:<11} {size:>5} items  {name:<22} {figures}")


async def main() -> None:
    name = f"orchestrator_bench_many_{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        for engine in ("sqlite", "postgresql", "mysql"):
            database = await make(engine, name, Path(folder))
            try:
                await measure(database)
            finally:
                await drop(engine, name)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
