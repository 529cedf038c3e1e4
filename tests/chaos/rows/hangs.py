"""A source hangs for a minute: each request is answered by its deadline, and nothing is left of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from time import monotonic

from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting, milliseconds
from tests.chaos.stage import Stage, stage

DEADLINE_SECONDS = 1.0
GRACE_SECONDS = 0.05
ENDPOINTS = {"customer": "database", "report": "api", "score": "model"}


async def measure(setting: Setting) -> list[Finding]:
    hanging = setting.long(60, 2)
    async with stage(setting, source_timeout="5s") as service:
        await _settle(service)
        before = Counter(await service.tasks())
        streams = [Stream(name, service.path(f"{name}/{{n}}"), rate=20, ids=100) for name in ENDPOINTS]
        async with service.load(*streams) as driven:
            await asyncio.sleep(1)
            for source in ENDPOINTS.values():
                await getattr(service, source).hang()
            begun = monotonic()
            setting.say(f"the database, the API and the model hang for {hanging:g} s")
            await asyncio.sleep(hanging)
            ended = monotonic()
        setting.say("the load has ended; what is left a second later")
        await asyncio.sleep(1)
        left = Counter(await service.tasks())
        left.subtract(before)
        left = +left
        findings = []
        for name, source in ENDPOINTS.items():
            met = driven[name].between(begun, ended - DEADLINE_SECONDS)
            findings += [
                Finding(
                    f"{source}: answer within the deadline ({DEADLINE_SECONDS:g} s) plus 50 ms",
                    f"worst of {len(met):,}: {milliseconds(met.worst)}; p50 {milliseconds(met.percentile(0.5))}",
                    met.worst <= DEADLINE_SECONDS + GRACE_SECONDS,
                    relative=True,
                ),
                Finding(
                    f"{source}: 502, 503 or 504", met.shown(), bool(len(met)) and set(met.status) <= {502, 503, 504}
                ),
            ]
        findings.append(Finding("no task left after 1 s", f"{left.total()} left {', '.join(left)}".strip(), not left))
    return findings


async def _settle(service: Stage) -> None:
    """Ask each source once: a pool has its own task for each connection, and that may stay."""
    for name in ENDPOINTS:
        assert (await service.get(service.path(f"{name}/1")))[0] == 200, name


ROW = Row("hangs", "a source hangs 60 s", measure)
