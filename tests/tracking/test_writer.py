"""The way of executions to a store: what is written, what is dropped and counted, and what requests notice of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog

from orchestrator_core.errors import ConfigError, SourceUnavailable
from orchestrator_core.plugin_api import StoreContext, StoreKind, StoreNotMade, hookimpl
from orchestrator_core.testing import RunningService, check_problems, service
from orchestrator_core.testing.pytest_plugin import Served
from tests.tracking.scripted_store import ScriptedOptions, ScriptedStore, StoreOfRuns, down

Serve = Callable[..., Served]
HELLO = "endpoints: {hello: {response_mapping: hello}, bye: {response_mapping: bye}}"


def files(**tracking: Any) -> dict[str, str]:
    settings = "".join(f"  {name}: {value}\n" for name, value in {"store": "{type: scripted}", **tracking}.items())
    return {"config.yaml": f"tracking:\n{settings}", "domains/d.yaml": HELLO}


@pytest.fixture
def store() -> ScriptedStore:
    return ScriptedStore()


def tracking(served: Served) -> dict[str, Any]:
    found: dict[str, Any] = served.admin("GET", "/config").json["tracking"]
    return found


async def counts(served: RunningService) -> dict[str, Any]:
    found: dict[str, Any] = (await served.admin("GET", "/config")).json["tracking"]
    return found


async def until(served: RunningService, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the counts once they hold, within 20 s."""
    async with asyncio.timeout(20):
        while True:
            found = await counts(served)
            if holds(found):
                return found
            await asyncio.sleep(0.02)


async def happens(what: Callable[[], bool]) -> None:
    """Wait until it is so, 20 s at most."""
    async with asyncio.timeout(20):
        while True:
            if what():
                return
            await asyncio.sleep(0.01)


NONE_DROPPED = {"queue_full": 0, "store_failed": 0, "refused": 0, "stopped": 0}


@pytest.mark.parametrize("store", [ScriptedStore(), StoreOfRuns()], ids=["of records", "of runs"])
def test_every_execution_is_stored_and_found_at_once(serve: Serve, store: ScriptedStore) -> None:
    shop = serve(files(), plugins={"scripted": store})
    ids = [shop.get("/orchestrator/d/hello").headers["X-Execution-Id"] for _ in range(5)]
    assert [execution["id"] for execution in shop.executions()] == sorted(ids, reverse=True)
    assert sorted(store.kept) == sorted(ids)
    assert tracking(shop) == {
        "store": "scripted",
        "mode": "buffered",
        "finished": 5,
        "written": 5,
        "waiting": 0,
        "dropped": NONE_DROPPED,
        "outage": "",
    }
    assert not isinstance(store, StoreOfRuns) or store.runs == 5


def test_executions_that_memory_has_forgotten_come_from_the_store(serve: Serve, store: ScriptedStore) -> None:
    shop = serve(files(capacity=1), plugins={"scripted": store})
    first, *_ = [shop.get("/orchestrator/d/hello").headers["X-Execution-Id"] for _ in range(3)]
    shown = shop.admin("GET", f"/executions/{first}")
    assert (shown.status, shown.json["id"]) == (200, first)
    assert len(shop.executions()) == 3


def test_the_store_is_told_which_configurations_served(serve: Serve, store: ScriptedStore) -> None:
    shop = serve(files(), plugins={"scripted": store})
    shop.write("domains/e.yaml", HELLO)
    after = shop.reload().json["generation"]
    shop.get("/orchestrator/e/hello")
    shop.executions()
    first, second = store.generations
    assert (sorted(first.files), sorted(second.files)) == (
        ["config.yaml", "domains/d.yaml"],
        ["config.yaml", "domains/d.yaml", "domains/e.yaml"],
    )
    assert second.id == after


def test_what_waits_is_written_before_the_service_ends(run: Any, store: ScriptedStore) -> None:
    async def main() -> str:
        async with service(files(), plugins={"scripted": store}) as shop:
            return (await shop.get("/orchestrator/d/hello")).headers["X-Execution-Id"]

    id_ = run(main())
    assert (list(store.kept), store.closed) == ([id_], True)


