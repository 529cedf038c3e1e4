"""Results that several processes share in Redis: a help, and never a need."""

from __future__ import annotations

import asyncio
import builtins
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from time import time
from typing import Any
from uuid import uuid4

import pytest
import redis.asyncio
import structlog

from orchestrator_core.errors import SourceError
from orchestrator_core.plugin_api import Duration
from orchestrator_core.policies import cache
from orchestrator_core.policies.notes import StepNote
from orchestrator_core.policies.options import CacheOptions, SharedCacheOptions
from orchestrator_core.policies.policies import Policies
from orchestrator_core.policies.shared import MissingExtra, open_shared_cache
from orchestrator_core.policies.state import SourceState
from orchestrator_core.testing.ports import free_port
from tests.policies.lab import LABEL, Backend, Clock, Run, RunFixture, future, guard, guard_at_once, outcome, turns

REDIS = "redis://127.0.0.1:6379/0"
UNHURRIED = Duration(5)
"""For tests that are about what Redis answers, on a machine that may be busy."""


@pytest.fixture
def client() -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(REDIS)
    try:
        client.ping()
    except redis.ConnectionError:
        pytest.skip("no Redis at 127.0.0.1:6379")
    with client:
        yield client


@pytest.fixture
def prefix(client: redis.Redis) -> Iterator[str]:
    prefix = f"test-policies-{os.getpid()}-{uuid4().hex[:8]}"
    yield prefix
    for key in client.scan_iter(f"{prefix}*"):
        client.delete(key)


@asynccontextmanager
async def process(prefix: str, identity: str = "1", clock: Any = None, **options: Any) -> AsyncIterator[SourceState]:
    """Give the state of a source as one of several processes has it."""
    settings = {"url": REDIS, "prefix": prefix, "timeout": UNHURRIED, **options}
    async with open_shared_cache(SharedCacheOptions(**settings)) as shared:
        state = SourceState(LABEL, identity=identity, shared=shared, **({"clock": clock} if clock else {}))
        try:
            yield state
        finally:
            await written(state)
            await state.close()


async def written(state: SourceState) -> None:
    """Wait until what is being put into Redis is there."""
    while state._tasks:
        await asyncio.wait(state._tasks)


def caching(**options: Any) -> Policies:
    return Policies(cache=CacheOptions(ttl=Duration(60), **options))


def test_a_result_is_found_by_another_process_and_kept_there_too(run: RunFixture, prefix: str) -> None:
    value = {"name": "Zoë", "scores": [1, 1.0, True, None], "nested": {"a": []}}

    async def main() -> None:
        async with process(prefix) as one, process(prefix) as other:
            mine, theirs, requests = Backend(value), Backend("not asked"), [Run(), Run()]
            assert await guard(mine, caching(), one)(Run(), 0, "x") == value
            await written(one)
            call = guard(theirs, caching(), other)
            for request in requests:
                assert await call(request, 0, "x") == value
                assert request.notes == {0: StepNote(attempts=0, cached="hit", cached_calls=1)}
            assert await call(Run(), 0, "y") == "not asked"
            told = other.describe()["cache"]
            assert told == {"entries": 2, "hits": 2, "misses": 1, "stale": 0, "shared": 0, "errors": 0}

    run(main())


def test_the_fields_of_a_result_stay_in_their_order(run: RunFixture, prefix: str) -> None:
    async def main() -> None:
        async with process(prefix) as one, process(prefix) as other:
            await guard(Backend({"z": 1, "a": {"y": 2, "b": 3}}), caching(), one)(Run(), 0, "x")
            await written(one)
            found = await guard(Backend("not asked"), caching(), other)(Run(), 0, "x")
            assert (list(found), list(found["a"])) == (["z", "a"], ["y", "b"])

    run(main())


