"""How many requests a second the event loop can end, measured by its own CPU time for each that ends."""

from __future__ import annotations

from collections.abc import Callable

MEASURED = 4
"""So many windows until what is measured is believed, where somebody would be refused for it."""

UNKNOWN = 2.0**62
"""More than any loop can end, and finite, since it is multiplied with times that may be 0."""

LAG_SECONDS = 0.01
"""How long the loop may lag before fewer are let in than it can end."""

AMPLE, LEAST_SHARE = 1.05, 0.3
"""Of what the loop can end, so much is let in: while the lag is short, as it may be able to do more, and while long."""

KEPT = 0.6
"""So much of what the loop can usually end is thought possible beside refusals: they come first, and many at once."""

FADING = 0.8
"""What a window counts beside the one after it."""

SURE = 40
"""In so many windows the usual pace is measured for a second, which no slow moment of the core is."""

LEARNING = 0.03
"""What a window counts in the usual pace, of which the last half second is a half."""

BUSY = 0.5
"""So much of a while in a calm the loop has to work: the less it does, the more of that is not for the requests."""

LEAST_SECONDS, LEARNING_AT_ONCE = 0.5, 0.7
"""How long a while is at least, and what it counts in the usual pace: as much as the windows of a second."""


class Pace:
    """The pace of one event loop, measured over windows of its time, each of many turns.

    ``rate`` is how many requests a second may be let in, or ``UNKNOWN``. ``windows`` are those it was measured in, and
    ``begun`` says that the next one will be. ``usual`` is what the loop has been able to end in a second for the
    last few, 0 where that is not known: where the core is slow for a moment, this is not.
    """

    __slots__ = (
        "_calm",
        "_cpu_before",
        "_cpu_seconds",
        "_ended",
        "_known",
        "_lags",
        "_seconds",
        "_turned_at",
        "rate",
        "usual",
        "windows",
    )

    def __init__(self, cpu_seconds: Callable[[], float]) -> None:
        self._cpu_seconds = cpu_seconds
        self._turned_at = self._lags = 0.0
        self.rate = UNKNOWN
        self.usual = 0.0
        self._known = 0
        self._calm: tuple[float, float, int] | None = None
        self.forget()

    @property
    def begun(self) -> bool:
        return self._cpu_before is not None

    @property
    def is_sure(self) -> bool:
        """Return whether ``usual`` is more than what the loop could end in one slow moment."""
        return self._known >= SURE

    def begin(self) -> None:
        """Begin to measure. Until there is another, the rate is the usual one, if that is sure."""
        self.rate = AMPLE * self.usual if self.is_sure else UNKNOWN
        self._calm = None
        self.forget()

    def look(self, now: float, ended: int) -> None:
        """Learn from the calm since the last look what the loop can usually end; so many requests have ended by now."""
        before, cpu = self._calm, self._cpu_seconds()
        self._calm = now, cpu, ended
        if before is None or now - before[0] < LEAST_SECONDS:
            return
        worked, count = cpu - before[1], ended - before[2]
        if worked > BUSY * (now - before[0]) and count > 0:
            self._known += SURE
            self.usual += (count / worked - self.usual) * (LEARNING_AT_ONCE if self.usual else 1.0)

    def forget(self) -> None:
        """Measure anew; the rate stays until there is another."""
        self._seconds = self._ended = 0.0
        self._cpu_before: float | None = None
        self.windows = 0

    def begin_turn(self, now: float) -> None:
        self._turned_at = now

    def end_turn(self, now: float, rested: float) -> None:
        """End a turn of which somebody has rested for so many seconds, as others had to go on first."""
        seconds = now - self._turned_at
        self._lags += seconds * max(seconds, rested)  # over the time that a window takes: its mean lag, by time
        self._turned_at = now

    def open_window(self) -> None:
        self._lags = 0.0

    def close_window(self, seconds: float, ended: int, adaptive: bool, calm: bool) -> None:
        """Learn from a window of so many seconds what a request takes of the loop's time, and so how many it can end.

        The lag is how long the turns are, or how long somebody has rested for them to be short, on average over the
        time. It is long where those that were let in before come back together, or another process has the core.
        """
        before, self._cpu_before = self._cpu_before, self._cpu_seconds()
        if before is None:
            return
        self.windows += 1
        self._seconds = FADING * self._seconds + self._cpu_before - before
        self._ended = FADING * self._ended + ended
        share = 1.0 - (self._lags / seconds - LAG_SECONDS) / (5 * LAG_SECONDS)
        if not adaptive or self._ended < 1 or self._seconds <= 0:
            if not adaptive or self.windows >= MEASURED:
                self.rate = UNKNOWN
            return
        can = self._ended / self._seconds
        if self.windows >= MEASURED:
            self._known += 1
            self.usual += (can - self.usual) * (LEARNING if self.usual else 1.0)
        self.rate = max(LEAST_SHARE, min(AMPLE, share)) * max(can, self.usual if calm else KEPT * self.usual)


__all__ = ["MEASURED", "UNKNOWN", "Pace"]
