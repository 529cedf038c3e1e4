"""``python -m orchestrator_core.workers`` is one worker. Its supervisor starts it, and nobody else."""

from __future__ import annotations

import argparse
import os
import select
import signal
import threading

LOOK_SECONDS = 0.1


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, _leave_to_the_supervisor)  # a handler, and not SIG_IGN, which its children would inherit
    parser = argparse.ArgumentParser(prog="orchestrator worker")
    parser.add_argument("--channel", type=int, required=True)
    channel, begins = parser.parse_args().channel, threading.Event()
    threading.Thread(target=_end_with_the_supervisor, args=(channel, begins), daemon=True).start()
    from orchestrator_core.workers.worker import work  # which takes a moment, in which signals can come already

    work(channel, begins)


def _end_with_the_supervisor(channel: int, begins: threading.Event) -> None:
    """End the process when its supervisor is gone before it has anything to do.

    It has the sockets by then, and to load the plugins takes it seconds, in which nobody else could listen there.
    """
    gone = select.poll()
    gone.register(channel, 0)  # a hang-up is always told of
    while not begins.is_set():
        if gone.poll(LOOK_SECONDS * 1000):
            os._exit(1)


def _leave_to_the_supervisor(*_: object) -> None:
    """Do nothing: Ctrl-C in a terminal reaches every process of the group."""


if __name__ == "__main__":
    main()
