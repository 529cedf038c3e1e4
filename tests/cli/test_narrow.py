"""Executions on terminals that are narrower than their tables: nothing is left out."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from orchestrator_core.cli.captured import draw_captured
from orchestrator_core.cli.executions import print_executions
from orchestrator_core.cli.timeline import draw
from orchestrator_core.plugin_api import StepRecord
from tests.cli.records import failed_execution

ERROR = "bureau: GET http://127.0.0.1:9001/scores/1003: answered 503, which is not what was expected"
FAILED = failed_execution(
    ERROR, StepRecord("customer_data", "ok", 0.0, 0.010, 1), StepRecord("bureau", "failed", 0.010, 0.010, 3, ERROR)
)


def terminal(width: int) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, width=width, highlight=False, no_color=True), file


@pytest.mark.parametrize("width", [40, 80, 100])
def test_an_execution_takes_two_lines_of_a_list_where_one_is_too_wide(width: int) -> None:
    to, file = terminal(width)
    print_executions([FAILED], to)
    assert file.getvalue().splitlines() == [
        f"{FAILED.id}  2023-11-14 22:13:20.125",
        f"  credit_risk.predict  failed  502  20.50 ms  {ERROR}",
    ]


def test_a_list_is_a_table_where_there_is_room() -> None:
    to, file = terminal(160)
    print_executions([FAILED], to)
    head, row, *more = file.getvalue().splitlines()
    assert " ".join(head.split()) == "id started (UTC) endpoint status http duration degraded or error"
    assert row.startswith(f"{FAILED.id}  2023-11-14 22:13:20.125  credit_risk.predict  failed  502   20.50 ms  bureau:")
    assert " ".join([*row.split(), *" ".join(more).split()]).endswith(ERROR)


@pytest.mark.parametrize(("width", "bars"), [(100, 40), (70, 22), (40, 10)])
def test_bars_shrink_and_what_they_stand_beside_does_not(width: int, bars: int) -> None:
    to, file = terminal(width)
    draw(FAILED, to)
    _, first, second, error = file.getvalue().splitlines()
    beside = len("bureau         failed (3 attempts)  10.00 ms  ")
    assert first[:beside] == "customer_data  ok                   10.00 ms  "
    assert second[:beside] == "bureau         failed (3 attempts)  10.00 ms  "
    assert {len(first), len(second)} == {beside + bars + len("  ")}
    assert error == f"bureau: {ERROR}"


CAPTURED = {
    "request": {"query_params": {"debtor": "1003"}},
    "steps": {"customer_data": {"calls": [{"params": {"customer_id": 1003}, "result": {"credit_score": 644}}]}},
}


def test_values_take_lines_of_their_own_where_they_have_no_room_beside_their_names() -> None:
    to, file = terminal(48)
    draw_captured(CAPTURED, to)
    assert file.getvalue().splitlines() == [
        'request  query_params  {"debtor": "1003"}',
        'customer_data  params  {"customer_id": 1003}',
        '  result  {"credit_score": 644}',
    ]


def test_values_stand_in_a_column_where_there_is_room() -> None:
    to, file = terminal(49)
    draw_captured(CAPTURED, to)
    assert [line.rstrip() for line in file.getvalue().splitlines()] == [
        'request        query_params  {"debtor": "1003"}',
        'customer_data  params        {"customer_id":',
        "                             1003}",
        '               result        {"credit_score":',
        "                             644}",
    ]