def test_a_store_that_fails_costs_no_request_and_no_execution(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            store.failure = down()
            with structlog.testing.capture_logs() as logged:
                answers = [await shop.get("/orchestrator/d/hello") for _ in range(20)]
                assert {answer.status for answer in answers} == {200}
                found = await until(shop, lambda now: bool(now["outage"]))
                assert (found["finished"], found["written"], found["dropped"]) == (20, 0, NONE_DROPPED)
                listed = (await shop.admin("GET", "/executions")).json
                assert len(listed["executions"]) == 20
                assert listed["incomplete"] == "the execution store fails: it is down"
                unknown = await shop.admin("GET", "/executions/none")
                assert (unknown.status, unknown.json["detail"]) == (503, "the execution store fails: it is down")
                await happens(lambda: store.attempts >= 3)
                store.failure = None
                found = await until(shop, lambda now: now["written"] == 20)
            assert (found["waiting"], found["dropped"], found["outage"]) == (0, NONE_DROPPED, "")
            told = [entry["event"] for entry in logged if entry["log_level"] in ("warning", "error")]
            assert told == ["the execution store fails; it is tried again", "the execution store works again"]

    run(main())


def test_what_a_store_has_that_takes_no_more_is_told_with_what_waits_for_it(run: Any, store: ScriptedStore) -> None:
    """As SQLite does that is locked or full."""

    async def main() -> None:
        async with service(files(capacity=5), plugins={"scripted": store}) as shop:
            ids = [(await shop.get("/orchestrator/d/hello")).headers["X-Execution-Id"] for _ in range(10)]
            await until(shop, lambda now: now["written"] == 10)
            store.add_failure = down()
            ids += [(await shop.get("/orchestrator/d/hello")).headers["X-Execution-Id"] for _ in range(3)]
            await until(shop, lambda now: bool(now["outage"]))
            found: list[str] = []
            cursor: str | None = ""
            while cursor is not None:
                page = (await shop.admin("GET", f"/executions?limit=4{cursor and f'&cursor={cursor}'}")).json
                assert page["incomplete"] == "the execution store fails: it is down"
                found += [execution["id"] for execution in page["executions"]]
                cursor = page["cursor"]
            assert found == ids[::-1]
            assert (await shop.admin("GET", f"/executions/{ids[0]}")).json["id"] == ids[0]
            unknown = await shop.admin("GET", "/executions/none")
            assert (unknown.status, unknown.json["detail"]) == (503, "the execution store fails: it is down")
            store.add_failure = None
            await until(shop, lambda now: now["waiting"] == 0)

    run(main())


@pytest.mark.parametrize(
    ("failure", "reason"),
    [(RuntimeError("it is broken"), "RuntimeError: it is broken"), (TimeoutError(), "TimeoutError")],
)
def test_a_store_that_fails_to_answer_with_any_error_is_told_of_as_one_that_fails(
    run: Any, store: ScriptedStore, failure: Exception, reason: str
) -> None:
    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            id_ = (await shop.get("/orchestrator/d/hello")).headers["X-Execution-Id"]
            await until(shop, lambda now: now["written"] == 1)
            store.failure = failure
            with structlog.testing.capture_logs() as logged:
                listed = await shop.admin("GET", "/executions")
                assert [execution["id"] for execution in listed.json["executions"]] == [id_]
                assert listed.json["incomplete"] == f"the execution store fails: {reason}"
                for path in ("/executions/none", "/generations/none"):
                    unknown = await shop.admin("GET", path)
                    assert (unknown.status, unknown.json["detail"]) == (503, f"the execution store fails: {reason}")
            told = [(entry["event"], entry["store"], entry["exc_info"]) for entry in logged]
            assert told == [("the execution store fails to answer", "scripted", True)] * 3

    run(main())


def test_a_question_says_so_when_what_was_answered_is_not_stored_in_time(
    run: Any, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.tracking.writer.FLUSH_SECONDS", 0.05)

    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            store.going_on.clear()
            id_ = (await shop.get("/orchestrator/d/hello")).headers["X-Execution-Id"]
            page = (await shop.admin("GET", "/executions")).json
            assert [execution["id"] for execution in page["executions"]] == [id_]
            assert page["incomplete"] == "the execution store takes too long"
            store.going_on.set()
            await until(shop, lambda now: now["waiting"] == 0)
            assert "incomplete" not in (await shop.admin("GET", "/executions")).json

    run(main())


def test_a_short_queue_is_emptied_before_it_is_full(run: Any, store: ScriptedStore) -> None:
    """However fast they come, as long as the store takes them: nobody waits for a larger batch then."""

    async def main() -> None:
        async with service(files(queue=20), plugins={"scripted": store}) as shop:
            for _ in range(100):
                await asyncio.gather(*(shop.get("/orchestrator/d/hello") for _ in range(4)))
            found = await until(shop, lambda found: found["finished"] == 400 and not found["waiting"])
            assert found["dropped"] == NONE_DROPPED
            assert len(store.kept) == 400

    run(main())


def test_what_finds_the_queue_full_is_counted(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(queue=10), plugins={"scripted": store}) as shop:
            store.failure = down()
            await shop.get("/orchestrator/d/hello")
            await until(shop, lambda now: bool(now["outage"]))
            answers = await asyncio.gather(*(shop.get("/orchestrator/d/hello") for _ in range(30)))
            assert {answer.status for answer in answers} == {200}
            store.failure = None
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert found["finished"] == 31
            assert found["dropped"] == {**NONE_DROPPED, "queue_full": 21}  # what the store is given waits too
            assert found["written"] == 10 == len(store.kept)

    run(main())


def test_a_store_that_is_nearly_full_takes_what_fits(run: Any, store: ScriptedStore) -> None:
    store.room = 13

    async def main() -> None:
        async with service(files(retry_window="20s"), plugins={"scripted": store}) as shop:
            store.going_on.clear()
            await shop.get("/orchestrator/d/hello")
            await happens(lambda: store.attempts == 1)
            await asyncio.gather(*(shop.get("/orchestrator/d/hello") for _ in range(30)))  # one batch
            with structlog.testing.capture_logs() as logged:
                store.going_on.set()
                found = await until(shop, lambda now: now["written"] == 13)
                assert (found["waiting"], found["outage"]) == (18, "it is full")
                store.room = 1000  # as when old executions have been deleted
                found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], found["dropped"], found["outage"]) == (31, NONE_DROPPED, "")
            assert len(store.kept) == 31
            told = [entry["event"] for entry in logged if entry["log_level"] in ("warning", "error")]
            assert told == ["the execution store fails; it is tried again", "the execution store works again"]

    run(main())


