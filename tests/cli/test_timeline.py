"""An execution as a timeline: the bars, and what sources said, which steers no terminal."""

from __future__ import annotations

from io import BytesIO, StringIO, TextIOWrapper

import pytest
from attrs import evolve
from rich.console import Console

from orchestrator_core.cli.captured import draw_captured
from orchestrator_core.cli.executions import print_executions
from orchestrator_core.cli.timeline import console, draw
from orchestrator_core.plugin_api import FailedAttempt, Identity, StepRecord
from tests.cli.records import failed_execution

SAID = "\x1b]0;title\x07 gone\x1b[2J \x9b31mred\x7f\u202e\u2028, Zo\u00eb:\n\tand more"
SHOWN = "\\x1b]0;title\\x07 gone\\x1b[2J \\x9b31mred\\x7f\\u202e\\u2028, Zo\u00eb:"
EXECUTION = evolve(
    failed_execution(
        f"step: {SAID}",
        StepRecord("a", "failed", 0.0, 0.02, 2, SAID, failed_attempts=(FailedAttempt(0.001, 0.002, SAID),)),
    ),
    models=(Identity("ml.risk.default", SAID),),
)


def test_an_execution_has_no_control_characters_in_it() -> None:
    file = StringIO()
    to = Console(file=file, width=200, highlight=False, no_color=True)
    draw(EXECUTION, to)
    print_executions([EXECUTION], to)
    draw_captured({"answer": SAID}, to)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[2] == f"a: {SHOWN}"
    assert f"a: attempt at 1.00 ms failed after 2.00 ms: {SHOWN}" in lines
    assert f"step: {SHOWN}" in lines
    assert f"model ml.risk.default {SHOWN}" in lines
    assert any(line.endswith(f"20.50 ms  step: {SHOWN}") for line in lines)
    assert lines[-1].startswith(
        'answer    "\\u001b]0;title\\u0007 gone\\u001b[2J \\x9b31mred\\x7f\\u202e\\u2028, Zo\u00eb:'
    )
    assert not [char for char in file.getvalue() if not char.isprintable() and char != "\n"]


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("", False)])
def test_no_color_counts_unless_it_is_empty(monkeypatch: pytest.MonkeyPatch, value: str, plain: bool) -> None:
    monkeypatch.setenv("NO_COLOR", value)
    assert console(StringIO()).no_color is plain


def test_a_captured_value_that_is_not_whole_is_named_and_nothing_says_that_json_has_it() -> None:
    file = StringIO()
    part = {"$truncated": {"bytes": 70_003, "start": f'"{"x" * 200}'}}
    captured = {"steps": {"guest": {"calls": [{"params": {"id": 7, "photo": part}}]}}, "answer": "y" * 200}
    draw_captured(captured, Console(file=file, width=200, highlight=False, no_color=True))
    lines = [line.strip() for line in file.getvalue().splitlines()]
    assert lines[0].endswith("xxx… 267 characters; --format json has all that is kept")
    assert lines[1].endswith("yyy… 202 characters; --format json has all")
    assert lines[2] == (
        "steps.guest.calls[0].params.photo is not whole: it had 70,003 bytes, more than tracking.max_payload_size"
    )


def test_every_step_that_took_time_has_a_bar() -> None:
    """Also one that only waited: for its turn, or for the call of another request."""
    steps = (
        StepRecord("called", "ok", 0.0, 0.005, 1),
        StepRecord("waited", "failed", 0.005, 0.010, 0, waited_seconds=0.010),
        StepRecord("joined", "cancelled", 0.005, 0.010, 0),
        StepRecord("cached", "cached", 0.005, 0.0, 0, cache="hit"),
        StepRecord("skipped", "skipped", 0.005, 0.001, 0),
        StepRecord("never", "cancelled"),
    )
    file = StringIO()
    draw(evolve(EXECUTION, steps=steps, error="", models=()), Console(file=file, width=200, no_color=True))
    lines = [line.split() for line in file.getvalue().splitlines()[1:]]
    assert [line[0] for line in lines] == [step.name for step in steps]
    assert [line[0] for line in lines if not line[-1].isascii()] == ["called", "waited", "joined", "cached"]


def test_bars_are_of_number_signs_where_the_encoding_has_no_blocks() -> None:
    steps = (
        StepRecord("first", "ok", 0.0, 0.01025, 1),
        StepRecord("tiny", "ok", 0.0205, 0.0, 1),
        StepRecord("then", "failed", 0.01025, 0.01025, 1),
    )
    file = TextIOWrapper(BytesIO(), encoding="latin-1", write_through=True)
    draw(evolve(EXECUTION, steps=steps, error="", models=()), Console(file=file, width=200, no_color=True))
    assert [line.rstrip() for line in file.buffer.getvalue().decode("latin-1").splitlines()[1:]] == [
        f"first  ok      10.25 ms  {'#' * 20}",
        f"tiny   ok       0.00 ms  {' ' * 39}#",
        f"then   failed  10.25 ms  {' ' * 20}{'#' * 20}",
    ]
