"""Making a connection: names to addresses, TCP, the tunnel through a proxy, TLS."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias, cast

import aiohappyeyeballs
from attrs import field, frozen

from orchestrator_core.http_client.connection import MAX_HEAD_BYTES, Connection
from orchestrator_core.http_client.egress import EgressRule
from orchestrator_core.http_client.errors import fail_future
from orchestrator_core.http_client.options import HttpOptions, TlsOptions
from orchestrator_core.http_client.request import Url

HAPPY_EYEBALLS_SECONDS = 0.25
TLS_SHUTDOWN_SECONDS = 1.0

AddressInfo: TypeAlias = aiohappyeyeballs.AddrInfoType
Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]
"""Turns a host and port into the addresses to try, in ``getaddrinfo``'s form; raises ``OSError`` if there is none."""


class ProxyRefused(OSError):
    """The proxy did not open the tunnel. Only a 5xx status may be different next time."""

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@frozen
class Route:
    """The way to an origin: where to connect, the CONNECT to send first if any, and the TLS to speak then if any."""

    host: str
    port: int
    tunnel: bytes | None = field(repr=False)
    tls: ssl.SSLContext | None
    server_name: str | None
    egress: EgressRule


def route_to(url: Url, options: HttpOptions, proxy: Url | None) -> Route:
    """Plan the way to the origin. Reads certificate files, so it blocks; ``ValueError`` when one cannot be used."""
    tls = options.tls
    if proxy is not None and not options.egress.allow_private:
        raise ValueError("egress.allow_private: false cannot be held behind a proxy, which resolves names itself")
    peer = proxy or url
    tunnel = None
    if proxy is not None and url.secure:
        credentials = f"Proxy-Authorization: {proxy.credentials}\r\n" if proxy.credentials else ""
        tunnel = f"CONNECT {url.authority} HTTP/1.1\r\nHost: {url.authority}\r\n{credentials}\r\n".encode()
    context = tls_context(tls) if url.secure else None
    server_name = (tls.server_name or url.host) if context else None
    return Route(peer.host, peer.port, tunnel, context, server_name, EgressRule(options.egress))


def tls_context(options: TlsOptions) -> ssl.SSLContext:
    """Build the TLS settings; ``ValueError`` names the file that cannot be used."""
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:
        raise ValueError(f"tls.ca_file {options.ca_file} cannot be used: {error}") from error
    context.set_alpn_protocols(["http/1.1"])
    if not options.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if options.cert_file is not None:
        try:
            # Without a password OpenSSL would ask for one on the terminal, and wait.
            context.load_cert_chain(options.cert_file, options.key_file, options.key_password or _no_password)
        except OSError as error:
            files = " with tls.key_file ".join(filter(None, (options.cert_file, options.key_file)))
            raise ValueError(f"tls.cert_file {files} cannot be used: {error}") from error
    elif options.key_file is not None:
        raise ValueError("tls.key_file needs tls.cert_file")
    return context


def _no_password() -> str:
    raise OSError("the key is encrypted; give tls.key_password")


async def resolve_by_system(host: str, port: int) -> Sequence[AddressInfo]:
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def dial(route: Route, resolve: Resolve, connection: Connection) -> None:
    """Connect ``connection``. Raises ``OSError`` (``ssl.SSLError`` is one); leaves no socket when it raises."""
    loop = asyncio.get_running_loop()
    addresses = await resolve(route.host, route.port)
    if not addresses:
        raise OSError(f"{route.host} has no address")
    permitted = route.egress.permitted(route.host, [str(info[4][0]) for info in addresses])
    addresses = [info for info in addresses if info[4][0] in permitted]
    sock = await aiohappyeyeballs.start_connection(addresses, happy_eyeballs_delay=HAPPY_EYEBALLS_SECONDS)
    if route.tunnel is not None and route.tls is not None:
        await _dial_through_proxy(route.tunnel, route.tls, route.server_name, sock, connection)
        return
    shutdown = None if route.tls is None else TLS_SHUTDOWN_SECONDS
    try:
        await loop.create_connection(
            lambda: connection,
            sock=sock,
            ssl=route.tls,
            server_hostname=route.server_name,
            ssl_shutdown_timeout=shutdown,
        )
    except BaseException:
        sock.close()
        raise


async def _dial_through_proxy(
    request: bytes, tls: ssl.SSLContext, server_name: str | None, sock: socket.socket, connection: Connection
) -> None:
    loop = asyncio.get_running_loop()
    tunnel = Tunnel(loop)
    try:
        transport, _ = await loop.create_connection(lambda: tunnel, sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        await tunnel.open(request)
        secured = await loop.start_tls(
            transport, connection, tls, server_hostname=server_name, ssl_shutdown_timeout=TLS_SHUTDOWN_SECONDS
        )
    except BaseException:
        transport.abort()
        raise
    if secured is None:
        raise ConnectionResetError("the proxy closed the connection during the TLS handshake")
    connection.connection_made(secured)


class Tunnel(asyncio.Protocol):
    """Asks a proxy for a tunnel (RFC 9110 section 9.3.6), before the connection proper takes the transport over."""

    _STATUS_LINE = re.compile(rb"HTTP/1\.[01] (\d{3})[ \r]")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._opened: asyncio.Future[None] = loop.create_future()
        self._received = b""

    async def open(self, request: bytes) -> None:
        self._transport.write(request)
        await self._opened

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end and len(head) <= MAX_HEAD_BYTES:
            return
        match = self._STATUS_LINE.match(head)
        if match is None or not end:
            self._fail("the proxy's answer is not HTTP")
        elif not match[1].startswith(b"2"):
            self._fail(f"the proxy refused the tunnel with status {int(match[1])}", transient=match[1] >= b"500")
        elif rest:
            self._fail("the proxy sent data of its own into the tunnel")
        elif not self._opened.done():
            # What comes from here on is for TLS to read, which takes over when the task that waits here runs.
            self._transport.pause_reading()
            self._opened.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the proxy closed the connection{f': {error}' if error else ''}", transient=True)

    def _fail(self, reason: str, *, transient: bool = False) -> None:
        fail_future(self._opened, ProxyRefused(reason, transient=transient))
