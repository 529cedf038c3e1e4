"""The attempts of one call: the breaker is asked and told, and what failed for a while is tried again.

The way of a call that succeeds is kept short; all else is in :class:`_Attempts`.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from math import inf
from time import perf_counter
from typing import Any

from orchestrator_core.errors import (
    EntityNotFound,
    OrchestratorError,
    Refused,
    SourceError,
    SourceUnavailable,
    has_begun,
)
from orchestrator_core.policies.batches import Again, batch_of
from orchestrator_core.policies.breaker import Breaker
from orchestrator_core.policies.layers import Call, Layer, refusal
from orchestrator_core.policies.options import RetryOptions
from orchestrator_core.policies.policies import GuardedRun
from orchestrator_core.policies.retry import RetryBudget, pause_seconds
from orchestrator_core.tasks import ends_task, fault_of
from orchestrator_core.time_limits import Timer

__all__ = ["attempts", "is_failure"]

PROBE_OUTLASTS_SECONDS = 0.25
"""How long a probe may still be answered when its request has ended otherwise, within the request's own time."""


def is_failure(error: object) -> bool:
    """Return whether an error says that the source is down: it did not answer, or said that it cannot now.

    An answer that cannot be used, and a refusal that would be the same again, come from a source that is there: to
    leave it alone would only change what its callers are told. So does a pool of ours that is used up: after a burst of
    slow calls the source is as well as before.
    """
    if isinstance(error, SourceError):
        return error.transient and not error.answered and not error.busy
    if isinstance(error, SourceUnavailable):
        return not isinstance(error, Refused) and (error.transient or not error.busy)
    return isinstance(error, TimeoutError)


def attempts(
    call: Call,
    breaker: Breaker | None,
    retry: RetryOptions | None,
    budget: RetryBudget | None,
    label: str,
    *,
    each: bool,
    batched: bool = False,
) -> Layer:
    """Return the innermost layer. ``retry`` and ``budget`` are given where the call may be tried again.

    What is ``batched`` is counted in the budget by what makes the batches.
    """
    if breaker is None and budget is None:
        return lambda run, index, values, timer: call(*values)
    others = _Attempts(call, breaker, retry, budget, label, each=each, batched=batched)
    if budget is None:
        return _with_breaker(call, breaker, others)  # type: ignore[arg-type]  # one of the two is there
    return _with_both(call, breaker, budget, others) if breaker is not None else _with_budget(call, budget, others)


def _with_both(call: Call, breaker: Breaker, budget: RetryBudget, others: _Attempts) -> Layer:
    clock, counted = budget.clock, others.counted

    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        era = breaker.era
        if not era and not (era := await others.admitted(run, index)):
            return await others.probe(run, index, values, timer)
        began = clock()
        if began >= budget.ends_at:
            budget.renew()
        budget.calls += counted
        try:
            result = await call(*values)
        except BaseException as error:
            return await others.after(error, clock() - began, run, index, values, timer, era)
        breaker.calls += 1
        return result

    return attempt


def _with_breaker(call: Call, breaker: Breaker, others: _Attempts) -> Layer:
    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        era = breaker.era
        if not era and not (era := await others.admitted(run, index)):
            return await others.probe(run, index, values, timer)
        began = perf_counter()
        try:
            result = await call(*values)
        except BaseException as error:
            return await others.after(error, perf_counter() - began, run, index, values, timer, era)
        breaker.calls += 1
        return result

    return attempt


