"""What stands around the attempts of a call: each one's time limit, and the queue for places.

Every layer of a guard is ``layer(run, index, values, timer)``, where ``timer`` is the step's timeout if it has one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from time import perf_counter
from typing import Any, TypeAlias

from orchestrator_core.errors import NotLetThrough, SourceTimeout, TooLittleTime, has_begun
from orchestrator_core.policies.breaker import Breaker
from orchestrator_core.policies.concurrency import Limiter, QueueFull, TooLate
from orchestrator_core.policies.policies import GuardedRun
from orchestrator_core.time_limits import TimeLimit, Timer

__all__ = ["Call", "Layer", "queued", "refusal", "timed"]

Call: TypeAlias = Callable[..., Awaitable[Any]]
Layer: TypeAlias = Callable[[GuardedRun, int, tuple[Any, ...], Timer | None], Awaitable[Any]]


def timed(call: Call, seconds: float, label: str) -> Call:
    """Return the call with a time limit. Raises :class:`SourceTimeout`."""

    limit = TimeLimit(seconds)

    async def timed(*values: Any) -> Any:
        timer = limit.begin()
        try:
            return await call(*values)
        except asyncio.CancelledError as error:
            if timer.caused():
                busy = not has_begun(error)
                how = "had no connection free" if busy else "did not answer"
                raise SourceTimeout(f"{label} {how} within {seconds:g} s", busy=busy) from None
            raise
        finally:
            limit.end(timer)

    return timed


def queued(layer: Layer, limiter: Limiter, breaker: Breaker | None, label: str, *, each: bool) -> Layer:
    """Return the layer for so many calls at once; the others wait for their turn."""

    async def queued(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        if limiter.running < limiter.max:
            limiter.running += 1
        else:
            await turn(run, index, timer)
        began = perf_counter()
        try:
            result = await layer(run, index, values, timer)
            limiter.took(perf_counter() - began)
            return result
        finally:
            limiter.leave()

    async def turn(run: GuardedRun, index: int, timer: Timer | None) -> None:
        if breaker is not None and breaker.refuses(run.id):
            raise refusal(breaker, run, index, label, each=each)
        began = perf_counter()
        note = run.note(index)
        try:
            await limiter.wait(lambda: min(run.deadline.remaining(), inf if timer is None else timer.remaining()))
        except (QueueFull, TooLate) as error:
            note.not_called(each=each)
            if isinstance(error, TooLate):
                message = f"{label} had a place for the call when there was too little time left for one"
                raise TooLittleTime(message, retry_after_seconds=1.0) from None
            message = f"{label} has {limiter.max} calls under way and {limiter.waiting} waiting, and takes no more"
            raise NotLetThrough(message, retry_after_seconds=1.0) from None
        except asyncio.CancelledError:
            note.not_called(each=each)
            raise
        finally:
            note.waited_seconds = max(note.waited_seconds, perf_counter() - began)

    return queued


def refusal(breaker: Breaker, run: GuardedRun, index: int, label: str, *, each: bool) -> NotLetThrough:
    """Return what is raised in place of a call, and note it."""
    breaker.refuse()
    note = run.note(index)
    note.breaker = "open"
    note.not_called(each=each)
    seconds = breaker.retry_after_seconds()
    message = (
        f"{label} has failed repeatedly and is left alone: its circuit breaker is {breaker.state.replace('_', ' ')}"
    )
    return NotLetThrough(message, retry_after_seconds=seconds)
