"""The open model: a share in a container, watched, and spoken to through the model type ``http``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import structlog
from attrs import evolve

from orchestrator_core.plugin_api import (
    Describes,
    Identity,
    Model,
    OpenContext,
    PredictsOne,
    ReadyCheck,
    SourceError,
    SourceUnavailable,
    hold_lease,
)
from orchestrator_model_docker import containers
from orchestrator_model_docker.containers import Design
from orchestrator_model_docker.engine import Engine, open_engine
from orchestrator_model_docker.images import ImageSource
from orchestrator_model_docker.options import ContainerOptions
from orchestrator_model_docker.sharing import Share, replaces_another, share
from orchestrator_model_docker.watching import until_ended

log = structlog.get_logger("orchestrator.models.docker")

T = TypeVar("T")


class ContainerModel:
    """A model in a container. What it can do beside that is what the model type ``http`` can."""

    def __init__(
        self, http: Model, engine: Engine, container: Mapping[str, Any], end: asyncio.Task[str], source: ImageSource
    ) -> None:
        self._http = http
        self._engine = engine
        self._container = container
        self._end = end
        self._source = source
        self.predict = http.predict  # the same calls, without another coroutine around each
        if isinstance(http, PredictsOne):
            self.predict_one = http.predict_one
        if isinstance(http, Describes):
            self.facts = http.facts

    async def check_ready(self) -> None:
        if self._end.done():
            raise SourceUnavailable(await self.ended())
        if isinstance(self._http, ReadyCheck):
            await self._http.check_ready()

    async def ended(self) -> str:
        return await asyncio.shield(self._end)

    async def logs(self, lines: int) -> str:
        return await containers.last_lines(self._engine, self._container["Id"], lines)

    def identity(self) -> Identity:
        return containers.identity_of(self._container)

    async def changed(self) -> bool:
        """Return whether its image has moved. While nobody can tell, the container that runs is kept."""
        try:
            return await self._source.moved(self._engine, self._container["Image"])
        except SourceUnavailable as error:
            log.warning("cannot tell whether the image has moved", image=self._source.name, error=str(error))
            return False


@asynccontextmanager
async def open_container(
    options: ContainerOptions, context: OpenContext, source: ImageSource
) -> AsyncIterator[ContainerModel]:
    """Have the image, hold a share in the container made from it, and wait until the model in it is ready."""
    options.check_volumes(context.config_dir)
    scope = containers.scope_of(context.config_dir)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine())
        await stack.enter_async_context(hold_lease(containers.model_key(scope, context.name)))
        image = await source.get(engine)
        design = containers.design(context.name, context.config_dir, image, options)
        if await replaces_another(engine, design):
            await _rehearse(engine, design, context)
        shared, end, http = await _started(engine, design, context, stack)
        _background(stack, shared.sweep_later())
        yield ContainerModel(http, engine, shared.container, end, source)


async def look_at(options: ContainerOptions, context: OpenContext, source: ImageSource) -> None:
    """Raise what :func:`open_container` would raise, as far as that can be told without starting anything."""
    options.check_volumes(context.config_dir)
    async with open_engine() as engine:
        await source.look(engine)


async def _rehearse(engine: Engine, design: Design, context: OpenContext) -> None:
    """Have a container like this one become ready on another port, before the one is stopped that has its port.

    Raises what opening a model does: a model that fails only in a new configuration does not touch the old one's.
    """
    options = evolve(design.options, host_port=None)
    elsewhere = containers.design(context.name, context.config_dir, design.image, options)
    log.info("container tried on another port", container=elsewhere.name, before=design.name)
    async with AsyncExitStack() as stack:
        await _started(engine, elsewhere, context, stack)


async def _started(
    engine: Engine, design: Design, context: OpenContext, stack: AsyncExitStack
) -> tuple[Share, asyncio.Task[str], Model]:
    """Hold a share in the container until the stack is left, and wait until the model in it is ready.

    Returns it with the task that ends when the container does, and the model as the type ``http`` speaks to it.
    """
    shared = await stack.enter_async_context(share(engine, design, context))
    address = containers.address_of(shared.container, design)
    end = _background(stack, until_ended(engine, shared.container, address))
    http = await _ready(design.options, context, address, shared, end, stack)
    await shared.note_ready()
    return shared, end, http


async def _ready(
    options: ContainerOptions,
    context: OpenContext,
    address: tuple[str, int],
    shared: Share,
    end: asyncio.Task[str],
    stack: AsyncExitStack,
) -> Model:
    """Return the model of the type ``http`` once its server is ready. Raises when the container ends before."""
    loop, seconds = asyncio.get_running_loop(), options.ready_within_seconds
    called = options.http_options("http://{}:{}".format(*address), options.readiness.path)
    deadline = loop.time() + seconds
    http: Model | None = None
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                if http is None:
                    http = await stack.enter_async_context(context.open_model("http", called))
                if isinstance(http, ReadyCheck):
                    await http.check_ready()
                return http
        except (SourceUnavailable, SourceError, TimeoutError) as error:
            said = str(error) or "no answer"
        await asyncio.wait([end], timeout=min(options.readiness.interval, max(0.0, deadline - loop.time())))
        if end.done():
            raise SourceUnavailable(end.result(), started=True)
        if loop.time() >= deadline:
            raise SourceUnavailable(
                await shared.give_up(f"it was not ready within {seconds:g} s: {said}"), started=True
            )


def _background(stack: AsyncExitStack, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run a coroutine until the stack is left."""
    task = asyncio.create_task(work)

    async def cancel() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(cancel)
    return task
