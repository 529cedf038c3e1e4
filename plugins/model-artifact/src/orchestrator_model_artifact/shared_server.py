"""One model server for all services of a host that serve the same configuration: who starts it, adopts it, ends it.

What the services know of it stands in a lease, by model: for each set of options the server's process and port. All
decisions are made while the lease is held exclusively. A service that is killed leaves its server running; the next
that comes takes it over, or ends it when it was started with options that nobody has any more.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from attrs import asdict, field, frozen

from orchestrator_core.plugin_api import Lease, SourceError, SourceUnavailable, hold_lease, is_held
from orchestrator_model_artifact.launch import Launch, ended_by_others, port_for, reaped, tail
from orchestrator_model_artifact.process_table import ProcessId, members, process_id, signal_all

MOST_STARTS = 5
START_WINDOW_SECONDS = 300.0
SETTLED_SECONDS = 10.0
"""A server that was ready for so long has not failed to start; nor has one that was ready and killed by others."""

OUTPUT_LINES = 20
_KILL_SECONDS = 5.0
_POLL_SECONDS = 0.02
_WATCH_SECONDS = 0.25

Entry = dict[str, Any]


@frozen
class Server:
    """A running server, shared with other services."""

    process: ProcessId
    port: int
    output: Path
    _place: _Place = field(repr=False)

    async def end(self) -> None:
        """End it for all who share it, unless another of them has done so."""
        await self._place.end(self.process)

    def how_it_ended(self) -> str:
        """Return its exit status, where that can be known, and its last lines."""
        return f"{reaped(self.process.pid)}; {self.last_output()}"

    def last_output(self) -> str:
        lines = tail(self.output, OUTPUT_LINES)
        return f"its last output:\n{lines}" if lines else "it has written nothing"


@asynccontextmanager
async def shared_server(
    launch: Launch, *, model: str, config_dir: Path, content: str, port: int | None, stop_seconds: float
) -> AsyncIterator[Server]:
    """Start the server, or take over the one that runs; the last to leave ends it.

    ``content`` is the hash of the files that it is given. Raises :class:`SourceUnavailable` when it cannot be started
    now, :class:`SourceError` when it can never be, or was started too often.
    """
    digest = _hash(launch.command, str(launch.folder), dict(launch.environment), port, content)
    family = f"artifact-{_hash(str(config_dir), model)}"
    async with hold_lease(family) as lease, hold_lease(f"{family}.{digest}") as share:
        place = _Place(lease, share, family, digest, stop_seconds)
        server = await place.enter(launch, port)
        since, used = time.monotonic(), False
        try:
            yield server
            used = True  # whoever cannot use it, as it never became ready, raises
        finally:
            settled = time.monotonic() - since > SETTLED_SECONDS
            leaving = asyncio.ensure_future(place.leave(settled=settled, used=used))
            try:
                await asyncio.shield(leaving)
            except asyncio.CancelledError:
                await leaving
                raise


@frozen
class _Place:
    """This service's place among those that use the server with these options."""

    lease: Lease
    share: Lease
    family: str
    digest: str
    stop_seconds: float

    async def enter(self, launch: Launch, port: int | None) -> Server:
        async with self.lease.exclusive():
            servers = self._servers()
            for other in [name for name in servers if name != self.digest and not is_held(f"{self.family}.{name}")]:
                await _end(servers[other], self.stop_seconds)
                del servers[other]
                self._output(other).unlink(missing_ok=True)
            entry = servers.get(self.digest, {})
            running = _process(entry)
            if running is not None and running.is_alive():
                self._note(servers)
                return Server(running, int(entry["port"]), self._output(self.digest), self)
            await _end(entry, self.stop_seconds)  # what its death has left, and what was started and not noted
            return await self._start(launch, port, servers, entry)

    async def _start(self, launch: Launch, port: int | None, servers: dict[str, Entry], entry: Entry) -> Server:
        output = self._output(self.digest)
        starts = _recent(entry.get("starts", []))
        if len(starts) >= MOST_STARTS:
            raise SourceError(
                f"the model server was started {len(starts)} times within {START_WINDOW_SECONDS / 60:g} minutes by the"
                f" services of this host, and ended each time; its last output:\n{tail(output, OUTPUT_LINES)}"
            )
        me = process_id(os.getpid())
        assert me is not None
        if not starts:
            output.unlink(missing_ok=True)
        entry = {
            "mark": f"{self.family}.{self.digest}.{secrets.token_hex(8)}",
            "port": self._free_port(port, servers),
            "starts": [*starts, {"at": time.time(), "by": asdict(me)}],
        }
        servers[self.digest] = entry
        self._note(servers)  # before it runs: were we killed now, the mark would tell that it is ours
        output.touch(mode=0o600)
        try:
            pid = launch.start(entry["port"], output, entry["mark"])
        except SourceError:
            del servers[self.digest]
            self._note(servers)
            raise
        process = process_id(pid)
        if process is None:
            raise SourceUnavailable(f"the model server {reaped(pid)} at once", started=True)
        entry["process"] = asdict(process)
        self._note(servers)
        return Server(process, entry["port"], output, self)

    def _free_port(self, port: int | None, servers: Mapping[str, Entry]) -> int:
        for other, entry in servers.items():
            process = _process(entry)
            if other != self.digest and entry.get("port") == port and process is not None and process.is_alive():
                raise SourceUnavailable(
                    f"port {port} is still used by the model server of the configuration before this one:"
                    " leave port out, and each gets a free one",
                    started=False,
                )
        return port_for(port)

    async def end(self, process: ProcessId) -> None:
        async with self.lease.exclusive():
            entry = self._servers().get(self.digest, {})
            if _process(entry) == process:
                await _end(entry, self.stop_seconds)

    async def leave(self, *, settled: bool, used: bool) -> None:
        async with self.lease.exclusive():
            servers = self._servers()
            entry = servers.get(self.digest)
            if entry is None:
                return
            process = _process(entry)
            died = process is not None and not process.is_alive()
            if died:
                assert process is not None
                settled = settled or (used and ended_by_others(process.pid))
            if died and settled:
                entry["starts"] = []
            if self.share.last():
                await _end(entry, self.stop_seconds)
                if not died or settled:
                    del servers[self.digest]
                    self._output(self.digest).unlink(missing_ok=True)
            self._note(servers)
            self.share.release()

    def _servers(self) -> dict[str, Entry]:
        servers = self.lease.state().get("servers")
        return servers if isinstance(servers, dict) else {}

    def _note(self, servers: Mapping[str, Entry]) -> None:
        self.lease.note({"servers": servers})

    def _output(self, digest: str) -> Path:
        return self.lease.folder / f"{self.family}.{digest}.log"


