"""How many requests may be sent again below all policies, because their kept-alive connection turned out to be closed.

That is the protocol's own affair (RFC 9112, 9.3.1) as long as it is rare. A peer that answers a request on each
connection and closes it on the next would be sent everything twice: its connections are then used once each.
"""

from __future__ import annotations

SHARE = 0.2
"""So many for each answer of a window of time, in the next one."""

FEW = 10
"""So many there may be in any window: the peer was started anew, and has closed all connections at once."""

WINDOW_SECONDS = 10.0


class Resends:
    """What one origin has been sent again. Whoever asks has counted its answers."""

    __slots__ = ("_allowed", "_answers", "_began_at")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._answers = 0
        self._allowed = FEW

    def take(self, now: float, answers: int) -> bool:
        """Count one more, of an origin that has answered so many by now; return whether that is no more than usual."""
        passed = now - self._began_at
        if passed > WINDOW_SECONDS:
            of_a_window = (answers - self._answers) * WINDOW_SECONDS / passed
            self._began_at, self._answers, self._allowed = now, answers, max(FEW, int(SHARE * of_a_window))
        if not self._allowed:
            return False
        self._allowed -= 1
        return True


__all__ = ["FEW", "SHARE", "WINDOW_SECONDS", "Resends"]
