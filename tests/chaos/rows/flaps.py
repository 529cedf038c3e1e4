"""A source is up for a second and down for a second: it is not asked much more than it would be."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import stage

RATE = 100
RESET_SECONDS = 5.0
MOST_EXTRA = 0.20
LIMIT = 1000


async def measure(setting: Setting) -> list[Finding]:
    seconds = setting.long(40, 6)
    async with stage(setting, config="tracking: {capacity: 20000}\n") as service:
        async with service.load(Stream("report", service.path("report/{n}"), rate=RATE, ids=100)) as driven:
            await asyncio.sleep(0.5)
            setting.say(f"the API flaps, 1 s off and 1 s on, for {seconds:g} s")
            service.api.flap(1, 1)
            await asyncio.sleep(seconds)
            await service.api.stop_flapping()
        executions = await _executions(service)
        met = driven["report"]
        steps = [execution["steps"][0] for execution in executions]
        tried = sum(1 for step in steps if step["attempts"])
        attempts = service.api.requests + service.api.turned_away
        extra = attempts / tried - 1 if tried else 0.0
        probes = sorted(
            _seconds(execution) for execution in executions if execution["steps"][0].get("breaker") == "half_open"
        )
        closest = min((later - earlier for earlier, later in pairwise(probes)), default=float("inf"))
        return [
            Finding(
                "at most 20 % extra attempts",
                f"{attempts:,} attempts of {tried:,} calls ({extra:+.1%}), by the records"
                f" {sum(step['attempts'] for step in steps):,}; {met.shown()}",
                extra <= MOST_EXTRA,
            ),
            Finding(
                f"at most one probe a window ({RESET_SECONDS:g} s)",
                f"{len(probes)} probes, the closest two {closest:.2f} s apart"
                if len(probes) > 1
                else f"{len(probes)} probes",
                (closest >= RESET_SECONDS * 0.9) if probes else (None if 503 not in met.status else False),
            ),
            Finding(
                "nothing but 200, 502 and 503", met.shown(), set(met.status) <= {200, 502, 503} and 200 in met.status
            ),
        ]


def _seconds(execution: dict[str, object]) -> float:
    from datetime import datetime

    return datetime.fromisoformat(str(execution["started_at"])).timestamp()


async def _executions(service: object) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    cursor = ""
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        _, page = await service.admin(f"/executions?endpoint=report&limit={LIMIT}{more}")  # type: ignore[attr-defined]
        found += page["executions"]
        cursor = page["cursor"]
        if not cursor:
            return found


ROW = Row("flaps", "a source flaps 1 s on, 1 s off", measure)
