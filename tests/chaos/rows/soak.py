"""Half an hour at 80 % of what the service can do: nothing grows and nothing fails."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from statistics import median
from time import monotonic

from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting, milliseconds
from tests.chaos.rows.workers import client_ports
from tests.chaos.stage import Stage, stage

SHARE = 0.8
STEP = 0.9
PEAK_P99_SECONDS = 0.1
PHASE_SECONDS = 60.0
"""So long has the peak to be kept up: the speed of a virtual machine changes within seconds."""

SETTLED_SHARE = 0.2
FLAT = 0.05
MORE = 5
"""So many more descriptors or tasks in the middle of the last third are none that leak."""
ENDPOINTS = {"plain": 0.4, "customer": 0.3, "report": 0.2, "score": 0.1}


async def measure(setting: Setting) -> list[Finding]:
    seconds = setting.long(1800, 3)
    async with stage(setting, direct=True) as service:
        peak = await sustained(service, seconds=min(PHASE_SECONDS, seconds / 3))
        setting.say(f"the peak of the mixture is {peak:,.0f} requests a second; {SHARE:.0%} of it for {seconds:g} s")
        resident, descriptors, tasks = [], [], []
        begun = monotonic()
        told = begun
        cpu = service.process.cpu_seconds()
        async with service.load(*mixture(service, peak * SHARE)) as driven:
            while monotonic() - begun < seconds:
                await asyncio.sleep(min(5.0, seconds / 20))
                resident.append(service.resident_bytes())
                connected = len(client_ports(service.process.pid, service.port))  # each has a descriptor and a task
                descriptors.append(service.descriptors() - connected)
                tasks.append(max(0, len(await service.tasks()) - connected))
                if monotonic() - told > 30:
                    told = monotonic()
                    setting.say(
                        f"{told - begun:,.0f} of {seconds:g} s, {resident[-1] / 2**20:.1f} MiB,"
                        f" {descriptors[-1]} descriptors, {tasks[-1]} tasks"
                    )
            busy = (service.process.cpu_seconds() - cpu) / (monotonic() - begun)
        settled = int(len(resident) * SETTLED_SHARE)
        third = max(1, (len(resident) - settled) // 3)
        early, late = resident[settled : settled + third], resident[-third:]
        growth = (sum(late) / len(late)) / (sum(early) / len(early)) - 1
        met = list(driven.values())
        total = sum(map(len, met))
        failed = sum(len(one) - len(one.only(200)) for one in met)
        p99 = ", ".join(f"{one.name} p99 {milliseconds(one.percentile(0.99))}" for one in met)
        shown = "; ".join(one.shown() for one in met) if failed else f"{total:,} answered"
        pace = f"{seconds:g} s at {peak * SHARE:,.0f}/s, {busy:.0%} of its core"
        return [
            Finding("no error", f"{shown} in {pace}; {p99}", not failed, setting.quick),
            Finding(
                "memory flat",
                f"{early[0] / 2**20:.1f} -> {late[-1] / 2**20:.1f} MiB, {growth:+.1%} from first to last third",
                growth <= FLAT,
                relative=setting.quick,
            ),
            _flat("descriptors", descriptors[:third], descriptors[-third:], setting),
            _flat("tasks", tasks[:third], tasks[-third:], setting),
        ]


def _flat(what: str, first: Sequence[int], last: Sequence[int], setting: Setting) -> Finding:
    """Return whether there is no more of something than there was. What leaks stays: it is seen in the middle values.

    The most there was at any look is told too: it is so many calls as happened to be under way.
    """
    medians = median(first), median(last)
    return Finding(
        f"{what} flat",
        f"beside the clients' {medians[0]:g} in the first third, {medians[1]:g} in the last (the median;"
        f" at most {max(first)} and {max(last)})",
        medians[1] <= medians[0] + MORE,
        relative=setting.quick,
    )


def mixture(service: Stage, rate: float) -> list[Stream]:
    """Return the streams that together ask this often a second."""
    return [
        Stream(name, service.path(f"{name}/{{n}}"), rate=rate * share, ids=1000, connections=128)
        for name, share in ENDPOINTS.items()
    ]


async def sustained(service: Stage, seconds: float) -> float:
    """Return how many requests of the mixture a second are all answered in good time.

    Clients that wait for their answers find a bound, since they never come at a bad moment; from there it goes down.
    """
    turns = [service.path(f"{name}/{{n}}") for name, share in ENDPOINTS.items() for _ in range(round(share * 10))]
    rate = await service.peak(*turns, seconds=seconds)
    if service.setting.quick:  # it is not asserted there that nothing fails
        return rate / 2
    while rate > 1:
        async with service.load(*mixture(service, rate)) as driven:
            await asyncio.sleep(seconds)
        met = list(driven.values())
        worst = max(one.percentile(0.99) for one in met)
        service.setting.say(f"{rate:,.0f} requests a second: p99 {milliseconds(worst)}")
        if all(set(one.status) == {200} for one in met) and worst < PEAK_P99_SECONDS:
            break
        rate *= STEP
    return rate


ROW = Row("soak", "30 minutes at 80 % load", measure)
