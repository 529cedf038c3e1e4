"""Whether an overload is nothing any more but clients who ask again as soon as they are refused.

A client in a circle asks when it has its answer. Sixty of them are served without a refusal, each after a tenth of a
second. But once they are refused, as something else was too much for a moment, they come back at once, and so they ask
for many times what the loop can end: they would be refused for good.

What tells them from an overload is that there are only so many of them. So for a moment now and then nobody is refused,
and those that come wait: clients in a circle are all there soon, and then only as many come as are answered, while of
an overload as many come as were refused before. The moment is shorter than a refusal may take: at its end whoever came
in it is refused.
"""

from __future__ import annotations

PERIOD_SECONDS = 1.0
FILL_SECONDS = 0.002
"""How long clients in a circle take until they are all there."""

HOLD_SECONDS = 0.006

MOMENTS, EXPECTED = 3, 2.0
"""So many moments, in which so many would have come to be refused, say something."""

MOST_EXPECTED = 4.0
"""What a moment counts at most: one with many says no more than one with a few."""

FADING = 0.6
"""What a moment counts beside the one after it."""

SHARE = 0.3
"""So much of what is expected may come of clients in a circle: what is in the loop comes and goes in heaps."""


class Circle:
    """A look at an overload. While ``holding``, which began at ``held_at``, nobody is to be refused."""

    __slots__ = (
        "_came",
        "_expected",
        "_filled_at",
        "_inside",
        "_moments",
        "_rate",
        "_shed",
        "_since",
        "held_at",
        "holding",
    )

    def __init__(self) -> None:
        self.begin(0.0, 0)

    def begin(self, now: float, shed: int) -> None:
        """Begin with an overload. ``shed`` is how many requests have been refused so far."""
        self.holding = False
        self.held_at = self._filled_at = self._rate = 0.0
        self._since, self._shed = now, shed
        self._came = self._expected = 0.0
        self._inside = self._moments = 0

    def turn(self, now: float, inside: int, shed: int) -> bool:
        """Look on, in each turn of the loop; return whether a moment without refusals ends with it.

        ``inside`` is how many requests are under way or wait.
        """
        if not self.holding:
            if self.held_at > self._since:  # those who came in the moment were refused after it
                self._since, self._shed = now, shed
            elif now - self._since >= PERIOD_SECONDS:
                self._rate = (shed - self._shed) / (now - self._since)
                self.holding = True
                self.held_at, self._filled_at = now, 0.0
        elif not self._filled_at:
            if now - self.held_at >= FILL_SECONDS:
                self._filled_at, self._inside = now, inside
        elif now - self.held_at >= HOLD_SECONDS:
            self.holding = False
            self._learn(inside - self._inside, self._rate * (now - self._filled_at))
            return True
        return False

    def _learn(self, came: int, expected: float) -> None:
        counts = min(expected, MOST_EXPECTED)
        self._came = FADING * self._came + counts * min(1.0, max(0.0, came / expected) if expected else 0.0)
        self._expected = FADING * self._expected + counts
        self._moments += 1

    @property
    def is_closed(self) -> bool:
        """Return whether hardly more come than are answered."""
        return self._moments >= MOMENTS and self._expected >= EXPECTED and self._came <= SHARE * self._expected


__all__ = ["Circle"]
