"""What keeps a model in use: it is started, started again with growing pauses when it is down, and closed.

Each model has one task that holds it open, so that models load side by side and none takes another down.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Mapping
from time import time

import structlog
from attrs import evolve

from orchestrator_core.models.life import Life, ModelEnded, Outcome, loading, told, words_of
from orchestrator_core.models.options import ModelSpec
from orchestrator_core.models.slot import Slot
from orchestrator_core.plugin_api import (
    JSON,
    Changes,
    KeepsLogs,
    Model,
    ModelFacts,
    OpenContext,
    SourceError,
    SourceUnavailable,
)

log = structlog.get_logger("orchestrator.models")

CHANGED_SECONDS = 300.0
"""How long a model may take to tell whether it has changed, which a reload waits for."""

SOON_SECONDS = 4.0
"""The longest pause before the next start of a model that somebody else has ended."""

_random = random.Random()

Kept = Mapping[str, dict[str, JSON]]
"""What models have noted for their next start by themselves, by their names; see ``OpenContext.kept``."""


class Supervisor:
    """Keeps one model in its :class:`Slot`. Several snapshots may use it; the last to give it up closes it."""

    def __init__(self, spec: ModelSpec, label: str, context: OpenContext, kept: Kept | None = None) -> None:
        self.spec = spec
        self.slot = Slot(spec, label)
        self.users = 1
        self.outcome = Outcome()
        self._context = context
        self._task: asyncio.Task[None] | None = None
        self._life: Life | None = None
        self._interrupted = False
        self._tries = 0
        self._misses = 0
        self._kept = (kept or {}).get(context.name, {})
        self.fallback: Supervisor | None = None
        if spec.fallback is not None:
            other = context.named(f"{context.name}.fallback")
            self.fallback = Supervisor(spec.fallback, f"{label} fallback", other, kept)
            self.slot.fallback = self.fallback.slot

    # --- for snapshots and the admin listener ------------------------------------------------------------------------

    def start(self, *, load: bool, fallback: bool = True) -> None:
        """Start the task. ``load`` says whether to load the model now or on first use, ``fallback`` the same of it."""
        if self.fallback is not None:
            self.fallback.start(load=fallback)
        self.slot.wanted = load
        self._task = asyncio.create_task(self._supervise(), name=f"model {self.slot.label}")

    async def release(self) -> None:
        """Give the model up; the last user closes it and waits until it is closed."""
        self.users -= 1
        if self.users <= 0:
            await self.close()

    async def close(self) -> None:
        self.slot.closed = True
        self.slot.wanted = False
        self._interrupt()
        if self._task is not None:
            await asyncio.wait([self._task])
        if self.fallback is not None:
            await self.fallback.close()

    def load(self) -> None:
        """Load the model if it is not, or try a failed one again."""
        if self.slot.state == "failed":
            self.restart()
        else:
            self.slot.want(on_demand=True)

    def restart(self) -> None:
        """Close the model and start it anew, with its failures forgotten."""
        self.slot.wanted = self.slot.is_enabled
        self._interrupt()

    def unload(self) -> None:
        """Close the model until a request or somebody asks for it."""
        self.slot.wanted = False
        self._interrupt()

    async def changed(self) -> bool:
        """Return whether opening the model anew would give another one, as far as it can tell."""
        model = self._model
        if model is None:
            self._kept = {}  # nothing can tell: the next start finds what there is then
        if not isinstance(model, Changes):
            return False
        try:
            async with asyncio.timeout(CHANGED_SECONDS):
                return await model.changed()
        except (Exception, SystemExit) as error:  # whatever it is, opening the model anew will tell it better
            log.warning("cannot tell whether the model has changed", model=self.slot.label, error=words_of(error))
            return True

    async def look(self) -> ModelFacts | None:
        """Return what can be told of the model without starting it. Raises what opening it would raise."""
        look = self.spec.kind.look
        if look is None:
            return None
        async with loading(self.spec, "it was not loaded"):
            return told("look", await look(self.spec.options, self._context), ModelFacts)

    def keeps_logs(self) -> bool | None:
        """Return whether its output can be read, None while it is not open."""
        return isinstance(self._model, KeepsLogs) if self._model is not None else None

    async def logs(self, lines: int) -> str:
        model = self._model
        assert isinstance(model, KeepsLogs)
        return await model.logs(lines)

    def kept(self) -> Iterator[tuple[str, dict[str, JSON]]]:
        """Return, by name, what the model and its fallback have noted for their next start by themselves."""
        life = self._life
        yield self._context.name, self._kept if life is None or life.ready_at is None else life.kept
        if self.fallback is not None:
            yield from self.fallback.kept()

    @property
    def _model(self) -> Model | None:
        return self._life.model if self._life is not None else None

    # --- the task ----------------------------------------------------------------------------------------------------

    def _interrupt(self) -> None:
        self._interrupted = True
        if self._life is not None:
            self._life.leave()
        self.slot.nudged.set()

    async def _supervise(self) -> None:
        slot = self.slot
        try:
            while not slot.closed:
                slot.nudged.clear()
                if self._interrupted:
                    self._interrupted, self._tries, self._misses, slot.next_try = False, 0, 0, 0.0
                    self._kept = {}
                    if slot.wanted and slot.state == "failed":
                        slot.enter("restarting")
                if not slot.wanted:
                    slot.enter("stopped")
                    await slot.nudged.wait()
                elif slot.state == "failed":
                    await slot.nudged.wait()
                elif await self._pause():
                    await self._live_once()
        finally:
            slot.closed = True
            slot.enter("stopped")
            slot.tell()
            if not self.outcome.first.done():
                self.outcome.note(SourceUnavailable(f"the model {slot.label} was closed"))

    async def _pause(self) -> bool:
        """Wait for the moment of the next start. Return whether nothing came between."""
        left = self.slot.next_try - time()
        if left > 0:
            try:
                async with asyncio.timeout(left):
                    await self.slot.nudged.wait()
            except TimeoutError:
                return True
            return False
        return True

    async def _live_once(self) -> None:
        """Start the model, and return when it is over: closed on request, failed to start, or ended."""
        slot = self.slot
        slot.begin(again=self._misses > 0 or slot.state == "restarting")
        most, kept = self.spec.common.restart.max_starts, dict(self._kept)
        context = evolve(self._context, failed_starts=self._misses, max_starts=most, kept=kept)
        self._life = life = Life(self.spec, slot, context, self.outcome)
        try:
            error = await life.over()
        finally:
            self._life = None
        if life.unused or not slot.wanted:
            self._kept = {}
        elif life.ready_at is not None:
            self._kept = kept
        cause = life.cause or (error if isinstance(error, Exception) else None)
        if cause is None and slot.wanted and not life.unused and not self._interrupted:  # nobody has asked for an end
            cause = SourceError(words_of(error)) if error else SourceUnavailable("its load broke itself off")
        elif error is not None and error is not cause:
            log.error("the model was not closed cleanly", model=slot.label, error=words_of(error))
        if cause is not None and not self._interrupted:
            self._missed(cause, life.lasted())
            slot.tell()
        elif not slot.wanted:
            slot.enter("stopped")
            slot.tell()

    def _missed(self, error: Exception, lasted: float | None) -> None:
        """Note that a start failed, or that the model ended after so many seconds of use, and decide what follows."""
        slot, restart = self.slot, self.spec.common.restart
        longest: float = restart.max_backoff
        if lasted is None:
            self._tries += _counts(error, slot.was_ready)
        elif lasted >= restart.reset_after:
            self._tries = self._misses = 0
        elif isinstance(error, ModelEnded) and error.by_others:
            self._tries, longest = 0, min(longest, SOON_SECONDS)
        else:
            self._tries += 1
        self._misses += 1
        slot.blame(words_of(error))
        if self._tries >= restart.max_starts or (not slot.was_ready and is_definite(error)):
            slot.enter("failed")
            tell = log.debug if self.outcome.reported else log.error
            tell("model failed", model=slot.label, starts=slot.starts, error=slot.last_error)
        else:
            pause = min(longest, restart.backoff * 2.0 ** min(self._misses - 1, 40))
            pause *= _random.uniform(0.5, 1.0)
            slot.next_try = time() + pause
            slot.enter("restarting")
            tell = log.debug if self.outcome.reported else log.warning
            tell("model down", model=slot.label, next_try_in=round(pause, 3), error=slot.last_error)
        self.outcome.note(error)


def is_definite(error: Exception) -> bool:
    """Return whether a model that could not be opened never can be, as it is configured."""
    if isinstance(error, SourceError):
        return not error.transient
    return not isinstance(error, SourceUnavailable | ModelEnded | ConnectionError | TimeoutError)


def _counts(error: Exception, was_ready: bool) -> bool:
    """Return whether a failure is one of the starts that are limited."""
    if isinstance(error, SourceUnavailable):
        return not was_ready if error.started is None else error.started
    return True


__all__ = ["Kept", "Supervisor", "is_definite"]
