"""How much memory a process has resident."""

from __future__ import annotations

import os
from pathlib import Path


def resident_bytes(pid: int | None = None, *, peak: bool = False) -> int:
    """Return the bytes that a process has resident now, or has had at the most; this process's without a ``pid``."""
    name = "VmHWM:" if peak else "VmRSS:"
    lines = Path(f"/proc/{pid or os.getpid()}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
