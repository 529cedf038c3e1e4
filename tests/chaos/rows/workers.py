"""A worker is killed under load: another takes its place, and nobody else's request fails."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from attrs import evolve

from tests.chaos.load import CLOSED, REFUSED, Stream
from tests.chaos.outcome import Finding, Row, Setting, milliseconds
from tests.chaos.stage import Stage, stage

WORKERS = 2
RESPAWN_SECONDS = 3.0
PATIENCE_SECONDS = 20.0
_SOCKET = re.compile(r"socket:\[(\d+)\]")


async def measure(setting: Setting) -> list[Finding]:
    kills = setting.times(20, 2)
    together = evolve(setting, server_cores={*setting.server_cores, *setting.load_cores})
    async with stage(together, arguments=("--workers", str(WORKERS))) as service:
        streams = [
            Stream("plain", service.path("plain/{n}"), rate=400, ids=100, connections=32),
            Stream("customer", service.path("customer/{n}"), rate=100, ids=100, connections=16),
        ]
        respawned: list[float] = []
        of_the_killed: set[int] = set()
        async with service.load(*streams) as driven:
            await asyncio.sleep(1)
            for number in range(kills):
                victim = (await _serving(service))[number % WORKERS]
                os.kill(victim, signal.SIGSTOP)  # so that it takes no connection that is not seen
                of_the_killed |= client_ports(victim, service.port)
                killed = monotonic()
                os.kill(victim, signal.SIGKILL)
                respawned.append(await _replaced(service, victim) - killed)
                setting.say(f"kill {number + 1} of {kills}: respawned in {milliseconds(respawned[-1])}")
                await asyncio.sleep(0.5)
            await asyncio.sleep(0.5)
        failed = Counter[int]()
        others = 0
        worst = max(met.worst for met in driven.values())
        for met in driven.values():
            failed.update(status for status in met.status if status != 200)
            others += sum(port not in of_the_killed for port in met.closed_ports)
        rolling = await _rolling_restart(service)
        return [
            Finding(
                f"respawned within {RESPAWN_SECONDS:g} s",
                f"{kills} kills of one of {WORKERS}: {milliseconds(min(respawned))} to {milliseconds(max(respawned))}",
                max(respawned) <= RESPAWN_SECONDS,
                relative=True,
            ),
            Finding(
                "no request of another worker fails",
                f"{failed[CLOSED]} closed with the killed, {others} of others; {failed[REFUSED]} refused;"
                f" {sum(map(len, driven.values())):,} in all, worst {milliseconds(worst)}",
                not others and set(failed) <= {CLOSED},
            ),
            rolling,
        ]


async def _rolling_restart(service: Stage) -> Finding:
    """Replace the workers one by one under load, each connection kept alive as clients do."""
    streams = [
        Stream("plain", service.path("plain/{n}"), rate=400, ids=100, connections=32),
        Stream("nap", service.path("nap/0.2"), rate=50, connections=32),
    ]
    before = await _serving(service)
    async with service.load(*streams) as driven:
        await asyncio.sleep(0.5)
        status, _ = await service.admin("/restart", "POST")
        await asyncio.sleep(0.5)
    after = await _serving(service)
    shown = "; ".join(f"{met.name}: {met.shown()}" for met in driven.values())
    return Finding(
        "a rolling restart fails no request",
        f"{status}, {len(set(after) - set(before))} of {len(before)} replaced; {shown}",
        status == 200 and not set(after) & set(before) and all(set(met.status) == {200} for met in driven.values()),
    )


async def _workers(service: Stage) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = (await service.admin("/health/ready"))[1].get("workers", [])
    return workers


async def _serving(service: Stage) -> list[int]:
    return [worker["pid"] for worker in await _workers(service) if worker["state"] == "serving"]


async def _replaced(service: Stage, victim: int) -> float:
    """Return when as many workers serve again as before."""
    given_up = monotonic() + PATIENCE_SECONDS
    while monotonic() < given_up:
        with suppress(OSError):
            pids = await _serving(service)
            if len(pids) == WORKERS and victim not in pids:
                break
        await asyncio.sleep(0.01)
    return monotonic()


def client_ports(pid: int, port: int) -> set[int]:
    """Return the clients' ports of the connections that a process has on a port of its own."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if match := _SOCKET.match(os.readlink(descriptor)):
                inodes.add(match[1])
    found = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, _, _, _, _, _, inode, *_ = line.split()
        if inode in inodes and int(local.split(":")[1], 16) == port:
            found.add(int(remote.split(":")[1], 16))
    return found


ROW = Row("workers", "SIGKILL a worker", measure)
