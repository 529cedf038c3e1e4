"""A TCP proxy that does to connections what bad networks and bad peers do, switched while it runs.

>>> async with chaos_proxy("127.0.0.1", 5432) as proxy:
...     proxy.hang()      # connections are taken, and nothing comes back
...     proxy.well()      # everything passes again
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from socket import SO_LINGER, SOL_SOCKET
from typing import Literal

Mode = Literal["well", "reset", "refuse", "hang"]
ABORT = struct.pack("ii", 1, 0)


class Proxy:
    """Stands between a service and one of its sources. ``port`` is where the service finds it.

    ``connections`` counts those that were taken, ``turned_away`` those of them that were reset at once, and
    ``requests`` what came from the client and was passed on: one for each request that fits a packet, as ours do.
    """

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._pairs: set[_Client] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._flapping: asyncio.Task[None] | None = None
        self._server: asyncio.Server | None = None
        self.port = 0
        self.mode: Mode = "well"
        self.delay_seconds = 0.0
        self.most_bytes: int | None = None
        self.connections = 0
        self.turned_away = 0
        self.requests = 0

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Client(self), "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._flapping:
            self._flapping.cancel()
            with suppress(asyncio.CancelledError):
                await self._flapping
        self._stop_listening()
        for task in self._connecting:
            task.cancel()
        await asyncio.gather(*self._connecting, return_exceptions=True)
        self._abort_all()
        while self._pairs:  # noqa: ASYNC110  # for a turn or two of the loop
            await asyncio.sleep(0)

    # --- faults --------------------------------------------------------------------------------------------------

    async def well(self) -> None:
        """Pass everything on, what was held up by :meth:`hang` included."""
        self.delay_seconds, self.most_bytes = 0.0, None
        await self._switch("well")

    async def delay(self, seconds: float) -> None:
        """Hold up every packet, each way."""
        await self._switch("well")
        self.delay_seconds = seconds

    async def truncate(self, most_bytes: int) -> None:
        """Close each connection once its target has answered so many bytes."""
        await self._switch("well")
        self.most_bytes = most_bytes

    async def reset(self) -> None:
        """Reset the connections there are, and each new one once it is made."""
        await self._switch("reset")

    async def refuse(self) -> None:
        """Reset the connections there are and listen no more: the kernel refuses new ones."""
        await self._switch("refuse")

    async def hang(self) -> None:
        """Keep connections and take new ones, and let nothing pass."""
        await self._switch("hang")

    def flap(self, on_seconds: float, off_seconds: float) -> None:
        """Be down and well in turns, starting with down, until the proxy is closed or :meth:`stop_flapping`."""
        self._flapping = asyncio.create_task(self._flap(on_seconds, off_seconds), name="flap")

    async def stop_flapping(self) -> None:
        if self._flapping:
            self._flapping.cancel()
            with suppress(asyncio.CancelledError):
                await self._flapping
            self._flapping = None
        await self.well()

    async def _flap(self, on_seconds: float, off_seconds: float) -> None:
        while True:
            await self.reset()
            await asyncio.sleep(off_seconds)
            await self.well()
            await asyncio.sleep(on_seconds)

    async def _switch(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "refuse":
            self._stop_listening()
        elif self._server is None:
            await self.open()
        if mode in ("reset", "refuse"):
            self._abort_all()
        for client in self._pairs:
            client.hold(mode == "hang")

    def _stop_listening(self) -> None:
        if self._server:
            self._server.close()
            self._server = None

    def _abort_all(self) -> None:
        for client in list(self._pairs):
            client.abort()

    # --- connections ---------------------------------------------------------------------------------------------

    def took(self, client: _Client) -> None:
        self.connections += 1
        if self.mode == "reset":
            self.turned_away += 1
            client.abort()
            return
        self._pairs.add(client)
        task = asyncio.create_task(self._connect(client), name="connect to the target")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _Client) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Target(self, client), *self._target)
        except OSError:
            client.abort()

    def lost(self, client: _Client) -> None:
        self._pairs.discard(client)

    def pass_on(self, write: Callable[[bytes], object], data: bytes) -> None:
        if self.delay_seconds:
            asyncio.get_running_loop().call_later(self.delay_seconds, write, data)
        else:
            write(data)


class _End(asyncio.Protocol):
    """One end of a connection. What is received before the other end is there, or while all hangs, is kept."""

    transport: asyncio.Transport

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self._kept: list[bytes] = []
        self.other: _End | None = None

    def data_received(self, data: bytes) -> None:
        if self.other is None or self._proxy.mode == "hang":
            self._kept.append(data)
        else:
            self._proxy.pass_on(self.other.write, data)

    def release(self) -> None:
        kept, self._kept = self._kept, []
        for data in kept:
            self.data_received(data)

    def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)

    def abort(self) -> None:
        connection = self.transport.get_extra_info("socket")
        if connection is not None and not self.transport.is_closing():
            connection.setsockopt(SOL_SOCKET, SO_LINGER, ABORT)
        self.transport.abort()


class _Client(_End):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._proxy.took(self)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self._proxy.mode != "hang":
            self._proxy.requests += 1
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None:
            self.other.transport.close()
        self._proxy.lost(self)

    def hold(self, held: bool) -> None:
        if not held:
            self.release()
            if self.other is not None:
                self.other.release()
                if self.other.transport.is_closing():
                    self.transport.close()

    def abort(self) -> None:
        super().abort()
        if self.other is not None:
            self.other.transport.abort()


class _Target(_End):
    def __init__(self, proxy: Proxy, client: _Client) -> None:
        super().__init__(proxy)
        self._answered = 0
        self.other = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        assert self.other is not None
        if self.other.transport.is_closing():
            transport.abort()  # type: ignore[attr-defined]
            return
        self.other.other = self
        if self._proxy.mode != "hang":
            self.other.release()

    def data_received(self, data: bytes) -> None:
        most = self._proxy.most_bytes
        if most is None or self.other is None:
            super().data_received(data)
            return
        data = data[: max(0, most - self._answered)]
        self._answered += len(data)
        super().data_received(data)
        if self._answered >= most:
            self.other.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.other is not None and self._proxy.mode != "hang":
            self.other.transport.close()


@asynccontextmanager
async def chaos_proxy(host: str, port: int) -> AsyncIterator[Proxy]:
    """Stand before a server until the block is left."""
    proxy = Proxy(host, port)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.close()
