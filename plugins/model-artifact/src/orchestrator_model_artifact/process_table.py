"""Processes by their id and start time, which together name one for good: ids are used again, moments are not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from attrs import frozen

MARK = "ORCHESTRATOR_MODEL_SERVER"
"""An environment variable that every process of a server inherits: its value says whose it is."""


@frozen
class ProcessId:
    """``started`` is the time since boot in clock ticks, as /proc counts it; ``boot`` says since which."""

    pid: int
    started: int
    boot: str

    def is_alive(self) -> bool:
        """Return whether this very process runs; one that has ended and was not waited for does not."""
        status = _status(self.pid)
        return (
            status is not None
            and status.started == self.started
            and status.state not in "ZX"
            and self.boot == _boot_id()
        )


def process_id(pid: int) -> ProcessId | None:
    """Return what names the process from now on, or None when it has ended."""
    status = _status(pid)
    return None if status is None else ProcessId(pid, status.started, _boot_id())


def members(leader: ProcessId | None, mark: str) -> list[ProcessId]:
    """Return the live processes of a server: those that bear its mark, and those of its session.

    Some programs write over their environment, others leave their session. The session's id is the leader's, and the
    kernel gives it to nobody else while a process is in it; once all have ended a stranger may get it, who is known by
    its leader's start time.
    """
    line = f"{MARK}={mark}".encode()
    found = []
    session_is_ours = leader is not None and leader.boot == _boot_id() and _is_free_or(leader)
    for pid in _pids():
        status = _status(pid)
        if status is None or status.state in "ZX":
            continue
        of_session = session_is_ours and leader is not None and status.session == leader.pid
        if (of_session and leader is not None and status.started >= leader.started) or _bears(pid, line):
            found.append(ProcessId(pid, status.started, _boot_id()))
    return found


def signal_all(processes: list[ProcessId], number: signal.Signals) -> None:
    """Send a signal to each, unless it has ended since it was looked at."""
    for process in processes:
        if process.is_alive():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, number)


def _is_free_or(leader: ProcessId) -> bool:
    status = _status(leader.pid)
    return status is None or status.started == leader.started


def _bears(pid: int, line: bytes) -> bool:
    try:
        return line in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's
        return False


def _pids() -> Iterator[int]:
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


@frozen
class _Status:
    state: str
    session: int
    started: int


def _status(pid: int) -> _Status | None:
    """Read /proc/<pid>/stat: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _Status(fields[0], int(fields[3]), int(fields[19]))


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
