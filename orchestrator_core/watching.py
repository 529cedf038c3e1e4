"""Watching a configuration folder and the secret files that it names: somebody is told when one has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import structlog

log = structlog.get_logger("orchestrator.reload")

WATCH_DEBOUNCE_MS = 50
SETTLED_SECONDS = 0.2
LONGEST_SETTLING_SECONDS = 5.0
SECRETS_POLL_SECONDS = 1.0


async def watch(
    folder: Path, secret_files: Callable[[], Iterable[Path]], reload: Callable[[], Awaitable[object]]
) -> None:
    """Call ``reload`` whenever a file of the folder or one of the secret files changes. Runs until it is cancelled.

    What changed may be nothing of the configuration's: ``reload`` has to look. Calls may overlap, since a reload may
    wait for a model that the next change does without. Secret files stand anywhere, behind links of which each may be
    turned to another place, so they are looked at once a second.
    """
    from watchfiles import awatch

    reloads: set[asyncio.Task[None]] = set()

    def start() -> None:
        task = asyncio.create_task(_outliving(reload), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    secrets = asyncio.create_task(_watch_secrets(secret_files, start), name="watch secret files")
    settling = _Settling(start)
    try:
        async for _ in awatch(folder, debounce=WATCH_DEBOUNCE_MS, step=50, recursive=True, rust_timeout=1000):
            settling.changed()
    finally:
        settling.stop()
        for task in (secrets, *reloads):
            task.cancel()
        await asyncio.gather(secrets, *reloads, return_exceptions=True)


class _Settling:
    """Calls ``start`` once nothing has changed for a moment.

    Files are saved in pieces, and what is there of one can be a configuration without some of its endpoints.
    """

    def __init__(self, start: Callable[[], None]) -> None:
        self._start = start
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._latest = 0.0

    def changed(self) -> None:
        now = self._loop.time()
        if self._timer is None:
            self._latest = now + LONGEST_SETTLING_SECONDS
        self.stop()
        self._timer = self._loop.call_at(min(now + SETTLED_SECONDS, self._latest), self._settled)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _settled(self) -> None:
        self._timer = None
        self._start()


async def _outliving(reload: Callable[[], Awaitable[object]]) -> None:
    try:
        await reload()
    except Exception:  # the watch must outlive any defect: the next change may be the mend
        log.exception("reload failed")


async def _watch_secrets(secret_files: Callable[[], Iterable[Path]], changed: Callable[[], None]) -> None:
    seen = await asyncio.to_thread(_states, sorted(secret_files()))
    if seen:
        changed()  # for what came after the configuration was read, and before this
    while True:
        now = await asyncio.to_thread(_states, sorted(secret_files()))
        if any(path in seen and seen[path] != state for path, state in now.items()):
            changed()
        seen = now
        await asyncio.sleep(SECRETS_POLL_SECONDS)


def _states(paths: Iterable[Path]) -> dict[Path, object]:
    """Return what changes with each file, whichever of the links on the way to it is turned."""
    states: dict[Path, object] = {}
    for path in paths:
        try:
            status = path.stat()
        except OSError as error:
            states[path] = error.errno
        else:
            states[path] = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    return states


__all__ = ["watch"]
