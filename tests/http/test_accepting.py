"""Clients that wait are accepted several at a time, also by a loop that takes one in each of its turns."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

from orchestrator_core.http.accepting import Acceptor

Run = Callable[[Coroutine[Any, Any, None]], None]

CLIENTS = 200
FEW_TURNS = CLIENTS // 4


class Accepted(asyncio.Protocol):
    """A connection that tells that it was made."""

    def __init__(self, made: list[Accepted]) -> None:
        self.made = made
        self.transport: Any = None  # uvloop's are no asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.made.append(self)


def test_all_that_wait_are_accepted_within_a_few_turns_of_the_loop(run_on_each_loop: Run) -> None:
    async def main() -> None:
        made: list[Accepted] = []

        def protocol() -> Accepted:
            acceptor.look_soon()
            return Accepted(made)

        acceptor = Acceptor(protocol)
        loop = asyncio.get_running_loop()
        server = await loop.create_server(protocol, "127.0.0.1", 0, backlog=CLIENTS)
        acceptor.watch(server, own=True)
        with ExitStack() as clients:
            for _ in range(CLIENTS):
                clients.enter_context(socket.create_connection(server.sockets[0].getsockname()))
            turns = 0
            while len(made) < CLIENTS:
                turns += 1
                assert turns <= FEW_TURNS
                await asyncio.sleep(0)
            await acceptor.stop()
            for connection in made:
                connection.transport.abort()
            await asyncio.sleep(0)

    run_on_each_loop(main())


def test_who_waits_when_it_stops_is_accepted_and_nobody_after(run_on_each_loop: Run) -> None:
    async def main() -> None:
        made: list[Accepted] = []
        acceptor = Acceptor(lambda: Accepted(made))
        server = await asyncio.get_running_loop().create_server(lambda: Accepted(made), "127.0.0.1", 0)
        acceptor.watch(server, own=True)
        address = server.sockets[0].getsockname()
        with ExitStack() as clients:
            for _ in range(3):
                clients.enter_context(socket.create_connection(address))
            await acceptor.stop()
            assert len(made) == 3
            for connection in made:
                connection.transport.abort()
            await asyncio.sleep(0)
        with socket.socket() as late:
            assert late.connect_ex(address) != 0

    run_on_each_loop(main())
