"""The limit on requests in flight: who is let in, who waits for a turn, and who is refused at once.

A worker has one event loop. When more arrives than it can work off, everything on it waits for everything else:
answers, refusals, health. So requests are let in at the pace at which the loop works, measured in turns of the loop,
and those that arrive faster wait in a line. The line is the measure of overload, and not the number of requests in
flight: a thousand that wait for a slow partner cost the loop nothing.

What they cost once they go on shows later, when others have been let in already. So no more are let in than the loop
can end: as many a second as it ends for a second of work, fewer while its turns are long.

In a calm the line may hold what is worked off within ``burst``, at the pace that is usual. Overload is a line that
stays: for two windows nobody got through in less than ``wait``, and much more came than was ended and than the loop can
usually end (``excess.py``). If it is no more than usual, the core is slow, and that is an overload when it lasts. So is
a line of ``burst``. From then on the line holds what is worked off within ``wait``, and the rest is
refused on arrival, until nobody was for two windows, or until those who come are clients in a circle (``circle.py``),
who would be refused for good. The two lengths are the idea of CoDel (RFC 8289): a burst may
wait, a standing line helps nobody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import thread_time
from typing import Any

import structlog

from orchestrator_core.config.model import LimitOptions
from orchestrator_core.http.circle import Circle
from orchestrator_core.http.excess import Excess
from orchestrator_core.http.line import Line, Waiting
from orchestrator_core.http.pace import MEASURED, UNKNOWN, Pace
from orchestrator_core.http.refused import RefusedLines
from orchestrator_core.run import clock
from orchestrator_core.turns import Turns

log = structlog.get_logger("orchestrator.http")

PACE_SECONDS = 0.002
"""How long the loop is to work on those that are let in together, before it looks for others."""

LONG_SECONDS = 0.01
"""How long the turns of a few requests take that are too many to begin at once."""

LONG_IN_A_ROW = 3
"""So often in a row: once is somebody else's work on the core."""

PAUSE_SECONDS = 0.001
"""How long it takes to look again where those in flight are enough."""

MANY = 128
"""So many clients in a circle, who wait for their answers before they ask again, are a calm."""

WINDOW_SECONDS = 0.025
SHORT_WINDOWS, SHORT_SECONDS = 1, 0.005
"""So many windows are short after the first, which is too: until then it is not known what comes now."""

FEW = 4
SWELL = 16
"""So many more under way than of late, while too much comes, are too many to begin at once."""

UNDER_WAY_FADING = 0.7
"""What one second's most under way counts in the next."""

MOST_AT_ONCE = 1024
CALM_WINDOWS = 40
LEFT_WINDOWS = 2
"""So many windows without a refusal end an overload."""

SHORTEST = 8
"""A line in an overload may always be so long: between two turns it is not to run empty."""

GROWING = 1.1
UNLIMITED = 2**62
TURNS_TO_BEGIN = 2
"""How many turns of the loop pass until a request that was let in has been begun: one to wake, one for its task."""


class _Turn:
    """A request that waits in its handler."""

    __slots__ = ("come", "waits")

    def __init__(self) -> None:
        self.waits = False
        self.come: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def let_in(self) -> None:
        self.waits = False
        self._settle(True)

    def refuse(self, waited_seconds: float) -> None:
        self._settle(False)

    def _settle(self, come: bool) -> None:
        if not self.come.done():  # cancelled, and its handler does not know it yet
            self.come.set_result(come)


