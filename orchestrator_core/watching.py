"""Watching a configuration folder and the secret files that it names: somebody is told when one has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from orchestrator_core.config.secrets import read_secret
from orchestrator_core.config.states import state_of, states_of
from orchestrator_core.errors import SourceUnavailable

log = structlog.get_logger("orchestrator.reload")

WATCH_DEBOUNCE_MS = 50
SETTLED_SECONDS = 0.2
LONGEST_SETTLING_SECONDS = 5.0
POLL_SECONDS = 1.0
AGAIN_SECONDS = 2.0
"""When a reload is tried again that nobody could do at the moment: nothing else would tell of the change once more."""


async def watch(
    folder: Path, secret_files: Callable[[], Mapping[Path, str | None]], reload: Callable[[], Awaitable[object]]
) -> None:
    """Call ``reload`` whenever a file of the folder or one of the secret files changes. Runs until it is cancelled.

    What changed may be nothing of the configuration's: ``reload`` has to look. Calls may overlap, since a reload may
    wait for a model that the next change does without. One that raises :class:`SourceUnavailable` is called again
    after a while. ``secret_files`` are those that were read last, with what they said.

    The system tells of changes in the folder. It does not when the folder itself is replaced, nor of what is behind a
    link, where secret files often are; so all of it is looked at once a second as well.
    """
    reloads: set[asyncio.Task[None]] = set()
    moved = asyncio.Event()
    seen = _Seen(folder, secret_files, moved)

    async def look_and_reload() -> None:
        await seen.look()
        if not seen.take():  # this was told of a change that somebody has heard of already
            return
        try:
            await reload()
        except SourceUnavailable as error:
            log.error("reload is tried again", in_seconds=AGAIN_SECONDS, error=str(error))
            await asyncio.sleep(AGAIN_SECONDS)
            seen.again()
            settling.changed()

    def start() -> None:
        task = asyncio.create_task(outliving(look_and_reload), name="reload")
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    settling = _Settling(start)
    await seen.look()
    looking = asyncio.create_task(_look(seen, settling.changed), name="look for changes")
    settling.changed()  # for what came after the configuration was read, and before this
    try:
        while True:
            moved.clear()
            await _hear(folder, settling.changed, moved)
            await moved.wait()
    finally:
        settling.stop()
        for task in (looking, *reloads):
            task.cancel()
        await asyncio.gather(looking, *reloads, return_exceptions=True)


async def _hear(folder: Path, changed: Callable[[], None], moved: asyncio.Event) -> None:
    """Tell of what the system says has changed in the folder, until that is another one."""
    from watchfiles import awatch

    try:
        async for _ in awatch(
            folder, debounce=WATCH_DEBOUNCE_MS, step=50, recursive=True, rust_timeout=1000, stop_event=moved
        ):
            changed()
    except FileNotFoundError:  # it is looked for once a second
        pass
    except (OSError, RuntimeError) as error:  # such as more watches than the system allows
        log.warning("changes are noticed once a second only", error=str(error))
    except ExceptionGroup as errors:  # the same later, or the name of any file in the folder that is not UTF-8
        log.warning("changes are noticed once a second only", error="; ".join(map(str, errors.exceptions)))


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


async def outliving(reload: Callable[[], Awaitable[object]]) -> None:
    """Reload for nobody who waits for the outcome: a defect is logged, and the next change may be the mend."""
    try:
        await reload()
    except Exception:
        log.exception("reload failed")


async def _look(seen: _Seen, changed: Callable[[], None]) -> None:
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if await seen.look():
            changed()


class _Seen:
    """What was there when it was looked at last. ``moved`` is set when the folder is another one.

    A change is seen by the look that comes first, whoever looks, and is there to be taken once.
    """

    def __init__(
        self, folder: Path, secret_files: Callable[[], Mapping[Path, str | None]], moved: asyncio.Event
    ) -> None:
        self._folder = folder
        self._secret_files = secret_files
        self._moved = moved
        self._files: Mapping[Path, object] = {}
        self._secrets: Mapping[Path, object] = {}
        self._looking = asyncio.Lock()
        self._changed = False

    def take(self) -> bool:
        """Return whether something has changed since this was asked last."""
        changed, self._changed = self._changed, False
        return changed

    def again(self) -> None:
        """Give back what was taken: nothing could be made of it yet."""
        self._changed = True

    async def look(self) -> bool:
        """Return whether something has changed since; of a secret file that is new here, since it was read."""
        async with self._looking:
            read = dict(self._secret_files())
            files = await asyncio.to_thread(states_of, self._folder)
            secrets = await asyncio.to_thread(lambda: {path: state_of(path) for path in read})
            before, known = self._files, self._secrets
            self._files, self._secrets = files, secrets
            if files.get(self._folder) != before.get(self._folder):
                self._moved.set()
            new = {path: said for path, said in read.items() if path not in known}
            changed = (
                files != before
                or any(known.get(path, state) != state for path, state in secrets.items())
                or await asyncio.to_thread(_differ, new)
            )
            self._changed = self._changed or changed
            return changed


def _differ(secret_files: Mapping[Path, str | None]) -> bool:
    """Return whether one of the files says something else than when it was read."""
    for path, said in secret_files.items():
        try:
            now: str | None = read_secret(path)
        except (OSError, UnicodeDecodeError):
            now = None
        if now != said:
            return True
    return False


__all__ = ["outliving", "watch"]
