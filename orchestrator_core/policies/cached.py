"""The layers that ask a cache before they call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from math import inf
from typing import Any, TypeAlias

from orchestrator_core.errors import DeadlineExceeded, OrchestratorError, SourceError, SourceUnavailable
from orchestrator_core.policies.cache import Cache
from orchestrator_core.policies.keys import KeyOf, key_of_one
from orchestrator_core.policies.layers import Call, Layer
from orchestrator_core.policies.notes import Cached, StepNote
from orchestrator_core.policies.policies import GuardedRun
from orchestrator_core.time_limits import TimeLimit, Timer, within, within_own

__all__ = ["cached", "cached_at_once"]

Row: TypeAlias = Sequence[Any]

InTime: TypeAlias = Callable[[Callable[["Timer | None"], Awaitable[Any]]], Awaitable[Any]]
"""Returns what it is given returns, as :func:`orchestrator_core.time_limits.within` does."""

LEAST_REFRESH_SECONDS, REFRESH_SECONDS = 1.0, 60.0
"""How long a call for nobody in particular may take: as long as the request has left that did not wait for it, within
these bounds, and no longer than the step's timeout. A source that hangs has to show by then, since those who ask when
a stale result is given no more wait for that call.
"""

SPARE_SHARE, SPARE_SECONDS = 0.1, 0.5
"""How much of a request's time a call leaves to what follows it, where a result past its time could be given: this
share of it, and so many seconds at most. When the deadline has passed, it is too late for any answer."""


class _Background:
    """What stands for the run of a call that no request waits for."""

    id = ""
    passed = False

    @property
    def deadline(self) -> _Background:
        return self

    def remaining(self) -> float:
        return inf

    def note(self, index: int) -> StepNote:
        return StepNote()

    def note_hit(self, index: int) -> None:
        pass


def _for_refresh(run: GuardedRun, step_timeout: float | None) -> float:
    """Return the seconds that a call has which is made for nobody in particular, and not for this run."""
    return min(step_timeout or REFRESH_SECONDS, max(LEAST_REFRESH_SECONDS, run.deadline.remaining()))


def _with_spare(run: GuardedRun) -> float:
    """Return the seconds that a call may take for which a result past its time could be given."""
    left = run.deadline.remaining()
    return left - min(left * SPARE_SHARE, SPARE_SECONDS)


def cached(layer: Layer, cache: Cache, key_of: KeyOf, step_timeout: float | None, *, each: bool) -> Call:
    """Return the guarded call of a layer behind a cache."""
    limit = None if step_timeout is None else TimeLimit(step_timeout)
    entries, clock, use, spares = cache.entries, cache.clock, cache.entries.move_to_end, cache.spares

    async def cached(run: GuardedRun, index: int, *values: Any) -> Any:
        key = key_of(values)
        entry = entries.get(key)
        if entry is not None and clock() < entry[0]:
            use(key)
            cache.hits += 1
            if each:
                _note(run, index, "hit", each=True)
            else:
                run.note_hit(index)
            return entry[1]
        return await missed(run, index, values, key)

    async def cached_by_one(run: GuardedRun, index: int, value: Any) -> Any:
        """Do the same for a call with one value and one result, which a hit is soon done with."""
        key = value if type(value) is str else key_of((value,))
        entry = entries.get(key)
        if entry is not None and clock() < entry[0]:
            use(key)
            cache.hits += 1
            run.note_hit(index)
            return entry[1]
        return await missed(run, index, (value,), key)

    async def missed(run: GuardedRun, index: int, values: tuple[Any, ...], key: Hashable) -> Any:
        if key is None:
            return await within(limit, lambda timer: layer(run, index, values, timer))
        asked, spare = False, None

        def leave_time(timer: Timer | None) -> None:
            nonlocal spare
            if timer is not None and spares and spare is None and (spare := cache.spare(key)) is not None:
                timer.shorten(_with_spare(run))

        def ask(timer: Timer | None) -> Awaitable[Any]:
            nonlocal asked
            asked = True
            leave_time(timer)  # the shared cache may have had one
            return layer(run, index, values, timer)

        def obtain(timer: Timer | None) -> Awaitable[tuple[Any, Cached]]:
            leave_time(timer)
            seconds = _for_refresh(run, step_timeout)
            return cache.obtain(key, lambda: ask(timer), lambda: refresh(values, seconds))

        try:
            result, how = await (within_own(step_timeout or inf, obtain) if spares else within(limit, obtain))
        except BaseException as error:
            if not asked:  # it waited for another's call
                run.note(index).not_called(each=each)
            stale = (cache.spare(key) or spare) if is_outage(error) else None
            if stale is None:
                raise
            cache.stale += 1
            note = run.note(index)
            note.cached = "stale"
            note.cached_calls += 1
            return stale[1]
        if how:
            _note(run, index, how, each=each)
        return result

    def refresh(values: tuple[Any, ...], seconds: float) -> Awaitable[Any]:
        return within_own(seconds, lambda timer: layer(_Background(), 0, values, timer))

    return cached_by_one if key_of is key_of_one and not each else cached


def cached_at_once(layer: Layer, cache: Cache, key_of: KeyOf, step_timeout: float | None) -> Call:
    """Return the guarded call for all items, behind a cache: it asks for those that are not there."""
    limit = None if step_timeout is None else TimeLimit(step_timeout)

    async def cached(run: GuardedRun, index: int, rows: Sequence[Row]) -> Sequence[Any]:
        found = _Found(cache, [key_of(row) for row in rows])
        if not found.fresh():
            await cache.look([key for key in found.keys if key is not None])
            found.fresh()
        missing = found.missing()
        if missing and found.stale_meanwhile(missing):
            seconds = _for_refresh(run, step_timeout)
            cache.refresh([found.keys[place] for place in missing], lambda: refresh(found.keys, rows, missing, seconds))
        elif missing:
            some = [rows[place] for place in missing]
            try:
                await found.ask(missing, in_time(run, found, missing), lambda timer: call(run, index, some, timer))
            except BaseException:
                if not found.asked:  # it waited for another's call
                    run.note(index).attempts = 0
                raise
        found.note(run.note(index))
        return found.answers

    def in_time(run: GuardedRun, found: _Found, missing: Sequence[int]) -> InTime:
        if cache.spares and all(cache.spare(found.keys[place]) for place in missing):
            return partial(within_own, min(step_timeout or inf, _with_spare(run)))
        return partial(within, limit)

    def call(run: GuardedRun, index: int, rows: Sequence[Row], timer: Timer | None) -> Awaitable[Sequence[Any]]:
        return layer(run, index, (rows,), timer)

    async def refresh(keys: Sequence[Hashable], rows: Sequence[Row], places: Sequence[int], seconds: float) -> None:
        asked = [rows[place] for place in places]
        answers = await within_own(seconds, lambda timer: call(_Background(), 0, asked, timer))
        cache.keep([keys[place] for place in places], answers)

    return cached


_MISSING = object()


class _Found:
    """What a cache has for the items of one call."""

    def __init__(self, cache: Cache, keys: Sequence[Hashable]) -> None:
        self.cache = cache
        self.keys = keys
        self.answers: list[Any] = [_MISSING] * len(keys)
        self.hits = 0
        self.stale = 0
        self.shared = 0
        self.asked = False

    def fresh(self) -> bool:
        """Take what is fresh, and return whether that is all."""
        entries, now, whole = self.cache.entries, self.cache.clock(), True
        for place, key in enumerate(self.keys):
            if self.answers[place] is not _MISSING:
                continue
            entry = entries.get(key)
            if entry is not None and now < entry[0]:
                entries.move_to_end(key)
                self.answers[place] = entry[1]
                self.hits += 1
            else:
                whole = False
        return whole

    def missing(self) -> list[int]:
        """Return the places to ask for: of items that are alike, the first."""
        first: dict[Hashable, int] = {}
        return [
            place
            for place, key in enumerate(self.keys)
            if self.answers[place] is _MISSING and (key is None or first.setdefault(key, place) == place)
        ]

    def stale_meanwhile(self, missing: Sequence[int]) -> bool:
        """Take what is past its time but given while it is fetched anew, if all that is missing is."""
        cache = self.cache
        if not all(cache.may_revalidate(self.keys[place]) for place in missing):
            return False
        for place, key in enumerate(self.keys):
            if self.answers[place] is _MISSING and (entry := cache.while_revalidating(key)) is not None:
                self.answers[place] = entry[1]
                self.stale += 1
        return True

    async def ask(
        self,
        missing: Sequence[int],
        in_time: InTime,
        call: Callable[[Timer | None], Awaitable[Sequence[Any]]],
    ) -> None:
        """Ask for what is missing, once for all who miss just that. ``asked`` says then whether the call was made here.

        What cannot be had is the error at its place; raise it if that is so for all.
        """
        cache, keys = self.cache, [self.keys[place] for place in missing]

        async def made(timer: Timer | None) -> Sequence[Any]:
            self.asked = True
            cache.misses += len(missing)
            answers = await call(timer)
            if len(answers) != len(missing):
                raise SourceError(f"the source returned {len(answers)} results for {len(missing)} items")
            cache.keep(keys, answers)
            return answers

        try:
            answers, shared = await in_time(lambda timer: cache.together(keys, lambda: made(timer)))
        except Exception as error:
            if not is_outage(error):
                raise
            self.in_error(error)
            return
        by_key = dict(zip(keys, answers, strict=True))
        for place, answer in zip(missing, answers, strict=True):
            self.answers[place] = self.instead_of(answer, self.keys[place])
        for place, key in enumerate(self.keys):
            if self.answers[place] is _MISSING:
                self.answers[place] = self.instead_of(by_key[key], key)
        if shared:
            self.shared = len(self.answers) - self.hits - self.stale

    def in_error(self, error: Exception) -> None:
        open_places = [place for place, answer in enumerate(self.answers) if answer is _MISSING]
        for place in open_places:
            self.answers[place] = self.instead_of(error, self.keys[place])
        left = [place for place in open_places if self.answers[place] is error]
        if len(left) == len(self.answers) or (left and not isinstance(error, OrchestratorError)):
            raise error

    def instead_of(self, answer: Any, key: Hashable) -> Any:
        """Return the answer, or what is past its time where it is an error of the source."""
        stale = self.cache.if_error(key) if is_outage(answer) else None
        if stale is None:
            return answer
        self.stale += 1
        return stale[1]

    def note(self, note: StepNote) -> None:
        self.cache.hits += self.hits
        note.cached_calls += self.hits + self.stale + self.shared
        if self.hits or self.stale or self.shared:
            note.cached = "stale" if self.stale else "shared" if self.shared else "hit"
        if not self.asked:
            note.attempts = 0


def is_outage(error: object) -> bool:
    """Return whether an error means that the source cannot be asked now."""
    return isinstance(error, SourceError | SourceUnavailable | DeadlineExceeded | TimeoutError)


def _note(run: GuardedRun, index: int, how: Cached, *, each: bool) -> None:
    note = run.note(index)
    note.cached = how
    note.cached_calls += 1
    note.not_called(each=each)