class Limit:
    """The limit of one worker. Its figures are plain numbers, for whoever wants to show them.

    ``in_flight`` are the requests of endpoints under way, ``shed`` those refused so far, ``backlog`` those that were
    read and not begun, ``connections`` the open ones, and ``connections_refused`` those that were too many. ``lines``
    are the log's of those refused, for whoever answers them. While
    ``engaged`` is false, nothing is asked of the limit but to count: until the backlog exceeds ``min``, a few requests
    take long, or much more comes than the loop can usually end. ``soon`` calls a function in the loop's next turn.
    """

    __slots__ = (
        "_at_once",
        "_burst",
        "_busy",
        "_calm",
        "_circle",
        "_cost",
        "_counted",
        "_excess",
        "_in_flight_before",
        "_later",
        "_left",
        "_let_in_at",
        "_let_in_last",
        "_line",
        "_line_before",
        "_long",
        "_longest",
        "_min",
        "_now",
        "_pace",
        "_shed_before",
        "_shed_when_overloaded",
        "_soon",
        "_swelled",
        "_trusted",
        "_turns",
        "_turns_left",
        "_under_way",
        "_usual_before",
        "_wait",
        "_watching",
        "_window",
        "adaptive",
        "arrived",
        "backlog",
        "connections",
        "connections_refused",
        "engaged",
        "in_flight",
        "lines",
        "most",
        "overloaded",
        "retry_after",
        "shed",
    )

    def __init__(
        self,
        soon: Callable[[Callable[[], None]], Any],
        later: Callable[[float, Callable[[], None]], Any],
        turns: Turns,
        options: LimitOptions | None,
        now: Callable[[], float] = clock,
        worked: Callable[[], float] = thread_time,
    ) -> None:
        self._soon = soon
        self._later = later
        self._turns = turns
        self._now = now
        self.in_flight = 0
        self.backlog = self.arrived = 0
        self.connections = 0
        self.connections_refused = 0
        self.shed = 0
        self.lines = RefusedLines(later)
        self.engaged = False
        self.overloaded = False
        self._line = Line()
        self._busy = self._watching = self._counted = False
        self._turns_left = 0
        self._at_once = 8.0
        self._cost = 0.0
        self._let_in_at = 0.0
        self._let_in_last = 0
        self._calm = self._left = self._long = 0
        self._trusted = 0
        self._shed_when_overloaded = 0
        self._window = 0.0
        self._pace = Pace(worked)
        self._circle = Circle()
        self._excess = Excess()
        self._usual_before = 0.0
        self._in_flight_before = self._line_before = self._under_way = self._swelled = 0
        self._longest = self._shed_before = 0
        self.use(options)

    def use(self, options: LimitOptions | None) -> None:
        """Take other options from now on; None is no limit."""
        given = options or LimitOptions()
        self.adaptive = options is not None and given.max == "adaptive"
        self.most = (given.max if isinstance(given.max, int) else given.ceiling) if options else UNLIMITED
        self.retry_after = f"{max(1, round(given.retry_after))}"
        self._min = given.min if options else UNLIMITED
        self._wait, self._burst = float(given.wait), float(given.burst)
        if options is None:
            self.let_all_in()

    @property
    def waiting(self) -> int:
        """Return how many requests wait for their turn."""
        return len(self._line)

    # --- arriving ------------------------------------------------------------------------------------------------

    def came(self, requests: int) -> None:
        """Count requests that nobody asked about, and begin to ask when there are many at once."""
        self.backlog += requests
        self.arrived += requests
        if self._watching:
            self._let_in_last += requests
        elif self.backlog > FEW and not self._busy:  # see how long they take
            self._busy = self._watching = self._counted = True
            self._turns_left = TURNS_TO_BEGIN
            self._let_in_last = self.backlog
            self._let_in_at = self._now()
            self._pace.begin_turn(self._let_in_at)
            if not self.engaged and self._let_in_at - self._window > WINDOW_SECONDS:
                self._open_window(self._let_in_at)
            self._soon(self._turn)
        if self.backlog > self._min or (self.in_flight > self._under_way + SWELL and self._is_too_much(self._now())):
            self._engage()

    def _engage(self) -> None:
        if not self.engaged:
            now = self._now()
            self.engaged = True
            self._pace.begin()
            self._open_window(now)
            self._excess.begin(now, self.arrived)

    def look(self) -> None:
        """Learn in a calm what the loop can end. To be called about once a second."""
        if not self.engaged:
            self._under_way = max(self._swelled, int(self._under_way * UNDER_WAY_FADING))
            self._swelled = self.in_flight
            self._pace.look(self._now(), self.arrived - self.backlog - self.in_flight)

    def read(self, requests: int) -> None:
        """Count requests that are to be asked about."""
        self.backlog += requests
        self.arrived += requests

    def ask(self, connection: Waiting) -> None:
        """Let the connection's request wait for its turn, which may be the loop's next, or refuse it."""
        line = self._line
        if self.is_full(len(line)):
            self.refuse(connection, 0.0)
            return
        now = self._now()
        connection.waits = True
        line.append((now, connection))
        if not self._busy:
            self._busy = True
            self._pace.begin_turn(now)
            self._soon(self._turn)

    async def turn(self) -> bool:
        """Wait for a turn; return whether there is one, or the request is refused."""
        turn = _Turn()
        self._engage()
        self.ask(turn)
        try:
            return await turn.come
        finally:
            turn.waits = False

    def is_full(self, waiting: int = 0) -> bool:
        """Return whether one more is too many, beside those in flight and so many that wait."""
        if waiting + self.in_flight >= self.most:
            return True
        strict = self.overloaded and not self._circle.holding
        if not self.adaptive or self._trusted or waiting < (min(self._min, SHORTEST) if strict else self._min):
            return False
        pace = self._pace
        if strict:
            each = 1 / pace.rate if pace.rate < UNKNOWN else self._cost
            return waiting * each > self._wait
        can = max(pace.usual, pace.rate if pace.rate < UNKNOWN and pace.windows >= MEASURED else 0.0)
        each = 1 / can if can else self._cost
        return waiting * each > self._burst or self._line.first_waits(self._now()) > self._burst

    def refuse(self, connection: Waiting, waited_seconds: float) -> None:
        self.shed += 1
        connection.waits = False
        connection.refuse(waited_seconds)

    def let_all_in(self) -> None:
        """Let everybody in who waits, and ask nobody any more: the service stops, or has no limit."""
        self.engaged = self.overloaded = False
        self._turns.leave(self._now())
        while self._line:
            _, connection = self._line.popleft()
            if connection.waits:
                connection.let_in()

    # --- the loop's turns ----------------------------------------------------------------------------------------

    def _turn(self) -> None:
        now = self._now()
        if self.engaged:
            self._turns.keep_short(now)
            self._look_around(now)
        if self._turns_left:
            self._turns_left -= 1
            if self.in_flight and self.engaged:
                self._let_more_in(now)
            self._soon(self._turn)
            return
        if self._watching:
            self._watching = False
            self._swelled = max(self._swelled, self.in_flight)
            self._long = self._long + 1 if now - self._let_in_at > LONG_SECONDS else 0
            if self._long >= LONG_IN_A_ROW and self._min < UNLIMITED:
                self._engage()
        self._pace.end_turn(now, self._turns.rested(now))
        if self._let_in_last and self._counted:
            self._learn(now - self._let_in_at)
        if now - self._window >= (WINDOW_SECONDS if self._pace.windows >= SHORT_WINDOWS else SHORT_SECONDS):
            self._look_back(now)
        self._longest = max(self._longest, len(self._line))
        self._let_some_in(now)
        if self._let_in_last:
            self._turns_left = TURNS_TO_BEGIN
            self._soon(self._turn)
        elif self._line:  # those in flight are enough
            self._later(PAUSE_SECONDS, self._again)
        else:
            self._busy = False

    def _look_around(self, now: float) -> None:
        """See what more than a window cannot wait for: an overload, and the end of a moment without refusals."""
        if self._excess.is_sustained(now, self.arrived, self._pace.usual) and self._stands(now):
            self._begin_overload(now)
        if self.overloaded and self._circle.turn(now, self.backlog + self.in_flight, self.shed):
            self._end_moment(now)

    def _again(self) -> None:
        self._pace.begin_turn(self._now())  # the loop may have had nothing to do
        self._turn()

    def _learn(self, seconds: float) -> None:
        """Learn from how long the last ones took, with all that was done beside them."""
        count = self._let_in_last
        share = min(0.5, max(0.1, count / 16)) if self._cost else 1.0
        self._cost += (seconds / count - self._cost) * share
        if seconds > PACE_SECONDS or count >= int(self._at_once):
            self._at_once *= min(2.0, max(0.5, PACE_SECONDS / seconds))
            self._at_once = min(float(MOST_AT_ONCE), max(1.0, self._at_once))

    def _let_some_in(self, now: float) -> None:
        line, rate = self._line, self._pace.rate
        most = line.due(now, rate) if rate < UNKNOWN else int(self._at_once)
        self._let_in_last = line.admit(now, most if self.engaged else len(line))
        self._let_in_at = now
        self._counted = self.engaged and self._pace.begun  # else others begin beside them

    def _let_more_in(self, now: float) -> None:
        """Let in by the pace, if there is one, while those let in last are being begun."""
        line, rate = self._line, self._pace.rate
        if rate < UNKNOWN and line.admit(now, line.due(now, rate)):
            self._counted = False

    # --- calm and overload -----------------------------------------------------------------------------------------

    def _open_window(self, now: float) -> None:
        self._window = now
        if not self.engaged:
            self._excess.begin(now, self.arrived)
        self._pace.open_window()
        self._in_flight_before, self._line_before = self.in_flight, len(self._line)
        self._line.open_window()
        self._longest = 0
        self._shed_before = self.shed

    def _look_back(self, now: float) -> None:
        ended = max(0, self._line.let_in - (self.in_flight - self._in_flight_before))
        before, behind = self._line_before + self._in_flight_before, len(self._line) + self.in_flight
        grows = behind > GROWING * before + 1
        # what was done in the first windows was in part for those whom nobody had counted
        judged = self.adaptive and self._pace.windows >= SHORT_WINDOWS and not self._trusted
        self._trusted = max(0, self._trusted - 1)
        if self.engaged:
            self._pace.close_window(now - self._window, ended, self.adaptive, not self.overloaded)
        elif grows and self._is_too_much(now):
            self._engage()
            return
        refused = self.shed > self._shed_before
        quiet = now - self._window > 2 * WINDOW_SECONDS and not self._line  # nothing was going on
        if self.overloaded:
            self._left = 0 if refused else self._left + 1
            if quiet or self._left >= LEFT_WINDOWS:
                self._end_overload()
        elif judged and self._longest > self._min and self._line.least_wait > self._wait:
            came = behind - before + ended + self.shed - self._shed_before
            could = self._pace.usual * (now - self._window)
            if self._excess.is_overload(came, ended, could, self._pace.is_sure, refused):
                self._begin_overload(now)
        else:
            self._excess.forget()
        self._calm = 0 if self.overloaded or refused or grows or self._longest > MANY else self._calm + 1
        if quiet or self._calm >= CALM_WINDOWS:
            self._calm = 0
            self._pace.rate = UNKNOWN
            self.engaged = False
            self._turns.leave(now)
        self._open_window(now)

    def _is_too_much(self, now: float) -> bool:
        """Return whether more has come in the window than the loop can end, if that is sure."""
        return self.adaptive and self._pace.is_sure and self._excess.exceeds(now, self.arrived, self._pace.usual)

    def _stands(self, now: float) -> bool:
        """Return whether the line stands in a calm of which it is sure what the loop can end in it."""
        if not self.adaptive or self.overloaded or self._trusted or not self._pace.is_sure:
            return False
        return len(self._line) > self._min and self._line.first_waits(now) > self._wait

    def _begin_overload(self, now: float) -> None:
        self.overloaded = True
        self._circle.begin(now, self.shed)
        self._usual_before = self._pace.usual
        self._left = 0
        self._shed_when_overloaded = self._shed_before
        log.warning("overload", waiting=len(self._line), in_flight=self.in_flight)
        if self._pace.is_sure and self._excess.is_far:
            self._refuse_first(now, min(self._min, SHORTEST))
        else:
            self._trim(now, self._min)

    def _end_moment(self, now: float) -> None:
        """End a moment in which nobody was refused, and with it the overload if there is nobody but a circle."""
        if not self._circle.is_closed:
            self._trim(now, 0, self._circle.held_at)
            return
        self._end_overload()
        self._pace.usual = self._usual_before  # what the loop could end beside so many refusals is not usual
        self._pace.forget()
        self._open_window(now)
        self._trusted = MEASURED + 1

    def _end_overload(self) -> None:
        self.overloaded = False
        log.info("overload is over", refused=self.shed - self._shed_when_overloaded)

    def _refuse_first(self, now: float, least: int) -> None:
        """Refuse the first of the line but for so many: they have waited for long, and hear of it late in any case."""
        line = self._line
        while len(line) > least:
            arrived, connection = line.popleft()
            if connection.waits:
                self.refuse(connection, now - arrived)

    def _trim(self, now: float, least: int, since: float = 0.0) -> None:
        """Refuse the latest of a line that is longer than it may be from now on: they hear of it soonest.

        So many may stay, and so may those who arrived before a time.
        """
        line = self._line
        while len(line) > least and line[-1][0] >= since and self.is_full(len(line)):
            arrived, connection = line.pop()
            if connection.waits:
                self.refuse(connection, now - arrived)


__all__ = ["Limit"]
