"""The live configuration: opened at start, swapped whole when the folder changes, closed at the end."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import time

import structlog
from attrs import evolve, field, frozen

from orchestrator_core.config.load import load_configuration
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.direct import DirectPlugin
from orchestrator_core.errors import ConfigError, Problem
from orchestrator_core.http_client import HttpClient
from orchestrator_core.models import MlPlugin, Opening
from orchestrator_core.plugins import Registry, discover
from orchestrator_core.snapshot import Draft, Snapshot, draft, open_snapshot

log = structlog.get_logger("orchestrator.reload")

BUILTINS: Mapping[str, object] = {"direct": DirectPlugin(), "ml": MlPlugin()}
WATCH_DEBOUNCE_MS = 200


def make_registry(
    folder: Path, plugins_dir: Path | None = None, plugins: Mapping[str, object] | None = None
) -> Registry:
    """Discover the plugins of a configuration; ``plugins_dir`` wins over the one that config.yaml names.

    ``plugins`` are modules or objects with hooks, by name, besides those that are installed.
    """
    if plugins_dir is None:
        named = load_configuration(folder).app.plugins_dir
        plugins_dir = folder / named if named else None
    return discover(plugins_dir, BUILTINS, plugins)


@frozen
class Reloaded:
    """How a reload ended: the generation that serves now, and the problems that were found."""

    swapped: bool
    generation: str
    problems: tuple[Problem, ...] = ()
    at: float = field(factory=time)

    @property
    def failed(self) -> bool:
        return any(problem.severity == "error" for problem in self.problems)


class Live:
    """The configuration that serves. ``snapshot`` is replaced as a whole: read it once per request."""

    def __init__(self, folder: Path, registry: Registry, http: HttpClient, snapshot: Snapshot) -> None:
        self.folder = folder
        self.registry = registry
        self.http = http
        self.snapshot = snapshot
        self.last = Reloaded(True, snapshot.generation, snapshot.problems)
        self.swapped: list[Callable[[Snapshot], None]] = []
        self._lock = asyncio.Lock()
        self._opening: tuple[str, asyncio.Future[Snapshot]] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    async def reload(self, *, force: bool = True) -> Reloaded:
        """Open the folder's configuration beside the one that serves, and swap if nothing is wrong with it.

        Without ``force`` nothing happens when no file has changed. Reloads run one after the other; one that is still
        waiting for models of a configuration that has changed since starts over with what is there now.
        """
        await self._give_up_what_is_outdated()
        async with self._lock:
            while True:
                prepared = await asyncio.to_thread(self._draft)
                if not force and not self._changed(prepared):
                    return self.last
                if reloaded := await self._swap(prepared):
                    self.last = reloaded
                    return reloaded

    async def _give_up_what_is_outdated(self) -> None:
        if self._opening is not None:
            now = (await asyncio.to_thread(self._draft)).configuration.generation
            if self._opening is not None and self._opening[0] != now:
                self._opening[1].cancel()

    def _draft(self) -> Draft:
        return draft(load_configuration(self.folder), self.registry)

    def _changed(self, prepared: Draft) -> bool:
        if self.last.failed:
            return True
        old, new = self.snapshot.configuration, prepared.configuration
        return (old.generation, old.redactor) != (new.generation, new.redactor)

    async def _swap(self, prepared: Draft) -> Reloaded | None:
        """Open the configuration and have it serve. Return None when it was given up for a later one."""
        old = self.snapshot
        try:
            if prepared.errors:
                raise ConfigError(prepared.problems)
            opening = asyncio.ensure_future(open_snapshot(prepared, self.http, old, Opening(unavailable_is_error=True)))
            self._opening = (prepared.configuration.generation, opening)
            new = await opening
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            log.info("reload starts over: the configuration has changed again", generation=old.generation)
            return None
        except ConfigError as error:
            problems = masked(error.problems, prepared.configuration.redactor)
            text = "\n".join(map(str, problems))
            event = f"reload failed, the old configuration keeps serving\n{text}"
            log.error(event, generation=old.generation)
            return Reloaded(False, old.generation, problems)
        finally:
            self._opening = None
        self.snapshot = new
        for _, _, model in new.models():
            if model.slot.state == "failed":
                model.load()
        for listener in self.swapped:
            listener(new)
        task = asyncio.create_task(self._retire(old), name=f"retire {old.generation}")
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        log.info("configuration reloaded", generation=new.generation, endpoints=len(new.plans))
        return Reloaded(True, new.generation, masked(new.problems, prepared.configuration.redactor))

    async def _retire(self, old: Snapshot) -> None:
        timeout = old.configuration.app.reload.drain_timeout
        if not await old.drain(timeout):
            log.warning("closing a configuration with requests on it", generation=old.generation, running=old.running)
        await old.close()
        gc.collect()  # quick, since it leaves out what was frozen

    async def watch(self) -> None:
        """Reload whenever a file of the folder changes. Runs until it is cancelled."""
        from watchfiles import awatch

        reloads: set[asyncio.Task[None]] = set()
        try:
            async for _ in awatch(self.folder, debounce=WATCH_DEBOUNCE_MS, step=50, recursive=True, rust_timeout=1000):
                # A task, since a reload may wait for a model that the next change does without.
                task = asyncio.create_task(self._reload_changed(), name="reload")
                reloads.add(task)
                task.add_done_callback(reloads.discard)
        finally:
            for task in reloads:
                task.cancel()
            await asyncio.gather(*reloads, return_exceptions=True)

    async def _reload_changed(self) -> None:
        try:
            await self.reload(force=False)
        except Exception:  # the watch must outlive any defect: the next change may be the mend
            log.exception("reload failed")

    async def close(self, timeout_seconds: float) -> None:
        """Let requests finish, then close everything."""
        await self.snapshot.drain(timeout_seconds)
        for task in list(self._retiring):
            with suppress(asyncio.CancelledError):
                await task
        await self.snapshot.close()


def masked(problems: Iterable[Problem], redact: Redactor) -> tuple[Problem, ...]:
    """Return the problems without the secrets that a backend's words may repeat."""
    return tuple(evolve(problem, message=redact(problem.message), hint=redact(problem.hint)) for problem in problems)


