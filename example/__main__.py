"""`python -m example` builds what the example needs, once, and serves `example/config` on http://localhost:8000."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from example.build import CONFIG, FOLDER, NotInstalled, build, is_built

HOST = "127.0.0.1"
PORT = 8000
ADMIN_PORT = 8001
INTERRUPTED = 130


def main(arguments: Sequence[str]) -> None:
    ports = parse(arguments)
    for port in ports:
        refuse_if_taken(port)
    if not is_built(FOLDER):
        try:
            build(FOLDER)
        except NotInstalled as error:
            sys.exit(f"error: {error}")
        if not is_built(FOLDER):
            sys.exit("error: example/build.py was changed while it ran: start again")
        # In place of this process, which holds 150 MB of what trains a model and serves none.
        os.execv(sys.executable, [sys.executable, "-m", "example", *arguments])
    serve(*ports)


def parse(arguments: Sequence[str]) -> tuple[int, int]:
    """Return the ports of the public and of the admin listener."""
    parser = argparse.ArgumentParser(prog="python -m example", description=__doc__)
    parser.add_argument("--port", type=int, metavar="N", help=f"port to serve on; default $PORT, else {PORT}")
    parser.add_argument("--admin-port", type=int, metavar="N", help="port of the admin listener; default the next one")
    given = parser.parse_args(arguments)
    port = given.port
    if port is None:
        text = os.environ.get("PORT") or str(PORT)
        if not text.isdigit():
            parser.error(f"PORT is '{text}', which is no port")
        port = int(text)
    admin_port = port + 1 if given.admin_port is None else given.admin_port
    for number in (port, admin_port):
        if not 1 <= number <= 65535:
            parser.error(f"{number} is no port: take one from 1 to 65535")
    return port, admin_port


def refuse_if_taken(port: int) -> None:
    """End with the way out when something else listens there: before anything is built, not after."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            reason = "is taken by another program" if error.errno == errno.EADDRINUSE else f"cannot be used: {error}"
            sys.exit(
                f"error: port {port} {reason}\n"
                "  = take another, for example: make demo PORT=8080   (or: python -m example --port 8080)"
            )


def serve(port: int, admin_port: int) -> None:
    from orchestrator_core.cli import main as orchestrator

    url = f"http://localhost:{port}"
    print(f"try   curl {url}/orchestrator/credit_risk/predict/1001", file=sys.stderr)
    print("stop  Ctrl-C\n", file=sys.stderr, flush=True)
    config = Path(os.path.relpath(CONFIG)).as_posix()
    orchestrator(["serve", "--config", config, "--port", str(port), "--admin-port", str(admin_port)])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
