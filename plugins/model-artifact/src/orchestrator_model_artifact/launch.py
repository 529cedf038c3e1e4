"""Starting a model server: its command, its environment, its port, and the file that keeps its output."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.process_table import MARK

HOST = "127.0.0.1"
_children: dict[int, subprocess.Popen[bytes]] = {}  # the kernel's own fact, which has no other place: ours to wait for
_statuses: dict[int, int] = {}  # of those that were waited for: the kernel tells it once
_SENT_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGKILL, signal.SIGTERM}

MOST_OUTPUT = 4 * 2**20
"""A server's output is cut down to half of this when it has grown to it."""


@frozen
class Launch:
    """What is started; ``{port}`` in ``command`` is not replaced yet."""

    command: tuple[str, ...] = field(repr=False)
    folder: Path
    environment: Mapping[str, str] = field(repr=False)

    def start(self, port: int, output: Path, mark: str) -> int:
        """Start the server in a session of its own, and return its process id.

        Raises :class:`SourceError` when it cannot be started.
        """
        command = [word.replace("{port}", str(port)) for word in self.command]
        environment = {
            **os.environ,
            "PATH": _search_path(),
            **self.environment,
            "PORT": str(port),
            MARK: mark,
        }
        with output.open("ab") as log:
            try:
                child = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise SourceError(f"startup_command: '{command[0]}' cannot be started: {error.strerror}") from error
        _children[child.pid] = child
        _statuses.pop(child.pid, None)
        return child.pid


def reaped(pid: int) -> str:
    """Return how the process has ended, as far as that can be known; without this a child of ours stays a zombie."""
    for other, child in list(_children.items()):
        if (code := child.poll()) is not None:
            _statuses[other] = code
            del _children[other]
    status = _statuses.get(pid)
    if status is None:
        return "ended"
    return f"ended with status {status}" if status >= 0 else f"was killed by {signal.Signals(-status).name}"


def ended_by_others(pid: int) -> bool:
    """Return whether a process that has ended got a signal that somebody sends, or was never ours to know it of."""
    reaped(pid)
    status = _statuses.get(pid)
    return status is None or -status in _SENT_SIGNALS


def planned(options: ArtifactOptions, location: Location | None, config_dir: Path) -> Launch:
    """Return what the options say is to be started. Raises :class:`SourceError` when that cannot be."""
    if not Path("/proc/self/stat").exists():
        raise SourceError("startup_command is for Linux: a server is found again by what /proc says of it")
    words = options.startup_command or ()
    command = list(shlex.split(words) if isinstance(words, str) else words)
    environment = dict(options.environment)
    path = str(location.path / location.main) if location else ""
    if location:
        environment.setdefault("MODEL_PATH", path)
    elif any("{path}" in word for word in command):
        raise SourceError("startup_command names {path}, and there is no path")
    command = [word.replace("{path}", path) for word in command]
    folder = (config_dir / (options.working_dir or ".")).resolve()
    if not folder.is_dir():
        raise SourceError(f"working_dir '{options.working_dir}' is no folder: looked for {folder}")
    program = command[0]
    at = folder / program if "/" in program else None
    search = environment.get("PATH", _search_path())
    if not (shutil.which(str(at)) if at else shutil.which(program, path=search)):
        where = f"looked for {at}" if at else f"looked in PATH: {search}"
        raise SourceError(f"startup_command: there is no program '{program}' that can be run: {where}")
    return Launch(tuple(command), folder, environment)


def port_for(port: int | None) -> int:
    """Return the port if it is free, or a free one. Raises :class:`SourceUnavailable` when another listens on it."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HOST, port or 0))
        except OSError as error:
            raise SourceUnavailable(
                f"port {port} is taken by another program: {error.strerror}:"
                " give the model server another, or leave port out for any free one",
                started=False,
            ) from error
        found: int = tried.getsockname()[1]
        return found


def tail(output: Path, lines: int) -> str:
    """Return the last lines of a server's output."""
    try:
        with output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 512 * max(lines, 1)))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:]) if lines > 0 else ""


def cut_down(output: Path) -> None:
    """Keep the newer half of the output when it has become too much. The server goes on writing at its end."""
    try:
        if output.stat().st_size <= MOST_OUTPUT:
            return
        with output.open("r+b") as file:
            file.seek(-MOST_OUTPUT // 2, os.SEEK_END)
            kept = file.read()
            file.seek(0)
            file.truncate()
            file.write(kept[kept.find(b"\n") + 1 :])
    except OSError:
        return


def _search_path() -> str:
    """Return where programs are looked for: beside this Python first, so that its environment's tools are found."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
