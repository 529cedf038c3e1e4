"""`python -m example` builds what the example needs, once, and serves `example/config` on http://localhost:8000."""

from __future__ import annotations

import argparse
import errno
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import NamedTuple

from example import containers
from example.build import NotInstalled, build, is_built
from example.places import CONFIG, FOLDER
from example.processes import MODELS, PARTNER, CannotStart, Server, running, wanted_port

HOST = "127.0.0.1"
PORT = 8000
ADMIN_PORT = 8001
INTERRUPTED = 130
POLL_SECONDS = 0.1
READY_SECONDS = 30.0
"""How long a service that listens is waited for until its models are there."""

TRY = (
    ("loan_approval/predict/1003", "database, feature store and bureau at once, then the model: approved"),
    ("loan_approval/predict/1002", "refused: the bureau and the unpaid bills know more than ..."),
    ("credit_risk/predict/1002", "... the database alone, by which the risk is low"),
    ("churn/predict/1003", "she is likely to leave"),
    ("recommendations/predict/1003", "what she may like"),
    ("model_loading/compare/1003", "one model, brought in four ways: null where its engine is not here"),
    ("recommendations/predict/1007", "nothing: the feature store has not heard of her yet"),
)


class Wanted(NamedTuple):
    """What the command line and the environment ask for."""

    port: int
    admin_port: int
    servers: Mapping[Server, int | None]
    partner_delay: float
    clean: bool


def main(arguments: Sequence[str]) -> None:
    wanted = parse(arguments)
    if wanted.clean:
        containers.clean(FOLDER, say)
        return
    for port in (wanted.port, wanted.admin_port):
        refuse_if_taken(port)
    if not is_built(FOLDER):
        try:
            build(FOLDER)
        except NotInstalled as error:
            sys.exit(f"error: {error}")
        if not is_built(FOLDER):
            sys.exit("error: what builds the example was changed while it ran: start again")
        # In place of this process, which holds hundreds of MB of what trains models and serves none.
        os.execv(sys.executable, [sys.executable, "-m", "example", *arguments])
    serve(wanted)


def parse(arguments: Sequence[str]) -> Wanted:
    parser = argparse.ArgumentParser(prog="python -m example", description=__doc__)
    parser.add_argument("--port", type=int, metavar="N", help=f"port to serve on; default $PORT, else {PORT}")
    parser.add_argument("--admin-port", type=int, metavar="N", help="port of the admin listener; default the next one")
    for option, server in (("--partner-port", PARTNER), ("--models-port", MODELS)):
        usual = f"default ${server.variable}, else {server.port}, or any free one where that is taken"
        parser.add_argument(option, type=int, metavar="N", help=f"port of the {server.name}; {usual}")
    parser.add_argument(
        "--partner-delay", type=float, default=0.0, metavar="SECONDS", help="how long the partner takes for each answer"
    )
    parser.add_argument(
        "--clean", action="store_true", help="do not serve: remove the images and containers that the example has made"
    )
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
    try:
        servers = {
            server: wanted_port(server) if number is None else number
            for server, number in ((PARTNER, given.partner_port), (MODELS, given.models_port))
        }
    except CannotStart as error:
        parser.error(str(error))
    for number in servers.values():
        if number is not None and not 0 <= number <= 65535:
            parser.error(f"{number} is no port: take one from 1 to 65535, or 0 for any free one")
    return Wanted(port, admin_port, servers, given.partner_delay, given.clean)


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


def serve(wanted: Wanted) -> None:
    """Serve with the partner and the model server beside it, until Ctrl-C."""
    say("starting   the partner API and the model server")
    delay = ["--delay", str(wanted.partner_delay)]
    try:
        with running(FOLDER, wanted.servers, say, delay) as environment, containers.offered(FOLDER, say) as switches:
            os.environ.update({**environment, **switches})
            say("starting   the service: the feature store takes a few seconds\n")
            Thread(target=invite_when_ready, args=(wanted,), daemon=True).start()
            from orchestrator_core.cli import main as orchestrator

            config = Path(os.path.relpath(CONFIG)).as_posix()
            ports = ["--port", str(wanted.port), "--admin-port", str(wanted.admin_port)]
            orchestrator(["serve", "--config", config, *ports])
    except CannotStart as error:
        sys.exit(f"error: {error}")


def invite_when_ready(wanted: Wanted) -> None:
    """Say what to try once it can be tried. A model that does not get ready is not waited for for ever."""
    while health(wanted.port) is None:
        sleep(POLL_SECONDS)
    until = monotonic() + READY_SECONDS
    while health(wanted.port) != HTTPStatus.OK and monotonic() < until:
        sleep(POLL_SECONDS)
    invite(wanted)


def health(port: int) -> int | None:
    """Return the status of the readiness page, or None while nobody listens."""
    connection = HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status
    except (OSError, HTTPException):
        return None
    finally:
        connection.close()


def invite(wanted: Wanted) -> None:
    base = f"http://localhost:{wanted.port}"
    width = max(len(path) for path, _ in TRY)
    say("")
    for index, (path, what) in enumerate(TRY):
        say(f"{'' if index else 'try':<10} curl {base}/orchestrator/{path:<{width}}  # {what}")
    say(f"{'see':<10} {base}/docs")
    say(f"{'':<10} curl 'http://localhost:{wanted.admin_port}/executions?limit=1'  # the latest answer, step by step")
    say(f"{'stop':<10} Ctrl-C\n")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
