"""A service that is killed in durable mode, again and again: every answer it gave has its execution, once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import aiohttp
from tracking_kit import Place, files

from orchestrator_core.http.app import Service, serve
from orchestrator_core.testing.service import write_files

Run = Callable[..., Any]
KILLS = int(os.environ.get("ORCHESTRATOR_TEST_KILLS", "8"))
CLIENTS = 8


def serve_and_tell(folder: Path, tell: Connection) -> None:
    """Serve in this process until it is killed; send the URL first."""

    def ready(service: Service) -> None:
        tell.send(service.url)

    asyncio.run(serve(folder, ready=ready, shutdown_seconds=5))


async def client(session: aiohttp.ClientSession, url: str, answered: list[str]) -> None:
    """Ask until the service is gone; note the id of every answer."""
    with suppress(aiohttp.ClientError, ConnectionError):
        while True:
            async with session.get(f"{url}/orchestrator/d/hello") as answer:
                await answer.read()
                assert answer.status == 200
                answered.append(answer.headers["X-Execution-Id"])


async def ask_until_killed(url: str, kill: Callable[[], None], seconds: float) -> list[str]:
    answered: list[str] = []
    async with aiohttp.ClientSession() as session:
        clients = [asyncio.ensure_future(client(session, url, answered)) for _ in range(CLIENTS)]
        await asyncio.sleep(seconds)
        kill()
        await asyncio.gather(*clients)
    return answered


def test_every_answer_of_a_service_that_is_killed_has_its_execution_once(run: Run, place: Place) -> None:
    folder = place.folder / "config"
    settings = files(place, mode="durable", commit_timeout="20s")
    write_files(folder, {**settings, "config.yaml": settings["config.yaml"] + "reload: {watch: false}\n"})
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator_core.http.app", "orchestrator_tracking_sql.plugin"])
    chance = random.Random(4711)
    answered: list[str] = []
    for _ in range(KILLS):
        told, tell = context.Pipe(duplex=False)
        process = context.Process(target=serve_and_tell, args=(folder, tell), daemon=True)
        process.start()
        tell.close()
        try:
            assert told.poll(60), "the service does not start"
            answered += run(ask_until_killed(told.recv(), process.kill, chance.uniform(0.02, 0.3)))
        finally:
            process.kill()
            process.join()
            told.close()
    kept = place.ids()
    assert len(answered) > KILLS
    assert len(set(kept)) == len(kept)
    assert set(answered) <= set(kept)
    assert len(kept) - len(answered) <= KILLS * CLIENTS  # those that were killed before their answer
