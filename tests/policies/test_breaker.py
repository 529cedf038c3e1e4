"""The circuit breaker, against a model that remembers everything."""

from __future__ import annotations

from typing import Any

import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies.breaker import Breaker
from orchestrator_core.policies.options import BreakerOptions
from orchestrator_core.policies.state import SourceState
from tests.policies.lab import Clock

FAILURES, WINDOW, RESET = 3, 10.0, 5.0
OPTIONS = BreakerOptions(failures=FAILURES, window=Duration(WINDOW), reset=Duration(RESET))


class Model:
    """The breaker by its definition: all ends of calls since it closed, and the moment it opened."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, bool]] = []
        self.open_until: float | None = None
        self.probing = False

    @property
    def state(self) -> str:
        return "closed" if self.open_until is None else "half_open" if self.probing else "open"

    def ended(self, now: float, *, failed: bool) -> None:
        self.ends.append((now, failed))
        if self.open_until is not None or not failed:
            return
        failures = [place for place, (_, one_failed) in enumerate(self.ends) if one_failed][-FAILURES:]
        if len(failures) < FAILURES:
            return
        calls = len(self.ends) - failures[0]
        in_a_row = calls == FAILURES
        half_within_window = calls <= 2 * FAILURES and now - self.ends[failures[0]][0] <= WINDOW
        if in_a_row or half_within_window:
            self.open(now)

    def open(self, now: float) -> None:
        self.open_until, self.probing = now + RESET, False

    def close(self) -> None:
        self.open_until, self.probing = None, False
        self.ends = []


class Machine(RuleBasedStateMachine):
    """Calls begin and end in any order, while time goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = Breaker(OPTIONS, self.clock)
        self.model = Model()
        self.periods = 1
        self.under_way: list[tuple[int, int]] = []
        self.probe = False

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.5, 5.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def a_call_begins(self) -> None:
        era = self.breaker.era
        if era:
            assert self.model.state == "closed"
            self.under_way.append((era, self.periods))
            return
        may = self.model.open_until is not None and not self.model.probing and self.clock.now >= self.model.open_until
        assert self.breaker.refuses() is not may
        assert self.breaker.probe() is may
        if may:
            self.model.probing = self.probe = True

    @precondition(lambda self: self.under_way)
    @rule(data=st.data(), end=st.sampled_from(["answered", "failed", "failed", "given up"]))
    def a_call_ends(self, data: Any, end: str) -> None:
        era, period = self.under_way.pop(data.draw(st.integers(0, len(self.under_way) - 1)))
        if end == "answered":
            self.breaker.calls += 1
            self.model.ended(self.clock.now, failed=False)
        elif end == "failed":
            self.breaker.failed(era)
            now_is_its_period = period == self.periods and self.model.state == "closed"
            self.model.ended(self.clock.now, failed=now_is_its_period)
            if now_is_its_period and self.model.state == "open":
                self.periods += 1

    @precondition(lambda self: self.probe)
    @rule(end=st.sampled_from(["answered", "failed", "given up", "not made"]))
    def the_probe_ends(self, end: str) -> None:
        self.probe = False
        if end == "answered":
            self.breaker.close()
            self.model.close()
        elif end == "failed":
            self.breaker.reopen()
            self.model.open(self.clock.now)
        elif end == "given up":
            self.breaker.rearm()
            self.model.open(self.clock.now)
        else:
            self.breaker.let_go()
            self.model.probing = False

    @invariant()
    def they_agree(self) -> None:
        assert self.breaker.state == self.model.state
        told = self.breaker.describe()
        assert told["state"] == self.model.state
        if self.model.open_until is None:
            assert told["retry_after_seconds"] == 0
        elif not self.model.probing:
            assert told["retry_after_seconds"] == max(0.0, self.model.open_until - self.clock.now)
        assert (self.breaker.era != 0) == (self.model.state == "closed")


TestBreaker = Machine.TestCase
TestBreaker.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def closed(failures: int = 3, window: float = 10.0, reset: float = 5.0) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(BreakerOptions(failures, Duration(window), Duration(reset)), clock), clock


