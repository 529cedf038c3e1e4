"""The policies around one step's call, made one coroutine function at load.

From the outside in: capture, what is done instead of a refused call, cache, the step's timeout, the queue, the breaker,
the attempts within their budget, the timeout of each. What is off is not there. (The queue asks the breaker before it
lets a call wait.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from orchestrator_core.blame import describe
from orchestrator_core.errors import OrchestratorError, SourceError, SourceUnavailable
from orchestrator_core.policies.attempts import attempts, is_failure
from orchestrator_core.policies.cached import cached, cached_at_once
from orchestrator_core.policies.keys import KeyOf, choose, key_of, key_of_one
from orchestrator_core.policies.layers import Call, Layer, queued, timed
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.policies.options import CacheOptions
from orchestrator_core.policies.policies import Capture, GuardedRun, Policies
from orchestrator_core.policies.state import SourceState
from orchestrator_core.time_limits import TimeLimit, Timer, within

__all__ = ["make_guard", "make_guard_at_once"]


def make_guard(
    call: Call,
    policies: Policies,
    state: SourceState,
    *,
    label: str,
    operation: str,
    names: Sequence[str],
    idempotent: bool,
    each: bool = False,
    batched: bool = False,
    or_else: Callable[[Call], Call] | None = None,
) -> Guarded | Call:
    """Return the call with its policies around it, or the call itself when there are none.

    ``call(*values)`` is the source's, with values in the order of ``names``; what is returned in :class:`Guarded` is
    ``call(run, index, *values)``, with ``run`` a :class:`GuardedRun`. ``label`` is the source's in messages,
    ``database.default``. ``idempotent`` says that a second attempt does no harm. ``each`` says that it is called for
    each item of a ``for_each``: the note is then that of several calls. ``batched`` says that a call may be one with
    those of others: what makes it tells ``state``. ``or_else`` makes of the guarded call one that
    does something else where that fails; what is captured is what it returns.

    It raises what the call raises, :class:`NotLetThrough` when the breaker is open or the queue full,
    :class:`SourceTimeout` when an attempt took too long, ``TimeoutError`` when the step did.
    """
    layer = _layers(call, policies, state, label=label, idempotent=idempotent, each=each, batched=batched)

    def from_cache(inner: Layer, options: CacheOptions) -> Call:
        cache = state.cache(options, operation, names)
        return cached(inner, cache, _key_of(policies, names), policies.step_timeout, each=each)

    return _whole(call, layer, policies, from_cache, _captured, or_else)


def make_guard_at_once(
    call: Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]],
    policies: Policies,
    state: SourceState,
    *,
    label: str,
    operation: str,
    names: Sequence[str],
    idempotent: bool,
    or_else: Callable[[Call], Call] | None = None,
) -> Guarded | Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]]:
    """Return the same for a call that takes the values of all items: ``call(rows)``, and ``call(run, index, rows)``.

    All items are one call, for the breaker, the budget and the queue: it has failed when all its items have. With a
    cache it is made for the items that are not there, and not at all when there are none.
    """
    judged = policies.circuit_breaker is not None or policies.retry is not None
    layer = _layers(_judged(call) if judged else call, policies, state, label=label, idempotent=idempotent, each=False)
    if layer is not None and judged:
        layer = _answered(layer)

    def from_cache(inner: Layer, options: CacheOptions) -> Call:
        cache = state.cache(options, operation, names)
        return cached_at_once(inner, cache, _key_of(policies, names), policies.step_timeout)

    return _whole(call, layer, policies, from_cache, _captured_at_once, or_else)


def _whole(
    call: Call,
    layer: Layer | None,
    policies: Policies,
    from_cache: Callable[[Layer, CacheOptions], Call],
    captured: Callable[[Call, Capture], Call],
    or_else: Callable[[Call], Call] | None,
) -> Guarded | Call:
    """Return the layers around a call with what is outside of them, or the call itself when there is nothing."""
    guarded: Call | None = None
    if policies.cache is not None:
        guarded = from_cache(layer or _bare(call), policies.cache)
    elif policies.step_timeout is not None:
        guarded = _within_step(layer or _bare(call), policies.step_timeout)
    elif layer is not None:
        guarded = _outermost(layer)
    if guarded is not None and or_else is not None:
        guarded = or_else(guarded)
    if policies.capture is not None:
        guarded = captured(guarded or _outermost(_bare(call)), policies.capture)
    return call if guarded is None else Guarded(guarded)


def _layers(
    call: Call,
    policies: Policies,
    state: SourceState,
    *,
    label: str,
    idempotent: bool,
    each: bool,
    batched: bool = False,
) -> Layer | None:
    """Return what is around each call that is really made; None when there is nothing."""
    retry = policies.retry
    if retry is not None and (retry.attempts == 1 or not (idempotent or retry.non_idempotent)):
        retry = None
    breaker = None if policies.circuit_breaker is None else state.breaker(policies.circuit_breaker)
    if policies.timeout is not None:
        call = timed(call, policies.timeout, label)
    budget = None if retry is None else state.budget()
    layer = attempts(call, breaker, retry, budget, label, each=each, batched=batched)
    if policies.concurrency is not None:
        return queued(layer, state.limiter(policies.concurrency), breaker, label, each=each)
    return None if breaker is None and budget is None and policies.timeout is None else layer


def _key_of(policies: Policies, names: Sequence[str]) -> KeyOf:
    assert policies.cache is not None
    if policies.cache_key is not None:
        computed = policies.cache_key
        return lambda values: key_of_one([computed(values)])
    key = policies.cache.key
    chosen = names if key is None else (key,) if isinstance(key, str) else key
    make = key_of_one if len(chosen) == 1 else key_of
    choice = choose(names, chosen)
    return make if choice is None else lambda values: make(choice(values))


def _bare(call: Call) -> Layer:
    return lambda run, index, values, timer: call(*values)


def _outermost(layer: Layer) -> Call:
    def guarded(run: GuardedRun, index: int, *values: Any) -> Awaitable[Any]:
        return layer(run, index, values, None)

    return guarded


def _within_step(layer: Layer, seconds: float) -> Call:
    limit = TimeLimit(seconds)

    async def guarded(run: GuardedRun, index: int, *values: Any) -> Any:
        return await within(limit, lambda timer: layer(run, index, values, timer))

    return guarded


def _captured(guarded: Call, capture: Capture) -> Call:
    async def captured(run: GuardedRun, index: int, *values: Any) -> Any:
        ended = capture(run, index, values)
        try:
            result = await guarded(run, index, *values)
        except BaseException as error:
            ended(None, error)
            raise
        ended(result, None)
        return result

    return captured


# --- one call for all items ------------------------------------------------------------------------------------------


class _AllFailed(SourceError):
    """All answers of a call are failures: it counts as one, which may pass."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__(f"all items failed: {describe(answers[0])}", transient=True)
        self.answers = answers


