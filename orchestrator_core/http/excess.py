"""Whether more comes than the loop can end, and for so long that it is an overload and no burst."""

from __future__ import annotations

FADING = 0.7
"""What a window counts beside the one after it: what ends together makes one of them look idle."""

CROWDED_WINDOWS = 2

RUSH = 1.75
"""A line grows fast if so many times as much comes as is ended: in an overload, or where the core is slow."""

LASTING_WINDOWS = 8
"""It is an overload when the line has grown fast for so many windows: for a slow moment nobody is refused."""

TOO_MUCH, GROWS = 1.5, 1.3
"""It is one at once if so many times as much comes as the loop can usually end, and as is ended now."""

FAR_TOO_MUCH = 4.0
"""A single window is enough if so many times as much comes as the loop can usually end."""

PART_SECONDS, SUSTAINED_PARTS = 0.01, 3
"""It is one, too, if too much comes in so many parts of a window in a row, where it is sure what the loop can end."""


class Excess:
    """What has come of late, beside what was ended and what could usually be.

    ``is_far`` says that far too much came in one of those parts in a row in which too much did: when all connections
    wait, little more is read.
    """

    __slots__ = (
        "_arrived",
        "_came",
        "_could",
        "_crowded",
        "_ended",
        "_excess",
        "_part",
        "_rushed",
        "_sustained",
        "is_far",
    )

    def __init__(self) -> None:
        self._part = 0.0
        self._arrived = self._sustained = 0
        self.is_far = False
        self.forget()

    def begin(self, now: float, arrived: int) -> None:
        """Begin with the parts; so many requests have arrived so far."""
        self._part, self._arrived, self._sustained = now, arrived, 0
        self.is_far = False

    def exceeds(self, now: float, arrived: int, usual: float) -> bool:
        """Return whether too much has come since the beginning, by what is usually ended a second."""
        return arrived - self._arrived > TOO_MUCH * usual * (now - self._part)

    def forget(self) -> None:
        """Forget the windows: the line does not stand."""
        self._crowded = self._rushed = self._excess = 0
        self._came = self._ended = self._could = 0.0

    def is_sustained(self, now: float, arrived: int, usual: float) -> bool:
        """Return whether too much has come steadily, with so many arrived by now and so many usually ended a second."""
        seconds = now - self._part
        if seconds >= PART_SECONDS:
            came = arrived - self._arrived
            self._part, self._arrived = now, arrived
            self._sustained = self._sustained + 1 if came > TOO_MUCH * usual * seconds else 0
            self.is_far = self._sustained > 0 and (self.is_far or came > FAR_TOO_MUCH * usual * seconds)
        return self._sustained >= SUSTAINED_PARTS

    def is_overload(self, came: int, ended: int, could: float, sure: bool, refused: bool) -> bool:
        """Return whether it is an overload, after a window in which the line stood.

        So many came and were ended in it, so many could usually have been, and somebody was ``refused``.
        """
        self._came = FADING * self._came + came
        self._ended = FADING * self._ended + ended
        self._could = FADING * self._could + could
        grows = GROWS if sure else RUSH  # not only because the loop is slow
        too_much = self._came > TOO_MUCH * self._could and self._came > grows * self._ended
        self._excess = self._excess + 1 if too_much else 0
        self._rushed = self._rushed + 1 if self._came > RUSH * self._ended else 0
        self._crowded = self._crowded + 1 if refused else 0
        enough = 1 if self._came > FAR_TOO_MUCH * self._could > 0 else CROWDED_WINDOWS
        return self._crowded >= CROWDED_WINDOWS or self._excess >= enough or self._rushed >= LASTING_WINDOWS


__all__ = ["Excess"]
