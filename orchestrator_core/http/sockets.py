"""Sockets: several that listen on one address, and ends that lose no request."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import resource
import socket
import struct
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress

_ATTACH_FILTER = 26  # SO_ATTACH_FILTER, which the module socket does not name
_LOAD_BYTE, _JUMP_IF_SET, _RETURN = 0x30, 0x45, 0x06
_FLAGS_AT, _SYN, _ALL = 13, 0x02, 0xFFFFFFFF
_OTHER_FILES = 1024
"""Open files beside the clients' connections: those of sources, databases and logs."""


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


# What a listening socket hears: everything but a segment that opens a connection.
_NO_SYN = (_Instruction * 4)(
    _Instruction(_LOAD_BYTE, 0, 0, _FLAGS_AT),
    _Instruction(_JUMP_IF_SET, 0, 1, _SYN),
    _Instruction(_RETURN, 0, 0, 0),
    _Instruction(_RETURN, 0, 0, _ALL),
)


def refuse_new(listening: socket.socket) -> None:
    """Have the kernel queue no further connection, so that those that wait can be accepted before the socket is closed.

    Otherwise one that arrives between the last accept and the close is reset, after its client was told that it is
    connected. A client that comes now tries again a second later, and is refused then. Only Linux can do so; elsewhere
    nothing happens.
    """
    if sys.platform == "linux" and listening.family in (socket.AF_INET, socket.AF_INET6):
        program = struct.pack("HL", len(_NO_SYN), ctypes.addressof(_NO_SYN))
        listening.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)


def accept_waiting(listening: socket.socket, at_most: int) -> Iterator[socket.socket]:
    """Accept what waits in the queue of a socket that does not block."""
    for _ in range(at_most):
        try:
            connection, _ = listening.accept()
        except OSError:  # nothing waits, or what waited is gone
            return
        connection.setblocking(False)
        yield connection


def room_for(connections: int) -> int:
    """Have the system let this process open so many connections and more, and return how many of them it can have.

    A connection is an open file, of which a process may have 1,024 at first on most systems. Without one left no source
    can be connected to either, so a fourth of few files is left to them. The hard limit is the administrator's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return connections
    wanted = connections + _OTHER_FILES
    if soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(OSError, ValueError):  # macOS says that there is no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return min(connections, soft - min(_OTHER_FILES, soft // 4))


def has_unread(transport: asyncio.BaseTransport) -> bool:
    """Return whether the client has sent something that the event loop has not read yet."""
    connection = transport.get_extra_info("socket")
    return connection is not None and any(fcntl.ioctl(connection.fileno(), termios.FIONREAD, bytes(4)))


def bind_shared(host: str, port: int, count: int) -> list[list[socket.socket]]:
    """Bind ``count`` times to one address; each is a list, since a name such as localhost may stand for several.

    The kernel spreads connections over the sockets. With port 0 all get the same free one. Raises ``OSError`` when the
    address is taken, also by another service that would share it.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except socket.gaierror as error:
        raise of_no_address(host, port, error) from None
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    shared: list[list[socket.socket]] = [[] for _ in range(count)]
    try:
        for family, address in addresses:
            _bound(family, (address[0], port, *address[2:]), alone=True).close()
            for sockets in shared:
                one = _bound(family, (address[0], port, *address[2:]), alone=False)
                sockets.append(one)
                port = one.getsockname()[1]
    except OSError:
        for sockets in shared:
            for one in sockets:
                one.close()
        raise
    return shared


def of_no_address(host: str, port: int, error: socket.gaierror) -> OSError:
    """Return the error of a host that stands for no address, which names it as those of addresses do."""
    return _unbound(error, (host, port))


def _unbound(error: OSError, address: tuple[str | int, ...]) -> OSError:
    what = (error.strerror or str(error)).lower()
    return OSError(error.errno, f"error while attempting to bind on address {address!r}: {what}")


def _bound(family: int, address: tuple[str | int, ...], *, alone: bool) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not alone:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.setblocking(False)
        one.bind(address)
    except OSError as error:
        one.close()
        raise _unbound(error, address) from None
    return one
