"""The page about faults says what these tests see."""

from __future__ import annotations

from pathlib import Path

from tests.faults.test_api_faults import CALL, FAULTS

PAGE = (Path(__file__).parents[2] / "docs" / "faults.md").read_text(encoding="utf-8")


def test_the_table_of_an_apis_faults_is_the_one_that_is_tested() -> None:
    tested = [f"| {fault.name} | {fault.status} | `{fault.detail.replace(CALL, '…')}` |" for fault in FAULTS]
    table = PAGE.split("\n## A partner API\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert rows[4:] == tested
    assert [row.split(" | ")[0] for row in rows[1:4]] == [
        "| refusing connections",
        "| not taking connections",
        "| a redirect to another host",
    ]
