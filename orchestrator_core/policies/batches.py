"""One call that was made for the rows of several callers: what it failed with, each of them gets."""

from __future__ import annotations

import asyncio

_MARK = "batch"


class Again:
    """Whether a call for several callers is made once more, and the moment for it: their rows are one call again."""

    __slots__ = ("granted", "moment", "pause")

    def __init__(self, pause: float, *, granted: bool) -> None:
        self.pause = pause
        self.granted = granted
        self.moment = asyncio.Event()
        if granted:
            asyncio.get_running_loop().call_later(pause, self.moment.set)


class Batch:
    """A call that has failed for all of its callers. ``again`` is what the first that may try again decides for all."""

    __slots__ = ("again",)

    def __init__(self) -> None:
        self.again: Again | None = None


def mark(error: BaseException) -> None:
    """Note with an error that it is one failure, and not one of each caller that gets it."""
    vars(error)[_MARK] = Batch()


def batch_of(error: BaseException) -> Batch | None:
    """Return the call for several callers that failed with an error, if it was one."""
    found: Batch | None = getattr(error, _MARK, None)
    return found


__all__ = ["Again", "Batch", "batch_of", "mark"]
