"""Ports for servers that have to be told theirs, since they cannot say which one they took."""

from __future__ import annotations

import random
import socket
from itertools import islice

LOWEST, HIGHEST = 20_000, 32_000
"""Below the ports that a kernel gives to outgoing connections, one of which could take the port before the server."""


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on now, nor an outgoing connection is given."""
    for port in islice(iter(lambda: random.randint(LOWEST, HIGHEST), None), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {LOWEST} to {HIGHEST} of 127.0.0.1 is free")
