"""How often a container was started in a row without staying up, counted over all processes that share it.

The count is noted in the container's lease, so that four processes that each try a few times do not start a broken
container four times as often.
"""

from __future__ import annotations

import os
from time import time
from typing import Any

from orchestrator_core.plugin_api import Lease, OpenContext, SourceUnavailable

STAYED_UP_SECONDS = 10.0
"""A container that was ready for so long has started well; what ends it then is no failed start."""

_PROCESS_BEGAN = time()
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 15.0


class Starts:
    """The notes of one container. Use inside of the lease's ``exclusive()``."""

    def __init__(self, lease: Lease, context: OpenContext) -> None:
        self._lease = lease
        self._limit = context.max_starts
        self._asked_for = context.failed_starts == 0

    def claim(self) -> None:
        """Note since when these settings are wanted, for the case that two containers need the same port."""
        state = self._lease.state()
        if "since" not in state:
            self._lease.note({**state, "since": time()})

    def pause(self) -> float:
        """Return how many seconds the next start has to wait: none after a success, more after each failure.

        Raises ``SourceUnavailable`` when the container has failed too often. The count begins anew when somebody asks
        for the model in a process that has seen that, or in one that began later.
        """
        state = self._lease.state()
        count, me = int(state.get("count", 0)), _this_process()
        if not count:
            return 0.0
        spent, told = count >= self._limit, state.get("told", [])
        began_later = state.get("started", 0.0) < _PROCESS_BEGAN and (spent or self._lease.last())
        if self._asked_for and ((spent and me in told) or began_later):
            self._forget(state)
            return 0.0
        if spent:
            self._lease.note({**state, "told": [*told, me]})
            why = f"it was started {count} times in a row and did not stay up; {state.get('why', '')}"
            raise SourceUnavailable(why, started=True)
        wait = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0 ** (count - 1)) / 2
        return max(0.0, float(state.get("failed", 0.0)) + wait - time())

    def started(self) -> None:
        state = self._lease.state()
        self._lease.note({**state, "count": int(state.get("count", 0)) + 1, "started": time(), "ready": 0.0})

    def ready(self) -> None:
        state = self._lease.state()
        if not state.get("ready"):
            self._lease.note({**state, "ready": time()})

    def ended(self, why: str, ended_at: float, *, by_others: bool = False) -> None:
        """Note that the container has ended, and why. One that was ready and ended by others has not failed."""
        state = self._lease.state()
        if state.get("ready") and (by_others or ended_at - state["ready"] >= STAYED_UP_SECONDS):
            self._forget(state)
            return
        self._lease.note({**state, "ready": 0.0, "failed": time(), "why": why})

    def gone(self) -> None:
        """Note that there is no container: the one that was ready, if there was one, has been removed by somebody."""
        state = self._lease.state()
        if state.get("ready"):
            self._forget(state)

    def seen(self) -> None:
        """Note that this process knows of the last failure."""
        state = self._lease.state()
        if int(state.get("count", 0)) >= self._limit and _this_process() not in state.get("told", []):
            self._lease.note({**state, "told": [*state.get("told", []), _this_process()]})

    def clear(self) -> None:
        """Forget everything: the container was stopped because nobody wants it any more."""
        self._lease.note({})

    def _forget(self, state: dict[str, Any]) -> None:
        self._lease.note({"since": state.get("since", time())})


def _this_process() -> str:
    return f"{os.getpid()}-{_PROCESS_BEGAN:.3f}"
