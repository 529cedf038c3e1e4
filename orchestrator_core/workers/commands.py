"""What a supervisor has a worker do, as pages of the worker's private admin listener, with a header of its own.

``POST /worker/prepare`` with an image opens that configuration beside the one that serves: 200 with
``{"problems": […]}``, its warnings, or 422 with all problems; 503 where it cannot be read at the moment.
``POST /worker/commit/{generation}`` has it serve, 409 when it is not the one that was prepared;
``POST /worker/abandon`` closes it. ``POST /worker/accept/{slot}`` has the
worker accept connections for a slot that has no worker of its own. ``GET /worker/ping`` says that it is there, with
``{"kept": {…}}``, what its models have noted for a start by themselves; so does a commit.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Sequence
from typing import Any

import orjson
from aiohttp import web

from orchestrator_core.config.load import load_configuration
from orchestrator_core.documents import problem_json
from orchestrator_core.errors import ConfigError
from orchestrator_core.http.answers import JSON_TYPE, Answer
from orchestrator_core.http.listener import Handler, Listener
from orchestrator_core.reload import Live, unread
from orchestrator_core.workers.images import ordered
from orchestrator_core.workers.process import COMMAND


class Commands:
    """Answers them, and leaves everything else to the admin listener's own pages."""

    def __init__(self, live: Live, sockets: Sequence[Sequence[socket.socket]]) -> None:
        self.live = live
        self.sockets = sockets
        self._accepting: set[int] = set()
        self._listener: Listener | None = None

    async def serve(self, listener: Listener, slots: Sequence[int]) -> None:
        """Accept connections for these slots; before that the worker heeds what it is asked, and serves nobody."""
        self._listener = listener
        for slot in slots:
            await self._accept(slot)

    def accept_no_more(self) -> None:
        """Let go of the sockets that nobody accepts on here; the listener's own end with it.

        Without a supervisor the port is free then, while requests are still answered.
        """
        for slot, sockets in enumerate(self.sockets):
            if slot not in self._accepting:
                self._accepting.add(slot)
                for one in sockets:
                    one.close()

    def __call__(self, pages: Handler) -> Handler:
        def handle(request: web.BaseRequest) -> Awaitable[Answer]:
            commands = request.path.startswith("/worker/") and COMMAND in request.headers
            return self._answer(request) if commands else pages(request)

        return handle

    async def _answer(self, request: web.BaseRequest) -> Answer:
        _, _, command, *values = request.path.split("/")
        match command:
            case "prepare":
                order = await request.content.read()  # however long it is: it is the supervisor's
                return await self._prepare(orjson.loads(order))
            case "commit":
                return await self._commit(values[0])
            case "accept":
                return await self._accept(int(values[0]))
            case "abandon":
                await self.live.abandon()
            case "ping":
                return _json(200, {"kept": self.live.snapshot.kept()})
            case _:
                return _json(404, {"detail": f"no such command: {command}"})
        return _json(200, {})

    async def _prepare(self, order: dict[str, Any]) -> Answer:
        try:
            configuration = await asyncio.to_thread(load_configuration, self.live.folder, image=ordered(order))
        except OSError as error:
            return _json(503, {"detail": str(unread(error))})
        try:
            status, problems = 200, await self.live.prepare(configuration)
        except ConfigError as error:
            status, problems = 422, error.problems
        return _json(status, {"problems": [problem_json(problem) for problem in problems]})

    async def _commit(self, generation: str) -> Answer:
        try:
            reloaded = await self.live.commit(generation)
        except LookupError as error:
            return _json(409, {"detail": str(error)})
        return _json(200, {"generation": reloaded.generation, "kept": self.live.snapshot.kept()})

    async def _accept(self, slot: int) -> Answer:
        if self._listener is not None and slot not in self._accepting:
            self._accepting.add(slot)
            await self._listener.accept_on(self.sockets[slot])
        return _json(200, {})


def _json(status: int, document: Any) -> Answer:
    return Answer(status, orjson.dumps(document), JSON_TYPE, "")
