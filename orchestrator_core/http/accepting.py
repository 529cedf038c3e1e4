"""Taking connections that wait several at a time.

uvloop takes one in each turn of the loop. Under load a turn is milliseconds long, and a client that connects, or a
balancer that looks after the service's health, would wait for a second before anybody hears of it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from orchestrator_core.http.sockets import accept_waiting, refuse_new

BACKLOG = 1024
AT_ONCE = 8
"""So many in one turn of the loop, which is a millisecond of a slow core: those who are connected wait for it."""

REFUSED_AT_ONCE = 32
"""So many that are refused before they have a connection are as much."""


class Acceptor:
    """Accepts what waits at the sockets of servers, besides what the event loop accepts there.

    ``refuse`` may answer a client and close its socket, and then returns true: there is no connection.
    """

    def __init__(
        self,
        protocol: Callable[[], asyncio.BaseProtocol],
        refuse: Callable[[socket.socket], bool] = lambda connection: False,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._protocol = protocol
        self._refuse = refuse
        self._servers: list[asyncio.Server] = []
        self._sockets: list[tuple[socket.socket, bool]] = []
        self._looks = False
        self._opening: set[asyncio.Task[None]] = set()

    def watch(self, server: asyncio.Server, *, own: bool) -> None:
        """Look at the server's sockets too; ``own`` says that nobody else accepts there."""
        self._servers.append(server)
        for bound in server.sockets:
            one = socket.socket(fileno=os.dup(bound.fileno()))
            one.setblocking(False)
            self._sockets.append((one, own))

    def look_soon(self) -> None:
        """Look whether more wait, as one has come."""
        if self._sockets and not self._looks:
            self._looks = True
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        self._looks = False
        for bound, _ in self._sockets:
            opened = 0
            for connection in accept_waiting(bound, REFUSED_AT_ONCE):
                if self._refuse(connection):
                    continue
                opening = self._loop.create_task(self._open(connection))
                self._opening.add(opening)
                opening.add_done_callback(self._opening.discard)
                opened += 1
                if opened == AT_ONCE:
                    break

    async def _open(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol, connection)
        except OSError:  # its client is gone already
            connection.close()

    async def stop(self) -> None:
        """Accept no more but what waits already."""
        for bound, own in self._sockets:
            if own:
                refuse_new(bound)
        for server in self._servers:
            server.close()
        for _ in range(2):
            await asyncio.sleep(0)
            for bound, _own in self._sockets:
                for connection in accept_waiting(bound, BACKLOG):
                    await self._open(connection)
        for bound, _own in self._sockets:
            bound.close()
        self._servers.clear()
        self._sockets.clear()
        if self._opening:
            await asyncio.wait(self._opening)


__all__ = ["BACKLOG", "Acceptor"]
