"""The guide's table of metrics is that of the code."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("page", ["telemetry.md", "operations.md"])
def test_each_metric_that_a_page_names_is_there(page: str) -> None:
    """Such as in rules for alarms. Two are the supervisor's; a histogram's series have endings of their own."""
    if not GUIDE.exists():
        pytest.skip("the plugin is not in the service's repository")
    known = {family.name for family in FAMILIES} | {"orchestrator_workers", "orchestrator_worker_restarts_total"}
    known |= {f"{family.name}_bucket" for family in FAMILIES if family.type == "histogram"}
    named = set(re.findall(r"\borchestrator_[a-z_]+", GUIDE.with_name(page).read_text(encoding="utf-8")))
    assert named - known == set()
    assert named


def test_counters_end_in_total_and_nothing_else_does() -> None:
    assert [family.name for family in FAMILIES if family.name.endswith("_total") != (family.type == "counter")] == []
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
