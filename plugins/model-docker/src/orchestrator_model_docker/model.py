"""The open model: a share in a container, watched, and spoken to through the model type ``http``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from time import time
from typing import Any, TypeVar

import structlog
from attrs import evolve, frozen

from orchestrator_core.plugin_api import (
    JSON,
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
from orchestrator_model_docker.images import Image, ImageSource, find_image
from orchestrator_model_docker.options import ContainerOptions
from orchestrator_model_docker.sharing import Share, replaces_another, share
from orchestrator_model_docker.watching import until_ended

log = structlog.get_logger("orchestrator.models.docker")

MOVE_AFTER_SECONDS = 0.5
MOVE_AGAIN_SECONDS = 5.0
"""Pauses of a model on another port: until it looks whether its own is free, and after a start there that failed."""

T = TypeVar("T")


@frozen
class Running:
    """A container that is ready: its share, the task that ends when it does, and the model of the type ``http``."""

    container: Mapping[str, Any]
    end: asyncio.Task[str]
    http: Model
    shared: Share


class ContainerModel:
    """A model in a container. What it can do beside that is what the model type ``http`` can."""

    def __init__(self, engine: Engine, source: ImageSource, running: Running) -> None:
        self._engine = engine
        self._source = source
        self._now = running
        self._heard_at = time()
        http = running.http
        self.predict = http.predict  # the same calls, without another coroutine around each
        if isinstance(http, PredictsOne):
            self.predict_one = http.predict_one
        if isinstance(http, Describes):
            self.facts = http.facts

    async def check_ready(self) -> None:
        if self._now.end.done():
            raise SourceUnavailable(self._now.end.result())
        if isinstance(self._now.http, ReadyCheck):
            await self._now.http.check_ready()
        self._heard_at = time()

    async def end_for_all(self, why: str) -> str:
        return await self._now.shared.end(why, self._heard_at)

    async def ended(self) -> str:
        while True:
            running = self._now
            await asyncio.wait([running.end])
            if running is self._now:
                return running.end.result()

    async def logs(self, lines: int) -> str:
        return await containers.last_lines(self._engine, self._now.container["Id"], lines)

    def identity(self) -> Identity:
        return containers.identity_of(self._now.container)

    async def changed(self) -> bool:
        """Return whether its image has moved. While nobody can tell, or may, the container that runs is kept."""
        try:
            return await self._source.moved(self._engine, self._now.container["Image"])
        except (SourceUnavailable, SourceError) as error:
            log.warning("cannot tell whether the image has moved", image=self._source.name, error=str(error))
            return False


class MovingModel(ContainerModel):
    """A model on another port than its own, which a container of other settings has that is still in use."""

    def __init__(self, engine: Engine, source: ImageSource, running: Running) -> None:
        super().__init__(engine, source, running)
        self.predict = self._predict
        if isinstance(running.http, PredictsOne):
            self.predict_one = self._predict_one

    async def _predict(self, rows: Sequence[Mapping[str, JSON]]) -> Sequence[JSON]:
        return await self._now.http.predict(rows)

    async def _predict_one(self, row: Mapping[str, JSON]) -> JSON:
        one: PredictsOne = self._now.http  # type: ignore[assignment]  # as the first one was
        return await one.predict_one(row)

    async def move(self, design: Design, context: OpenContext, stack: AsyncExitStack, first: AsyncExitStack) -> None:
        """Go to the container of the design once its port is free, and leave the first one. No call fails of it."""
        while True:
            await asyncio.sleep(MOVE_AFTER_SECONDS)
            try:
                if await replaces_another(self._engine, design):
                    continue
                async with AsyncExitStack() as attempt:
                    running = await _started(self._engine, design, context, attempt)
                    stack.push_async_exit(attempt.pop_all())
                break
            except (SourceUnavailable, SourceError, ValueError) as error:  # what opening it may raise
                log.warning("container stays on another port", container=design.name, error=str(error))
                await asyncio.sleep(MOVE_AGAIN_SECONDS)
        self._now = running
        await asyncio.sleep(design.options.timeout)  # for the calls that are under way
        await first.aclose()


@asynccontextmanager
async def open_container(
    options: ContainerOptions, context: OpenContext, source: ImageSource
) -> AsyncIterator[ContainerModel]:
    """Have the image, hold a share in the container made from it, and wait until the model in it is ready.

    With a port of its own that a container of other settings has, which is still in use, it is another port at first:
    a new configuration that fails, for whatever reason, does not touch the old one's container.
    """
    options.check_volumes(context.config_dir)
    scope = containers.scope_of(context.config_dir)
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(open_engine())
        await stack.enter_async_context(hold_lease(containers.model_key(scope, context.name)))
        image = await _image(engine, context, source)
        design = containers.design(context.name, context.config_dir, image, options)
        model: ContainerModel
        if await replaces_another(engine, design):
            elsewhere = containers.design(context.name, context.config_dir, image, evolve(options, host_port=None))
            log.info("container on another port at first", container=elsewhere.name, before=design.name)
            first = await stack.enter_async_context(AsyncExitStack())
            running = await _started(engine, elsewhere, context, first)
            model = moving = MovingModel(engine, source, running)
            _background(stack, moving.move(design, context, stack, first))
        else:
            running = await _started(engine, design, context, stack)
            model = ContainerModel(engine, source, running)
        _background(stack, running.shared.sweep_later())
        yield model


async def _image(engine: Engine, context: OpenContext, source: ImageSource) -> Image:
    """Return the image that is configured, or when a model that was in use is started again, the one it had.

    What its tag stands for by then may be an image that a reload has refused, or that nobody has asked for yet.
    """
    note: Any = context.kept.get("image")
    image = None if note is None else Image.of_note(note)
    if image is not None and await find_image(engine, image.id) is None:
        log.warning("the image that the model had is gone", image=image.reference, id=image.id)
        image = None
    if image is None:
        image = await source.get(engine)
    context.kept["image"] = image.noted()
    return image


async def look_at(options: ContainerOptions, context: OpenContext, source: ImageSource) -> None:
    """Raise what :func:`open_container` would raise, as far as that can be told without starting anything."""
    options.check_volumes(context.config_dir)
    async with open_engine(to_look=True) as engine:
        await source.look(engine)


async def _started(engine: Engine, design: Design, context: OpenContext, stack: AsyncExitStack) -> Running:
    """Hold a share in the container until the stack is left, and wait until the model in it is ready."""
    shared = await stack.enter_async_context(share(engine, design, context))
    address = containers.address_of(shared.container, design)
    end = _background(stack, until_ended(engine, shared.container, address))
    http = await _ready(design.options, context, address, shared, end, stack)
    await shared.note_ready()
    return Running(shared.container, end, http, shared)


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
    host, port = address
    at = f"[{host}]" if ":" in host else host
    called = options.http_options(f"http://{at}:{port}", options.readiness.path)
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