class _AllRefused(SourceUnavailable):
    """All answers of a call are failures, and of some nothing was tried, so that another attempt is of no use now."""

    def __init__(self, answers: Sequence[Any]) -> None:
        super().__init__(f"all items failed: {describe(answers[0])}")
        self.answers = answers


def _judged(call: Call) -> Call:
    async def judged(rows: Sequence[Sequence[Any]]) -> Any:
        answers = await call(rows)
        if answers and all(map(is_failure, answers)):
            may_pass = all(isinstance(answer, SourceError) for answer in answers)
            raise _AllFailed(answers) if may_pass else _AllRefused(answers)
        return answers

    return judged


def _answered(layer: Layer) -> Layer:
    async def answered(run: GuardedRun, index: int, values: tuple[Any, ...], timer: Timer | None) -> Any:
        try:
            return await layer(run, index, values, timer)
        except (_AllFailed, _AllRefused) as failed:
            return failed.answers

    return answered


def _captured_at_once(guarded: Call, capture: Capture) -> Call:
    async def captured(run: GuardedRun, index: int, rows: Sequence[Sequence[Any]]) -> Any:
        items = [capture(run, index, values) for values in rows]
        try:
            answers = await guarded(run, index, rows)
        except BaseException as error:
            for ended in items:
                ended(None, error)
            raise
        for ended, answer in zip(items, answers, strict=False):  # who awaits this complains of a wrong number
            failed = isinstance(answer, OrchestratorError)
            ended(None if failed else answer, answer if failed else None)
        return answers

    return captured
