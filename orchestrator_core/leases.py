"""What several processes of one host use together, such as a container: who uses it, who starts it, who is the last.

Each process that serves a configuration *holds* the lease of the thing. The locks are ``flock`` locks, which the kernel
gives up when their process dies, however it dies: nothing has to be cleaned up after a SIGKILL.

The files are in one folder per user: ``$ORCHESTRATOR_RUNTIME_DIR``, else ``$XDG_RUNTIME_DIR/orchestrator``, else
``orchestrator-<uid>`` in the folder for temporary files.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from pathlib import Path
from socket import gethostname
from typing import IO, Any

__all__ = ["Lease", "hold_lease", "if_unheld", "is_held", "lease_domain", "runtime_folder"]

POLL_SECONDS = 0.02
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}\Z")


class Lease:
    """A share in one thing. Of :meth:`last` and :meth:`state` ask only inside :meth:`exclusive`."""

    def __init__(self, key: str, folder: Path) -> None:
        self.key = key
        self.folder = folder
        self._users: IO[bytes] | None = None

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Keep every other holder, of this process or another, from deciding what this one decides."""
        with _open(self.folder, f"{self.key}.lock") as file:
            while not _lock(file, fcntl.LOCK_EX):  # noqa: ASYNC110 - a lock of the kernel tells nobody
                await asyncio.sleep(POLL_SECONDS)
            yield

    def last(self) -> bool:
        """Return whether nobody else holds the lease."""
        assert self._users is not None, "the lease was given up"
        alone = _lock(self._users, fcntl.LOCK_EX)
        _share(self._users)  # a refused conversion may have lost the lock that was there
        return alone

    def release(self) -> None:
        """Give up the share. Does nothing the second time."""
        if self._users is not None:
            self._users.close()
            self._users = None

    def state(self) -> dict[str, Any]:
        """Return what the holders have noted: an object, empty at first and after a write that was cut off."""
        try:
            noted = json.loads((self.folder / f"{self.key}.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return noted if isinstance(noted, dict) else {}

    def note(self, state: Mapping[str, Any]) -> None:
        """Replace what is noted. It outlives the holders."""
        temporary = self.folder / f"{self.key}.json.new"
        temporary.write_text(json.dumps(state))
        temporary.replace(self.folder / f"{self.key}.json")

    def _hold(self) -> None:
        self._users = _open(self.folder, f"{self.key}.users")
        _share(self._users)


@asynccontextmanager
async def hold_lease(key: str) -> AsyncIterator[Lease]:
    """Hold the lease of a thing. ``key`` names it on this host: letters, digits, ``_``, ``-`` and ``.``."""
    lease = Lease(_named(key), runtime_folder())
    async with lease.exclusive():
        lease._hold()
    try:
        yield lease
    finally:
        lease.release()


def is_held(key: str) -> bool:
    """Return whether anybody, this process included, holds the lease.

    A holder that asks in the same moment whether it is the last may be told that it is not: where that matters, use
    :func:`if_unheld`.
    """
    path = runtime_folder() / f"{_named(key)}.users"
    if not path.exists():
        return False
    with path.open("rb") as file:
        return not _lock(file, fcntl.LOCK_EX)


@contextmanager
def if_unheld(key: str) -> Iterator[Lease | None]:
    """Keep everybody from taking the lease up, and give it; give None when somebody holds it or is about to.

    So whoever finds a thing that nobody uses can take it away without fear that somebody begins to use it.
    """
    lease = Lease(_named(key), runtime_folder())
    with _open(lease.folder, f"{key}.lock") as file:
        yield lease if _lock(file, fcntl.LOCK_EX) and not is_held(key) else None


def lease_domain() -> str:
    """Return a word for those who share leases: this host's processes with this folder.

    Where a thing can be seen from elsewhere too, such as a container of an engine that several hosts use, it tells
    whose lease is meant.
    """
    return sha256(f"{gethostname()}\0{runtime_folder().resolve()}".encode()).hexdigest()[:12]


def runtime_folder() -> Path:
    """Return the folder of the leases, made if need be. Raises ``PermissionError`` when it is somebody else's."""
    if named := os.environ.get("ORCHESTRATOR_RUNTIME_DIR"):
        folder = Path(named)
    elif named := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(named) / "orchestrator"
    else:
        folder = Path(tempfile.gettempdir()) / f"orchestrator-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
        raise PermissionError(f"{folder} is not a folder of this user: set ORCHESTRATOR_RUNTIME_DIR to another")
    return folder


def _open(folder: Path, name: str) -> IO[bytes]:
    return open(os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600), "rb")


def _named(key: str) -> str:
    if not _KEY.match(key):
        raise ValueError(f"'{key}' cannot name a lease: use letters, digits, _, - and .")
    return key


def _share(file: IO[bytes]) -> None:
    """Take the lock of a holder. Others exclude it for a moment at most, while they ask who holds the lease."""
    fcntl.flock(file, fcntl.LOCK_SH)


def _lock(file: IO[bytes], mode: int) -> bool:
    """Take a lock, or return whether it was to be had at once."""
    try:
        fcntl.flock(file, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
