"""The processes of a run: started on their core, measured through /proc, and ended by their id."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import uvloop
from attrs import frozen

from tests.memory import resident_bytes

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 10.0
WAKING = Path("/dev/cpu_dma_latency")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class Unusable(Exception):
    """A contestant does not start, or does not answer what it should."""


def run_to_the_end(bench: Coroutine[Any, Any, None]) -> int:
    """Run it, and return the exit status: 1 for :class:`Unusable`, which is printed, 130 when it was ended.

    Ctrl-C ends it with all that it has started, and so does SIGTERM.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvloop.run(bench)
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("\nstopped", flush=True)
        return 130
    except Unusable as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


@frozen
class Cores:
    """Which CPUs the server under load may use, and which everything else."""

    server: frozenset[int]
    load: frozenset[int]

    @property
    def apart(self) -> bool:
        return self.server.isdisjoint(self.load)


@cache
def divide_cores() -> Cores:
    """Return the cores that this process had at the first call, divided."""
    first, *others = sorted(os.sched_getaffinity(0))
    return Cores(frozenset({first}), frozenset(others or {first}))


@contextmanager
def awake(device: Path = WAKING) -> Iterator[bool]:
    """Keep all cores from sleeping until the block is left. Yields whether the system lets us.

    To wake a core that sleeps takes a virtual machine up to some milliseconds, several times for each request: more
    than all else that a quick request takes, and the more so the less there is to do. While the device is open the
    kernel keeps to the wake-up latency that was written to it, in microseconds, as a number of 32 bits
    (https://docs.kernel.org/power/pm_qos_interface.html).
    """
    try:
        held = device.open("wb", buffering=0)
    except OSError:
        yield False
        return
    with held:
        held.write(struct.pack("=i", 0))
        yield True


@frozen
class Process:
    """A server that listens on ``port``."""

    name: str
    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of all of its threads, user and system."""
        return cpu_seconds(self.pid)

    def peak_bytes(self) -> int:
        """Return the most memory it has had resident so far."""
        return resident_bytes(self.pid, peak=True)


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process; 0 where it cannot be told, as for a server on another machine."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND
    return 0.0


@asynccontextmanager
async def started(
    name: str,
    command: Sequence[str],
    port: int,
    cores: Collection[int],
    log: Path,
    more_environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Process]:
    """Start a server, wait until it accepts connections, and end it when the block is left."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    environment.update(more_environment or {})
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220  # starting takes a millisecond
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is ours to answer: each process is then ended below
        )
    try:
        os.sched_setaffinity(process.pid, cores)
        await _accepting(name, process, port, log)
        for thread in os.listdir(f"/proc/{process.pid}/task"):
            os.sched_setaffinity(int(thread), cores)
        yield Process(name, process.pid, port)
    finally:
        await _end(process)


async def _accepting(name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise Unusable(f"{name} ended with status {process.returncode}:\n{_tail(log)}")
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)
    raise Unusable(f"{name} did not listen within {START_SECONDS:g} s:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(f"    {line}" for line in log.read_text(errors="replace").splitlines()[-20:])


async def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        await asyncio.shield(asyncio.sleep(0.02))
    if process.poll() is None:
        process.kill()
        process.wait()


def move_backends(database: str, pids: Collection[int], cores: Collection[int]) -> list[int]:
    """Keep the PostgreSQL processes that serve our database off the server's core. Return those that were moved.

    That takes the right to, and a server on this machine: each process is looked at before it is touched.
    """
    moved = []
    for pid in pids:
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            if title.startswith(b"postgres") and database.encode() in title:
                os.sched_setaffinity(pid, cores)
                moved.append(pid)
    return moved
