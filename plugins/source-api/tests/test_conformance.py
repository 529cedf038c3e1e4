"""What the testing kit asks of every source."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from queue import Queue
from typing import Any, ClassVar

import pytest
from api_kit import Seen, ok, partner
from orchestrator_source_api.plugin import API, orchestrator_source_kinds

from orchestrator_core.plugin_api import EntityNotFound, InvalidParam, SourceError
from orchestrator_core.testing import Call, SourceConformance


def answer(seen: Seen) -> bytes:
    if seen.target == "/oauth":
        return ok({"access_token": "t", "token_type": "bearer", "expires_in": 60})
    if seen.target == "/scores/7?region=eu":
        return ok({"data": {"score": 720, "grade": "A"}})
    if seen.method == "POST":
        return ok({"authorized": seen.headers.get("authorization"), "sent": seen.json}, status=201)
    return ok({}, status=404 if seen.target.startswith("/scores/") else 500)


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    """Serve in a thread of its own, since each of the kit's tests has a loop of its own."""
    urls: Queue[str] = Queue()
    loop = asyncio.new_event_loop()
    ended = asyncio.Event()

    async def serve() -> None:
        async with partner(answer) as server:
            urls.put(server.url)
            await ended.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    yield urls.get(timeout=10)
    loop.call_soon_threadsafe(ended.set)
    thread.join()
    loop.close()


class TestApi(SourceConformance):
    kind = API
    operations: ClassVar[dict[str, Any]] = {
        "score": {
            "path": "/scores/{id}",
            "query": {"region": "$params.region ?? 'eu'"},
            "result": {"score": "$response.body.data.score", "grade": "$response.body.data.grade"},
        },
        "apply": {"path": "/applications", "method": "POST", "body": {"name": "$params.name"}},
        "report": {"path": "/report", "method": "POST"},
        "broken": {"path": "/broken"},
    }
    calls = (
        Call("score", {"id": 7}, {"score": 720, "grade": "A"}),
        Call("score", {"id": "7", "region": "eu"}, {"score": 720, "grade": "A"}),
        Call("apply", {"name": "Ada"}, {"authorized": "Bearer t", "sent": {"name": "Ada"}}),
        Call("report", {"a": 1, "b": [None]}, {"authorized": "Bearer t", "sent": {"a": 1, "b": [None]}}),
        Call("score", {"id": 0}, error=EntityNotFound, message="score: nothing found for id=0"),
        Call("score", {"id": ""}, error=InvalidParam, message="score: parameter 'id' is empty, which leads elsewhere"),
        Call("broken", error=SourceError),
    )

    @pytest.fixture(autouse=True)
    def server(self, api: str) -> None:
        oauth2 = {"token_url": f"{api}/oauth", "client_id": "c", "client_secret": "s"}
        self.options = {"base_url": api, "auth": {"oauth2": oauth2}}


def test_the_plugin_provides_the_type_api() -> None:
    assert [kind.name for kind in orchestrator_source_kinds()] == ["api"]
