"""A source is down: it is soon no longer asked, and nobody else notices."""

from __future__ import annotations

import asyncio
from time import monotonic

from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting, compared, grown, milliseconds
from tests.chaos.stage import Stage, stage

RATE = 150
OTHERS = ("plain", "customer", "score")
MOST_FAILURES, MOST_SECONDS = 10, 2.0
FAST_SECONDS = 0.005
MOST_GROWTH = 0.10


async def measure(setting: Setting) -> list[Finding]:
    seconds = setting.long(20, 3)
    async with stage(setting) as service:
        streams = [
            Stream(name, service.path(f"{name}/{{n}}"), rate=RATE, ids=100)
            for name in (*OTHERS, "report", "report_or_default")
        ]
        setting.say(f"{RATE} requests a second on each of {len(streams)} endpoints")
        async with service.load(*streams) as driven:
            await asyncio.sleep(1)
            begun = monotonic()
            await asyncio.sleep(seconds)
            setting.say(f"the API goes down for {seconds:g} s")
            down = monotonic()
            await service.api.refuse()
            await asyncio.sleep(seconds)
            sources = (await service.admin("/sources"))[1]["sources"]
            up = monotonic()
            await service.api.well()
            setting.say("the API is back")
            await _well_again(service)
            back = monotonic()
        failing = driven["report"].between(down, up)
        first = next((at for at, status in zip(failing.at, failing.status, strict=True) if status == 503), None)
        failures = failing.between(down, first or up).only(502)
        (source,) = (source for source in sources if source["type"] == "api")
        breaker = source["policies"]["circuit_breaker"]["state"]
        after = first or up
        refused = driven["report"].between(after, up).only(503)
        fallback = driven["report_or_default"].between(after, up)
        findings = [
            Finding(
                f"open breaker within {MOST_FAILURES} failures or {MOST_SECONDS:g} s",
                f"{len(failures)} failures of this endpoint, {milliseconds(after - down)}; GET /sources: {breaker}"
                if first
                else f"never in {len(failures)} failures",
                first is not None and (len(failures) <= MOST_FAILURES or after - down <= MOST_SECONDS),
            ),
            Finding(
                "then 503 in under 5 ms",
                f"p50 {milliseconds(refused.percentile(0.5))}, p99 {milliseconds(refused.percentile(0.99))}"
                f" of {len(refused):,}",
                len(refused) > 0 and refused.percentile(0.99) < FAST_SECONDS,
                relative=True,
            ),
            Finding(
                "then the fallback in under 5 ms",
                f"p50 {milliseconds(fallback.percentile(0.5))}, p99 {milliseconds(fallback.percentile(0.99))},"
                f" {fallback.shown()}",
                set(fallback.status) == {200} and fallback.percentile(0.99) < FAST_SECONDS,
                relative=True,
            ),
            Finding(
                "only 502 and 503 while it is down, with Retry-After; 200 again",
                f"{failing.shown()}; {driven['report'].without_retry_after} of the 503 without Retry-After;"
                f" 200 again {milliseconds(back - up)} after",
                set(failing.only(502, 503, 200).status) == set(failing.status)
                and not driven["report"].without_retry_after,
            ),
        ]
        for name in OTHERS:
            before, during = driven[name].between(begun, down), driven[name].between(down, up)
            p99 = before.percentile(0.99), during.percentile(0.99)
            findings += [
                Finding(f"{name}: p99 up by at most 10 %", compared("p99", *p99), grown(*p99) <= MOST_GROWTH, True),
                Finding(f"{name}: answered as before", during.shown(), set(during.status) == {200}),
            ]
    return findings


async def _well_again(service: Stage) -> None:
    async with asyncio.timeout(20):
        while (await service.get(service.path("report/1")))[0] != 200:  # noqa: ASYNC110  # it is asked, not told
            await asyncio.sleep(0.05)


ROW = Row("down", "a source down", measure)
