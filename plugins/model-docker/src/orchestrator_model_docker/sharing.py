"""One container for all processes of this host that serve a configuration folder.

Whoever holds the lease of a container uses it. Decisions are made one at a time: the first to come starts the
container, the others find it running, and the last to leave takes it away. Nothing here depends on a process having
left in peace.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import time
from typing import Any

import structlog

from orchestrator_core.plugin_api import (
    Lease,
    OpenContext,
    SourceError,
    SourceUnavailable,
    hold_lease,
    if_unheld,
    is_held,
)
from orchestrator_model_docker import containers
from orchestrator_model_docker.containers import Design
from orchestrator_model_docker.engine import Engine
from orchestrator_model_docker.starts import Starts

log = structlog.get_logger("orchestrator.models.docker")

SWEEP_AFTER_SECONDS = 10.0
"""By then every model of the configuration holds its lease, and what nobody holds belongs to none."""


class Share:
    """A share in the container of a design."""

    def __init__(self, engine: Engine, design: Design, lease: Lease, context: OpenContext) -> None:
        self._engine = engine
        self._design = design
        self._lease = lease
        self._starts = Starts(lease, context)
        self._failure = ""
        self.container: Mapping[str, Any] = {}

    async def ensure(self) -> None:
        """Have exactly one container run. Raises what opening a model does."""
        while True:
            async with self._lease.exclusive():
                self._starts.claim()
                found = await containers.find(self._engine, self._design.name)
                if found is None or not containers.is_running(found):
                    await self._bury(found)
                    pause = self._starts.pause()
                    if not pause:
                        found = await self._start()
                if found is not None and containers.is_running(found):
                    self.container = found
                    await self._sweep(self._is_old)
                    return
            await asyncio.sleep(pause)

    async def note_ready(self) -> None:
        async with self._lease.exclusive():
            self._starts.ready()

    async def give_up(self, why: str) -> str:
        """Note that the running container is of no use. Return why, with its last lines of output."""
        output = await containers.shown_lines(self._engine, self.container["Id"])
        self._failure = f"{why}; its last lines:\n{output}" if output else f"{why}, and its container says nothing"
        return self._failure

    async def end(self, why: str, heard_at: float) -> str:
        """Take the container away, whoever uses it: it hangs, since a Unix time. Return why, with its last lines."""
        async with self._lease.exclusive():
            found = await containers.find(self._engine, self.container["Id"])
            if found is None or not containers.is_running(found):
                return why  # another process has done it
            how = await self.give_up(why)
            self._starts.ended(how, heard_at)
            await containers.remove(self._engine, found["Id"])
            log.warning("container removed that hangs", container=self._design.name)
        return how

    async def leave(self) -> None:
        """Give the share up. The last one takes the container away."""
        async with self._lease.exclusive():
            try:
                if self._lease.last():
                    await self._take_away()
                self._starts.seen()
            except (SourceUnavailable, SourceError) as error:
                # Whoever comes next finds the container, and uses it or takes it away.
                log.warning("a container is left behind", container=self._design.name, error=str(error))
            finally:
                self._lease.release()

    async def sweep_later(self) -> None:
        """Take away what nobody holds and no model of the configuration is, once all of them had time to start."""
        await asyncio.sleep(SWEEP_AFTER_SECONDS)
        try:
            await self._sweep(lambda labels: not is_held(containers.model_key(self._design.scope, labels["model"])))
        except (SourceUnavailable, SourceError) as error:
            log.warning("cannot look for containers that nobody uses", error=str(error))

    # --- inside of exclusive() ----------------------------------------------------------------------------------------

    async def _start(self) -> Mapping[str, Any] | None:
        engine, design = self._engine, self._design
        design.options.check_volumes(design.config_dir)
        try:
            await self._rivals()
            await containers.create(engine, design)
            for rival in await self._rivals():
                log.info("container replaced", container=rival, by=design.name)
                await containers.remove(engine, rival, stop_seconds=design.options.stop_timeout)
            await containers.start(engine, design)
            self._starts.started()
        except BaseException:
            await containers.remove(engine, design.name)
            raise
        log.info("container started", container=design.name, image=design.image.reference)
        found = await containers.find(engine, design.name)
        if found is not None and not containers.is_running(found):
            raise SourceUnavailable(await containers.describe_end(engine, found), started=True)
        return found

    async def _bury(self, found: Mapping[str, Any] | None) -> None:
        """Take an ended container away, and note how it ended."""
        if found is None:
            self._starts.gone()
            return
        if found["State"]["Status"] != "created":
            self._starts.ended(
                await containers.describe_end(self._engine, found),
                containers.ended_at(found),
                by_others=containers.ended_by_others(found),
            )
        await containers.remove(self._engine, found["Id"])

    async def _take_away(self) -> None:
        found = await containers.find(self._engine, self._design.name)
        if found is not None and containers.is_running(found):
            ours = found["State"]["StartedAt"] == self.container.get("State", found["State"])["StartedAt"]
            # One that somebody has restarted was never asked anything, and the next start waits for its end.
            await containers.remove(
                self._engine, found["Id"], stop_seconds=self._design.options.stop_timeout if ours else None
            )
            if self._failure:
                self._starts.ended(self._failure, time())
            else:
                self._starts.clear()
            log.info("container stopped", container=self._design.name)
        else:
            await self._bury(found)

    async def _rivals(self) -> list[str]:
        """Return the containers of older settings of this model that have our port.

        Raises ``SourceUnavailable`` when one of newer settings has it: of two configurations the newer one wins.
        """
        design, mine = self._design, self._lease.state().get("since", 0.0)
        found = await _with_its_port(self._engine, design)
        for name in found:
            with if_unheld(name) as nobody:
                newer = nobody is None and Lease(name, self._lease.folder).state().get("since", 0.0) > mine
            if newer:
                raise SourceUnavailable(
                    f"the port {design.options.host_port} of this host is that of {name}, which a newer configuration "
                    "of this model has started: reload this one",
                    started=False,
                )
        return found

    def _is_old(self, labels: Mapping[str, str]) -> bool:
        return labels["model"] == self._design.model

    async def _sweep(self, unwanted: Any) -> None:
        for found in await containers.of_scope(self._engine, self._design.scope):
            name = _name(found)
            if name == self._design.name or not unwanted(_labels(found)):
                continue
            with if_unheld(name) as nobody:
                if nobody is not None:
                    log.info("container removed that nobody uses", container=name)
                    await containers.remove(self._engine, found["Id"])
                    nobody.note({})


async def replaces_another(engine: Engine, design: Design) -> bool:
    """Return whether a container of other settings of this model has this one's port, and somebody uses it."""
    return any(map(is_held, await _with_its_port(engine, design)))


async def _with_its_port(engine: Engine, design: Design) -> list[str]:
    """Return the other containers of this model that have the port on this host which this one is to have."""
    if design.options.host_port is None:
        return []
    return [
        _name(other)
        for other in await containers.of_scope(engine, design.scope)
        if _name(other) != design.name
        and _labels(other)["model"] == design.model
        and design.options.host_port in {port.get("PublicPort") for port in other.get("Ports") or ()}
    ]


def _name(found: Mapping[str, Any]) -> str:
    return str(found["Names"][0]).lstrip("/")


def _labels(found: Mapping[str, Any]) -> dict[str, str]:
    return {name.removeprefix(containers.LABEL): value for name, value in found["Labels"].items()}


@asynccontextmanager
async def share(engine: Engine, design: Design, context: OpenContext) -> AsyncIterator[Share]:
    """Hold a share in the container of the design until the block is left; it runs when the block is entered."""
    async with hold_lease(design.name) as lease:
        mine = Share(engine, design, lease, context)
        try:
            await mine.ensure()
            yield mine
        finally:
            await mine.leave()
