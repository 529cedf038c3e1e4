"""The live configuration: opened at start, swapped whole when the folder changes, closed at the end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import time

import structlog
from attrs import define, evolve, field, frozen

from orchestrator_core.config.at_start import waiting_for_a_start
from orchestrator_core.config.load import Image, load_configuration
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.states import read_steadily
from orchestrator_core.direct import DirectPlugin
from orchestrator_core.errors import ConfigError, Problem, SourceUnavailable
from orchestrator_core.garbage import collect_young
from orchestrator_core.http_client import HttpClient
from orchestrator_core.models import MlPlugin, Opening
from orchestrator_core.plugin_api import JSON
from orchestrator_core.plugins import Registry, discover
from orchestrator_core.snapshot import Draft, Snapshot, draft, look_at_cache, masked, open_snapshot
from orchestrator_core.stores import look_at_store
from orchestrator_core.tasks import is_told_to_end, to_its_end
from orchestrator_core.watching import watch

log = structlog.get_logger("orchestrator.reload")

BUILTINS: Mapping[str, object] = {"direct": DirectPlugin(), "ml": MlPlugin()}


def make_registry(
    folder: Path, plugins_dir: Path | None = None, plugins: Mapping[str, object] | None = None
) -> Registry:
    """Discover the plugins of a configuration; ``plugins_dir`` wins over the one that config.yaml names.

    ``plugins`` are modules or objects with hooks, by name, besides those that are installed.
    """
    if plugins_dir is not None:
        return discover(plugins_dir, BUILTINS, plugins)
    configuration = load_configuration(folder)
    named, config_yaml = configuration.app.plugins_dir, configuration.app_located
    registry = discover(folder / named if named else None, BUILTINS, plugins)
    problems = [
        config_yaml.problem(each.code, each.message, "plugins_dir") if config_yaml and each.code == "ORC404" else each
        for each in registry.problems
    ]
    return evolve(registry, problems=tuple(problems))


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


@define(eq=False)
class _Opening:
    """A configuration that is being opened. Whoever gives it up does so once: the second time would end its end."""

    generation: str
    task: asyncio.Task[Snapshot] = field(repr=False)
    _given_up: bool = False

    def give_up(self) -> None:
        if not self._given_up:
            self._given_up = True
            self.task.cancel()

    async def ended(self) -> Snapshot:
        """Return what was opened. Nothing of it stays open when this is cancelled, nor when it was given up."""
        try:
            await asyncio.wait([self.task])
        except asyncio.CancelledError:
            self.give_up()
            await to_its_end(asyncio.ensure_future(self._close()))
            raise
        return self.task.result()

    async def _close(self) -> None:
        await asyncio.wait([self.task])
        if not self.task.cancelled() and self.task.exception() is None:
            await self.task.result().close()


class Live:
    """The configuration that serves. ``snapshot`` is replaced as a whole: read it once per request.

    ``opening`` are called with each configuration before anything of it is opened, ``swapped`` when it begins to serve.
    """

    def __init__(self, folder: Path, registry: Registry, http: HttpClient, snapshot: Snapshot) -> None:
        self.folder = folder
        self.registry = registry
        self.http = http
        self.snapshot = snapshot
        self.started = snapshot.configuration.app
        self.last = Reloaded(True, snapshot.generation, snapshot.problems)
        self.secret_files = dict(snapshot.configuration.secret_files)
        self.reloads = {"swapped": 0, "failed": 0}
        self.opening: list[Callable[[Configuration], None]] = []
        self.swapped: list[Callable[[Snapshot], None]] = []
        self._lock = asyncio.Lock()
        self._opening: _Opening | None = None
        self._prepared: Snapshot | None = None
        self._retiring: dict[asyncio.Task[None], Snapshot] = {}

    async def reload(self, *, force: bool = True) -> Reloaded:
        """Open the folder's configuration beside the one that serves, and swap if nothing is wrong with it.

        Without ``force`` nothing happens when no file has changed. Reloads run one after the other; one that is still
        waiting for models of a configuration that has changed since starts over with what is there now. Raises
        :class:`SourceUnavailable` when the folder cannot be read at the moment.
        """
        await self._give_up_what_is_outdated()
        async with self._lock:
            while True:
                prepared = await asyncio.to_thread(self._draft)
                self.secret_files = {**self.snapshot.configuration.secret_files, **prepared.configuration.secret_files}
                if not force and not self._changed(prepared):
                    return self.last
                try:
                    new = await self._open(prepared)
                except ConfigError as error:
                    self.reloads["failed"] += 1
                    self.last = Reloaded(False, self.snapshot.generation, tuple(error.problems))
                    tell_failed(self.last)
                    return self.last
                if new is not None:
                    log.info("configuration reloaded", generation=new.generation, endpoints=len(new.plans))
                    reloaded = self._serve(new)
                    tell_waiting(reloaded)
                    return reloaded

    async def prepare(self, configuration: Configuration) -> tuple[Problem, ...]:
        """Open a configuration beside the one that serves, and keep it for :meth:`commit` or :meth:`abandon`.

        Returns its warnings. Raises :class:`ConfigError` with every problem, and leaves nothing open then. One that was
        prepared before is given up.
        """
        async with self._lock:
            await self._give_up_prepared()
            try:
                new = await self._open(await asyncio.to_thread(draft, configuration, self.registry))
            except ConfigError:
                self.reloads["failed"] += 1
                raise
            assert new is not None, "nobody reloads from the folder where configurations are prepared"
            self._prepared = new
            return new.problems

    async def commit(self, generation: str) -> Reloaded:
        """Have the prepared configuration serve. Raises ``LookupError`` when it is not of this generation."""
        async with self._lock:
            new = self._prepared
            if new is None or new.generation != generation:
                raise LookupError(f"generation {generation} is not prepared")
            self._prepared = None
            return self._serve(new)

    async def abandon(self) -> None:
        """Close the prepared configuration, if there is one."""
        async with self._lock:
            await self._give_up_prepared()

    async def _give_up_prepared(self) -> None:
        prepared, self._prepared = self._prepared, None
        if prepared is not None:
            await prepared.close()

    async def _give_up_what_is_outdated(self) -> None:
        if self._opening is not None:
            now = (await asyncio.to_thread(self._draft)).configuration.generation
            if self._opening is not None and self._opening.generation != now:
                self._opening.give_up()

    def _draft(self) -> Draft:
        try:
            configuration = read_steadily(self.folder, lambda: load_configuration(self.folder))
        except OSError as error:
            raise unread(error) from error
        return draft(configuration, self.registry)

    def _changed(self, prepared: Draft) -> bool:
        if self.last.failed or prepared.errors:
            return True
        old, new = self.snapshot.configuration, prepared.configuration
        return (old.generation, old.secrets) != (new.generation, new.secrets)

    async def _open(self, prepared: Draft) -> Snapshot | None:
        """Open the configuration beside the one that serves. Return None when it was given up for a later one.

        Raises :class:`ConfigError` with every problem.
        """
        old = self.snapshot
        for listener in self.opening:
            listener(prepared.configuration)
        try:
            if prepared.errors:
                raise ConfigError(prepared.problems)
            opened = open_snapshot(prepared, self.http, old, Opening(unavailable_is_error=True))
            self._opening = _Opening(prepared.configuration.generation, asyncio.create_task(opened))
            return await self._opening.ended()
        except asyncio.CancelledError:
            if is_told_to_end():
                raise
            log.info("reload starts over: the configuration has changed again", generation=old.generation)
            return None
        finally:
            self._opening = None

    def _serve(self, new: Snapshot) -> Reloaded:
        old, self.snapshot = self.snapshot, new
        for _, _, model in new.models():
            if model.slot.state == "failed":
                model.load()
        for listener in self.swapped:
            listener(new)
        task = asyncio.create_task(self._retire(old), name=f"retire {old.generation}")
        self._retiring[task] = old
        task.add_done_callback(self._retiring.pop)
        self.reloads["swapped"] += 1
        problems = (*new.problems, *waiting_for_a_start(self.started, new.configuration))
        self.last = Reloaded(True, new.generation, tuple(problems))
        return self.last

    async def _retire(self, old: Snapshot) -> None:
        timeout = old.configuration.app.reload.drain_timeout
        if not await old.drain(timeout):
            log.warning("closing a configuration with requests on it", generation=old.generation, running=old.running)
        await old.close()
        collect_young()

    @property
    def in_use(self) -> Sequence[Snapshot]:
        """Return what serves, and what requests are still on that was replaced."""
        return [self.snapshot, *self._retiring.values()]

    async def watch(self) -> None:
        """Reload whenever a file of the folder or a secret file changes. Runs until it is cancelled."""
        await watch(self.folder, lambda: self.secret_files, lambda: self.reload(force=False))

    async def close(self, timeout_seconds: float) -> None:
        """Let requests finish, then close everything."""
        await self.abandon()
        await self.snapshot.drain(timeout_seconds)
        for task in list(self._retiring):
            with suppress(asyncio.CancelledError):
                await task
        await self.snapshot.close()


def unread(error: OSError) -> SourceUnavailable:
    """Return what to raise where the folder cannot be read, though nothing is wrong with it."""
    return SourceUnavailable(f"the configuration cannot be read at the moment: {error}")


def tell_failed(reloaded: Reloaded) -> None:
    """Log that the old configuration keeps serving, and why."""
    text = "\n".join(map(str, reloaded.problems))
    event = f"reload failed, the old configuration keeps serving\n{text}"
    log.error(event, generation=reloaded.generation)


def tell_waiting(reloaded: Reloaded) -> None:
    """Log which settings wait for the next start, but for those whose keepers say so themselves."""
    waiting = [problem.message.partition(" ")[0] for problem in reloaded.problems if problem.code == "ORC209"]
    if settings := [name for name in waiting if not name.startswith(("tracking", "telemetry"))]:
        log.warning("settings have changed that are read at the start only", settings=", ".join(settings))


def tell_failed_plugins(registry: Registry) -> None:
    """Log which plugins cannot be used: no configuration names those that observe executions, nor telemetry."""
    for plugin in registry.plugins:
        if plugin.error:
            log.warning("a plugin cannot be used", plugin=str(plugin), reason=plugin.error.strip().splitlines()[-1])


@asynccontextmanager
async def open_live(
    folder: Path,
    plugins_dir: Path | None = None,
    plugins: Mapping[str, object] | None = None,
    *,
    registry: Registry | None = None,
    image: Image | None = None,
    kept: Mapping[str, dict[str, JSON]] | None = None,
) -> AsyncIterator[Live]:
    """Open the configuration of a folder, as it is or as its ``image`` was.

    With a ``registry`` no plugins are looked for. ``kept`` is what its models begin with, from another's
    ``Snapshot.kept``. Raises :class:`ConfigError` with every problem.
    """
    registry = registry or make_registry(folder, plugins_dir, plugins)
    prepared = draft(load_configuration(folder, image=image), registry)
    if prepared.errors:
        raise ConfigError(prepared.problems)
    tell_failed_plugins(registry)
    async with HttpClient() as http:
        opening = Opening(wait_seconds=prepared.configuration.app.server.preload_wait, kept=kept)
        live = Live(folder, registry, http, await open_snapshot(prepared, http, opening=opening))
        del prepared  # this frame lives as long as the service: it must not keep the first configuration
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
    return prepared, list(prepared.problems) if offline else await _ask_backends(prepared)


async def _ask_backends(prepared: Draft) -> list[Problem]:
    """Return every problem, also of what stands outside: sources and models, the shared cache, the tracking store."""
    async with HttpClient() as http:
        try:
            opening = Opening(unavailable_is_error=True, unreachable_is_error=True, look=True)
            snapshot = await open_snapshot(prepared, http, opening=opening)
        except ConfigError as error:
            problems = list(error.problems)
        else:
            try:
                problems = [*snapshot.problems, *await look_at_cache(snapshot)]
            finally:
                await snapshot.close()
    if prepared.store is not None:
        problems += await look_at_store(prepared.store, prepared.configuration)
    return masked(problems, prepared.configuration.redactor)
