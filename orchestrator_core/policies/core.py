"""The attempts of one call: the breaker is asked and told, and what failed for a while is tried again.

Every layer of a guard is ``layer(run, index, values, timer)``, where ``timer`` is the step's timeout if it has one. The
way of a call that succeeds is kept short; all else is in :class:`_Attempts`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, TypeAlias

from orchestrator_core.errors import EntityNotFound, NotBegun, Refused, SourceError, SourceTimeout, SourceUnavailable
from orchestrator_core.policies.breaker import Breaker
from orchestrator_core.policies.concurrency import Limiter, QueueFull
from orchestrator_core.policies.options import RetryOptions
from orchestrator_core.policies.policies import GuardedRun
from orchestrator_core.policies.retry import RetryBudget, pause_seconds
from orchestrator_core.time_limits import TimeLimit, Timer

__all__ = ["Call", "Layer", "attempts", "is_failure", "queued", "timed"]

Call: TypeAlias = Callable[..., Awaitable[Any]]
Layer: TypeAlias = Callable[[GuardedRun, int, tuple[Any, ...], Timer | None], Awaitable[Any]]


def is_failure(error: object) -> bool:
    """Return whether an error says that the source is down: it did not answer, or said that it cannot now.

    An answer that cannot be used, and a refusal that would be the same again, come from a source that is there: to
    leave it alone would only change what its callers are told.
    """
    if isinstance(error, SourceError):
        return error.transient and not error.answered
    return isinstance(error, SourceUnavailable | TimeoutError) and not isinstance(error, Refused)


def timed(call: Call, seconds: float, label: str) -> Call:
    """Return the call with a time limit. Raises :class:`SourceTimeout`."""

    limit = TimeLimit(seconds)

    async def timed(*values: Any) -> Any:
        timer = limit.begin()
        try:
            return await call(*values)
        except asyncio.CancelledError:
            if timer.caused():
                raise SourceTimeout(f"{label} did not answer within {seconds:g} s") from None
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
            await turn(run, index)
        try:
            return await layer(run, index, values, timer)
        finally:
            limiter.leave()

    async def turn(run: GuardedRun, index: int) -> None:
        if breaker is not None and breaker.refuses():
            raise refusal(breaker, run, index, label, each=each)
        began = perf_counter()
        note = run.note(index)
        try:
            await limiter.wait()
        except QueueFull:
            if not each:
                note.attempts = 0
            message = f"{label} has {limiter.max} calls under way and {limiter.waiting} waiting, and takes no more"
            raise Refused(message, retry_after_seconds=1.0) from None
        except asyncio.CancelledError:
            if not each:
                note.attempts = 0
            raise
        finally:
            note.waited_seconds = max(note.waited_seconds, perf_counter() - began)

    return queued


def refusal(breaker: Breaker, run: GuardedRun, index: int, label: str, *, each: bool) -> Refused:
    """Return what is raised in place of a call, and note it."""
    note = run.note(index)
    note.breaker = "open"
    if not each:
        note.attempts = 0
    seconds = breaker.retry_after_seconds()
    message = (
        f"{label} has failed repeatedly and is left alone: its circuit breaker is {breaker.state.replace('_', ' ')}"
    )
    return Refused(message, retry_after_seconds=seconds)


def attempts(
    call: Call,
    breaker: Breaker | None,
    retry: RetryOptions | None,
    budget: RetryBudget | None,
    label: str,
    *,
    each: bool,
) -> Layer:
    """Return the innermost layer. ``retry`` and ``budget`` are given where the call may be tried again."""
    if breaker is None and budget is None:
        return lambda run, index, values, timer: call(*values)
    others = _Attempts(call, breaker, retry, budget, label, each=each)
    if budget is None:
        return _with_breaker(call, breaker, others)  # type: ignore[arg-type]  # one of the two is there
    return _with_both(call, breaker, budget, others) if breaker is not None else _with_budget(call, budget, others)


def _with_both(call: Call, breaker: Breaker, budget: RetryBudget, others: _Attempts) -> Layer:
    clock = budget.clock

    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        era = breaker.era
        if not era:
            return await others.probe(run, index, values, timer)
        if clock() >= budget.ends_at:
            budget.renew()
        budget.calls += 1
        try:
            result = await call(*values)
        except BaseException as error:
            return await others.after(error, run, index, values, timer, era)
        breaker.calls += 1
        return result

    return attempt


def _with_breaker(call: Call, breaker: Breaker, others: _Attempts) -> Layer:
    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        era = breaker.era
        if not era:
            return await others.probe(run, index, values, timer)
        try:
            result = await call(*values)
        except BaseException as error:
            return await others.after(error, run, index, values, timer, era)
        breaker.calls += 1
        return result

    return attempt


def _with_budget(call: Call, budget: RetryBudget, others: _Attempts) -> Layer:
    clock = budget.clock

    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        if clock() >= budget.ends_at:
            budget.renew()
        budget.calls += 1
        try:
            return await call(*values)
        except Exception as error:
            return await others.after(error, run, index, values, timer, 0)

    return attempt


class _Attempts:
    """What is done when an attempt has not simply succeeded."""

    __slots__ = ("breaker", "budget", "call", "each", "label", "retry")

    def __init__(
        self,
        call: Call,
        breaker: Breaker | None,
        retry: RetryOptions | None,
        budget: RetryBudget | None,
        label: str,
        *,
        each: bool,
    ) -> None:
        self.call = call
        self.breaker = breaker
        self.retry = retry
        self.budget = budget
        self.label = label
        self.each = each

    async def probe(self, run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        """Make the one attempt that an open breaker lets through, or raise :class:`Refused`."""
        breaker = self.breaker
        assert breaker is not None
        if not breaker.probe():
            raise refusal(breaker, run, index, self.label, each=self.each)
        if self.budget is not None:
            self.budget.count()
        try:
            run.note(index).breaker = "half_open"
            result = await self.call(*values)
        except BaseException as error:
            if is_failure(error) or _in_time_out(error, run, timer):
                breaker.reopen()
            elif isinstance(error, EntityNotFound | SourceError):  # it did answer
                breaker.close()
            elif isinstance(error, Exception):
                breaker.let_go()
            else:
                breaker.rearm()
            raise
        breaker.close()
        return result

    async def after(
        self,
        error: BaseException,
        run: GuardedRun,
        index: int,
        values: tuple[Any, ...],
        timer: Timer | None,
        era: int,
    ) -> Any:
        """Go on after the first attempt failed: return what a further one returns, or raise what the last raised."""
        made = 1
        try:
            while True:
                self.tell_breaker(error, run, timer, era)
                if not await self.may_try_again(error, made, run, timer, era):
                    raise error
                made += 1
                run.note(index).attempts += 1
                try:
                    result = await self.call(*values)
                except BaseException as again:
                    error = again
                else:
                    if self.breaker is not None:
                        self.breaker.calls += 1
                    return result
        finally:
            del error  # its traceback has this frame: they would keep each other

    def tell_breaker(self, error: BaseException, run: GuardedRun, timer: Timer | None, era: int) -> None:
        breaker = self.breaker
        if breaker is None:
            return
        if is_failure(error) or _in_time_out(error, run, timer):
            breaker.failed(era)
        elif isinstance(error, EntityNotFound | SourceError):
            breaker.calls += 1

    async def may_try_again(
        self, error: BaseException, made: int, run: GuardedRun, timer: Timer | None, era: int
    ) -> bool:
        """Return, after the pause, whether there is another attempt."""
        retry, budget, breaker = self.retry, self.budget, self.breaker
        if retry is None or budget is None or made >= retry.attempts:
            return False
        if not isinstance(error, SourceError) or not error.transient:
            return False
        if breaker is not None and breaker.era != era:
            return False
        pause = pause_seconds(retry, made)
        if run.deadline.remaining() <= pause or (timer is not None and timer.remaining() <= pause):
            return False
        if not budget.take():
            return False
        await asyncio.sleep(pause)
        return breaker is None or breaker.era == era


def _in_time_out(error: BaseException, run: GuardedRun, timer: Timer | None) -> bool:
    """Return whether a call was cancelled because the time of its request or step was up."""
    if not isinstance(error, asyncio.CancelledError) or isinstance(error, NotBegun):
        return False
    return run.deadline.passed or (timer is not None and timer.passed)