def test_nothing_that_is_written_is_a_pickle_and_a_pickle_is_not_read(
    run: RunFixture, prefix: str, client: redis.Redis
) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, ("/nonexistent/never",)

    async def main() -> None:
        for secret in ("", "s3cret"):
            async with process(prefix, secret, secret=secret) as one:
                await guard(Backend({"a": 1}), caching(), one)(Run(), 0, "x")
                await written(one)
            (key,) = client.keys(f"{prefix}*")
            text = client.get(key)
            assert b'{"a":1}' in text
            ttl = client.pttl(key)
            assert 0 < ttl <= 60_000
            signature = text[: text.rindex(b"[")]
            for planted in (pickle.dumps(Bomb()), b"bytes:" + pickle.dumps(Bomb()), b"Bomb:1", b"1", b"", b"bytes:[1]"):
                client.set(key, planted)
                async with process(prefix, secret, secret=secret) as other:
                    assert await guard(Backend("asked"), caching(), other)(Run(), 0, "x") == "asked"
                    assert other.describe()["cache"]["hits"] == 0
            if secret:
                client.set(key, signature + text[text.rindex(b"[") :].replace(b'"a":1', b'"a":2'))
                async with process(prefix, secret, secret=secret) as other:
                    assert await guard(Backend("asked"), caching(), other)(Run(), 0, "x") == "asked"
            client.delete(key)

    run(main())


@pytest.mark.parametrize(
    "text",
    [b'{"made_at": 1.5, "result": 7}', b"[1.5]", b"[1, 7]", b"7", b'"ab"', b"null", b"[1.5, 7", b"\xff\x00"],
    ids=lambda text: text.decode("latin-1"),
)
def test_an_entry_of_another_shape_counts_as_missing_and_is_overwritten(
    run: RunFixture, prefix: str, client: redis.Redis, text: bytes
) -> None:
    async def main() -> None:
        async with process(prefix) as one:
            for value in ("x", "y"):
                await guard(Backend("one's"), caching(), one)(Run(), 0, value)
        places = [place.decode() for place in client.scan_iter(f"{prefix}*")]
        for place in places:
            client.set(place, b"bytes:" + text)
        with structlog.testing.capture_logs() as logs:
            async with process(prefix) as other:
                call = guard(Backend("other's"), caching(), other)
                assert [await call(Run(), 0, value) for value in ("x", "y")] == ["other's"] * 2
        (told,) = logs
        assert (told["log_level"], told["entry"] in places, told["url"]) == ("warning", True, REDIS)
        async with process(prefix) as third:
            assert await guard(Backend("third's"), caching(), third)(Run(), 0, "x") == "other's"

    run(main())


def test_a_changed_configuration_or_operation_reads_nothing_of_the_old_one(run: RunFixture, prefix: str) -> None:
    async def main() -> None:
        async with process(prefix, "before") as one, process(prefix, "after") as other:
            await guard(Backend("old"), caching(), one)(Run(), 0, "x")
            await written(one)
            assert await guard(Backend("new"), caching(), other)(Run(), 0, "x") == "new"
            assert await guard(Backend("named otherwise"), caching(), one, names=("key",))(Run(), 0, "x") == (
                "named otherwise"
            )

    run(main())


def test_the_age_of_a_result_goes_with_it(run: RunFixture, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with process(prefix) as one, process(prefix) as other:
            policies = caching(stale_if_error=Duration(60))
            with monkeypatch.context() as patch:
                patch.setattr(cache, "time", lambda: time() - 70)
                await guard(Backend("old"), policies, one)(Run(), 0, "x")
                await written(one)
            call, requests = guard(Backend(SourceError("down"), "new"), policies, other), Run()
            assert await call(requests, 0, "x") == "old"
            assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=1)}
            assert await call(Run(), 0, "x") == "new"

    run(main())


