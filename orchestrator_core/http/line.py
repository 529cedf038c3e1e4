"""Those that wait for their turn in the order in which they came, and how many of them may be let in by now."""

from __future__ import annotations

from collections import deque
from math import inf
from typing import Protocol

CATCH_UP_SECONDS = 0.02
"""Those that could have been let in so long before are let in later: while turns are long, nobody is."""

HEAP_SECONDS = 0.005
"""What is worked off in so long may be let in in one turn, and one request, however much there is to catch up."""


class Waiting(Protocol):
    """A connection whose request waits to be let in. ``waits`` turns false when there is nobody left to let in."""

    waits: bool

    def let_in(self) -> None: ...
    def refuse(self, waited_seconds: float) -> None: ...


class Line(deque[tuple[float, Waiting]]):
    """The times at which they came, and they themselves.

    ``let_in`` are those let in since the window was opened, and ``least_wait`` is how long the one of them waited that
    waited least, in seconds.
    """

    __slots__ = ("_due", "_due_at", "least_wait", "let_in")

    def __init__(self) -> None:
        super().__init__()
        self._due = self._due_at = 0.0
        self.open_window()

    def open_window(self) -> None:
        self.let_in = 0
        self.least_wait = inf

    def first_waits(self, now: float) -> float:
        """Return for how many seconds the first has waited."""
        return now - self[0][0]

    def due(self, now: float, rate: float) -> int:
        """Return how many may be let in by the pace: not all that is to be caught up at once, as a heap stays one."""
        self._due = min(self._due + (now - self._due_at) * rate, max(2.0, rate * CATCH_UP_SECONDS))
        self._due_at = now
        return int(min(self._due, max(1.0, rate * HEAP_SECONDS)))

    def admit(self, now: float, most: int) -> int:
        """Let in the first of them; return how many there were."""
        count = 0
        while self and count < most:
            arrived, connection = self.popleft()
            if not connection.waits:
                continue
            if now - arrived < self.least_wait:
                self.least_wait = now - arrived
            connection.let_in()
            count += 1
        self._due -= count
        self.let_in += count
        return count


__all__ = ["Line", "Waiting"]
