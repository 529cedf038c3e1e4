"""The guide's table of metrics is that of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from orchestrator_telemetry.families import FAMILIES, Family

GUIDE = Path(__file__).parents[3] / "docs" / "telemetry.md"


def row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.type} | {labels} | {family.help} |"


def test_the_guide_lists_every_metric() -> None:
    if not GUIDE.exists():
        pytest.skip("the plugin is not in the service's repository")
    rows = [line for line in GUIDE.read_text(encoding="utf-8").splitlines() if line.startswith("| `orchestrator_")]
    assert rows == [row(family) for family in FAMILIES]


def test_counters_end_in_total_and_nothing_else_does() -> None:
    assert [family.name for family in FAMILIES if family.name.endswith("_total") != (family.type == "counter")] == []
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
