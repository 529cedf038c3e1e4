"""What the tests of the policies have in common: a clock that is set by hand, a run, a source that obeys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from orchestrator_core.policies.guard import make_guard, make_guard_at_once
from orchestrator_core.policies.notes import HIT, Guarded, StepNote
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.state import SourceState

RunFixture = Callable[..., Any]
LABEL = "database.default"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Run:
    """A run, with its deadline: ``passed`` and ``left`` are set by hand. Without an ``id`` it is no other's."""

    def __init__(self, left: float = inf, id: str = "") -> None:
        self.id = id
        self.passed = False
        self.left = left
        self.notes: dict[int, StepNote] = {}

    @property
    def deadline(self) -> Run:
        return self

    def remaining(self) -> float:
        return self.left

    def note(self, index: int) -> StepNote:
        return self.notes.setdefault(index, StepNote())

    def note_hit(self, index: int) -> None:
        self.notes[index] = HIT


class Backend:
    """A source whose calls end as told: each entry of ``script`` is a result, an error to raise, or a future.

    The last entry stays. ``calls`` has the values of each call, ``running`` how many are under way.
    """

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.calls: list[tuple[Any, ...]] = []
        self.running = 0

    async def __call__(self, *values: Any) -> Any:
        self.calls.append(values)
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        self.running += 1
        try:
            if isinstance(outcome, asyncio.Future):
                outcome = await outcome
        finally:
            self.running -= 1
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def guard(
    backend: Any,
    policies: Policies,
    state: SourceState | None = None,
    *,
    names: Sequence[str] = ("id",),
    idempotent: bool = True,
    each: bool = False,
    batched: bool = False,
) -> Callable[..., Any]:
    """Return the guarded call."""
    guarded = make_guard(
        backend,
        policies,
        state or SourceState(LABEL),
        label=LABEL,
        operation="get",
        names=names,
        idempotent=idempotent,
        each=each,
        batched=batched,
    )
    assert isinstance(guarded, Guarded)
    return guarded.call


def guard_at_once(
    backend: Any, policies: Policies, state: SourceState | None = None, *, idempotent: bool = True
) -> Callable[..., Any]:
    guarded = make_guard_at_once(
        backend,
        policies,
        state or SourceState(LABEL),
        label=LABEL,
        operation="get",
        names=("id",),
        idempotent=idempotent,
    )
    assert isinstance(guarded, Guarded)
    return guarded.call


def future() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def turns(count: int = 10) -> None:
    """Let everything that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


async def outcome(awaitable: Any) -> Any:
    """Return the result, or the error as ``(class's name, message)``."""
    try:
        return await awaitable
    except (Exception, asyncio.CancelledError) as error:
        return type(error).__name__, str(error)
