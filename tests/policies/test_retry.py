"""How long a pause is, and how many further attempts there may be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.options import RetryOptions
from orchestrator_core.policies.retry import RetryBudget, pause_seconds
from tests.policies.lab import Clock


def test_pauses_are_random_below_a_limit_that_doubles_up_to_the_longest() -> None:
    options = RetryOptions(backoff=Duration(0.1), max_backoff=Duration(0.5))
    for failed, longest in [(1, 0.1), (2, 0.2), (3, 0.4), (4, 0.5), (5, 0.5), (5000, 0.5)]:
        pauses = [pause_seconds(options, failed) or 0.0 for _ in range(400)]
        assert 0 <= min(pauses) < longest * 0.2
        assert longest * 0.8 < max(pauses) <= longest


def test_a_pause_is_no_shorter_than_the_source_asked_for_and_none_where_that_is_too_long() -> None:
    options = RetryOptions(backoff=Duration(0.1), max_backoff=Duration(0.5))
    pauses = [pause_seconds(options, 1, 0.3) or 0.0 for _ in range(400)]
    assert 0.3 <= min(pauses) < 0.32 < 0.38 < max(pauses) <= 0.4
    assert {pause_seconds(options, 1, 0.5) for _ in range(20)} == {0.5}
    assert pause_seconds(options, 1, 0.6) is None


def called(budget: RetryBudget) -> None:
    if budget.clock() >= budget.ends_at:
        budget.renew()
    budget.calls += 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 4), st.integers(0, 12), st.integers(0, 4)), max_size=60))
def test_further_attempts_are_never_more_than_a_fifth_of_the_calls_or_one(steps: list[tuple[float, int, int]]) -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    calls: list[float] = []
    retries: list[float] = []
    asked = 0
    for seconds, new_calls, new_retries in steps:
        clock.now += seconds
        for _ in range(new_calls):
            called(budget)
            calls.append(clock.now)
        for _ in range(new_retries):
            asked += 1
            if budget.take():
                retries.append(clock.now)
            recent = sum(clock.now - at < 10 for at in retries)
            assert recent <= max(1.0, 0.2 * sum(clock.now - at <= 30 for at in calls))
    assert budget.describe() == {
        "calls": len(calls),
        "retries": len(retries),
        "refused_by_budget": asked - len(retries),
    }


def test_of_a_hundred_calls_that_all_fail_twenty_are_tried_again() -> None:
    budget = RetryBudget(Clock())
    granted = 0
    for _ in range(100):
        called(budget)
        granted += budget.take()
        granted += budget.take()
    assert granted == 20


def test_calls_of_long_ago_pay_for_nothing() -> None:
    clock = Clock()
    budget = RetryBudget(clock)
    for _ in range(10_000):
        called(budget)
    clock.now += 60
    called(budget)
    assert [budget.take() for _ in range(3)] == [True, False, False]