def test_what_cannot_be_stored_is_refused_after_an_outage_too(run: Any, store: ScriptedStore) -> None:
    store.refused = "bye"

    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            store.failure = down()
            paths = ["bye", "hello", "hello", "bye", "hello"]
            await asyncio.gather(*(shop.get(f"/orchestrator/d/{path}") for path in paths))
            await happens(lambda: store.attempts >= 4)  # the batch goes one by one
            store.failure = None
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], found["dropped"]) == (3, {**NONE_DROPPED, "refused": 2})

    run(main())


def test_what_the_store_does_not_take_within_the_window_is_dropped(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(retry_window="200ms"), plugins={"scripted": store}) as shop:
            store.failure = down()
            for _ in range(5):
                await shop.get("/orchestrator/d/hello")
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], found["dropped"]) == (0, {**NONE_DROPPED, "store_failed": 5})

    run(main())


def test_an_execution_that_cannot_be_stored_does_not_take_others_with_it(run: Any, store: ScriptedStore) -> None:
    store.refused = "bye"

    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            paths = ["hello"] * 7 + ["bye"] + ["hello"] * 5
            await asyncio.gather(*(shop.get(f"/orchestrator/d/{path}") for path in paths))
            found = await until(shop, lambda now: now["waiting"] == 0)
            assert (found["written"], found["dropped"]) == (12, {**NONE_DROPPED, "refused": 1})
            assert {execution.endpoint for execution in store.kept.values()} == {"hello"}

    run(main())


