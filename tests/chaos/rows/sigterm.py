"""SIGTERM under load: what is in flight is answered."""

from __future__ import annotations

import asyncio
import signal
from time import monotonic

from tests.chaos.load import CLOSED, REFUSED, Stream
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import stage

IN_FLIGHT_RATE = 60


async def measure(setting: Setting) -> list[Finding]:
    rounds = setting.times(10, 2)
    in_flight = failed = 0
    slowest_stop = 0.0
    later: dict[int, int] = {}
    failures: dict[int, int] = {}
    for number in range(rounds):
        setting.say(f"SIGTERM {number + 1} of {rounds}")
        async with stage(setting) as service:
            streams = [
                Stream("plain", service.path("plain/{n}"), rate=500, ids=100),
                Stream("customer", service.path("customer/{n}"), rate=100, ids=100),
                Stream("nap", service.path("nap/0.5"), rate=IN_FLIGHT_RATE),
            ]
            async with service.load(*streams) as driven:
                await asyncio.sleep(1.5)
                told = monotonic()
                service.signal(signal.SIGTERM)
                slowest_stop = max(slowest_stop, await service.ended())
                await asyncio.sleep(0.2)
            for met in driven.values():
                for at, seconds, status in zip(met.at, met.seconds, met.status, strict=True):
                    if at < told <= at + seconds:
                        in_flight += 1
                        failed += status != 200
                        if status != 200:
                            failures[status] = failures.get(status, 0) + 1
                    elif at >= told:
                        later[status] = later.get(status, 0) + 1
    names = {CLOSED: "closed unanswered", REFUSED: "refused"}
    shown = ", ".join(f"{count:,} {names.get(status, status)}" for status, count in sorted(later.items()))
    failed_shown = ", ".join(f"{count} {names.get(status, status)}" for status, count in failures.items())
    return [
        Finding(
            "none in flight fails on SIGTERM",
            f"{failed} of {in_flight:,} in {rounds} stops failed {failed_shown}".strip(),
            in_flight >= rounds * IN_FLIGHT_RATE * 0.3 and not failed,
        ),
        Finding(
            "what comes later is answered or turned away",
            f"{shown}; stopped within {slowest_stop:.2f} s",
            set(later) <= {200, 503, REFUSED, CLOSED},
        ),
    ]


ROW = Row("sigterm", "SIGTERM the service under load", measure)
