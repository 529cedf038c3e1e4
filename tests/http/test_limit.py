"""The limit on requests in flight, on a loop whose turns and time are the test's own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count, islice

import pytest
import structlog
from attrs import define, evolve, field

from orchestrator_core.config.model import LimitOptions
from orchestrator_core.http.limit import Limit
from orchestrator_core.plugin_api import Duration
from orchestrator_core.turns import Turns

ADAPTIVE = LimitOptions()
TURN = 20e-6
_numbers = count()
REFUSING = 20e-6
RETURNING = 0.5e-3
"""How long a client takes from a refusal to its next request."""


@define(eq=False)
class Request:
    """A request that arrived, and what became of it."""

    loop: Loop
    arrived: float
    waits: bool = False
    ended: float = 0.0
    refused: bool = False

    def let_in(self) -> None:
        self.waits = False
        self.loop.woken.append(self)

    def refuse(self, waited_seconds: float) -> None:
        self.refused = True
        self.ended = self.loop.now
        self.loop.now += REFUSING
        self.loop.limit.backlog -= 1

    def done(self) -> bool:
        return False

    def set_result(self, result: None) -> None:
        self.loop.rested.append(self)

    @property
    def took(self) -> float:
        return self.ended - self.arrived


@define(eq=False)
class Loop:
    """An event loop as the limit knows it: what arrives is read, then what is ready runs.

    A request that was let in is woken in one turn and begun in the next, for ``cost`` seconds. With ``wait_seconds`` it
    then waits for something so long, and goes on for ``cost_after`` seconds, after a rest where the turn is long.
    """

    options: LimitOptions | None
    cost: float
    wait_seconds: float = 0.0
    cost_after: float = 0.0
    now: float = 1.0
    slept: float = 0.0
    looked: float = 0.0
    timers: list[tuple[float, int, Callable[[], None] | Request]] = field(factory=list)
    ready: list[Callable[[], None]] = field(factory=list)
    woken: list[Request] = field(factory=list)
    tasks: list[Request] = field(factory=list)
    done: list[Request] = field(factory=list)
    limit: Limit = field(init=False)
    turns: Turns = field(init=False)
    rested: list[Request] = field(factory=list)
    slow: list[tuple[float, float, float]] = field(factory=list)
    """When the core is slow: from, to, and how many times."""

    def __attrs_post_init__(self) -> None:
        self.turns = Turns(self.ready.append, lambda: self.now)
        self.limit = Limit(
            self.ready.append, self.later, self.turns, self.options, lambda: self.now, lambda: self.now - self.slept
        )

    def arrive(self) -> Request:
        request = Request(self, self.now)
        if self.limit.engaged:
            self.limit.read(1)
            self.limit.ask(request)
        else:
            self.limit.came(1)
            request.let_in()
        return request

    def later(self, seconds: float, call: Callable[[], None] | Request) -> None:
        heappush(self.timers, (self.now + seconds, next(_numbers), call))

    def sleep(self, until: float) -> None:
        self.slept += max(0.0, until - self.now)
        self.now = max(self.now, until)

    def turn(self) -> None:
        if self.idle and self.timers:
            self.sleep(self.timers[0][0])
        due = []
        while self.timers and self.timers[0][0] <= self.now:
            due.append(heappop(self.timers)[2])
        ready, self.ready[:] = list(self.ready), []
        rested, self.rested = self.rested, []
        tasks, self.tasks = self.tasks, self.woken
        self.woken = []
        self.limit.backlog -= len(self.tasks)
        self.now += TURN
        if self.now >= self.looked + 1:
            self.looked = self.now
            self.limit.look()
        for request in rested:
            self.go_on(request)
        for call in ready:
            call()
        for request in tasks:
            self.now += self.cost * next((times for start, end, times in self.slow if start <= self.now < end), 1.0)
            self.limit.in_flight += 1
            if self.wait_seconds:
                self.later(self.wait_seconds, request)
            else:
                self.end(request)
        for one in due:
            if not isinstance(one, Request):
                one()
            elif self.now > self.turns.until:
                self.turns.enter(one)
            else:
                self.go_on(one)

    def go_on(self, request: Request) -> None:
        self.now += self.cost_after
        self.end(request)

    def end(self, request: Request) -> None:
        self.limit.in_flight -= 1
        request.ended = self.now
        self.done.append(request)

    @property
    def idle(self) -> bool:
        """Return whether the next turn would wait."""
        return not (
            self.ready or self.woken or self.tasks or self.rested or (self.timers and self.timers[0][0] <= self.now)
        )

    def finish(self) -> None:
        while self.timers or not self.idle:
            self.turn()

    def run(self, per_second: float, seconds: float) -> list[Request]:
        """Let requests arrive at a rate, and return them when all have been answered."""
        due = deque(self.now + number / per_second for number in range(int(per_second * seconds)))
        sent = []
        while due or self.timers or not self.idle:
            if self.idle:
                self.sleep(min([*islice(due, 1), *(timer[0] for timer in self.timers[:1])]))
            while due and due[0] <= self.now:
                request = self.arrive()
                request.arrived = due.popleft()
                sent.append(request)
            self.turn()
        return sent

    def circle(self, clients: int, until: float, others: Iterable[float] = ()) -> list[Request]:
        """Let clients ask, each again when it has its answer, or is refused, and return all of their requests.

        ``others`` are the times at which somebody else asks.
        """
        requests = [self.arrive() for _ in range(clients)]
        asked, due, again = list(requests), deque(others), deque[float]()
        while self.now < until:
            if self.idle:
                self.sleep(min([until, *islice(due, 1), *islice(again, 1), *(timer[0] for timer in self.timers[:1])]))
            while due and due[0] <= self.now:
                self.arrive().arrived = due.popleft()
            self.turn()
            again.extend(self.now + RETURNING for request in asked if request.refused)
            back = sum(1 for request in asked if request.ended and not request.refused)
            while again and again[0] <= self.now:
                again.popleft()
                back += 1
            came = [self.arrive() for _ in range(back)]
            requests += came
            asked = [*(request for request in asked if not request.ended), *came]
        return requests


def accepted(requests: list[Request]) -> list[float]:
    return sorted(request.took for request in requests if not request.refused)


def refused(requests: list[Request]) -> list[float]:
    return sorted(request.took for request in requests if request.refused)


def at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(len(times) * share))]


@pytest.mark.parametrize("times", [2, 10])
def test_most_of_the_work_goes_into_answers_under_lasting_overload(times: int) -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    peak = 1 / loop.cost
    sent = loop.run(peak * times, 10)
    good, bad = accepted(sent), refused(sent)
    assert len(good) > 0.8 * peak * 10
    assert at(bad, 0.95) < 0.01
    assert at(bad, 0.99) < 0.05  # those who came before it was known for an overload
    assert at(good, 0.5) < 0.06
    assert at(good, 0.99) < 0.12
    assert loop.limit.shed == len(bad) > 0
    assert loop.limit.backlog == 0


@pytest.mark.parametrize("times", [2, 10])
@pytest.mark.parametrize("wait_seconds", [0.01, 0.05])
def test_no_more_are_let_in_than_can_go_on_after_what_they_wait_for(wait_seconds: float, times: int) -> None:
    loop = Loop(ADAPTIVE, 0.0001, wait_seconds, 0.002)
    peak = 1 / (loop.cost + loop.cost_after)
    sent = loop.run(peak * times, 10)
    good, bad = accepted(sent), refused(sent)
    assert len(good) > 0.6 * peak * 10  # each turn has a price here, which an idle loop pays too
    assert at(bad, 0.99) < 0.015  # each second there is a moment in which nobody is refused
    assert at(good, 0.5) < wait_seconds + 0.15
    assert at(good, 0.95) < wait_seconds + 0.5  # those who came before it was known go on one after the other


@pytest.mark.parametrize("clients", [16, 64, 128])
def test_clients_that_wait_for_answers_which_wait_for_something_are_not_refused(clients: int) -> None:
    loop = Loop(ADAPTIVE, 0.0001, 0.01, 0.001)
    requests = loop.circle(clients, until=5)
    assert not refused(requests)
    assert len(requests) > 0.6 * 4 / 0.0011


def test_a_burst_that_is_worked_off_soon_is_not_refused() -> None:
    """Five hundred clients whose answers come at once, and who ask again at once, each second."""
    loop = Loop(ADAPTIVE, 0.0002)
    for _ in range(10):
        burst = [loop.arrive() for _ in range(500)]
        loop.finish()
        assert not refused(burst)
        loop.now += 1


@pytest.mark.parametrize(("clients", "cost"), [(32, 0.002), (64, 0.002), (256, 0.0005)])
def test_clients_that_wait_for_their_answers_are_not_refused(clients: int, cost: float) -> None:
    loop = Loop(ADAPTIVE, cost)
    requests = loop.circle(clients, until=3)
    assert not refused(requests)
    assert not loop.limit.overloaded


def test_a_load_that_is_served_is_not_refused_and_hardly_waits() -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    sent = loop.run(0.8 / loop.cost, 5)
    assert not refused(sent)
    assert at(accepted(sent), 0.99) < 0.01


@pytest.mark.parametrize(("seconds", "times"), [(0.05, 10), (0.1, 3), (0.2, 3), (0.2, 10)])
def test_a_core_that_is_slow_for_a_moment_is_no_overload(seconds: float, times: float) -> None:
    loop = Loop(ADAPTIVE, 0.000125, slow=[(2.0, 2.2, 2), (4.0, 4.0 + seconds, times)])
    sent = loop.run(0.8 / loop.cost, 6)  # first a slowness from which it is known what can be ended
    assert loop.limit.shed == len(refused(sent)) == 0
    assert at(accepted(sent), 1.0) < ADAPTIVE.burst


def test_a_core_that_stays_slow_is_an_overload() -> None:
    loop = Loop(ADAPTIVE, 0.000125, slow=[(2.0, 2.2, 2), (4.0, 5.0, 3)])
    sent = loop.run(0.8 / loop.cost, 6)
    assert refused(sent)
    assert at(accepted([one for one in sent if 4.4 < one.arrived < 5]), 0.99) < 0.1
    assert not refused([one for one in sent if one.arrived > 6])


def test_the_line_is_bounded_in_time_though_requests_have_become_dearer() -> None:
    loop = Loop(ADAPTIVE, 0.0001)
    loop.run(1.5 / loop.cost, 1)  # it is known what can be ended
    loop.run(0.1 / loop.cost, 2)
    loop.cost *= 20
    sent = loop.run(2 / loop.cost, 4)
    assert refused(sent)
    assert at(accepted(sent), 1.0) < 2 * ADAPTIVE.burst


def test_twice_what_was_served_is_an_overload_soon_though_the_core_has_become_faster() -> None:
    loop = Loop(ADAPTIVE, 0.0015, slow=[(0.0, 4.0, 1.3)])
    loop.circle(32, until=4)
    started = loop.now
    sent = loop.run(2 / (1.3 * loop.cost), 2)
    assert min(one.ended for one in sent if one.refused) < started + 0.25
    assert at(refused(sent), 0.95) < 0.02
    assert at(accepted(sent), 0.99) < 0.15


def test_after_an_overload_everything_is_as_before() -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    assert refused(loop.run(10 / loop.cost, 2))
    first = loop.run(0.5 / loop.cost, 0.5)
    then = loop.run(0.5 / loop.cost, 2)
    assert len(refused(first)) < 5
    assert not refused(then)
    assert (loop.limit.overloaded, loop.limit.engaged, loop.limit.waiting) == (False, False, 0)


@pytest.mark.parametrize(("wait_seconds", "cost_after"), [(0.0, 0.0), (0.01, 0.0012)])
@pytest.mark.parametrize("times", [2, 10])
def test_where_it_is_known_what_can_be_ended_an_overload_is_found_before_many_have_waited(
    wait_seconds: float, cost_after: float, times: float
) -> None:
    loop = Loop(ADAPTIVE, 0.0001 if wait_seconds else 0.0015, wait_seconds, cost_after)
    loop.circle(64, until=6)
    loop.finish()
    loop.sleep(loop.now + 2)
    sent = loop.run(times / (loop.cost + loop.cost_after), 5)
    late = [one for one in sent if one.refused and one.took > 0.01]
    assert len(late) < 0.01 * len(refused(sent))
    assert at(accepted(sent), 0.99) < 0.09


@pytest.mark.parametrize("times", [1.7, 2])
def test_an_overload_is_found_soon_after_a_calm_that_the_limit_had_no_part_in(times: float) -> None:
    loop = Loop(ADAPTIVE, 0.0001, 0.01, 0.0012)
    peak = 1 / (loop.cost + loop.cost_after)
    loop.run(0.8 * peak, 4)
    assert not loop.limit.engaged
    started = loop.now
    sent = loop.run(times * peak, 1)
    assert min(one.ended for one in sent if one.refused) < started + 0.15
    assert at(accepted(sent), 1.0) < 0.25


def test_clients_in_a_circle_do_not_have_the_limit_take_part() -> None:
    """Their answers come in heaps: more than usual comes in a short while, and no more than is ended."""
    loop = Loop(ADAPTIVE, 0.0001, 0.01, 0.0008)
    assert not refused(loop.circle(28, until=5))
    assert not loop.limit.engaged


@pytest.mark.parametrize(("requests", "seconds"), [(100, 0.001), (200, 0.02)])
def test_where_it_is_known_what_can_be_ended_a_burst_is_not_refused(requests: int, seconds: float) -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    loop.circle(64, until=6)
    loop.finish()
    loop.sleep(loop.now + 2)
    assert not refused(loop.run(requests / seconds, seconds))


@pytest.mark.parametrize("clients", [8, 40, 100, 200])
def test_clients_in_a_circle_are_not_refused_for_good_after_others_were_too_many(clients: int) -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    spike = [2 + number / 6000 for number in range(6000)]
    requests = loop.circle(clients, until=12, others=spike)
    assert not [one for one in requests if one.refused and one.ended < 2]
    assert [one for one in requests if one.refused]
    assert not [one for one in requests if one.refused and one.ended > 7]
    assert len([one for one in requests if one.ended > 7]) > 0.9 * 5 / loop.cost


@pytest.mark.parametrize("times", [2, 10])
def test_an_overload_is_none_of_a_circle(times: float) -> None:
    loop = Loop(ADAPTIVE, 0.0015)
    with structlog.testing.capture_logs() as logged:
        loop.run(times / loop.cost, 20)
    assert [line["event"] for line in logged] == ["overload"]


def test_a_line_in_an_overload_is_as_long_as_its_time_however_dear_requests_are() -> None:
    loop = Loop(ADAPTIVE, 0.005)
    sent = loop.run(2 / loop.cost, 20)
    assert at(accepted(sent), 0.9) < (8 + 3) * loop.cost
    assert len(accepted(sent)) > 0.9 * 20 / loop.cost


def test_so_many_as_min_are_not_refused_in_a_calm() -> None:
    loop = Loop(evolve(ADAPTIVE, wait=Duration(0.001), burst=Duration(0.001)), 0.1)
    assert not refused([loop.arrive() for _ in range(33)])
    loop.run(1, 1)
    assert refused(loop.run(1000, 1))


def test_a_fixed_limit_counts_those_in_flight_and_those_that_wait() -> None:
    loop = Loop(LimitOptions(max=50), 0.001)
    loop.limit.in_flight = 20
    loop.limit.engaged = True
    requests = [loop.arrive() for _ in range(60)]
    assert [request.refused for request in requests] == [False] * 30 + [True] * 30
    assert (loop.limit.waiting, loop.limit.shed) == (30, 30)


def test_the_ceiling_holds_whatever_the_requests_wait_for() -> None:
    loop = Loop(LimitOptions(ceiling=100), 0.001)
    loop.limit.in_flight = 99
    assert not loop.limit.is_full()
    loop.limit.in_flight = 100
    assert loop.limit.is_full()


def test_without_a_limit_nobody_waits() -> None:
    loop = Loop(None, 0.01)
    sent = loop.run(1000, 0.5)
    assert not refused(sent)
    assert (loop.limit.engaged, loop.limit.shed) == (False, 0)


def test_those_that_wait_are_let_in_when_the_limit_is_taken_away() -> None:
    loop = Loop(ADAPTIVE, 0.001)
    requests = [loop.arrive() for _ in range(200)]
    assert loop.limit.waiting
    loop.limit.use(None)
    assert loop.limit.waiting == 0
    while loop.timers or not loop.idle:
        loop.turn()
    assert len(accepted(requests)) == 200


def test_a_request_whose_client_went_away_takes_no_turn() -> None:
    loop = Loop(ADAPTIVE, 0.001)
    requests = [loop.arrive() for _ in range(100)]
    gone = [request for request in requests if request.waits][:20]
    for request in gone:
        request.waits = False
        loop.limit.backlog -= 1
    while loop.timers or not loop.idle:
        loop.turn()
    assert len(loop.done) == 80
    assert loop.limit.backlog == 0


def test_a_request_that_is_cancelled_while_it_waits_holds_nobody_up(run: Callable[..., None]) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        limit = Limit(loop.call_soon, loop.call_later, Turns(loop.call_soon), ADAPTIVE)
        waiting = [asyncio.create_task(limit.turn()) for _ in range(60)]
        await asyncio.sleep(0)
        for task in waiting[::2]:
            task.cancel()
        limit.let_all_in()
        limit.engaged = True
        came = await asyncio.gather(*waiting, return_exceptions=True)
        assert came[1::2] == [True] * 30
        assert all(isinstance(found, asyncio.CancelledError) for found in came[::2])
        again = [asyncio.create_task(limit.turn()) for _ in range(10)]
        await asyncio.sleep(0)
        again[0].cancel()
        assert await asyncio.gather(*again[1:]) == [True] * 9

    run(main())
