"""Clients that drip their heads and bodies."""

from __future__ import annotations

from tests.chaos import slow_clients
from tests.chaos.outcome import Finding, Row, Setting, compared, grown
from tests.chaos.stage import stage

CLOSED_SECONDS = 10.0
GRACE_SECONDS = 1.0
MOST_GROWTH = 0.20


async def measure(setting: Setting) -> list[Finding]:
    clients = setting.times(2000, 200)
    async with stage(setting) as service:
        setting.say(f"{clients:,} clients that send a byte a second")
        found = await slow_clients.measure(service.port, service.process.pid, service.path("plain/1"), clients)
        p99 = found.before.p99, found.beside.p99
        return [
            Finding(
                "closed within 10 s",
                f"{sum(found.closed.values()):,} of {clients:,} closed ({dict(found.closed)}), the last after"
                f" {found.longest_seconds:.1f} s; {found.grown_bytes / 2**20:+.1f} MiB at most",
                not found.left_open and found.longest_seconds <= CLOSED_SECONDS + GRACE_SECONDS,
            ),
            Finding("others' p99 up by at most 20 %", compared("p99", *p99), grown(*p99) <= MOST_GROWTH, relative=True),
            Finding("others are answered", f"{found.beside.failed} failed", not found.beside.failed),
        ]


ROW = Row("slow", "2,000 slow clients (headers, bodies)", measure)
