"""The circuit breaker: a source that keeps failing is left alone for a while, then asked by one call only.

It opens when the latest ``failures`` failures were in a row, or are all within ``window`` seconds and at least half of
the calls since the first of them. A call that succeeds costs one addition.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from orchestrator_core.policies.options import BreakerOptions

__all__ = ["Breaker", "BreakerState"]

BreakerState: TypeAlias = Literal["closed", "open", "half_open"]


class Breaker:
    """The breaker of one source. All times are seconds of ``clock``, which must not go back.

    Who calls reads ``era`` first. When it is not 0 the breaker is closed, and the call tells its end: ``calls += 1`` if
    the source answered, :meth:`failed` with that era if not. When it is 0, :meth:`probe` tells whether this call may be
    the probe; one that may ends with one of :meth:`close`, :meth:`reopen`, :meth:`rearm` and :meth:`let_go`. One that
    may not is refused, which :meth:`refuse` counts; but where the probe is a call of the same execution, whose id is
    ``of``, it can wait for what becomes of that: :meth:`probed`.

    Rows of several requests can be one call of a model, and one request's end cuts off all of its calls. That is one
    failure for all of them: each tells of which ``batch`` it was.

    An era ends when the breaker opens. What a call of an earlier era ends with says nothing about the source now, so
    it neither opens nor closes anything.

    ``turned`` is told when it has opened, and when it has closed again; not of probes that fail.
    """

    __slots__ = (
        "__weakref__",
        "_eras",
        "_failed",
        "_failures",
        "_failures_to_open",
        "_next_probe",
        "_probe_ended",
        "_probe_of",
        "_probing",
        "_reset",
        "_turned",
        "_window",
        "calls",
        "clock",
        "era",
        "open_since",
        "opened",
        "refused",
    )

    def __init__(
        self,
        options: BreakerOptions,
        clock: Callable[[], float],
        turned: Callable[[Breaker], None] = lambda breaker: None,
    ) -> None:
        self.clock = clock
        self.open_since = 0.0
        self.era = 1
        self.calls = 0
        self.opened = 0
        self.refused = 0
        self._eras = 1
        self._turned = turned
        self._failures_to_open = options.failures
        self._window = float(options.window)
        self._reset = float(options.reset)
        self._failed = 0
        self._failures: deque[tuple[float, int, int, object]] = deque(maxlen=options.failures)
        self._next_probe = 0.0
        self._probing = False
        self._probe_of = ""
        self._probe_ended: asyncio.Event | None = None

    @property
    def state(self) -> BreakerState:
        return "closed" if self.era else "half_open" if self._probing else "open"

    def failed(self, era: int, batch: object = None) -> None:
        """Note that a call failed which began in the era: by one failure with all its batch, if it has one."""
        self.calls += 1
        if era != self.era or not era:
            return
        self._failed += 1
        failures = self._failures
        if batch is not None and any(batch is one for _, _, _, one in failures):  # those of two can end by turns
            return
        now = self.clock()
        failures.append((now, self.calls, self._failed, batch))
        if len(failures) < self._failures_to_open:
            return
        first_at, calls, failed = failures[0][0], *self._since_the_first()
        if calls == failed or (calls <= 2 * failed and now - first_at <= self._window):
            self._open(now)

    def _since_the_first(self) -> tuple[int, int]:
        """Return how many calls there were since the first failure that counts, and how many of them failed."""
        _, first_call, first_failed, _ = self._failures[0]
        return self.calls - first_call + 1, self._failed - first_failed + 1

    def probe(self, of: str = "") -> bool:
        """Return whether a call may be the probe, while the breaker is not closed. It is one from then on."""
        if self._probing or self.clock() < self._next_probe:
            return False
        self._probing = True
        self._probe_of = of
        return True

    def is_probed_by(self, of: str) -> bool:
        """Return whether the probe is a call of that execution."""
        return self._probing and of != "" and of == self._probe_of

    async def probed(self) -> None:
        """Return when the probe that is under way has ended."""
        if self._probe_ended is None:
            self._probe_ended = asyncio.Event()
        await self._probe_ended.wait()

    def close(self) -> None:
        """Note that the probe was answered."""
        was_open = not self.era
        self._failures.clear()
        self._eras += 1
        self.era = self._eras
        self._end_probe()
        if was_open:
            self._turned(self)

    def reopen(self) -> None:
        """Note that the probe failed."""
        self._open(self.clock())

    def rearm(self) -> None:
        """Note that the probe was given up, such as when its client went away. The next one waits as long again."""
        self._next_probe = self.clock() + self._reset
        self._end_probe()

    def let_go(self) -> None:
        """Note that the probe never got as far as the source. The next call may be the probe."""
        self._end_probe()

    def refuses(self, of: str = "") -> bool:
        """Return whether a call of that execution would be refused now."""
        if self.era or self.is_probed_by(of):
            return False
        return self._probing or self.clock() < self._next_probe

    def refuse(self) -> None:
        """Note that a call is refused."""
        self.refused += 1

    def retry_after_seconds(self) -> float:
        """Return how long until a call may be let through; 0 when it may now."""
        if self.era:
            return 0.0
        return self._reset if self._probing else max(0.0, self._next_probe - self.clock())

    def failures(self) -> int:
        """Return how many failures count now."""
        since = self.clock() - self._window
        calls, failed = self._since_the_first() if self._failures else (1, 0)
        return len(self._failures) if calls == failed else sum(at >= since for at, *_ in self._failures)

    def describe(self) -> dict[str, Any]:
        return {
            "state": self.state,
            "failures": self.failures(),
            "opened": self.opened,
            "refused": self.refused,
            "retry_after_seconds": self.retry_after_seconds(),
        }

    def _open(self, now: float) -> None:
        was_closed = bool(self.era)
        self.era = 0
        self.opened += 1
        self._next_probe = now + self._reset
        self._end_probe()
        if was_closed:
            self.open_since = now
            self._turned(self)

    def _end_probe(self) -> None:
        self._probing = False
        if self._probe_ended is not None:
            self._probe_ended.set()
            self._probe_ended = None
