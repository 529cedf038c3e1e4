"""The row of a run is that of its record, and rows that are alike go in together with others."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve
from orchestrator_tracking_sql.insert import FEW, VALUES
from orchestrator_tracking_sql.rows import RowsOfRuns, row_of
from tracking_kit import Place, captured, execution

from orchestrator_core.plugin_api import Identity, Query
from orchestrator_core.policies.notes import HIT, StepNote
from orchestrator_core.run import CANCELLED, DEFAULT, FAILED, OK, SKIPPED, Items, KeptAnswer
from orchestrator_core.run import Run as ExecutedRun

Run = Callable[..., Any]
ROWS = VALUES // 4
"""At least so many rows fill a statement of rows that are alike."""


class Model:
    failures = 0
    fallback = None

    def answered_by(self, start: float, end: float) -> Identity:
        return Identity("risk", "3", "sha256:beef")


def executed(**given: Any) -> ExecutedRun:
    plan = SimpleNamespace(
        domain="shop",
        name="cart",
        generation="0f3a",
        sequential=True,
        step_names=("customer", "risk", "extra"),
        models={"risk": Model()},
        request_only={},
        on_request_only=frozenset(),
        capture=None,
        redact=str.upper,
    )
    run = ExecutedRun(plan, "0190a5b4c3d2" + "0" * 20, "4bf92f3577b34da6a3ce929d0e0e4736")
    at = run.started
    run.steps = [
        (OK, at + 0.001, at + 0.003, ""),
        (OK, at + 0.003, at + 0.004, ""),
        (SKIPPED, at + 0.004, at + 0.004, ""),
    ]
    run.ended = at + 5
    for name, value in given.items():
        setattr(run, name, value)
    return run


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"trace_id": ""},
        {"notes": {0: StepNote(attempts=0, cached="hit", cached_calls=1)}},
        {"notes": {0: HIT}},
        {"notes": {0: HIT, 1: HIT, 2: HIT}},
        {"notes": {0: HIT, 1: StepNote(attempts=2)}},
        {"notes": {0: HIT}, "steps": [(FAILED, 1.0, 2.0, "it is \ud800"), None, None], "http_status": 502},
        {
            "notes": {0: HIT},
            "steps": [(DEFAULT, 1.0, 2.0, "no"), (OK, 2.0, 3.0, ""), None],
            "degraded_steps": ("extra",),
        },
        {"notes": {1: StepNote(attempts=3, breaker="half_open", waited_seconds=0.25)}},
        {"notes": {1: StepNote(attempts=3, failed=[(1.0, 0.5, "it is \ud800"), (2.0, 0.25, "down")], more_failed=3)}},
        {"notes": {0: StepNote(attempts=2), 1: StepNote(attempts=0, cached="stale", cached_calls=1)}},
        {"items": {0: Items(7)}},
        {"steps": [(OK, 1.0, 2.0, ""), (OK, 2.0, 3.0, ""), 3.0]},
        {"steps": [(OK, 1.0, 2.0, ""), (OK, 2.0, 3.0, ""), None]},
        {"steps": [(OK, 1.0, 2.0, ""), (DEFAULT, 2.0, 3.0, "it is \ud800"), None], "degraded_steps": ("risk",)},
        {"steps": [(OK, 1.0, 2.0, ""), (CANCELLED, 2.0, 3.0, ""), None], "http_status": 499},
        {"http_status": 502, "error": "a\0b", "failed_step": "risk"},
        {"kept": KeptAnswer("hit", "0190", 1.0), "steps": [None, None, None]},
        {"kept": KeptAnswer("shared", "0190", 1.0), "steps": [None, None, None]},
        {"kept": KeptAnswer("stale", "0190", 1.0), "steps": [(FAILED, 1.0, 2.0, "down"), None, None]},
        {"kept": KeptAnswer("hit", "0190", 1.0), "steps": [None, None, None], "degraded_steps": ("risk",)},
    ],
)
def test_the_row_of_a_run_is_that_of_its_record(given: dict[str, Any]) -> None:
    run = executed(**given)

    assert values_of(RowsOfRuns(), run) == values_of_record(run)


def values_of(rows: RowsOfRuns, run: Any) -> tuple[Any, ...]:
    ((own, shared),) = rows.rows_of([run])
    return own + shared


def values_of_record(run: Any) -> tuple[Any, ...]:
    own, shared = row_of(run.record())
    return own + shared


@pytest.mark.parametrize("trace_id", ["", "4bf92f3577b34da6a3ce929d0e0e4736"])
@pytest.mark.parametrize("has_steps", [True, False])
def test_what_is_alike_in_all_rows_of_a_plan_is_shared(has_steps: bool, trace_id: str) -> None:
    run = executed(trace_id=trace_id)
    if not has_steps:
        run.steps, run.plan.step_names, run.plan.models = [], (), {}

    assert run.usual
    assert values_of(RowsOfRuns(), run) == values_of_record(run)
    ((own, _),) = RowsOfRuns().rows_of([run])
    assert len(own) == (6 if trace_id else 5 if has_steps else 4)


@pytest.mark.parametrize("count", [1, FEW, ROWS + 1])
def test_runs_with_and_without_steps_traces_and_errors_go_in_together(run: Run, place: Place, count: int) -> None:
    given = []
    for number in range(count):
        for kind, change in enumerate(({"trace_id": ""}, {}, {"http_status": 502, "error": "down"})):
            for has_steps in (True, False):
                one = executed(**change)
                one.id = f"{number:08x}{kind}{has_steps:d}"
                if not has_steps:
                    one.steps, one.plan.step_names, one.plan.models = [], (), {}
                given.append(one)
    plans = {len(one.plan.step_names): one.plan for one in given}
    for one in given:
        one.plan = plans[len(one.plan.step_names)]

    async def main() -> None:
        async with place.open() as store:
            await store.add_runs(given)
            for one in given:
                assert await store.get(one.id) == one.record()

    run(main())


def test_runs_of_one_plan_share_what_is_the_same_and_nothing_else() -> None:
    run, rows = executed(), RowsOfRuns()
    (_, first), (_, second) = rows.rows_of([run, run])
    assert first is second
    assert rows.rows_of([run])[0][1] is first

    for change in ({"http_status": 207}, {"degraded_steps": ("extra",)}, {"notes": {1: StepNote(fell_back=True)}}):
        other = executed(**change)
        other.plan = run.plan
        assert values_of(rows, other) == values_of_record(other)
    skipped = executed(steps=[run.steps[0], (SKIPPED, 1.0, 1.0, ""), run.steps[2]])
    skipped.plan = run.plan
    assert values_of(rows, skipped) == values_of_record(skipped)
    assert values_of(rows, run) == values_of_record(run)


@pytest.mark.parametrize("count", [1, FEW - 1, FEW, FEW + 1, ROWS, ROWS + FEW - 1, 3 * ROWS])
def test_rows_that_are_alike_and_rows_that_are_not_go_in_together(run: Run, place: Place, count: int) -> None:
    alike = [execution(number) for number in range(count)]
    others = [execution(1000 + number, endpoint=f"other-{number % 2}") for number in range(5)]
    kept = [execution(2000, captured=captured({"answer": 1})), execution(2001, error="one of a kind")]
    given = [evolve(one, domain="shop") for one in (*alike, *others, *kept)]

    async def main() -> None:
        async with place.open() as store:
            await store.add([*given, *given[:3]])
            page = await store.find(Query(limit=1000))
            assert sorted(page.executions, key=lambda one: one.id) == [evolve(one, captured=None) for one in given]
            got = await store.get(given[-2].id)
            assert got is not None
            assert got.captured == {"answer": 1}

    run(main())
