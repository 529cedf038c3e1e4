"""CPU time per read of ten features of one view: Feast's SDK and this source.

    python -W ignore bench_feast.py [--stores sqlite,redis,postgresql] [--json FILE]

Prints medians of interleaved rounds: microseconds of process CPU time, threads included, and calls per CPU second. The
SDK's figure is without ``to_dict()``, and its synchronous reads block the loop; this source returns JSON. Then the same
for 100 entities at once, per entity. Then, with reads going on all the time, how long the event loop took to turn: by
the clock, where the machine's other work counts too, and by the CPU time of the loop's thread.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import uvloop
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String
from feast_kit import Made, new_store

ROUNDS, CALLS, CUSTOMERS = 15, 300, 1_000
MANY, MANY_CALLS = 100, 10
NAMES = [*(f"amount_{number}" for number in range(6)), "tier", "region", "visits", "age"]
REFERENCES = [f"customer:{name}" for name in NAMES]
Contestants = dict[str, Callable[[int], Awaitable[Any]]]


def make(store: str, folder: Path) -> Made:
    sdk = new_store(store, folder)
    number = range(1, CUSTOMERS + 1)
    rows = pd.DataFrame(
        {
            "customer_id": number,
            "event_timestamp": [datetime.now(UTC)] * CUSTOMERS,
            **{name: [index + each / 7 for each in number] for index, name in enumerate(NAMES[:6])},
            "tier": [f"tier {each % 5}" for each in number],
            "region": [f"region {each % 40}" for each in number],
            "visits": [each % 300 for each in number],
            "age": [18 + each % 70 for each in number],
        }
    )
    rows.to_parquet(folder / "rows.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    types = [Float64] * 6 + [String] * 2 + [Int64] * 2
    view = FeatureView(
        name="customer",
        entities=[customer],
        ttl=timedelta(days=1),
        source=FileSource(path=str(folder / "rows.parquet"), timestamp_field="event_timestamp"),
        schema=[Field(name="customer_id", dtype=Int64)]
        + [Field(name=name, dtype=dtype) for name, dtype in zip(NAMES, types, strict=True)],
    )
    sdk.apply([customer, view])
    sdk.write_to_online_store("customer", rows)
    return Made(store, folder, sdk)


async def measure(what: str, contestants: Contestants, calls: int = CALLS, entities: int = 1) -> dict[str, float]:
    """Print what each contestant took, and return the microseconds for an entity."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS):
        for name, read in contestants.items():
            await read(1)
            started = time.process_time()
            for number in range(calls):
                await read(number % (CUSTOMERS // entities) + 1)
            times[name].append((time.process_time() - started) / calls / entities)
    medians = {name: statistics.median(each) for name, each in times.items()}
    sdk = medians["SDK"]
    print(f"\n{what}: {ROUNDS} interleaved rounds of {calls} calls")
    for name, median in medians.items():
        print(f"  {name:<34} {median * 1e6:7.1f} µs  {1 / median:8.0f} calls per CPU second  {sdk / median:5.2f} times")
    return {name: median * 1e6 for name, median in medians.items()}


async def gaps(call: Callable[[int], Awaitable[Any]]) -> None:
    """Print how long the loop took to turn while reads went on, and without any."""
    turns: list[float] = []
    worked: list[float] = []
    end = time.perf_counter() + 2

    async def reading() -> None:
        while time.perf_counter() < end:
            await call(7)
            await asyncio.sleep(0)

    async def turning() -> None:
        while time.perf_counter() < end:
            turns.append(time.perf_counter())
            worked.append(time.thread_time())
            await asyncio.sleep(0)

    for name, work in (("reads on the loop", [turning(), reading()]), ("nothing but turning", [turning()])):
        turns.clear()
        worked.clear()
        end = time.perf_counter() + 2
        await asyncio.gather(*work)
        between = sorted(after - before for before, after in pairwise(turns))
        shown = [between[int(len(between) * share)] * 1e6 for share in (0.5, 0.999)]
        over = sum(each > 0.001 for each in between)
        figures = f"a turn takes {shown[0]:.0f} µs, 99.9 %: {shown[1]:.0f} µs, over 1 ms: {over} of {len(between)}"
        longest = max(after - before for before, after in pairwise(worked)) * 1e6
        print(f"  {name:<34} {figures}; the thread worked for {longest:.0f} µs at most")


async def bench(store: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        made = make(store, Path(folder))
        sdk = made.sdk

        async def by_sdk(number: int) -> Any:
            return sdk.get_online_features(features=REFERENCES, entity_rows=[{"customer_id": number}])

        async def by_sdk_with_dict(number: int) -> Any:
            return (await by_sdk(number)).to_dict()

        async def by_sdk_async(number: int) -> Any:
            return await sdk.get_online_features_async(features=REFERENCES, entity_rows=[{"customer_id": number}])

        operations = {"get": {"features": REFERENCES}}
        async with made.open(operations) as source, made.open(operations, direct_reads=False) as through_sdk:
            call = source.prepare("get", ["entity_id"])
            expected = await by_sdk_with_dict(7)
            assert await call(7) == {name: expected[name][0] for name in NAMES}
            contestants: Contestants = {"SDK": by_sdk, "SDK and to_dict()": by_sdk_with_dict}
            if store == "redis":
                contestants["SDK async"] = by_sdk_async
            contestants |= {
                "this source, prepared call": call,
                "this source, fetch": lambda number: source.fetch("get", {"entity_id": number}),
                "this source, direct_reads: false": through_sdk.prepare("get", ["entity_id"]),
            }
            measured = await measure(store, contestants)
            many = source.prepare_many("get", ["entity_id"])

            async def many_by_sdk(number: int) -> Any:
                ids = range(MANY * (number - 1) + 1, MANY * number + 1)
                return sdk.get_online_features(features=REFERENCES, entity_rows=[{"customer_id": each} for each in ids])

            await measure(
                f"{store}, {MANY} entities at once, per entity",
                {
                    "SDK": many_by_sdk,
                    "this source": lambda number: many(
                        [[each] for each in range(MANY * (number - 1) + 1, MANY * number + 1)]
                    ),
                },
                MANY_CALLS,
                MANY,
            )
            await gaps(call)
            if store == "redis":
                await sdk._get_provider().online_store._client_async.aclose()
        made.take_down()
    return measured


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", default="sqlite,redis,postgresql")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the microseconds to a file too")
    options = parser.parse_args()
    measured = {store: await bench(store) for store in options.stores.split(",")}
    if options.json:
        options.json.write_text(json.dumps(measured))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
