"""How the example's partner and model server listen and end."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

from aiohttp import web

from example.places import FOLDER

HOST = "127.0.0.1"
SHUTDOWN_SECONDS = 2.0


def options(module: str, description: str | None, port: int) -> argparse.ArgumentParser:
    """Return the options that both servers take."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("--port", type=int, default=port, metavar="N", help=f"port to listen on; default {port}")
    parser.add_argument("--fd", type=int, metavar="N", help="listen on this socket, which the parent has opened")
    parser.add_argument("--data", type=Path, default=FOLDER, metavar="FOLDER", help="where the example was built")
    return parser


def serve(app: web.Application, given: argparse.Namespace) -> None:
    """Serve until Ctrl-C, SIGTERM or, on a socket of the parent's, until the parent is gone."""
    where: dict[str, Any] = {"host": HOST, "port": given.port}
    if given.fd is not None:
        where = {"sock": socket.socket(fileno=given.fd)}
        threading.Thread(target=_end_with_parent, daemon=True).start()
    web.run_app(app, **where, access_log=None, print=None, shutdown_timeout=SHUTDOWN_SECONDS)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: it closes when the parent wants, and when it is killed."""
    while sys.stdin.buffer.raw.read(4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