def freeze() -> None:
    """Keep the garbage collector off everything that is there at the start.

    A full collection over loaded libraries takes tens of milliseconds, which requests would wait for. Configurations
    that are swapped in later stay in the collector's hands: they are small, and they do end.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def open_live(
    folder: Path, plugins_dir: Path | None = None, plugins: Mapping[str, object] | None = None
) -> AsyncIterator[Live]:
    """Open the configuration of a folder. Raises :class:`ConfigError` with every problem."""
    registry = make_registry(folder, plugins_dir, plugins)
    prepared = draft(load_configuration(folder), registry)
    if prepared.errors:
        raise ConfigError(prepared.problems)
    async with HttpClient() as http:
        opening = Opening(wait_seconds=prepared.configuration.app.server.preload_wait)
        live = Live(folder, registry, http, await open_snapshot(prepared, http, opening=opening))
        del prepared  # this frame lives as long as the service: it must not keep the first configuration
        freeze()
        try:
            yield live
        finally:
            await live.close(live.snapshot.configuration.app.server.shutdown_timeout)


async def check(
    folder: Path,
    plugins_dir: Path | None = None,
    *,
    offline: bool = False,
    plugins: Mapping[str, object] | None = None,
) -> tuple[Draft, list[Problem]]:
    """Return every problem of a configuration; unless ``offline``, ask the backends as well."""
    registry = make_registry(folder, plugins_dir, plugins)
    prepared = draft(load_configuration(folder), registry)
    problems = list(prepared.problems)
    if not offline:
        async with HttpClient() as http:
            try:
                opening = Opening(unavailable_is_error=True, unreachable_is_error=True, look=True)
                snapshot = await open_snapshot(prepared, http, opening=opening)
            except ConfigError as error:
                problems = list(error.problems)
            else:
                problems = list(snapshot.problems)
                await snapshot.close()
    return prepared, problems
