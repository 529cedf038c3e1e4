"""Being process 1. A process that has asked for orphans gets them too, and needs no namespace of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SCRIPT = textwrap.dedent("""
    import ctypes, os, signal, subprocess, sys, time
    from pathlib import Path
    from orchestrator_core.first_process import leave_the_first_process

    PR_SET_CHILD_SUBREAPER = 36
    first, getpid, os.getpid = os.getpid(), os.getpid, lambda: 1
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    leave_the_first_process()
    os.getpid = getpid
    told = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: told.append(os.write(1, f"{signal.Signals(number).name}\\n".encode())))
    subprocess.run(["sh", "-c", "sleep 0.01 &"])
    children = Path(f"/proc/{first}/task/{first}/children")
    while children.read_text().split() != [str(os.getpid())]:
        time.sleep(0.01)
    print(os.getpid() != first and os.getppid() == first, flush=True)
    while len(told) < 2 and os.getppid() == first:
        time.sleep(0.01)
    """)


@contextmanager
def started(then: str) -> Iterator[subprocess.Popen[str]]:
    """Start one that buries an orphan, is told of two signals, and ends so."""
    process = subprocess.Popen(
        [sys.executable, "-c", f"{SCRIPT}\n{then}"], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
    )
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("then", "code"), [("sys.exit(7)", 7), ("", 0), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)]
)
def test_orphans_are_forgotten_signals_passed_on_and_the_end_is_the_childs(then: str, code: int) -> None:
    with started(then) as process:
        assert process.stdout is not None
        for number in (signal.SIGHUP, signal.SIGTERM):
            process.send_signal(number)
            assert process.stdout.readline() == f"{number.name}\n"
        assert process.wait(30) == code
