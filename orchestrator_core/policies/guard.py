"""The policies around one step's call, made one coroutine function at load."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from orchestrator_core.policies.notes import Guarded
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.state import SourceState

__all__ = ["make_guard", "make_guard_at_once"]

Call = Callable[..., Awaitable[Any]]


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
) -> Guarded | Call:
    """Return the call with its policies around it, or the call itself when there are none.

    ``call(*values)`` is the source's, with values in the order of ``names``; what is returned in :class:`Guarded` is
    ``call(run, index, *values)``, with ``run`` a :class:`GuardedRun`. ``label`` is the source's in messages,
    ``database.default``. ``idempotent`` says that a second attempt does no harm. ``each`` says that it is called for
    each item of a ``for_each``: its note is then that of several calls.

    It raises what the call raises, and :class:`SourceUnavailable` when the breaker is open or the queue full,
    :class:`SourceTimeout` when an attempt took too long, ``TimeoutError`` when the step did.
    """
    raise NotImplementedError


def make_guard_at_once(
    call: Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]],
    policies: Policies,
    state: SourceState,
    *,
    label: str,
    operation: str,
    names: Sequence[str],
    idempotent: bool,
) -> Guarded | Callable[[Sequence[Sequence[Any]]], Awaitable[Sequence[Any]]]:
    """Return the same for a call that takes the values of all items: ``call(rows)``, guarded ``call(run, index, rows)``.

    All items are one call, for the breaker, the budget and the queue: failed if all items failed. With a cache it is
    asked for the items that are not there, and not called when all are.
    """
    raise NotImplementedError
