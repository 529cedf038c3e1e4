"""Results that are kept for a while: in memory, and outside where several processes share them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from sys import getsizeof
from time import time
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
import structlog

from orchestrator_core.errors import DeadlineExceeded, OrchestratorError, TooLittleTime
from orchestrator_core.plugin_api import Degraded
from orchestrator_core.policies.flights import Flights, TimeIsUp
from orchestrator_core.policies.keys import plain
from orchestrator_core.policies.notes import Cached
from orchestrator_core.policies.options import CacheOptions

if TYPE_CHECKING:
    from orchestrator_core.policies.shared import SharedCache

__all__ = ["Cache", "Entry"]

log = structlog.get_logger("orchestrator.policies")

Entry: TypeAlias = tuple[float, Any, int]
"""Until when on the clock the result is fresh, the result, and about how many bytes of memory it takes with its key."""

LEAST_BYTES, BYTES_OF_AN_ENTRY = 128 * 2**20, 13 * 2**10
"""How much memory the results of one cache take at most: as many times the second as entries it may have, and the first
where that is less. Ten thousand large ones would end the process.
"""

Own: TypeAlias = Callable[[Callable[[], Awaitable[None]]], bool]


class Cache:
    """The results of an operation that is called with the same parameters, for all plans.

    ``entries`` stand in the order of their use. Who finds a fresh one moves it to the end and counts a hit; for all
    else there are :meth:`obtain` and, for several at once, :meth:`look` and :meth:`keep`. A result that is
    :class:`Degraded` is not kept, and neither is a failure.

    ``own`` starts a task that ends when the source is closed, and returns whether it did. ``name`` tells the entries
    apart from all others in the ``shared`` cache, and ``fits`` what can be a result from what cannot.
    """

    __slots__ = (
        "__weakref__",
        "_fits",
        "_flights",
        "_if_error",
        "_max_bytes",
        "_max_entries",
        "_name",
        "_own",
        "_refreshing",
        "_shared",
        "_ttl",
        "_while_revalidate",
        "bytes",
        "clock",
        "entries",
        "errors",
        "hits",
        "joined",
        "misses",
        "stale",
    )

    def __init__(
        self,
        options: CacheOptions,
        clock: Callable[[], float],
        own: Own,
        shared: SharedCache | None = None,
        name: str = "",
        fits: Callable[[Any], bool] = lambda result: True,
    ) -> None:
        self.clock = clock
        self.entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self.bytes = 0
        self.hits = self.misses = self.stale = self.joined = self.errors = 0
        self._ttl = float(options.ttl)
        self._while_revalidate = float(options.stale_while_revalidate)
        self._if_error = float(options.stale_if_error)
        self._max_entries = options.max_entries
        self._max_bytes = max(LEAST_BYTES, options.max_entries * BYTES_OF_AN_ENTRY)
        self._flights = Flights()
        self._refreshing: set[Hashable] = set()
        self._own = own
        self._shared = shared
        self._name = name
        self._fits = fits

    @property
    def spares(self) -> bool:
        """Return whether a result past its time can be given when the source fails."""
        return self._if_error > 0

    def describe(self) -> dict[str, int]:
        return {
            "entries": len(self.entries),
            "hits": self.hits,
            "misses": self.misses,
            "stale": self.stale,
            "shared": self.joined,
            "errors": self.errors,
        }

    # --- one result --------------------------------------------------------------------------------------------------

    async def obtain(
        self,
        key: Hashable,
        call: Callable[[], Awaitable[Any]],
        refresh: Callable[[], Awaitable[Any]],
        wait_seconds: float | None = None,
    ) -> tuple[Any, Cached]:
        """Return a result that was not found fresh, and which part of the cache gave it: ``""`` if the call did.

        ``refresh`` makes the same call for nobody in particular. Raises what the call raises, and ``TimeoutError`` when
        somebody else's takes longer than ``wait_seconds``.
        """
        stale = self.while_revalidating(key)
        if stale is not None:
            self.refresh([key], lambda: self._refreshed(key, refresh))
            return stale[1], "stale"
        (result, cached), joined = await self._shared_call(key, lambda: self._find(key, call), wait_seconds)
        if joined:
            self.joined += 1
            return result, "shared"
        if cached == "stale":  # the shared cache had it
            self.refresh([key], lambda: self._refreshed(key, refresh))
        return result, cached

    async def _find(
        self, key: Hashable, call: Callable[[], Awaitable[Any]], *, for_nobody: bool = False
    ) -> tuple[Any, Cached]:
        if self._shared is not None:
            await self.look([key])
            entry = self.entries.get(key)
            if entry is not None and self.clock() < entry[0]:
                self.hits += 1
                return entry[1], "hit"
            if not for_nobody and (stale := self.while_revalidating(key)) is not None:
                return stale[1], "stale"
        self.misses += 1
        result = await call()
        self.keep([key], [result])
        return result, ""

    async def _shared_call(
        self, key: Hashable, call: Callable[[], Awaitable[Any]], wait_seconds: float | None = None
    ) -> tuple[Any, bool]:
        """Return what one call for all who ask at once returns. Who has no time for it leaves it to who has."""

        async def made() -> Any:
            try:
                return await call()
            except TooLittleTime as error:
                raise TimeIsUp(error) from None

        try:
            return await self._flights.join(key, made, wait_seconds)
        except TimeIsUp as up:
            raise up.error from None

    async def _refreshed(self, key: Hashable, call: Callable[[], Awaitable[Any]]) -> None:
        async def made() -> tuple[Any, Cached]:
            try:
                return await self._find(key, call, for_nobody=True)
            except (TimeoutError, DeadlineExceeded) as error:
                raise TimeIsUp(error) from None

        try:
            await self._flights.join(key, made)
        except TimeIsUp as up:
            raise up.error from None

    # --- several -----------------------------------------------------------------------------------------------------

    async def look(self, keys: Sequence[Hashable]) -> None:
        """Fetch what the shared cache has of these. When it does not answer, there is nothing."""
        if self._shared is None:
            return
        found = await self._shared.get_many(self._name, keys, self._fits)
        if found is None:
            self.errors += 1
            return
        now = time()
        for key, entry in found.items():
            made_at, result = entry
            age = max(0.0, now - made_at)
            if age < self._ttl + max(self._while_revalidate, self._if_error):
                until = self.clock() + self._ttl - age
                known = self.entries.get(key)
                if known is None or known[0] < until:
                    self._put(key, result, until)

    async def together(self, keys: Sequence[Hashable], call: Callable[[], Awaitable[Any]]) -> tuple[Any, bool]:
        """Return what the call for these returns, and whether it was that of another who asks for the very same."""
        if None in keys:
            return await call(), False
        result, joined = await self._shared_call(("items", *keys), call)
        if joined:
            self.joined += len(keys)
        return result, joined

    def keep(self, keys: Sequence[Hashable], results: Sequence[Any]) -> None:
        """Keep results that were made just now, but for those that are failures or something lesser."""
        kept = {
            key: result
            for key, result in zip(keys, results, strict=True)
            if key is not None and not isinstance(result, Degraded | OrchestratorError)
        }
        until = self.clock() + self._ttl
        for key, result in kept.items():
            self._put(key, result, until)
        shared = self._shared
        if shared is not None and kept:
            made_at, keep_for = time(), self._ttl + max(self._while_revalidate, self._if_error)

            async def put() -> None:
                if not await shared.put_many(self._name, kept, made_at, keep_for):
                    self.errors += 1

            self._own(put)

    def _put(self, key: Hashable, result: Any, until: float) -> None:
        entries, size = self.entries, _memory_of(key, result)
        if (before := entries.pop(key, None)) is not None:
            self.bytes -= before[2]
        entries[key] = (until, result, size)
        self.bytes += size
        while len(entries) > self._max_entries or (self.bytes > self._max_bytes and len(entries) > 1):
            _, oldest = entries.popitem(last=False)
            self.bytes -= oldest[2]

    # --- results past their time -------------------------------------------------------------------------------------

    def while_revalidating(self, key: Hashable) -> Entry | None:
        """Return what is given while a new result is fetched. It is counted."""
        return self._counted(self._past(key, self._while_revalidate))

    def if_error(self, key: Hashable) -> Entry | None:
        """Return what is given when the source fails. It is counted."""
        return self._counted(self._past(key, self._if_error))

    def may_revalidate(self, key: Hashable) -> bool:
        """Return whether :meth:`while_revalidating` has something."""
        return self._past(key, self._while_revalidate) is not None

    def spare(self, key: Hashable) -> Entry | None:
        """Return what :meth:`if_error` would now, uncounted."""
        return self._past(key, self._if_error)

    def _past(self, key: Hashable, seconds: float) -> Entry | None:
        entry = self.entries.get(key) if seconds else None
        return entry if entry is not None and self.clock() < entry[0] + seconds else None

    def _counted(self, entry: Entry | None) -> Entry | None:
        self.stale += entry is not None
        return entry

    def refresh(self, keys: Sequence[Hashable], fetch: Callable[[], Awaitable[None]]) -> None:
        """Have these fetched anew for nobody in particular, but for what is being fetched already."""
        if any(key in self._refreshing or key in self._flights for key in keys):
            return

        async def refreshing() -> None:
            try:
                await fetch()
            except (OrchestratorError, TimeoutError):
                self.errors += 1  # the breaker has it too, and who asks when the time is up is told why
            except (Exception, SystemExit) as error:  # a source that asks for an exit would end the loop
                self.errors += 1
                log.error("defect while a cached result was refreshed", exc_info=error)
            finally:
                self._refreshing.difference_update(keys)

        self._refreshing.update(keys)
        if not self._own(refreshing):
            self._refreshing.difference_update(keys)


def _memory_of(key: Hashable, result: Any) -> int:
    """Return about how many bytes a result and its key take, from its JSON: to go through it would take far longer."""
    try:
        text = orjson.dumps(result, default=plain)
    except (TypeError, ValueError):  # such as an integer of more than 64 bits
        text = str(result).encode("utf-8", "replace")
    parts = 32 * (text.count(b",") + text.count(b":")) + 64 * (text.count(b"{") + text.count(b"["))
    return len(text) + parts + sum(map(getsizeof, key[:-1] if isinstance(key, tuple) else (key,)))
