"""A model that a server of its own scores: started, probed until ready, and spoken to through the kind ``http``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Any

from orchestrator_core.plugin_api import (
    JSON,
    Describes,
    EndedByOthers,
    HttpOptions,
    Identity,
    Model,
    ModelFacts,
    OpenContext,
    OrchestratorError,
    PredictsOne,
    ReadyCheck,
    SourceUnavailable,
)
from orchestrator_model_artifact.features import Row
from orchestrator_model_artifact.launch import HOST, cut_down, ended_by_others, planned, tail
from orchestrator_model_artifact.location import Location, has_changed
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.preparing import server_location
from orchestrator_model_artifact.shared_server import Server, shared_server, wait_until_ended

_PROBE_SECONDS = 5.0
_TRIM_SECONDS = 30.0


class ServedModel:
    """A running model server."""

    def __init__(
        self,
        server: Server,
        inner: Model,
        identity: Identity,
        options: ArtifactOptions,
        context: OpenContext,
        location: Location | None,
    ) -> None:
        self.server = server
        self._inner = inner
        self._identity = identity
        self._options = options
        self._config_dir = context.config_dir
        self._location = location
        if isinstance(inner, PredictsOne):
            self.predict_one = inner.predict_one
        else:
            self.predict_one = self._predict_one

    async def predict(self, rows: Sequence[Row]) -> Sequence[JSON]:
        """Score N rows by the server. Raises what a model of the kind ``http`` raises."""
        return await self._inner.predict(rows)

    async def _predict_one(self, row: Row) -> JSON:
        (result,) = await self._inner.predict((row,))
        return result

    def facts(self) -> ModelFacts:
        return self._inner.facts() if isinstance(self._inner, Describes) else ModelFacts()

    def identity(self) -> Identity:
        return self._identity

    async def check_ready(self) -> None:
        """Raise :class:`SourceUnavailable` when the server has ended, or what the server itself is not ready for."""
        if not self.server.process.is_alive():
            raise SourceUnavailable(f"the model server {self.server.how_it_ended()}")
        if isinstance(self._inner, ReadyCheck):
            await self._inner.check_ready()

    async def ended(self) -> str:
        """Wait until the server has ended, and return its exit status and its last lines of output."""
        await wait_until_ended(self.server.process)
        how = f"the model server {self.server.how_it_ended()}"
        return EndedByOthers(how) if ended_by_others(self.server.process.pid) else how

    async def end_for_all(self, why: str) -> str:
        """End the server, which hangs, for all services that share it."""
        await self.server.end()
        return f"{why}; {self.server.last_output()}"

    async def logs(self, lines: int) -> str:
        """Return the server's last lines of output, standard output and error together."""
        return await asyncio.to_thread(tail, self.server.output, lines)

    async def changed(self) -> bool:
        """Return whether other content lies at ``path`` now."""
        if self._location is None or self._options.sha256:
            return False
        return await asyncio.to_thread(has_changed, self._location, self._options, self._config_dir)


@asynccontextmanager
async def open_served(options: ArtifactOptions, context: OpenContext) -> AsyncIterator[ServedModel]:
    """Start the model server or take over the one that runs, and wait until it is ready.

    Raises :class:`SourceError` when it can never start as configured, :class:`SourceUnavailable` when it ended, or was
    not ready in time.
    """
    location = await asyncio.to_thread(server_location, options, context.config_dir)
    launch = planned(options, location, context.config_dir)
    await _check_protocol(options, context)
    digest = f"sha256:{location.sha256}" if location else ""
    async with shared_server(
        launch,
        model=context.name,
        config_dir=context.config_dir,
        content=digest,
        port=options.port,
        stop_seconds=options.stop_timeout,
    ) as server:
        trimming = asyncio.create_task(_trim(server))
        try:
            await _until_ready(server, options, context)
            async with context.open_model("http", http_options(options, server.port)) as inner:
                identity = Identity(context.name, options.version or "", digest)
                yield ServedModel(server, inner, identity, options, context, location)
        finally:
            trimming.cancel()
            with suppress(asyncio.CancelledError):
                await trimming


async def look_at_served(options: ArtifactOptions, context: OpenContext) -> None:
    """Hold the options against what is there, without starting anything. Raises as :func:`open_served` does."""
    location = await asyncio.to_thread(server_location, options, context.config_dir)
    planned(options, location, context.config_dir)
    await _check_protocol(options, context)


def http_options(options: ArtifactOptions, port: int) -> dict[str, Any]:
    """Return the options of the model of the kind ``http`` that speaks to the server."""
    given = {
        "endpoint": options.endpoint,
        "protocol": options.protocol,
        "timeout": float(options.timeout),
        "version": options.version,
        "health": options.readiness.path,
    }
    return {
        "base_url": f"http://{HOST}:{port}",
        **{name: value for name, value in given.items() if value is not None},
        **options.http,
    }


async def _check_protocol(options: ArtifactOptions, context: OpenContext) -> None:
    """Find out, before anything is started, whether there is a kind ``http`` that takes the options. Sends nothing."""
    async with context.open_model("http", http_options(options, options.port or 1)):
        pass


async def _until_ready(server: Server, options: ArtifactOptions, context: OpenContext) -> None:
    seconds = max(options.readiness.timeout, options.startup_delay)
    deadline = monotonic() + seconds
    path = options.readiness.path
    reason = "nothing was tried"
    http = HttpOptions(timeout_seconds=min(_PROBE_SECONDS, seconds), max_connections=1, keepalive_seconds=0)
    async with context.http.origin(f"http://{HOST}:{server.port}", http) as origin:
        while monotonic() < deadline:
            if not server.process.is_alive():
                raise SourceUnavailable(f"the model server {server.how_it_ended()}", started=True)
            try:
                answer = await origin.request("GET", path or "/")
            except OrchestratorError as error:
                reason = str(error)
            else:
                if path is None or 200 <= answer.status < 300:
                    return
                reason = f"GET {path} was answered with {answer.status}"
            await asyncio.sleep(options.readiness.interval)
    raise SourceUnavailable(
        f"the model server was not ready within {seconds:g} s: {reason}; {server.last_output()}", started=True
    )


async def _trim(server: Server) -> None:
    while True:
        await asyncio.sleep(_TRIM_SECONDS)
        await asyncio.to_thread(cut_down, server.output)