def test_failures_in_a_row_open_it_however_long_they_took() -> None:
    breaker, clock = closed(failures=3)
    for _ in range(3):
        clock.now += 60
        breaker.failed(breaker.era)
    assert breaker.describe() == {"state": "open", "failures": 3, "opened": 1, "refused": 0, "retry_after_seconds": 5.0}


def test_failures_that_are_half_of_the_calls_open_it_within_the_window_only() -> None:
    breaker, clock = closed(failures=3)
    for _ in range(3):
        breaker.calls += 1
        clock.now += 4
        breaker.failed(breaker.era)
    assert breaker.state == "open"
    breaker, clock = closed(failures=3)
    for _ in range(3):
        breaker.calls += 1
        clock.now += 6
        breaker.failed(breaker.era)
    assert breaker.describe() == {
        "state": "closed",
        "failures": 2,
        "opened": 0,
        "refused": 0,
        "retry_after_seconds": 0.0,
    }


def test_less_than_half_of_the_calls_do_not_open_it() -> None:
    breaker, _ = closed(failures=3)
    for _ in range(100):
        breaker.failed(breaker.era)
        breaker.calls += 3
    assert breaker.state == "closed"


def test_rows_that_fail_by_one_failure_are_one() -> None:
    breaker, _ = closed(failures=3)
    for batch in ("one", "two"):
        for _ in range(32):
            breaker.failed(breaker.era, batch)
    assert (breaker.state, breaker.failures()) == ("closed", 2)
    breaker.failed(breaker.era)
    assert (breaker.state, breaker.failures()) == ("open", 3)

    breaker, _ = closed(failures=3)
    for batch in ("one", "two", "three"):  # and every other one succeeds
        breaker.calls += 10
        for _ in range(10):
            breaker.failed(breaker.era, batch)
    assert breaker.state == "open"


def test_two_lists_that_are_cut_off_at_once_are_two_failures_whichever_item_ends_first() -> None:
    breaker, _ = closed(failures=3)
    for _ in range(16):
        for request in ("one", "two"):
            breaker.failed(breaker.era, request)
    assert (breaker.state, breaker.failures()) == ("closed", 2)
    breaker.failed(breaker.era, "three")
    assert (breaker.state, breaker.failures()) == ("open", 3)


def test_a_call_of_before_the_opening_neither_closes_nor_opens_anything() -> None:
    breaker, clock = closed(failures=1)
    era = breaker.era
    breaker.failed(era)
    clock.now += 5
    assert breaker.probe()
    breaker.failed(era)
    breaker.calls += 1
    assert breaker.state == "half_open"
    breaker.close()
    breaker.failed(era)
    assert breaker.state == "closed"


def test_one_probe_each_time_and_a_probe_given_up_waits_as_long_again() -> None:
    breaker, clock = closed(failures=1)
    breaker.failed(breaker.era)
    assert not breaker.probe()
    clock.now += 5
    assert [breaker.probe() for _ in range(3)] == [True, False, False]
    breaker.rearm()
    assert (breaker.state, breaker.probe(), breaker.retry_after_seconds()) == ("open", False, 5.0)
    clock.now += 5
    assert breaker.probe()
    breaker.let_go()
    assert breaker.probe()
    breaker.close()
    assert breaker.state == "closed"


def test_opening_and_closing_is_logged_once_each_and_no_probe_that_fails() -> None:
    clock = Clock()
    state = SourceState("api.bureau", clock=clock)
    with structlog.testing.capture_logs() as logs:
        breaker = state.breaker(BreakerOptions(3, Duration(10.0), Duration(5.0)))
        for _ in range(3):
            breaker.failed(breaker.era)
        for _ in range(4):
            clock.now += 5
            assert breaker.probe()
            breaker.reopen()
        clock.now += 7.5
        assert breaker.probe()
        breaker.close()
        breaker.close()  # another way to tell that it is well
        state.recovered()
    assert logs == [
        {
            "event": "a source has failed repeatedly and is left alone: its circuit breaker is open",
            "log_level": "warning",
            "source": "api.bureau",
            "failures": 3,
            "probe_after_seconds": 5.0,
        },
        {
            "event": "a source answers again: its circuit breaker is closed",
            "log_level": "info",
            "source": "api.bureau",
            "seconds": 27.5,
        },
    ]
