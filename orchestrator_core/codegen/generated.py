"""The module of a plan, as text and compiled."""

from __future__ import annotations

import asyncio
import linecache
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from attrs import evolve, field, frozen

from orchestrator_core.blame import located
from orchestrator_core.each import AtOnce
from orchestrator_core.errors import ExpressionError
from orchestrator_core.expressions import MISSING, namespace
from orchestrator_core.plugin_api import JSON
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.run import OK, SKIPPED, Request, Run, clock
from orchestrator_core.tasks import Branches, ends_task

Call = Callable[..., Awaitable[JSON]]
Coroutine = Callable[[Request, Run], Awaitable[JSON]]

LOOKUP = (KeyError, TypeError, IndexError, ExpressionError)
"""What a plain subscript raises when a reference finds nothing, and an operator that cannot work on its operands."""


@frozen
class Generated:
    """The source of a plan's module and the name of the coroutine function in it."""

    name: str
    filename: str
    source: str = field(repr=False)
    constants: Mapping[str, Any] = field(repr=False, factory=dict)
    lines: list[str] = field(init=False, repr=False, eq=False)

    @lines.default
    def _lines(self) -> list[str]:
        return self.source.splitlines(keepends=True)

    def forget(self) -> None:
        """Take the source out of :mod:`linecache`, unless a later plan of the same name has its own there."""
        entry = linecache.cache.get(self.filename)
        if entry is not None and len(entry) == 4 and entry[2] is self.lines:
            del linecache.cache[self.filename]

    def compile(self, calls: Mapping[str, Call | AtOnce | Guarded]) -> Coroutine:
        """Return the coroutine function, bound to what each step calls."""
        each = {
            f"each_{step}": evolve(self.constants[f"each_{step}"], call=call)
            for step, call in calls.items()
            if f"each_{step}" in self.constants
        }
        scope: dict[str, Any] = {
            **namespace(),
            **self.constants,
            **{f"call_{step}": call.call if isinstance(call, Guarded) else call for step, call in calls.items()},
            **each,
            "Branches": Branches,
            "LOOKUP": LOOKUP,
            "MISSING": MISSING,
            "OK": OK,
            "SKIPPED": SKIPPED,
            "clock": clock,
            "ends_task": ends_task,
            "future": _future,
            "located": located,
            "timeout": asyncio.timeout,
        }
        linecache.cache[self.filename] = (len(self.source), None, self.lines, self.filename)
        exec(compile(self.source, self.filename, "exec"), scope)  # the source is ours
        coroutine: Coroutine = scope[self.name]
        return coroutine


def _future() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


__all__ = ["Call", "Coroutine", "Generated"]
