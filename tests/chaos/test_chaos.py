"""Each row of the table in its short form, without the figures that only mean something on a machine of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import uvloop

from tests.bench.process import divide_cores
from tests.chaos.outcome import NOT_HELD, Row, Setting
from tests.chaos.table import ROWS
from tests.faults.kit import skip_without

TESTED_ELSEWHERE = (
    *("overload", "malformed", "pool", "slow", "hostile", "contract"),  # tests/faults and tests/http, in parts
    *("tracking", "durable"),  # plugins/tracking-sql
    "workers",  # tests/service
)
TESTED = [row for row in ROWS if row.name not in TESTED_ELSEWHERE]


@pytest.mark.parametrize("row", TESTED, ids=[row.name for row in TESTED])
def test_what_is_to_hold_under_fault_holds(row: Row, tmp_path: Path) -> None:
    skip_without("127.0.0.1", 5432, "PostgreSQL")
    cores = divide_cores()
    setting = Setting(tmp_path, cores.server, cores.load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        findings = runner.run(row.measure(setting))
    assert [finding for finding in findings if finding.verdict == NOT_HELD and not finding.relative] == []