def test_a_stale_result_of_another_process_is_given_while_a_new_one_is_fetched(
    run: RunFixture, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        policies = caching(stale_while_revalidate=Duration(60))
        async with process(prefix) as one:
            await guard(Backend("old"), policies, one)(Run(), 0, "x")
        with monkeypatch.context() as patch:
            patch.setattr(cache, "time", lambda: time() + 61)
            async with process(prefix) as other:
                answer, requests = future(), Run()
                backend = Backend(answer)
                call = guard(backend, policies, other)
                assert await call(requests, 0, "x") == "old"
                assert requests.notes == {0: StepNote(attempts=0, cached="stale", cached_calls=1)}
                while not backend.calls:  # noqa: ASYNC110  # the turns are what is waited for
                    await asyncio.sleep(0)
                answer.set_result("new")
                await written(other)
                assert await call(Run(), 0, "x") == "new"
                assert len(backend.calls) == 1

    run(main())


def test_a_stale_result_of_another_process_is_given_before_the_deadline(
    run: RunFixture, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        policies = caching(stale_if_error=Duration(60))
        async with process(prefix) as one:
            await guard(Backend("old"), policies, one)(Run(), 0, "x")
        monkeypatch.setattr(cache, "time", lambda: time() + 61)
        async with process(prefix) as other:
            backend, requests = Backend(future()), Run(left=0.2)
            task = asyncio.create_task(guard(backend, policies, other)(requests, 0, "x"))
            done, _ = await asyncio.wait([task], timeout=10)
            assert (done, task.result(), backend.running) == ({task}, "old", 0)
            assert requests.notes == {0: StepNote(attempts=1, cached="stale", cached_calls=1)}

    run(main())


def test_a_result_that_is_kept_for_ever_is_shared_too(run: RunFixture, prefix: str) -> None:
    async def main() -> None:
        policies = Policies(cache=CacheOptions(ttl=Duration(1e300), stale_if_error=Duration(1e300)))
        async with process(prefix) as one:
            call = guard(Backend("one's"), policies, one)
            assert await call(Run(), 0, "x") == "one's"
            await written(one)
            assert one.describe()["cache"]["errors"] == 0
        async with process(prefix) as other:
            assert await guard(Backend("other's"), policies, other)(Run(), 0, "x") == "one's"

    run(main())


def test_all_items_are_looked_for_at_once(run: RunFixture, prefix: str) -> None:
    async def rows(values: Any) -> list[Any]:
        return [f"got {value[0]}" for value in values]

    async def main() -> None:
        async with process(prefix) as one, process(prefix) as other:
            await guard_at_once(rows, caching(), one)(Run(), 0, [(1,), (2,)])
            await written(one)
            backend, requests = Backend(["asked 3"]), Run()
            call = guard_at_once(backend, caching(), other)
            assert await call(requests, 0, [(1,), (3,), (2,)]) == ["got 1", "asked 3", "got 2"]
            assert backend.calls == [([(3,)],)]
            assert requests.notes == {0: StepNote(attempts=1, cached="hit", cached_calls=2)}

    run(main())


def test_what_is_no_json_stays_in_memory(run: RunFixture, prefix: str, client: redis.Redis) -> None:
    async def main() -> None:
        async with process(prefix) as state:
            call = guard(Backend({"when": object}), caching(), state)
            for _ in range(2):
                assert await call(Run(), 0, "x") == {"when": object}
            await written(state)
            assert state.describe()["cache"]["hits"] == 1
            assert state.describe()["cache"]["errors"] == 0
        assert client.keys(f"{prefix}*") == []

    run(main())


# --- Redis that is not there -----------------------------------------------------------------------------------------


@asynccontextmanager
async def hanging() -> AsyncIterator[str]:
    """Give the address of a server that takes connections and never answers."""
    writers: list[asyncio.StreamWriter] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"redis://:pa55word@127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


@asynccontextmanager
async def down() -> AsyncIterator[str]:
    yield f"redis://:pa55word@127.0.0.1:{free_port()}/0"


@pytest.mark.parametrize("address", [hanging, down])
def test_a_redis_that_does_not_answer_is_done_without(run: RunFixture, address: Any) -> None:
    async def main() -> None:
        async with address() as url:
            with structlog.testing.capture_logs() as logs:
                async with process("test", url=url, timeout=Duration(0.02)) as state:
                    backend = Backend("asked")
                    call = guard(backend, caching(), state)
                    for value in range(50):
                        assert await call(Run(), 0, value) == "asked"
                    assert await call(Run(), 0, 7) == "asked"
                    await written(state)
                    told = state.describe()["cache"]
                    assert (told["entries"], told["hits"], told["misses"]) == (50, 1, 50)
                    assert told["errors"] >= 50
                    assert len(backend.calls) == 50
            (entry,) = [entry for entry in logs if entry["log_level"] == "warning"]
            assert entry["event"] == "the shared cache fails and is left alone until it answers"
            assert entry["url"] == url.replace(":pa55word@", "")
            assert "pa55word" not in str(logs)

    run(main())


def test_a_redis_that_does_not_answer_is_asked_a_few_times_only_and_again_later(run: RunFixture) -> None:
    async def main() -> None:
        clock, connections = Clock(), 0

        async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            writer.close()

        server = await asyncio.start_server(refuse, "127.0.0.1", 0)
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        options = SharedCacheOptions(url=url, timeout=UNHURRIED)
        async with server, open_shared_cache(options, clock=clock) as shared:
            for _ in range(20):
                assert await shared.get_many("name", ["x"]) is None
            assert connections == 3
            clock.now += 1
            for _ in range(20):
                assert await shared.get_many("name", ["x"]) is None
            assert connections == 4

    run(main())


def test_a_redis_that_is_back_is_used_again(run: RunFixture, prefix: str) -> None:
    async def main() -> None:
        clock, port = Clock(), free_port()
        options = SharedCacheOptions(url=f"redis://127.0.0.1:{port}/0", prefix=prefix, timeout=UNHURRIED)
        with structlog.testing.capture_logs() as logs:
            async with open_shared_cache(options, clock=clock) as shared:
                for _ in range(5):
                    assert await shared.get_many("name", ["x"]) is None
                async with forwarding(port):
                    assert await shared.get_many("name", ["x"]) is None
                    clock.now += 1
                    assert await shared.get_many("name", ["x"]) == {}
                    assert await shared.put_many("name", {"x": 1}, 5.0, 60)
                    assert await shared.get_many("name", ["x"]) == {"x": (5.0, 1)}
        assert [entry["event"] for entry in logs] == [
            "the shared cache fails and is left alone until it answers",
            "the shared cache answers again",
        ]

    run(main())


def test_a_redis_that_takes_nothing_is_still_read_and_that_is_logged_once(run: RunFixture) -> None:
    """As one that is full does, or a replica, or one whose disk is."""
    if (program := shutil.which("redis-server")) is None:
        pytest.skip("no redis-server")

    async def main() -> None:
        port = free_port()
        options = SharedCacheOptions(url=f"redis://127.0.0.1:{port}/0", timeout=UNHURRIED)
        arguments = (program, "--port", str(port), "--bind", "127.0.0.1", "--save", "")
        server = await asyncio.create_subprocess_exec(*arguments, stdout=subprocess.DEVNULL)
        try:
            with structlog.testing.capture_logs() as logs:
                async with open_shared_cache(options) as shared, redis.asyncio.Redis(port=port) as client:
                    async with asyncio.timeout(10):
                        while not await answers(client):  # noqa: ASYNC110  # it says nothing when it listens
                            await asyncio.sleep(0.01)
                    assert await shared.put_many("name", {"x": "kept"}, 5.0, 60)
                    await client.config_set("maxmemory", 1)
                    for number in range(20):
                        assert not await shared.put_many("name", {"y": "one's own"}, 5.0, 60)
                        assert not await shared.put_many("name", {"y": "one's own", number: 1}, 5.0, 60)
                        assert await shared.get_many("name", ["x", "y"]) == {"x": (5.0, "kept")}
                    await client.config_set("maxmemory", 0)
                    assert await shared.put_many("name", {"y": 1, "z": 2}, 5.0, 60)
        finally:
            server.terminate()
            await server.wait()
        refused, taken = logs
        assert refused["event"] == "the shared cache takes no results; it is still read"
        assert refused["error"].startswith("OutOfMemoryError: ")
        assert "one's own" not in refused["error"]
        assert taken["event"] == "the shared cache takes results again"

    run(main())


def test_a_redis_without_the_database_is_left_alone_like_one_that_does_not_answer(
    run: RunFixture, client: redis.Redis
) -> None:
    async def main() -> None:
        options = SharedCacheOptions(url=REDIS.replace("/0", "/1000000"), timeout=UNHURRIED)
        with structlog.testing.capture_logs() as logs:
            async with open_shared_cache(options) as shared:
                for _ in range(5):
                    assert await shared.get_many("name", ["x"]) is None
                    assert not await shared.put_many("name", {"x": 1}, 5.0, 60)
        (entry,) = logs
        assert entry["event"] == "the shared cache fails and is left alone until it answers"
        assert entry["error"] == "ResponseError: DB index is out of range"

    run(main())


async def answers(client: Any) -> bool:
    try:
        return bool(await client.ping())
    except redis.ConnectionError:
        return False


@asynccontextmanager
async def forwarding(port: int) -> AsyncIterator[None]:
    """Listen at the port for the real Redis."""
    tasks: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", 6379)
        writers.extend([writer, back])
        tasks.extend(asyncio.create_task(pipe(*ends)) for ends in ((reader, back), (there, writer)))

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
            await writer.wait_closed()


def test_a_request_that_goes_away_while_redis_is_asked_leaves_it_usable(run: RunFixture, prefix: str) -> None:
    async def main() -> None:
        async with process(prefix) as state:
            call = guard(Backend("asked"), caching(), state)
            for value in range(30):
                task = asyncio.create_task(call(Run(), 0, value))
                await turns(value % 4)
                task.cancel()
                await outcome(task)
            backend = Backend("asked")
            call = guard(backend, caching(), state, names=("other",))
            for value in range(10):
                assert await call(Run(), 0, value) == "asked"
            assert state.describe()["cache"]["errors"] == 0

    run(main())


# --- what it takes ---------------------------------------------------------------------------------------------------


def test_the_core_loads_them_only_for_a_cache_in_redis() -> None:
    loaded = "import orchestrator_core.http.app, orchestrator_core.policies.shared, sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout.split()
    assert "orchestrator_core.policies.shared" in modules
    assert {"cashews", "redis", "stamina"}.isdisjoint(modules)


def test_without_the_libraries_it_says_what_to_install(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "cashews":
            raise ImportError("gone", name="cashews")
        return imported(name, *args, **kwargs)

    async def main() -> None:
        monkeypatch.setattr(builtins, "__import__", without)
        async with open_shared_cache(SharedCacheOptions(url=REDIS)):
            raise AssertionError("it must not open")

    with pytest.raises(MissingExtra) as missing:
        run(main())
    assert str(missing.value) == (
        "a cache in Redis needs `pip install orchestrator-api-core[redis]`: cashews is not installed"
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mem://", "expected redis://… or rediss://…"),
        (
            "redis://:sec/ret@host/0",
            "its host or port cannot be read; percent-encode what is special in a password",
        ),
        ("redis://host/0?pickle_type=dill", "expected an address with nothing after it: options stand beside url"),
        ("redis://host/cache", "expected a database's number behind the host, such as redis://host:6379/0, or nothing"),
        ("redis://host/1/2", "expected a database's number behind the host, such as redis://host:6379/0, or nothing"),
    ],
)
def test_an_address_that_is_none_of_a_redis_is_a_problem(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        SharedCacheOptions(url=url)
