"""Running a coroutine of a test on an event loop of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def loop_factory(loop: Literal["uvloop", "asyncio"]) -> Callable[[], asyncio.AbstractEventLoop]:
    """Return what makes a loop; ``uvloop`` is the standard loop where uvloop is not installed."""
    if loop == "uvloop":
        try:
            import uvloop
        except ImportError:
            return asyncio.new_event_loop
        return uvloop.new_event_loop
    return asyncio.new_event_loop


def run(
    main: Coroutine[Any, Any, T], *, loop: Literal["uvloop", "asyncio"] = "uvloop", timeout_seconds: float = 60
) -> T:
    """Run a coroutine to its end on a new event loop.

    Raises ``AssertionError`` when it leaves a task behind, and ``TimeoutError`` when it takes too long.
    """

    async def alone() -> T:
        async with asyncio.timeout(timeout_seconds):
            result = await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if left:
            raise AssertionError(f"{len(left)} tasks are left running: {', '.join(map(repr, left))}")
        return result

    with asyncio.Runner(loop_factory=loop_factory(loop)) as runner:
        return runner.run(alone())
