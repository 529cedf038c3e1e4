"""A source is down: it is soon no longer asked, and nobody else notices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

from attrs import frozen

from tests.chaos.load import Driven, Stream, Traffic
from tests.chaos.outcome import Finding, Row, Setting, compared, grown, milliseconds
from tests.chaos.stage import Stage, stage

RATE = 150
OTHERS = ("plain", "customer", "score")
MOST_FAILURES, MOST_SECONDS = 10, 2.0
FAST_SECONDS = 0.005
MOST_GROWTH = 0.10
SETTLING_SECONDS = 1.0


@frozen
class Turn:
    """Once up and down again, in moments of the monotonic clock: ``back`` is when it answered again."""

    begun: float
    down: float
    up: float
    back: float
    breaker: str

    def opened(self, failing: Traffic) -> float | None:
        """Return when the first request was refused without being tried."""
        met = failing.between(self.down, self.up)
        return next((at for at, status in zip(met.at, met.status, strict=True) if status == 503), None)


async def measure(setting: Setting) -> list[Finding]:
    """Measure several turns: a machine is slower in one half minute than in the next, with and without a fault."""
    turns: list[Turn] = []
    count = setting.times(10, 1)
    seconds = setting.long(80, 3) / count
    async with stage(setting) as service:
        streams = [
            Stream(name, service.path(f"{name}/{{n}}"), rate=RATE, ids=100)
            for name in (*OTHERS, "report", "report_or_default")
        ]
        setting.say(f"{RATE} requests a second on each of {len(streams)} endpoints")
        setting.say(f"the API is up and down in turns, for {seconds:g} s each, {count} times")
        async with service.load(*streams) as driven:
            while len(turns) < count:
                await asyncio.sleep(SETTLING_SECONDS)
                begun = monotonic()
                await asyncio.sleep(seconds)
                down = monotonic()
                await service.api.refuse()
                await asyncio.sleep(seconds)
                (source,) = [
                    source for source in (await service.admin("/sources"))[1]["sources"] if source["type"] == "api"
                ]
                up = monotonic()
                await service.api.well()
                await _well_again(service)
                turns.append(Turn(begun, down, up, monotonic(), breaker=source["policies"]["circuit_breaker"]["state"]))
    return [*_refused(driven, turns), *_others(driven, turns)]


def _refused(driven: Driven, turns: Sequence[Turn]) -> list[Finding]:
    """Return what was found of the endpoints that need the source."""
    report = driven["report"]
    failing = report.during([(turn.down, turn.up) for turn in turns])
    opened = [(turn, at) for turn in turns if (at := turn.opened(report)) is not None]
    open_spans = [(at, turn.up) for turn, at in opened]
    refused = report.during(open_spans).only(503)
    fallback = driven["report_or_default"].during(open_spans)
    failures = [len(report.between(turn.down, at).only(502)) for turn, at in opened]
    took = [at - turn.down for turn, at in opened]
    return [
        Finding(
            f"open breaker within {MOST_FAILURES} failures or {MOST_SECONDS:g} s",
            f"{len(opened)} of {len(turns)} times, after {max(failures)} failures of this endpoint and"
            f" {milliseconds(max(took))} at most; GET /sources: {', '.join(sorted({turn.breaker for turn in turns}))}"
            if opened
            else f"never in {len(failing.only(502))} failures",
            len(opened) == len(turns)
            and all(
                count <= MOST_FAILURES or seconds <= MOST_SECONDS for count, seconds in zip(failures, took, strict=True)
            ),
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
            f"{failing.shown()}; {report.without_retry_after} of the 503 without Retry-After;"
            f" 200 again at most {milliseconds(max(turn.back - turn.up for turn in turns))} after",
            set(failing.only(502, 503, 200).status) == set(failing.status) and not report.without_retry_after,
        ),
    ]


def _others(driven: Driven, turns: Sequence[Turn]) -> list[Finding]:
    """Return what was found of the endpoints that do not need it.

    How far every second calm is from the others tells what a difference means on this machine.
    """
    findings = []
    for name in OTHERS:
        calms = [(turn.begun, turn.down) for turn in turns]
        before = driven[name].during(calms)
        during = driven[name].during([(turn.down, turn.up) for turn in turns])
        p99 = before.percentile(0.99), during.percentile(0.99)
        halves = [driven[name].during(calms[first::2]).percentile(0.99) for first in (0, 1)]
        measured = f"{compared('p99', *p99)}; of every second calm {' and '.join(map(milliseconds, halves))}"
        findings += [
            Finding(f"{name}: p99 up by at most 10 %", measured, grown(*p99) <= MOST_GROWTH, True),
            Finding(f"{name}: answered as before", during.shown(), set(during.status) == {200}),
        ]
    return findings


async def _well_again(service: Stage) -> None:
    async with asyncio.timeout(20):
        while (await service.get(service.path("report/1")))[0] != 200:  # noqa: ASYNC110  # it is asked, not told
            await asyncio.sleep(0.05)


ROW = Row("down", "a source down", measure, awake=True)
