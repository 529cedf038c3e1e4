"""``python -m orchestrator_core.workers`` is one worker. Its supervisor starts it, and nobody else."""

from __future__ import annotations

import argparse
import signal


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, _leave_to_the_supervisor)  # a handler, and not SIG_IGN, which its children would inherit
    from orchestrator_core.workers.worker import work  # which takes a moment, in which signals can come already

    parser = argparse.ArgumentParser(prog="orchestrator worker")
    parser.add_argument("--channel", type=int, required=True)
    work(parser.parse_args().channel)


def _leave_to_the_supervisor(*_: object) -> None:
    """Do nothing: Ctrl-C in a terminal reaches every process of the group."""


if __name__ == "__main__":
    main()
