"""Answers of sources that are no answers."""

from __future__ import annotations

from tests.chaos import malformed
from tests.chaos.outcome import Finding, Row, Setting

MOST_BYTES = 50 * 2**20


async def measure(setting: Setting) -> list[Finding]:
    count = setting.times(10_000, 600)
    setting.say(f"{count:,} answers in {len(malformed.KINDS)} wrong ways, to an API, a model and a feature server")
    found = await malformed.measure(count)
    statuses = ", ".join(f"{times:,} {status}" for status, times in sorted(found.statuses.items()))
    return [
        Finding(
            "every one a 502 naming the source; no 500",
            f"{statuses}; {len(found.wrong)} wrong {found.wrong[:1] or ''}".strip(),
            not found.wrong and set(found.statuses) == {502},
        ),
        Finding(
            "memory up by at most 50 MB",
            f"{found.grown_bytes / 2**20:+.1f} MiB",
            found.grown_bytes <= MOST_BYTES,
        ),
    ]


ROW = Row("malformed", "10,000 malformed answers (fuzzed)", measure)