def test_a_store_that_fails_when_it_is_closed_is_logged_by_name(run: Any, store: ScriptedStore) -> None:
    store.close_failure = RuntimeError("no way out")

    async def main() -> None:
        with structlog.testing.capture_logs() as logged:
            async with service(files(), plugins={"scripted": store}) as shop:
                await shop.get("/orchestrator/d/hello")
        event = "the execution store failed when it was closed"
        assert [(each["store"], each["exc_info"]) for each in logged if each["event"] == event] == [
            ("scripted", store.close_failure)
        ]
        assert len(store.kept) == 1

    run(main())


def test_the_end_does_not_wait_for_a_store_that_fails_beyond_the_grace(run: Any, store: ScriptedStore) -> None:
    settings = files()
    settings["config.yaml"] += "server: {shutdown_timeout: 200ms}\n"

    async def main() -> None:
        with structlog.testing.capture_logs() as logged:
            async with service(settings, plugins={"scripted": store}) as shop:
                store.failure = down()
                for _ in range(3):
                    await shop.get("/orchestrator/d/hello")
                writer = shop.running.executions.writer
        assert writer is not None
        assert (writer.counts.stopped, writer.counts.waiting) == (3, 0)
        last = logged[-1]
        event = "executions are lost: the store did not take them before the end"
        assert (last["event"], last["executions"]) == (event, 3)

    run(main())


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_service_starts_without_its_store_and_uses_it_when_it_comes(run: Any, store: ScriptedStore) -> None:
    store.open_failure = down()

    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            await shop.get("/orchestrator/d/hello")
            assert (await counts(shop))["outage"] == "it is down"
            assert len(await shop.executions()) == 1
            store.open_failure = None
            found = await until(shop, lambda now: now["written"] == 1)
            assert found["outage"] == ""

    run(main())


def test_a_store_that_can_never_be_used_stops_the_start(run: Any, store: ScriptedStore) -> None:
    store.open_failure = ValueError("its tables are those of a later version")

    async def main() -> None:
        async with service(files(), plugins={"scripted": store}):
            raise AssertionError("it serves")

    with pytest.raises(ConfigError) as raised:
        run(main())
    (problem,) = raised.value.problems
    assert (problem.code, problem.file, problem.line) == ("ORC601", "config.yaml", 2)
    assert problem.message == "the tracking store cannot be used: its tables are those of a later version"


def test_the_kind_is_given_its_options_and_what_the_core_promises(serve: Serve, store: ScriptedStore) -> None:
    served = serve(files(store="{type: scripted, size: 3}", mode="durable"), plugins={"scripted": store})
    assert store.options == ScriptedOptions(size=3)
    assert store.context is not None
    assert (store.context.config_dir, store.context.durable) == (served.service.folder, True)


def test_old_executions_are_pruned_in_the_background(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(retention="1h", max_executions=7), plugins={"scripted": store}):
            await happens(lambda: bool(store.pruned))

    run(main())
    before, keep = store.pruned[0]
    assert keep == 7
    assert before is not None


