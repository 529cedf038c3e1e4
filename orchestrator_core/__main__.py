"""``python -m orchestrator_core`` is the ``orchestrator`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from orchestrator_core.first_process import leave_the_first_process

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Ctrl-C ends it as well while it is still being imported."""
    _open_standard_streams()
    leave_the_first_process()
    try:
        from orchestrator_core.cli import main as command
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    try:
        command(arguments, prog_name="orchestrator")
    finally:
        _forget_what_nobody_hears()


def _open_standard_streams() -> None:
    """Open those that whoever started this has closed.

    Else what is opened first has their numbers, such as a socket: it would be written to in their place, and libuv
    aborts when it is to close it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # has the lowest number that is free: this one
            os.set_inheritable(opened, True)
            setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8", closefd=False))


def _forget_what_nobody_hears() -> None:
    """Drop what standard error has not taken, as where its disk is full: Python would end with status 120 for it."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    main()
