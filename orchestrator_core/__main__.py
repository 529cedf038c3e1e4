"""``python -m orchestrator_core`` is the ``orchestrator`` command."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from orchestrator_core.first_process import leave_the_first_process

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. Ctrl-C ends it as well while it is still being imported."""
    _open_standard_streams()
    leave_the_first_process()
    _have_all_written()
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


def _have_all_written() -> None:
    """Put a buffer before standard output that has none, as with PYTHONUNBUFFERED.

    Python does not look how much was taken then: a disk that fills in the middle of a document would go unnoticed.
    """
    raw = getattr(sys.stdout, "buffer", None)
    if isinstance(raw, io.RawIOBase):
        encoding, errors = sys.stdout.encoding, sys.stdout.errors
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors, line_buffering=True)


def _forget_what_nobody_hears() -> None:
    """Drop what a standard stream has not taken, as where its disk is full: Python would end with status 120 for it.

    Of standard output that has been told: whatever writes to it flushes it.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    main()
