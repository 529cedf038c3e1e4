"""Starting and stopping in process: nothing is left, and what cannot start says why."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.errors import ConfigError, SourceUnavailable
from orchestrator_core.http.app import run_service
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


def test_a_folder_that_is_not_there_says_how_to_make_one(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(ConfigError) as caught:
            async with open_live(tmp_path / "nowhere"):
                pass
        (problem,) = caught.value.problems
        assert problem.message == f"there is no configuration folder at {tmp_path / 'nowhere'}"
        assert problem.hint == f"make one with: orchestrator init {tmp_path / 'nowhere'}"

    run(main())