def test_a_store_that_deletes_nothing_while_it_takes_executions_is_told_of(
    run: Any, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.tracking.writer.PRUNE_EVERY_SECONDS", 0.01)
    store.prune_failure = SourceUnavailable("permission denied")

    async def main() -> None:
        async with service(files(retention="1h"), plugins={"scripted": store}) as shop:
            assert (await shop.get("/orchestrator/d/hello")).status == 200
            await until(shop, lambda found: found["written"] == 1)
            await happens(lambda: len(store.pruned) > 1)

    with structlog.testing.capture_logs() as logged:
        run(main())
    told = {"event": "old executions are not deleted; it is tried again", "store": "scripted", "log_level": "warning"}
    assert {**told, "error": "permission denied"} in logged


def test_a_store_that_takes_no_generation_while_it_takes_executions_is_told_of_once(
    run: Any, store: ScriptedStore
) -> None:
    store.generation_failure = SourceUnavailable("permission denied")

    async def main() -> str:
        async with service(files(), plugins={"scripted": store}) as shop:
            for _ in range(3):
                assert (await shop.get("/orchestrator/d/hello")).status == 200
                await until(shop, lambda found: found["waiting"] == 0)
            generation: str = (await shop.admin("GET", "/config")).json["generation"]
            assert (await shop.admin("GET", f"/generations/{generation}")).status == 200  # from memory
            store.generation_failure = None
            await shop.get("/orchestrator/d/hello")
            await happens(lambda: bool(store.generations))
            return generation

    with structlog.testing.capture_logs() as logged:
        generation = run(main())
    assert [kept.id for kept in store.generations] == [generation]
    (told,) = [entry for entry in logged if entry["log_level"] == "warning"]
    assert told == {
        "event": "a generation is not stored; it is tried again",
        "generation": generation,
        "error": "permission denied",
        "log_level": "warning",
    }


def test_how_long_executions_are_kept_changes_with_a_reload(
    run: Any, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.tracking.writer.PRUNE_EVERY_SECONDS", 0.01)

    async def main() -> None:
        async with service(files(retention="1h", max_executions=7), plugins={"scripted": store}) as shop:
            await happens(lambda: bool(store.pruned))
            shop.write("config.yaml", files(retention="null", max_executions=5)["config.yaml"])
            await shop.reload()
            await happens(lambda: store.pruned[-1] == (None, 5))

    run(main())


def test_the_store_is_told_which_configuration_serves_and_when_it_did_last(
    run: Any, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.tracking.writer.PRUNE_EVERY_SECONDS", 0.01)

    async def main() -> tuple[str, str]:
        async with service(files(retention="null"), plugins={"scripted": store}) as shop:
            await happens(lambda: len(store.generations) > 2)
            first = (await shop.admin("GET", "/config")).json["generation"]
            shop.write("config.yaml", files(retention="1h")["config.yaml"])
            await shop.reload()
            second = (await shop.admin("GET", "/config")).json["generation"]
            await happens(lambda: [each.id for each in store.generations[-2:]] == [second, second])
            return first, second

    first, second = run(main())
    told = [each.id for each in store.generations]
    assert told == [first] * told.count(first) + [second] * told.count(second)
    assert first != second


def test_executions_that_find_the_queue_full_are_told_of_while_the_store_works(
    run: Any, store: ScriptedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator_core.tracking.writer.PRUNE_EVERY_SECONDS", 0.01)

    def told() -> list[int]:
        full = "executions are dropped: they come faster than the store takes them"
        return [entry["dropped"] for entry in logged if entry["event"] == full]

    async def main() -> None:
        async with service(files(queue=3), plugins={"scripted": store}) as shop:
            store.going_on.clear()
            for _ in range(10):
                assert (await shop.get("/orchestrator/d/hello")).status == 200
            await happens(lambda: sum(told()) == 7)
            store.going_on.set()

    with structlog.testing.capture_logs() as logged:
        run(main())
    assert sum(told()) == 7
    assert len(store.kept) == 3


# --- durable ----------------------------------------------------------------------------------------------------------


def test_a_durable_answer_comes_once_its_execution_is_stored(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(mode="durable"), plugins={"scripted": store}) as shop:
            answer = await shop.get("/orchestrator/d/hello")
            assert answer.status == 200
            assert list(store.kept) == [answer.headers["X-Execution-Id"]]
            missing = await shop.get("/orchestrator/d/hello/more")
            assert missing.status == 404
            assert missing.headers["X-Execution-Id"] in store.kept

    run(main())


def test_durable_answers_that_wait_together_share_a_transaction(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(mode="durable", commit_timeout="20s"), plugins={"scripted": store}) as shop:
            store.going_on.clear()
            first = asyncio.ensure_future(shop.get("/orchestrator/d/hello"))
            await happens(lambda: store.attempts == 1)
            others = [asyncio.ensure_future(shop.get("/orchestrator/d/hello")) for _ in range(8)]
            await until(shop, lambda now: now["waiting"] == 9)
            assert not any(call.done() for call in (first, *others))
            store.going_on.set()
            assert {(await call).status for call in (first, *others)} == {200}
            assert store.batches == [1, 8]

    run(main())


def test_a_durable_request_that_cannot_be_recorded_is_refused(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(mode="durable", commit_timeout="200ms"), plugins={"scripted": store}) as shop:
            store.failure = down()
            first = await shop.get("/orchestrator/d/hello")
            assert (first.status, first.headers["Retry-After"]) == (503, "1")
            assert first.json["detail"] == "the execution cannot be recorded: it is down"
            attempts = store.attempts
            second = await shop.get("/orchestrator/d/hello")
            assert (second.status, second.json["detail"]) == (503, "the execution cannot be recorded: it is down")
            store.failure = None
            await until(shop, lambda now: now["waiting"] == 0)
            assert store.attempts > attempts
            third = await shop.get("/orchestrator/d/hello")
            assert third.status == 200
            assert third.headers["X-Execution-Id"] in store.kept
            told = [execution.http_status for _, execution in sorted(store.kept.items())]
            assert told == [503, 503, 200]

    run(main())


def test_the_log_tells_what_kind_of_error_the_store_refuses_an_execution_with(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(), plugins={"scripted": store}) as shop:
            store.add_failure = KeyError("name")
            assert (await shop.get("/orchestrator/d/hello")).status == 200
            await until(shop, lambda found: found["waiting"] == 0)

    with structlog.testing.capture_logs() as logged:
        run(main())
    (told,) = [entry for entry in logged if entry["event"] == "the store refuses an execution"]
    assert told["error"] == "KeyError: 'name'"


def test_what_is_no_store_is_told_before_anything_is_served(run: Any) -> None:
    """Else each execution would be lost and nothing told of it."""

    @asynccontextmanager
    async def opened(options: ScriptedOptions, context: StoreContext) -> AsyncIterator[Any]:
        yield None

    class FailingPlugin:
        @hookimpl
        def orchestrator_execution_stores(self) -> list[StoreKind[Any]]:
            return [StoreKind("scripted", "No store.", ScriptedOptions, opened)]

    plugins = {"scripted": FailingPlugin()}
    message = "the tracking store cannot be used: what was opened has no find: it is a NoneType"
    (problem,) = check_problems(files(), plugins=plugins)
    assert (problem.code, problem.message) == ("ORC601", message)

    async def main() -> None:
        with pytest.raises(ConfigError) as caught:
            async with service(files(), plugins=plugins):
                pass
        assert [problem.message for problem in caught.value.problems] == [message]

    run(main())


def test_a_store_whose_check_fails_is_a_problem_that_names_its_plugin() -> None:
    @asynccontextmanager
    async def opened(options: ScriptedOptions, context: StoreContext) -> AsyncIterator[Any]:
        yield ScriptedStore()

    def check(options: ScriptedOptions, context: StoreContext) -> None:
        raise KeyError("size")

    class FailingPlugin:
        @hookimpl
        def orchestrator_execution_stores(self) -> list[StoreKind[Any]]:
            return [StoreKind("scripted", "Fails.", ScriptedOptions, opened, check)]

    (problem,) = check_problems(files(), plugins={"scripted": FailingPlugin()})
    assert (problem.code, problem.message) == ("ORC601", "the tracking store cannot be used: KeyError: 'size'")
    assert problem.hint == "a defect of the given plugin scripted"


def test_a_durable_request_whose_execution_the_store_refuses_says_so(run: Any, store: ScriptedStore) -> None:
    async def main() -> None:
        async with service(files(mode="durable"), plugins={"scripted": store}) as shop:
            store.refused = "hello"
            answer = await shop.get("/orchestrator/d/hello")
            assert answer.status == 503
            assert answer.json["detail"] == "the execution cannot be recorded: the store refuses it"

    run(main())


# --- the configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "line", "code", "message", "hint"),
    [
        ("{type: scripted, sise: 3}", 2, "ORC201", "unknown key 'sise'", "did you mean 'size'?"),
        ("{type: scripted, size: many}", 2, "ORC202", "expected an integer, got a string 'many'", ""),
        ("{size: 3}", 2, "ORC203", "'type' is missing", "one of: scripted"),
        ("{type: 3}", 2, "ORC202", "expected the name of a store", "one of: scripted"),
        (
            "{type: scrpted}",
            2,
            "ORC401",
            "no installed plugin provides the tracking store 'scrpted'",
            "did you mean 'scripted'?",
        ),
    ],
)
def test_an_unfit_store_is_a_problem_at_its_line(
    store: ScriptedStore, settings: str, line: int, code: str, message: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    (problem,) = check_problems(files(store=settings), plugins={"scripted": store})
    assert (problem.code, problem.line, problem.message, problem.hint) == (code, line, message, hint)


def test_a_missing_store_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: [])
    (problem,) = check_problems(files(store="{type: sql}"))
    assert (problem.code, problem.message, problem.hint) == (
        "ORC401",
        "no installed plugin provides the tracking store 'sql'",
        "install it: pip install orchestrator-api-tracking-sql",
    )


def test_durable_needs_a_store() -> None:
    (problem,) = check_problems({"config.yaml": "tracking: {mode: durable}"})
    assert (problem.code, problem.line, problem.message, problem.hint) == (
        "ORC203",
        1,
        "durable executions need a store",
        "give tracking.store, such as store: {type: sql}",
    )


def test_two_plugins_with_one_store_are_a_problem(store: ScriptedStore) -> None:
    problems = check_problems(files(), plugins={"one": store, "other": ScriptedStore()})
    assert [problem.message for problem in problems] == [
        "two plugins provide the tracking store 'scripted': the given plugin one and the given plugin other"
    ]


def test_a_check_only_asks_the_store(store: ScriptedStore) -> None:
    assert check_problems(files(), plugins={"scripted": store}) == []
    assert store.context is not None
    assert store.context.existing
    assert store.closed
    assert not store.generations


def test_what_a_check_says_of_the_store_has_no_secrets(store: ScriptedStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_KEY", "open-sesame")
    store.open_failure = SourceUnavailable("nobody lets in open-sesame")
    settings = files()
    settings["config.yaml"] += "admin: {host: '${env:STORE_KEY}'}\n"
    (problem,) = check_problems(settings, plugins={"scripted": store})
    assert problem.message == "the tracking store cannot be reached: nobody lets in ***"


@pytest.mark.parametrize(
    ("failure", "found"),
    [
        (down(), [("ORC604", "the tracking store cannot be reached: it is down")]),
        (
            ValueError("it is of a later version"),
            [("ORC601", "the tracking store cannot be used: it is of a later version")],
        ),
        (KeyError("page"), [("ORC601", "the tracking store cannot be used: KeyError: 'page'")]),
        (StoreNotMade("it is not there yet"), []),
    ],
)
def test_a_check_tells_what_is_wrong_with_the_store(
    store: ScriptedStore, failure: Exception, found: list[tuple[str, str]]
) -> None:
    store.open_failure = failure
    problems = check_problems(files(), plugins={"scripted": store})
    assert [(problem.code, problem.message) for problem in problems] == found
    assert check_problems(files(), plugins={"scripted": store}, offline=True) == []


def test_another_store_takes_effect_at_the_next_start(serve: Serve, store: ScriptedStore) -> None:
    shop = serve(files(), plugins={"scripted": store})
    for name, text in files(mode="durable").items():
        shop.write(name, text)
    with structlog.testing.capture_logs() as logged:
        assert shop.reload().status == 200
    told = [entry["event"] for entry in logged if entry["log_level"] == "warning"]
    assert told == ["tracking.store and tracking.mode change when the service is started the next time"]
    assert shop.get("/orchestrator/d/hello").status == 200
    assert tracking(shop)["mode"] == "buffered"
