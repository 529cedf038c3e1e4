"""Each row of the table in its short form, without the figures that only mean something on a machine of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from tests.bench.process import divide_cores
from tests.chaos.outcome import NOT_HELD, Row, Setting
from tests.chaos.table import ROWS

RunFixture = Callable[..., Any]


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_what_is_to_hold_under_fault_holds(row: Row, tmp_path: Path) -> None:
    cores = divide_cores()
    setting = Setting(tmp_path, cores.server, cores.load)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        findings = runner.run(row.measure(setting))
    assert [finding for finding in findings if finding.verdict == NOT_HELD and not finding.relative] == []
