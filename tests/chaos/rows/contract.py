"""The served OpenAPI document against what is answered."""

from __future__ import annotations

import asyncio

from tests.chaos import contract
from tests.chaos.outcome import Finding, Row, Setting


async def measure(setting: Setting) -> list[Finding]:
    cases = setting.times(10_000, 200)
    setting.say(f"{cases:,} cases of schemathesis, good ones and bad ones")
    found = await asyncio.to_thread(contract.measure, cases)
    statuses = ", ".join(f"{times:,} {status}" for status, times in found.statuses.items())
    return [
        Finding(
            "no 5xx, no answer outside its schema",
            f"{found.cases:,} cases: {statuses}; {len(found.failures)} failures {found.failures[:1] or ''}".strip(),
            not found.failures and not any(status >= 500 for status in found.statuses) and found.cases >= cases,
        )
    ]


ROW = Row("contract", "schemathesis on the served OpenAPI, 10,000 cases", measure)
