"""Whether the files of a configuration folder have changed, and reading them while they have not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from stat import S_ISDIR
from typing import TypeVar

from orchestrator_core.config.load import configuration_paths

T = TypeVar("T")

MOST_READS = 5
"""So often a folder is read that changes meanwhile; who goes on changing it is heard of again."""


def read_steadily(folder: Path, read: Callable[[], T]) -> T:
    """Return what was read of the folder while nothing in it changed.

    Else files of two configurations could be taken for one, such as when the link to the folder is turned meanwhile.
    """
    before = states_of(folder)
    for _ in range(MOST_READS):
        found = read()
        after = states_of(folder)
        if after == before:
            break
        before = after
    return found


def states_of(folder: Path) -> Mapping[Path, object]:
    """Return the state of all that is read of a configuration folder."""
    states: dict[Path, object] = {}
    with suppress(OSError):  # a folder that is taken away meanwhile: the next look sees it
        for path in configuration_paths(folder):
            states[path] = state_of(path)
    return states


def state_of(path: Path) -> object:
    """Return what changes with a file, whichever of the links on the way to it is turned, or which folder it is."""
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    if S_ISDIR(status.st_mode):
        return (status.st_dev, status.st_ino)
    return (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)


__all__ = ["read_steadily", "state_of", "states_of"]
