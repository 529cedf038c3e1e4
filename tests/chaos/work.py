"""Work that takes CPU: so much as fits a time while the core is at its best."""

from __future__ import annotations

from time import thread_time

_ROUNDS = 20_000


def compute(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += number & 7
    return total


class Work:
    """Takes ``seconds`` of CPU while the core is at its best, and as much longer as it is not."""

    def __init__(self, seconds: float) -> None:
        self._rounds = int(_ROUNDS * seconds / min(_seconds(_ROUNDS) for _ in range(10)))

    def compute(self) -> int:
        return compute(self._rounds)


def _seconds(rounds: int) -> float:
    started = thread_time()
    compute(rounds)
    return thread_time() - started
