"""Starting and stopping in process: nothing is left, and what cannot start says why."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.errors import ConfigError, SourceUnavailable
from orchestrator_core.http.accepting import Acceptor
from orchestrator_core.http.app import run_service
from orchestrator_core.http.grace import Grace
from orchestrator_core.http.public import PublicApp
from orchestrator_core.reload import open_live
from orchestrator_core.testing import leaves_nothing, service
from orchestrator_core.testing.service import write_files
from tests.engine.lab import Lab

RunFixture = Callable[..., Any]
FILES = {
    "domains/d.yaml": """
        endpoints:
          ok: {response_mapping: 1}
          two: {data_sources: [{name: a, type: lab, operation: a}, {name: b, type: lab, operation: b}]}
    """,
}


def test_a_service_that_served_and_failed_leaves_nothing(run_on_each_loop: RunFixture) -> None:
    lab = Lab()

    async def fails(_: Any) -> Any:
        raise SourceUnavailable("not now")

    async def hangs(_: Any) -> Any:
        await asyncio.Event().wait()

    async def once() -> None:
        async with service(FILES, plugins={"lab": lab}) as shop:
            lab.behaviours = {}
            assert (await shop.get("/orchestrator/d/two")).status == 200
            lab.behaviours = {"a": fails, "b": hangs}
            assert (await shop.get("/orchestrator/d/two")).status == 503
            tasks = {task.get_coro().__qualname__ for task in asyncio.all_tasks()}
            assert not {name for name in tasks if "branch" in name or "d__two" in name}, tasks
            assert not lab.running

    async def main() -> None:
        await once()
        async with leaves_nothing("a service"):
            await once()

    run_on_each_loop(main())


def test_a_configuration_with_problems_is_not_served_and_leaves_nothing(run: RunFixture) -> None:
    async def main() -> None:
        async with service(FILES, plugins={"lab": Lab()}):
            pass
        async with leaves_nothing("a service that did not start"):
            with pytest.raises(ConfigError) as caught:
                async with service(FILES):
                    pass
        assert [problem.message for problem in caught.value.problems] == [
            "no installed plugin provides the source type 'lab'"
        ] * 2

    run(main())


def test_a_port_that_is_taken_is_an_os_error_and_leaves_nothing(run: RunFixture, tmp_path: Path) -> None:
    write_files(tmp_path, {"domains/d.yaml": "endpoints: {ok: {response_mapping: 1}}"})

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            for ports in ({"port": port, "admin_port": 0}, {"port": 0, "admin_port": port}):
                with pytest.raises(OSError, match="address already in use"):
                    async with run_service(tmp_path, **ports):
                        pass

    run(main())


def test_a_service_that_stops_answers_503_with_retry_after(run: RunFixture) -> None:
    async def main() -> None:
        async with service(FILES, plugins={"lab": Lab()}) as shop:
            owners = [getattr(listener, "__self__", None) for listener in shop.running.live.swapped]
            (app,) = (owner for owner in owners if isinstance(owner, PublicApp))
            app.stop()
            answer = await shop.get("/orchestrator/d/ok")
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert answer.json["detail"] == "the service is shutting down"
            ready = await shop.get("/health/ready")
            assert (ready.status, ready.headers["Retry-After"], ready.json) == (503, "1", {"status": "shutting down"})
            assert (await shop.get("/health/live")).status == 200

    run(main())


def test_requests_in_flight_finish_before_sources_are_closed(run: RunFixture) -> None:
    lab = Lab()

    async def slow(_: Any) -> Any:
        await asyncio.sleep(0.1)
        return "done"

    lab.behaviours = {"a": slow, "b": slow}

    async def main() -> None:
        async with service(FILES, plugins={"lab": lab}) as shop:
            late = asyncio.create_task(shop.get("/orchestrator/d/two"))
            await lab.started("ab")
            host, port = shop.running.public
        assert (await late).json == {"a": "done", "b": "done"}
        with pytest.raises(OSError, match="refused"):
            await asyncio.open_connection(host, port)

    run(main())


@pytest.mark.parametrize("read", [0, 10])
def test_a_request_that_has_come_when_its_connection_is_to_be_closed_is_answered(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch, read: int
) -> None:
    """The event loop may have had too much to do to read it, or have read a part of its head."""
    get = b"GET /orchestrator/d/ok HTTP/1.1\r\nHost: x\r\n\r\n"
    stop = Acceptor.stop

    async def main() -> None:
        async with service(FILES, plugins={"lab": Lab()}) as shop:
            client = socket.create_connection(shop.running.public)
            reader, writer = await asyncio.open_connection(sock=client)
            writer.write(get)
            await reader.readuntil(b"\r\n\r\n1")
            writer.write(get[:read])
            await asyncio.sleep(0.02)

            async def stopped(acceptor: Acceptor) -> None:
                monkeypatch.setattr(Acceptor, "stop", stop)
                await stop(acceptor)
                if not read:
                    client.send(get)

            monkeypatch.setattr(Acceptor, "stop", stopped)
            stopping = asyncio.create_task(shop.running.listener.stop(Grace(5), 0.0))
            await asyncio.sleep(0.1)
            if read:
                writer.write(get[read:])
            head = await reader.readuntil(b"\r\n\r\n1")
            assert head.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"\r\nConnection: close\r\n" in head
            writer.close()
            await stopping

    run(main())


def test_a_folder_that_is_not_there_says_how_to_make_one(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError) as caught:
            async with open_live(tmp_path / "nowhere"):
                pass
        (problem,) = caught.value.problems
        assert problem.message == f"there is no configuration folder at {tmp_path / 'nowhere'}"
        assert problem.hint == f"make one with: orchestrator init {tmp_path / 'nowhere'}"

    run(main())
