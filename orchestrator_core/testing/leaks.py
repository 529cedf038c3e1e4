"""What a process holds: tasks, threads and file descriptors, before and after."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import frozen

_DESCRIPTORS = next((folder for folder in ("/proc/self/fd", "/dev/fd") if os.path.isdir(folder)), None)


@frozen
class Held:
    """Tasks of the running loop, threads and open file descriptors, each described for people."""

    tasks: frozenset[str]
    threads: frozenset[str]
    descriptors: frozenset[str]

    def beyond(self, before: Held) -> list[str]:
        return [
            *(f"task {name}" for name in sorted(self.tasks - before.tasks)),
            *(f"thread {name}" for name in sorted(self.threads - before.threads)),
            *(f"file descriptor {name}" for name in sorted(self.descriptors - before.descriptors)),
        ]


def held() -> Held:
    """Return what is held now. The threads of the loop's own default executor, which end with it, do not count."""
    tasks = {f"{task.get_name()} #{id(task):x} {task.get_coro()!r}" for task in asyncio.all_tasks()}
    threads = {
        f"{thread.name} #{thread.ident}"
        for thread in threading.enumerate()
        if not thread.name.startswith(("asyncio_", "uvloop_"))
    }
    return Held(frozenset(tasks), frozenset(threads), frozenset(_open_descriptors()))


def _open_descriptors() -> list[str]:
    found = []
    for number in os.listdir(_DESCRIPTORS) if _DESCRIPTORS else ():
        try:
            found.append(f"{number} ({os.readlink(f'{_DESCRIPTORS}/{number}')})")
        except OSError:  # the descriptor of the listing itself
            continue
    return found


@asynccontextmanager
async def leaves_nothing(what: str, *, within_seconds: float = 5.0) -> AsyncIterator[None]:
    """Raise ``AssertionError`` when the block leaves a task, a thread or a file descriptor behind.

    >>> async with leaves_nothing("opening and closing the source"):
    ...     async with open_source(GREETING, {}) as source:
    ...         await source.fetch("greet", {"name": "Ada"})
    """
    before = held()
    yield
    loop = asyncio.get_running_loop()
    patience = loop.time() + within_seconds
    while (left := held().beyond(before)) and loop.time() < patience:  # noqa: ASYNC110  # nobody tells of a thread's end
        await asyncio.sleep(0.01)
    if left:
        raise AssertionError(f"{what} leaves behind: {'; '.join(left)}")