async def wait_until_ended(process: ProcessId) -> None:
    """Return when the process has ended."""
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:  # it has ended, or the kernel does not give such descriptors
        while process.is_alive():  # noqa: ASYNC110 - nothing else tells
            await asyncio.sleep(_WATCH_SECONDS)
        return
    ended = asyncio.Event()
    try:
        if process.is_alive():
            loop.add_reader(descriptor, ended.set)
            await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _end(entry: Entry, stop_seconds: float) -> None:
    """End every process of the server: SIGTERM, and SIGKILL for those that are left when its time is up."""
    leader, mark = _process(entry), str(entry.get("mark", ""))
    if not mark:
        return
    for number, seconds in ((signal.SIGTERM, stop_seconds), (signal.SIGKILL, _KILL_SECONDS)):
        deadline = time.monotonic() + seconds
        left = members(leader, mark)
        signal_all(left, number)
        while left and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)
            left = [process for process in left if process.is_alive()] or members(leader, mark)
        if not left:
            break
    if leader is not None:
        reaped(leader.pid)


def _process(entry: Entry) -> ProcessId | None:
    found = entry.get("process")
    return ProcessId(int(found["pid"]), int(found["started"]), str(found["boot"])) if found else None


def _recent(starts: list[Entry]) -> list[Entry]:
    """Return the starts that count: of late, and by services that live. A service started anew may try anew."""
    since = time.time() - START_WINDOW_SECONDS
    return [start for start in starts if start["at"] > since and ProcessId(**start["by"]).is_alive()]


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
