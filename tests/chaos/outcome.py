"""What a row of the table finds: what is to hold, what was measured, and whether it held."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from attrs import frozen

POSTGRESQL = "postgresql://postgres@127.0.0.1:5432/postgres"
HELD, NOT_HELD, NOT_MEASURED = "held", "not held", "not measured"


@frozen
class Finding:
    """One thing that is to hold. ``held`` is None where nothing was measured, and ``measured`` says why.

    ``relative`` marks figures that are relative to others of the same machine, or limits in milliseconds: they are
    shown, and a test on a busy machine does not assert them.
    """

    holds: str
    measured: str
    held: bool | None
    relative: bool = False

    @property
    def verdict(self) -> str:
        return NOT_MEASURED if self.held is None else HELD if self.held else NOT_HELD


@frozen
class Setting:
    """What a row is given: where it may write, which cores, how long, and whom to tell how it goes."""

    folder: Path
    server_cores: Collection[int]
    load_cores: Collection[int]
    quick: bool = True
    seconds: float | None = None
    postgresql: str = POSTGRESQL
    say: Callable[[str], None] = lambda text: None

    def long(self, full: float, quick: float) -> float:
        """Return how long a phase takes, in seconds: as it was asked for, or the row's own."""
        return self.seconds if self.seconds is not None else quick if self.quick else full

    def times(self, full: int, quick: int) -> int:
        return quick if self.quick else full


@frozen
class Row:
    """One row of the table.

    With ``awake`` the cores are kept from sleeping meanwhile: where there is so little to do that they would, waking
    them is most of what a latency tells. A core that is busy by itself is better left alone: a virtual machine that
    takes all of its cores all the time is held up more often.
    """

    name: str
    fault: str
    measure: Callable[[Setting], Awaitable[list[Finding]]]
    awake: bool = False


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"


def compared(name: str, before: float, after: float) -> str:
    """Return two latencies and by how much the second is above the first."""
    return f"{name} {milliseconds(before)} -> {milliseconds(after)} ({grown(before, after):+.0%})"


def grown(before: float, after: float) -> float:
    return after / before - 1 if before else 0.0


def table(results: list[tuple[Row, list[Finding]]]) -> str:
    """Return the findings as a Markdown table."""
    lines = ["| fault or load | to hold | measured | |", "|---|---|---|---|"]
    for row, findings in results:
        fault = row.fault
        for finding in findings:
            lines.append(f"| {fault} | {finding.holds} | {finding.measured} | {finding.verdict} |")
            fault = ""
    return "\n".join(line.replace("\n", " ") for line in lines)


def as_json(results: list[tuple[Row, list[Finding]]]) -> dict[str, Any]:
    return {
        row.name: {
            "fault": row.fault,
            "findings": [
                {
                    "holds": finding.holds,
                    "measured": finding.measured,
                    "verdict": finding.verdict,
                    "relative": finding.relative,
                }
                for finding in findings
            ],
        }
        for row, findings in results
    }