def _with_budget(call: Call, budget: RetryBudget, others: _Attempts) -> Layer:
    clock, counted = budget.clock, others.counted

    async def attempt(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        began = clock()
        if began >= budget.ends_at:
            budget.renew()
        budget.calls += counted
        try:
            return await call(*values)
        except BaseException as error:
            return await others.after(error, clock() - began, run, index, values, timer, 0)

    return attempt


class _Attempts:
    """What is done when an attempt has not simply succeeded."""

    __slots__ = ("breaker", "budget", "call", "counted", "each", "label", "retry")

    def __init__(
        self,
        call: Call,
        breaker: Breaker | None,
        retry: RetryOptions | None,
        budget: RetryBudget | None,
        label: str,
        *,
        each: bool,
        batched: bool,
    ) -> None:
        self.counted = 0 if batched else 1
        self.call = call
        self.breaker = breaker
        self.retry = retry
        self.budget = budget
        self.label = label
        self.each = each

    async def admitted(self, run: GuardedRun, index: int) -> int:
        """Return the era that the call may be made in, 0 for the probe, or raise :class:`NotLetThrough`.

        The other calls of the execution that the probe is of wait for its end, and go on if the source answered. Were
        they refused, a request of several calls could not succeed before one of a single call has closed the breaker.
        """
        breaker = self.breaker
        assert breaker is not None
        while not breaker.era and not breaker.probe(run.id):
            if not breaker.is_probed_by(run.id):
                raise refusal(breaker, run, index, self.label, each=self.each)
            note, began = run.note(index), perf_counter()
            try:
                await breaker.probed()
            except asyncio.CancelledError:
                note.not_called(each=self.each)
                raise
            finally:
                note.waited_seconds = max(note.waited_seconds, perf_counter() - began)
        return breaker.era

    async def probe(self, run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        """Make the one attempt that an open breaker lets through.

        It is a task of its own, so that the source has a moment to answer when the request fails meanwhile by another
        step. Else an endpoint that keeps failing would give up every probe, and the breaker stay open for all others.
        """
        if self.budget is not None and self.counted:
            self.budget.count()
        run.note(index).breaker = "half_open"
        probe = asyncio.create_task(self.probed(run, index, values, timer), name=f"probe of {self.label}")
        try:
            await asyncio.wait([probe])
        except asyncio.CancelledError:
            await _outlast(probe, run, timer)
            raise
        try:
            return probe.result()
        finally:
            del probe  # what it raised has a traceback with this frame: they would keep each other

    async def probed(self, run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        """Make the call, and tell the breaker what became of it."""
        breaker = self.breaker
        assert breaker is not None
        began = perf_counter()
        try:
            result = await self.call(*values)
        except BaseException as error:
            error = _of_source(error)
            run.note(index).attempt_failed(perf_counter() - began, error)
            if is_failure(error) or _in_time_out(error, run, timer):
                breaker.reopen()
            elif _is_answer(error):
                breaker.close()
            elif isinstance(error, Exception) or not has_begun(error):
                breaker.let_go()
            else:
                breaker.rearm()
            raise error
        breaker.close()
        return result

    async def after(
        self,
        error: BaseException,
        seconds: float,
        run: GuardedRun,
        index: int,
        values: tuple[Any, ...],
        timer: Timer | None,
        era: int,
    ) -> Any:
        """Go on after the first attempt failed: return what a further one returns, or raise what the last raised.

        ``seconds`` is how long the first took.
        """
        made = 1
        try:
            while True:
                error = _of_source(error)
                run.note(index).attempt_failed(seconds, error)
                self.tell_breaker(error, run, timer, era)
                if not await self.may_try_again(error, made, run, timer, era):
                    raise error
                made += 1
                run.note(index).attempts += 1
                began = perf_counter()
                try:
                    result = await self.call(*values)
                except BaseException as again:
                    error, seconds = again, perf_counter() - began
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
        if is_failure(error):
            breaker.failed(era, batch_of(error))
        elif _in_time_out(error, run, timer):  # of all calls that one request's end cuts off, and says little of each
            breaker.failed(era, run.id or None)
        elif _is_answer(error):
            breaker.calls += 1

    async def may_try_again(
        self, error: BaseException, made: int, run: GuardedRun, timer: Timer | None, era: int
    ) -> bool:
        """Return, after the pause, whether there is another attempt."""
        retry, budget, breaker = self.retry, self.budget, self.breaker
        if retry is None or budget is None or made >= retry.attempts:
            return False
        if not isinstance(error, OrchestratorError) or not error.transient:
            return False
        if breaker is not None and breaker.era != era:
            return False
        batch = batch_of(error)
        agreed = batch.again if batch is not None else None
        pause = agreed.pause if agreed is not None else pause_seconds(retry, made, error.retry_after_seconds)
        if pause is None or run.deadline.remaining() <= pause or (timer is not None and timer.remaining() <= pause):
            return False
        if batch is not None and agreed is None:
            agreed = batch.again = Again(pause, granted=self.is_granted(budget))
        if not (self.is_granted(budget) if agreed is None else agreed.granted):
            return False
        await (asyncio.sleep(pause) if agreed is None else agreed.moment.wait())
        return breaker is None or breaker.era == era

    def is_granted(self, budget: RetryBudget) -> bool:
        granted = budget.take()
        if granted and not self.counted:
            budget.owe()  # the batcher will count it
        return granted


def _of_source(error: BaseException) -> BaseException:
    """Return a failure of the source in place of a cancellation that is none of the request's, an exit or a panic."""
    return error if ends_task(error) else fault_of(error)


def _is_answer(error: BaseException) -> bool:
    """Return whether the source is there, as to say what it did."""
    return isinstance(error, EntityNotFound) or (isinstance(error, SourceError) and not error.busy)


def _in_time_out(error: BaseException, run: GuardedRun, timer: Timer | None) -> bool:
    """Return whether a call was cancelled because the time of its request or step was up."""
    return isinstance(error, asyncio.CancelledError) and has_begun(error) and _is_up(run, timer)


def _is_up(run: GuardedRun, timer: Timer | None) -> bool:
    return run.deadline.passed or (timer is not None and timer.passed)


async def _outlast(probe: asyncio.Task[Any], run: GuardedRun, timer: Timer | None) -> None:
    """Wait for a probe whose caller is cancelled, but not beyond the caller's time; end it then."""
    try:
        if not _is_up(run, timer):
            left = min(run.deadline.remaining(), inf if timer is None else timer.remaining())
            await asyncio.wait([probe], timeout=max(0.0, min(left, PROBE_OUTLASTS_SECONDS)))
    finally:
        probe.cancel()
        while not probe.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([probe])
        if not probe.cancelled():
            probe.exception()  # seen: the breaker has been told
