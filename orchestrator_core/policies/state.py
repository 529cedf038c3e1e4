"""What the policies of one source remember: a breaker, a retry budget, a queue, the cached results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import structlog

from orchestrator_core.policies.breaker import Breaker, BreakerState
from orchestrator_core.policies.cache import Cache
from orchestrator_core.policies.concurrency import Limiter
from orchestrator_core.policies.options import BreakerOptions, CacheOptions, ConcurrencyOptions
from orchestrator_core.policies.retry import RetryBudget

if TYPE_CHECKING:
    from orchestrator_core.policies.shared import SharedCache

__all__ = ["SourceState"]

log = structlog.get_logger("orchestrator.policies")

_WORST_FIRST: tuple[BreakerState, ...] = ("open", "half_open", "closed")


class SourceState:
    """The state of one source's policies, for all plans that call it: of an ``ml`` source, of one model.

    It is made when the source is opened and can outlive a reload that leaves the source and its policies alone.
    ``identity`` names the source's configuration, such as by a hash: results in the ``shared`` cache are kept under it,
    so that another configuration never reads them. ``clock`` tells seconds and never goes back.

    Steps with the same options share a part: all of those that override nothing, that is. A part lives as long as a
    guard has it. :meth:`describe` tells the sums.
    """

    def __init__(
        self,
        label: str,
        *,
        identity: str = "",
        shared: SharedCache | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.label = label
        self.identity = identity
        self.shared = shared
        self.clock = clock
        self._breakers: WeakValueDictionary[BreakerOptions, Breaker] = WeakValueDictionary()
        self._limiters: WeakValueDictionary[ConcurrencyOptions, Limiter] = WeakValueDictionary()
        self._caches: WeakValueDictionary[Hashable, Cache] = WeakValueDictionary()
        self._budget: RetryBudget | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def beside(self, shared: SharedCache | None) -> SourceState:
        """Return the state of the same source with another shared cache: only what is cached begins anew."""
        state = SourceState(self.label, identity=self.identity, shared=shared, clock=self.clock)
        state._breakers, state._limiters, state._budget = self._breakers, self._limiters, self._budget
        return state

    # --- its parts ---------------------------------------------------------------------------------------------------

    def breaker(self, options: BreakerOptions) -> Breaker:
        found = self._breakers.get(options)
        if found is None:
            found = self._breakers[options] = Breaker(options, self.clock, self._tell)
        return found

    def _tell(self, breaker: Breaker) -> None:
        if breaker.era:
            log.info(
                "a source answers again: its circuit breaker is closed",
                source=self.label,
                seconds=round(self.clock() - breaker.open_since, 3),
            )
        else:
            log.warning(
                "a source has failed repeatedly and is left alone: its circuit breaker is open",
                source=self.label,
                failures=breaker.failures(),
                probe_after_seconds=round(breaker.retry_after_seconds(), 3),
            )

    def budget(self) -> RetryBudget:
        if self._budget is None:
            self._budget = RetryBudget(self.clock)
        return self._budget

    def limiter(self, options: ConcurrencyOptions) -> Limiter:
        found = self._limiters.get(options)
        if found is None:
            found = self._limiters[options] = Limiter(options)
        return found

    def cache(
        self,
        options: CacheOptions,
        operation: str,
        names: Sequence[str],
        fits: Callable[[Any], bool] = lambda result: True,
    ) -> Cache:
        """Return the cache of an operation's results; ``fits`` tells what can be one, as JSON from outside need not."""
        of = (operation, tuple(names), options)
        found = self._caches.get(of)
        if found is None:
            name = repr((self.identity or self.label, operation, tuple(names), options.key))
            found = self._caches[of] = Cache(options, self.clock, self.own, self.shared, name, fits)
        return found

    def called(self) -> None:
        """Note a call for several rows, each of which is guarded by itself."""
        if self._budget is not None:
            self._budget.count()

    def recovered(self) -> None:
        """Close the breakers: it is known by other ways that the source is well again."""
        for breaker in list(self._breakers.values()):
            if not breaker.era:
                breaker.close()

    # --- what is seen of them ----------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return plain JSON data, with a key for each policy that is on::

            {
                "circuit_breaker": {"state", "failures", "opened", "refused", "retry_after_seconds"},
                "retry": {"calls", "retries", "refused_by_budget"},
                "concurrency": {"max", "running", "waiting", "refused"},
                "cache": {"entries", "hits", "misses", "stale", "shared", "errors"},
            }

        ``state`` is ``closed``, ``open`` or ``half_open``; where steps have breakers of their own, the worst of them.
        ``failures`` are those that count now, and so are ``running``, ``waiting`` and ``entries``; all other counts are
        totals. ``refused`` are calls that the breaker did not let through, or that had no place in time. ``errors`` are
        refreshes that failed, and times that the shared cache did not answer.
        """
        found: dict[str, Any] = {}
        if breakers := [breaker.describe() for breaker in list(self._breakers.values())]:
            states = {breaker["state"] for breaker in breakers}
            found["circuit_breaker"] = {
                "state": next(state for state in _WORST_FIRST if state in states),
                **_sums(breakers, "failures", "opened", "refused"),
                "retry_after_seconds": max(breaker["retry_after_seconds"] for breaker in breakers),
            }
        if self._budget is not None:
            found["retry"] = self._budget.describe()
        if limiters := [limiter.describe() for limiter in list(self._limiters.values())]:
            found["concurrency"] = _sums(limiters, "max", "running", "waiting", "refused")
        if caches := [cache.describe() for cache in list(self._caches.values())]:
            found["cache"] = _sums(caches, "entries", "hits", "misses", "stale", "shared", "errors")
        return found

    # --- what goes on beside the requests ----------------------------------------------------------------------------

    def own(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Start work that ends with the state at the latest. Return False once that is closed."""
        if self._closed:
            return False
        task = asyncio.create_task(_run(work), name=f"cache of {self.label}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def close(self) -> None:
        """End what goes on beside the requests. Calls can still be made; nothing is refreshed any more."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


async def _run(work: Callable[[], Awaitable[None]]) -> None:
    await work()


def _sums(parts: Sequence[dict[str, Any]], *keys: str) -> dict[str, Any]:
    return {key: sum(part[key] for part in parts) for key in keys}
