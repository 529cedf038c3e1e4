"""``serve --workers 2``: several processes that are one service to everybody else."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from attrs import frozen
from yarl import URL

from orchestrator_core.testing.running import loop_factory
from orchestrator_core.testing.service import write_files
from orchestrator_core.workers.silence import ASK_EVERY_SECONDS
from orchestrator_core.workers.supervisor import pause_after
from tests.service.processes import FILES, HANGS, Load, Process, running_in, serving, starting

RunFixture = Callable[..., Any]
TWO = ("--workers", "2")
NEW = {"Connection": "close"}
SHARED = {
    **FILES,
    "config/database.yaml": 'slow: {sources: {default: {key: "${file:../key}", dies: die, waits: waits}}}',
    "key": "a-secret",
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """One service for the tests that leave it as they found it: a start takes seconds."""
    folder = tmp_path_factory.mktemp("two")
    with asyncio.Runner(loop_factory=loop_factory("uvloop")) as runner:
        context = serving(folder, SHARED, *TWO)
        service = runner.run(context.__aenter__())
        try:
            yield Two(folder, service, runner)
        finally:
            runner.run(context.__aexit__(None, None, None))


@frozen
class Two:
    """A service with two workers, and the loop that its clients run on."""

    folder: Path
    service: Process
    runner: asyncio.Runner

    def run(self, test: Callable[[Process], Coroutine[Any, Any, None]]) -> None:
        async def and_mend() -> None:
            async with asyncio.timeout(180):
                try:
                    await test(self.service)
                finally:
                    write_files(self.folder, SHARED)
                    (self.folder / "die").unlink(missing_ok=True)
                    (self.folder / "waits").unlink(missing_ok=True)
                    await self.service.get(f"{self.service.admin_url}/reload", method="POST")
                    await until(lambda told: states(told) == ["serving", "serving"], self.service)

        self.runner.run(and_mend())


async def pids_of(service: Process, asks: int = 40) -> list[int]:
    """Return who answers, over many connections."""
    answers = await asyncio.gather(*(service.get(f"{service.url}/pid", headers=NEW) for _ in range(asks)))
    assert {status for status, _ in answers} == {200}
    return sorted({pid for _, pid in answers})


async def workers_of(service: Process) -> list[dict[str, Any]]:
    status, told = await service.get(f"{service.admin_url}/config")
    assert status == 200, told
    workers: list[dict[str, Any]] = told["workers"]
    return workers


async def until(condition: Callable[[list[dict[str, Any]]], bool], service: Process, seconds: float = 60) -> Any:
    """Wait until the workers are as they should be, and return them."""
    async with asyncio.timeout(seconds):
        while not condition(workers := await workers_of(service)):  # noqa: ASYNC110  # it is asked, not told
            await asyncio.sleep(0.05)
    return workers


def states(workers: list[dict[str, Any]]) -> list[str]:
    return [worker["state"] for worker in workers]


def test_all_workers_answer_and_one_admin_listener_speaks_for_them(two: Two) -> None:
    async def main(service: Process) -> None:
        workers = await workers_of(service)
        pids = sorted(worker["pid"] for worker in workers)
        assert await pids_of(service) == pids
        assert service.process.pid not in pids
        generation = (await service.get(f"{service.admin_url}/health/live"))[1]["generation"]
        for index, worker in enumerate(workers):
            del worker["pid"], worker["started_at"]
            assert worker == {
                "slot": index,
                "state": "serving",
                "generation": generation,
                "restarts": 0,
                "last_exit": None,
            }
        assert (await service.get(f"{service.admin_url}/health/ready"))[1]["status"] == "ready"
        sources = (await service.get(f"{service.admin_url}/sources"))[1]["sources"]
        assert sorted(source["type"] for source in sources) == ["direct", "slow"]
        assert [sorted(source["workers"], key=str) for source in sources] == [[{"pid": pid} for pid in pids]] * 2
        for page in (
            "nowhere",
            "worker/ping",
            "worker/abandon",
            "config/%2e%2e/worker/abandon",
        ):  # which are for workers
            url = URL(f"{service.admin_url}/{page}", encoded=True)
            status, told = await service.get(url, method="POST")
            assert (status, told["detail"][:12]) == (404, "no such page")
        status, told = await service.get(f"{service.admin_url}/restart")
        assert (status, told["detail"]) == (405, "/restart takes POST, not GET")

    two.run(main)


STORE = '''
    import pickle
    from contextlib import asynccontextmanager
    from attrs import frozen
    from orchestrator_core.plugin_api import Page, StoreKind, hookimpl

    @frozen
    class Options:
        """Nothing to configure."""

    class Store:
        """A folder with a file for each execution."""

        def __init__(self, folder):
            self.folder = folder

        async def add(self, executions):
            for execution in executions:
                (self.folder / execution.id).write_bytes(pickle.dumps(execution))

        async def find(self, query):
            newest = sorted(self.folder.iterdir(), reverse=True)[:query.limit]
            return Page(tuple(pickle.loads(file.read_bytes()) for file in newest), None)

        async def get(self, execution_id):
            file = self.folder / execution_id
            return pickle.loads(file.read_bytes()) if file.exists() else None

        async def add_generation(self, generation):
            pass

        async def get_generation(self, generation_id):
            return None

        async def prune(self, before, keep):
            return 0

    @asynccontextmanager
    async def opened(options, context):
        folder = context.path("../kept")
        folder.mkdir(exist_ok=True)
        yield Store(folder)

    @hookimpl
    def orchestrator_execution_stores():
        return [StoreKind("folder", "Keeps files.", Options, opened)]
'''


def test_what_any_worker_has_answered_is_found_at_once_in_their_store(run: RunFixture, tmp_path: Path) -> None:
    config = f"{FILES['config/config.yaml']}tracking: {{store: {{type: folder}}}}\n"
    files = {**FILES, "config/config.yaml": config, "plugins/store.py": STORE}

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            pids, asked = set(), 0
            while len(pids) < 2:
                answers = [await service.get(f"{service.url}/pid", headers=NEW) for _ in range(8)]
                pids |= {pid for _, pid in answers}
                asked += len(answers)
                _, found = await service.get(f"{service.admin_url}/executions?limit=1000")
                assert len(found["executions"]) == asked
            counts = (await service.get(f"{service.admin_url}/config"))[1]["tracking"]
            assert (counts["finished"], counts["written"]) == (asked, asked)  # by both

    run(main())


def test_executions_of_all_workers_are_one_list_with_pages(two: Two) -> None:
    async def main(service: Process) -> None:
        for _ in range(30):
            await service.get(f"{service.url}/pid", headers=NEW)
        _, whole = await service.get(f"{service.admin_url}/executions?limit=1000")
        started = [execution["started_at"] for execution in whole["executions"]]
        assert len(started) >= 30
        assert whole["cursor"] is None
        assert started == sorted(started, reverse=True)
        paged, cursor = [], ""
        while cursor is not None:
            query = f"limit=17{f'&cursor={cursor}' if cursor else ''}"
            _, page = await service.get(f"{service.admin_url}/executions?{query}")
            paged += page["executions"]
            cursor = page["cursor"]
            await service.get(f"{service.url}/version")  # a newer one moves nothing on later pages
        assert [execution["id"] for execution in paged] == [execution["id"] for execution in whole["executions"]]
        for execution in paged:
            assert await service.get(f"{service.admin_url}/executions/{execution['id']}") == (200, execution)
        for target, expected in (
            ("executions/none", (404, "no execution none is kept")),
            ("executions?limit=0", (422, "/limit expected a number from 1 to 1000")),
            ("executions?cursor=x", (422, "/cursor expected the cursor of the page before")),
        ):
            status, told = await service.get(f"{service.admin_url}/{target}")
            assert (status, told["detail"]) == expected
        _, filtered = await service.get(f"{service.admin_url}/executions?endpoint=nobody")
        assert filtered == {"executions": [], "cursor": None}

    two.run(main)


def test_a_killed_worker_is_replaced_on_the_configuration_that_the_others_serve(two: Two) -> None:
    """The folder is half-written and a secret file is gone at that moment: neither matters."""

    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        (two.folder / "config/domains/d.yaml").write_text("endpoints: {")
        (two.folder / "key").unlink()
        os.kill(first["pid"], signal.SIGKILL)
        workers = await until(lambda told: told[0]["pid"] not in (None, first["pid"]), service)
        assert workers[1] == second
        assert (workers[0]["restarts"], workers[0]["last_exit"]) == (first["restarts"] + 1, "signal SIGKILL")
        assert workers[0]["generation"] == first["generation"]
        assert await pids_of(service) == sorted(worker["pid"] for worker in workers)

    two.run(main)


TAGGED = """
    from contextlib import asynccontextmanager
    from pathlib import Path

    from attrs import frozen
    from orchestrator_core.plugin_api import ModelKind, hookimpl

    @frozen
    class TaggedOptions:
        odd: str | None = None

    class Tagged:
        def __init__(self, version):
            self.version = version

        async def predict(self, rows):
            return [self.version for _ in rows]

    @asynccontextmanager
    async def open_tagged(options, context):
        version = context.kept.setdefault("version", Path("tag").read_text())
        if options.odd:
            context.kept["odd"] = {options.odd: object() if options.odd == "object" else 2**70}
        if version == "broken" and not options.odd:
            raise ValueError("what the tag stands for now cannot be opened")
        yield Tagged(version)

    @hookimpl
    def orchestrator_model_kinds():
        return [ModelKind("tagged", "A model that its tag stands for.", TaggedOptions, open_tagged)]
"""
TWO_TAGGED = """
    ml:
      sources:
        early: {source: {type: tagged}}
        late: {source: {type: tagged, preload: false}}
        large: {source: {type: tagged, odd: integer}}
        other: {source: {type: tagged, odd: object}}
"""
ASK_TAGGED = """
    endpoints:
      {name}:
        data_sources: [{{name: m, type: ml, source_id: {name}, params: {{features: {{}}}}}}]
        response_mapping: $m
"""


def test_a_worker_that_is_started_again_has_the_models_that_the_others_have(run: RunFixture, tmp_path: Path) -> None:
    """What their tag stands for by then is for who asks for it: by a reload, or a restart of all."""
    files = {
        "tag": "first",
        "plugins/tagged.py": TAGGED,
        "config/config.yaml": "plugins_dir: ../plugins\nreload: {watch: false}\n",
        "config/integrations/models.yaml": TWO_TAGGED,
        "config/domains/early.yaml": ASK_TAGGED.format(name="early"),
        "config/domains/late.yaml": ASK_TAGGED.format(name="late"),
    }

    async def answers(service: Process) -> set[tuple[int, str]]:
        urls = [str(URL(service.url).with_path(f"/orchestrator/{name}/{name}")) for name in ("early", "late")]
        got = await asyncio.gather(*(service.get(url, headers=NEW) for url in urls * 30))
        return {(status, told if status == 200 else told["detail"]) for status, told in got}

    async def killed(service: Process, *indexes: int) -> None:
        before = [worker["pid"] for worker in await workers_of(service)]
        for index in indexes:
            os.kill(before[index], signal.SIGKILL)
        while (await service.get(f"{service.admin_url}/config"))[0] != 200:  # noqa: ASYNC110  # it is asked, not told
            await asyncio.sleep(0.05)  # while both are gone there is nobody to answer

        def are_back(told: list[dict[str, Any]]) -> bool:
            return states(told) == ["serving"] * 2 and all(told[one]["pid"] != before[one] for one in indexes)

        await until(are_back, service)

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            assert await answers(service) == {(200, "first")}
            await asyncio.sleep(ASK_EVERY_SECONDS + 0.5)  # a model that was loaded late is told of then
            (tmp_path / "tag").write_text("broken")
            await killed(service, 0)
            assert await answers(service) == {(200, "first")}
            await killed(service, 0, 1)
            assert await answers(service) == {(200, "first")}
            (tmp_path / "tag").write_text("second")
            status, told = await service.get(f"{service.admin_url}/restart", method="POST")
            assert status == 200, told
            assert await answers(service) == {(200, "second")}
            await asyncio.sleep(ASK_EVERY_SECONDS + 0.5)
            (tmp_path / "tag").write_text("broken")
            await killed(service, 1)
            assert await answers(service) == {(200, "second")}

    run(main(), timeout_seconds=120)


def test_requests_of_the_other_worker_do_not_notice_and_those_who_wait_are_served(two: Two) -> None:
    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        os.kill(first["pid"], signal.SIGSTOP)  # so that connections wait in its queue
        try:
            waiting = [asyncio.create_task(service.get(f"{service.url}/pid", headers=NEW)) for _ in range(40)]
            done, pending = await asyncio.wait(waiting, timeout=2)
            assert {task.result() for task in done} == {(200, second["pid"])}
            assert pending
        finally:
            os.kill(first["pid"], signal.SIGKILL)
        answers = set(await asyncio.gather(*waiting))
        workers = await until(lambda told: states(told) == ["serving", "serving"], service)
        assert answers <= {(200, worker["pid"]) for worker in workers}

    two.run(main)


def test_a_worker_that_somebody_tells_to_stop_has_a_successor_while_it_finishes(
    run: RunFixture, tmp_path: Path
) -> None:
    """Those who wait at its socket do not wait for what it is doing."""

    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service:
            first, second = await workers_of(service)
            async with client_of(first["pid"], service) as client:
                holding = asyncio.create_task(held(client, service.url, "done"))
                await asyncio.sleep(0.3)
                os.kill(first["pid"], signal.SIGTERM)
                workers = await until(lambda told: told[0]["pid"] not in (None, first["pid"]), service)
                assert (workers[0]["restarts"], workers[0]["last_exit"]) == (1, "somebody told it to stop")
                assert await pids_of(service) == sorted([workers[0]["pid"], second["pid"]])
                assert not holding.done()
                (tmp_path / "done").touch()
                assert await holding == (200, first["pid"])
            await gone(first["pid"])
            assert await workers_of(service) == workers

    run(main(), timeout_seconds=60)


def test_a_worker_that_answers_nothing_is_killed_and_those_who_wait_for_it_are_answered(
    run: RunFixture, tmp_path: Path
) -> None:
    async def main() -> None:
        files = {**FILES, "config/config.yaml": f"{FILES['config/config.yaml']}server: {{worker_timeout: 1s}}\n"}
        async with serving(tmp_path, files, *TWO) as service:
            first, second = await workers_of(service)
            waited = await service.get(f"{service.url}/slow", method="POST", json=1.5)
            assert waited == (200, {"seconds": 1.5})  # who only waits is left alone
            assert await workers_of(service) == [first, second]
            os.kill(first["pid"], signal.SIGSTOP)
            answers = await asyncio.gather(*(service.get(f"{service.url}/pid", headers=NEW) for _ in range(40)))
            workers = await until(lambda told: states(told) == ["serving", "serving"], service)
            assert (workers[0]["restarts"], workers[0]["last_exit"]) == (1, "no answer for 1 s")
            assert workers[1] == second
            assert set(answers) == {(200, worker["pid"]) for worker in workers}
            await service.says("worker is silent")

    run(main())


def test_a_reload_is_for_all_workers_or_for_none_and_has_one_answer(two: Two) -> None:
    async def versions(service: Process) -> set[int]:
        answers = (service.get(f"{service.url}/version", headers=NEW) for _ in range(30))
        return {version for _, version in await asyncio.gather(*answers)}

    async def main(service: Process) -> None:
        path = two.folder / "config/domains/d.yaml"
        path.write_text("endpoints: {version: {response_mapping: 2}}")
        status, told = await service.get(f"{service.admin_url}/reload", method="POST")
        assert (status, told["swapped"], told["problems"]) == (200, True, [])
        assert {worker["generation"] for worker in await workers_of(service)} == {told["generation"]}
        assert await versions(service) == {2}
        path.write_text("endpoints: {version: {response_mapping: $x}}")
        status, refused = await service.get(f"{service.admin_url}/reload", method="POST")
        assert (status, refused["swapped"], refused["generation"]) == (422, False, told["generation"])
        assert [problem["code"] for problem in refused["problems"]] == ["ORC502"]
        _, config = await service.get(f"{service.admin_url}/config")
        assert config["last_reload"]["problems"] == refused["problems"]
        assert await versions(service) == {2}
        path.write_text("endpoints: {version: {response_mapping: 3}}")
        service.process.send_signal(signal.SIGHUP)
        await service.version(3)

    two.run(main)


def test_a_reload_of_all_workers_says_once_which_settings_wait_for_the_next_start(two: Two) -> None:
    async def main(service: Process) -> None:
        path = two.folder / "config/config.yaml"
        path.write_text(f"{path.read_text()}\nadmin: {{port: 8011}}\n")
        status, told = await service.get(f"{service.admin_url}/reload", method="POST")
        assert (status, told["swapped"]) == (200, True)
        assert [(problem["code"], problem["path"]) for problem in told["problems"]] == [("ORC209", "admin.port")]
        assert (await service.get(f"{service.admin_url}/config"))[1]["last_reload"]["problems"] == told["problems"]

    two.run(main)


def test_a_changed_file_and_a_changed_secret_reload_all_workers(run: RunFixture, tmp_path: Path) -> None:
    files = {
        **FILES,
        "config/config.yaml": "plugins_dir: ../plugins",
        "config/database.yaml": 'slow: {sources: {default: {key: "${file:../secrets/key}"}}}',
        "versions/1/key": "first-secret",
        "versions/2/key": "second-secret",
    }
    write_files(tmp_path, files)
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets/..data").symlink_to("../versions/1")
    (tmp_path / "secrets/key").symlink_to("..data/key")

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            await asyncio.sleep(0.3)  # the watch starts in a thread of its own, and nobody tells when
            (tmp_path / "config/domains/d.yaml").write_text("endpoints: {version: {response_mapping: 2}}")
            await service.version(2)

            async def reload_at() -> str:
                at: str = (await service.get(f"{service.admin_url}/config"))[1]["last_reload"]["at"]
                return at

            before = await reload_at()
            await asyncio.sleep(1.5)  # the secret files are looked at once a second
            (tmp_path / "secrets/..tmp").symlink_to("../versions/2")
            os.replace(tmp_path / "secrets/..tmp", tmp_path / "secrets/..data")
            async with asyncio.timeout(60):
                while await reload_at() == before:  # noqa: ASYNC110  # it is asked, not told
                    await asyncio.sleep(0.05)

    run(main(), timeout_seconds=180)


def test_a_worker_that_dies_during_a_reload_does_not_hold_it_up(two: Two) -> None:
    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        (two.folder / "config/database.yaml").write_text("slow: {sources: {default: {opens_in: 1.5}}}")
        reloading = asyncio.create_task(service.get(f"{service.admin_url}/reload", method="POST"))
        await asyncio.sleep(0.7)
        os.kill(first["pid"], signal.SIGKILL)
        status, told = await asyncio.wait_for(reloading, 30)
        assert (status, told["swapped"], told["problems"]) == (200, True, [])
        workers = await until(lambda told: states(told) == ["serving", "serving"], service)
        assert {worker["generation"] for worker in workers} == {told["generation"]} != {second["generation"]}

    two.run(main)


def test_a_configuration_whose_opening_ends_workers_is_refused_and_not_tried_for_ever(
    run: RunFixture, tmp_path: Path
) -> None:
    """As a model does that crashes when it is loaded, or takes all memory. Somebody may have killed them all, too."""
    files = {**FILES, "config/config.yaml": "plugins_dir: ../plugins\n"}
    deadly = {"config/database.yaml": "slow: {sources: {default: {dies: die, opens: opens}}}"}

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            before = await workers_of(service)
            (tmp_path / "die").touch()
            write_files(tmp_path, deadly)
            found: dict[str, Any] = {"problems": []}
            async with asyncio.timeout(60):
                while not found["problems"]:
                    await asyncio.sleep(0.1)
                    status, told = await service.get(f"{service.admin_url}/config")
                    found = told["last_reload"] if status == 200 else found  # there may be no worker to ask
            (problem,) = found["problems"]
            assert (found["swapped"], problem["code"]) == (False, "ORC601")
            assert problem["message"] == "workers end while they open the configuration: exit status 3"
            workers = await until(lambda told: states(told) == ["serving", "serving"], service)
            assert {worker["generation"] for worker in workers} == {before[0]["generation"]}
            assert sum(worker["restarts"] for worker in workers) == 3  # both, and then one to see whether it was that
            await asyncio.sleep(3)  # nobody tries again before something changes
            assert await workers_of(service) == workers
            (tmp_path / "die").unlink()
            assert (await service.get(f"{service.admin_url}/reload", method="POST"))[0] == 200

    run(main(), timeout_seconds=120)


SHORT = """
    import errno
    import os
    from orchestrator_core.workers import commands

    load = commands.load_configuration

    def load_or_fail(*args, **named):
        if os.path.exists("short"):
            raise OSError(errno.EMFILE, "Too many open files")
        return load(*args, **named)

    commands.load_configuration = load_or_fail
"""


def test_a_change_that_a_worker_cannot_read_for_want_of_descriptors_is_tried_again(
    run: RunFixture, tmp_path: Path
) -> None:
    files = {**FILES, "config/config.yaml": "plugins_dir: ../plugins\n", "plugins/short.py": SHORT, "short": ""}

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            said = "the configuration cannot be read at the moment: [Errno 24] Too many open files"
            assert (status, told["detail"]) == (503, said)
            (tmp_path / "config/domains/d.yaml").write_text("endpoints: {version: {response_mapping: 2}}")
            await service.says("reload is tried again")
            (tmp_path / "short").unlink()
            await service.version(2)

    run(main(), timeout_seconds=60)


def test_a_reload_that_starts_over_leaves_nothing_of_what_was_opened(run: RunFixture, tmp_path: Path) -> None:
    """One worker has opened what is taken back while the other one still waits for it."""
    files = {**FILES, "config/config.yaml": "plugins_dir: ../plugins\n"}
    waiting = {
        "config/database.yaml": "slow: {sources: {default: {first: one, opens: opens, closes: closes, waits: waits}}}"
    }

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            (tmp_path / "waits").touch()
            write_files(tmp_path, waiting)
            await told_in(tmp_path / "opens", 1)
            await asyncio.sleep(0.5)  # nobody tells when the other one has opened
            write_files(tmp_path, {"config/database.yaml": FILES["config/database.yaml"]})
            async with asyncio.timeout(30):
                while not (tmp_path / "closes").exists():  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.05)
            await service.says("reload starts over")

    run(main(), timeout_seconds=120)


def pids_in(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


async def told_in(file: Path, count: int) -> list[int]:
    """Wait until so many processes have said there that they open, and return them."""
    async with asyncio.timeout(60):
        while len(pids := pids_in(file)) < count:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.02)
    return pids


def test_a_worker_that_starts_while_the_others_reload_opens_that_too_before_it_serves(
    run: RunFixture, tmp_path: Path
) -> None:
    """It is not started anew, which would take the whole time of a start once more."""
    opens, waits = tmp_path / "opens", tmp_path / "waits"
    before = "slow: {sources: {default: {opens: opens, waits: waits}}}"

    async def main() -> None:
        async with serving(tmp_path, {**FILES, "config/database.yaml": before}, *TWO) as service:
            first, second = await workers_of(service)
            waits.touch()
            os.kill(first["pid"], signal.SIGKILL)
            successor = (await told_in(opens, 3))[2]
            write_files(tmp_path, {"config/database.yaml": "slow: {sources: {default: {opens: opens}}}"})
            (tmp_path / "config/domains/d.yaml").write_text("endpoints: {version: {response_mapping: 2}}")
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            assert (status, [worker["state"] for worker in told["workers"]]) == (200, ["starting", "serving"])
            waits.unlink()
            workers = await until(lambda told: states(told) == ["serving", "serving"], service)
            assert pids_in(opens)[3:] == [second["pid"], successor]
            assert [worker["pid"] for worker in workers] == [successor, second["pid"]]
            assert {worker["generation"] for worker in workers} == {told["generation"]}
            answers = await asyncio.gather(*(service.get(f"{service.url}/version", headers=NEW) for _ in range(30)))
            assert answers == [(200, 2)] * 30

    run(main(), timeout_seconds=180)


def test_a_reload_whose_client_goes_away_is_for_all_workers_or_for_none(run: RunFixture, tmp_path: Path) -> None:
    """The client goes while one worker has swapped and the other does not hear of it; then while one still opens."""
    opens, closes, waits = tmp_path / "opens", tmp_path / "closes", tmp_path / "waits"

    def options(first: str) -> str:
        return f"slow: {{sources: {{default: {{first: {first}, opens: opens, closes: closes, waits: waits}}}}}}"

    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service, aiohttp.ClientSession() as caller:
            pids = [worker["pid"] for worker in await workers_of(service)]
            waits.touch()
            write_files(tmp_path, {"config/database.yaml": options("one")})
            (tmp_path / "config/domains/d.yaml").write_text("endpoints: {version: {response_mapping: 2}}")
            reloading = asyncio.create_task(caller.post(f"{service.admin_url}/reload"))
            (late,) = await told_in(opens, 1)
            (early,) = {*pids} - {late}
            async with client_of(late, service) as client:
                await asyncio.sleep(1.5)  # nobody tells when the other one is ready to swap
                os.kill(early, signal.SIGSTOP)
                waits.unlink()
                while await version_of(client, service) != 2:  # noqa: ASYNC110  # it is asked, not told
                    await asyncio.sleep(0.02)
                reloading.cancel()
                await asyncio.gather(reloading, return_exceptions=True)
                os.kill(early, signal.SIGCONT)
            generation = (await service.get(f"{service.admin_url}/health/live"))[1]["generation"]
            workers = await until(lambda told: {worker["generation"] for worker in told} == {generation}, service)
            assert [worker["pid"] for worker in workers] == pids
            await service.says("configuration reloaded")

            waits.touch()
            write_files(tmp_path, {"config/database.yaml": options("two")})
            reloading = asyncio.create_task(caller.post(f"{service.admin_url}/reload"))
            await told_in(opens, 2)
            reloading.cancel()
            await asyncio.gather(reloading, return_exceptions=True)
            async with asyncio.timeout(20):
                while not closes.exists():  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.02)
            assert closes.read_text() == "closed\n"  # by the one that had opened it
            assert {worker["generation"] for worker in await workers_of(service)} == {generation}

    run(main(), timeout_seconds=180)


async def version_of(client: aiohttp.ClientSession, service: Process) -> Any:
    async with client.get(f"{service.url}/version") as answer:
        return await answer.json()


def test_pages_say_what_the_others_know_while_a_worker_answers_nothing(two: Two) -> None:
    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        await pids_of(service)
        os.kill(first["pid"], signal.SIGSTOP)
        try:
            async with asyncio.timeout(15):
                for page in ("sources", "models", "config", "executions"):
                    status, told = await service.get(f"{service.admin_url}/{page}")
                    assert (status, told["incomplete"]) == (200, "worker 0 did not answer within 2 s")
                status, told = await service.get(f"{service.admin_url}/executions/{'0' * 32}")
                assert (status, told["detail"]) == (503, "worker 0 did not answer within 2 s")
                _, told = await service.get(f"{service.admin_url}/executions?limit=1")
                (known,) = told["executions"]
                assert await service.get(f"{service.admin_url}/executions/{known['id']}") == (200, known)
        finally:
            os.kill(first["pid"], signal.SIGCONT)
        assert await workers_of(service) == [first, second]

    two.run(main)


def test_a_rolling_restart_fails_no_request(two: Two) -> None:
    async def main(service: Process) -> None:
        before = {worker["pid"] for worker in await workers_of(service)}
        loads = [Load(service.url, reuse=reuse) for reuse in (True, False)]
        clients = [asyncio.create_task(load.client()) for load in loads for _ in range(4)]
        await loads[0].answered(50)
        status, told = await service.get(f"{service.admin_url}/restart", method="POST")
        assert (status, told["restarted"], told["error"]) == (200, 2, None)
        after = {worker["pid"] for worker in await workers_of(service)}
        assert not before & after
        for load in loads:
            await load.answered(20)
            load.stopped = True
        await asyncio.gather(*clients)
        assert [(load.failures, load.statuses) for load in loads] == [([], {200})] * 2
        write_files(two.folder, {"plugins/slow.py": "raise RuntimeError('not any more')"})
        status, told = await service.get(f"{service.admin_url}/restart", method="POST")
        assert (status, told["restarted"]) == (503, 0)
        assert told["error"] == "worker 0: the configuration has problems"
        await service.says("ORC403 `slow`")
        assert sum(line.startswith("database.yaml:1:1: ORC403 `slow`") for line in service.lines) == 1
        assert {worker["pid"] for worker in await workers_of(service)} == after
        assert await pids_of(service) == sorted(after)

    two.run(main)


def test_a_worker_that_is_replaced_ends_though_whoever_asked_for_the_restart_goes_away(
    run: RunFixture, tmp_path: Path
) -> None:
    """The worker hears nothing, so that somebody has to end it: after the shutdown timeout and ten seconds."""
    files = {**FILES, "config/config.yaml": f"{FILES['config/config.yaml']}server: {{shutdown_timeout: 0s}}\n"}

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service, aiohttp.ClientSession() as caller:
            first, second = [worker["pid"] for worker in await workers_of(service)]
            os.kill(first, signal.SIGSTOP)
            try:
                restarting = asyncio.create_task(caller.post(f"{service.admin_url}/restart"))
                while await first_pid(service) in (first, None):  # noqa: ASYNC110  # it is asked, not told
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)
                restarting.cancel()
                await asyncio.gather(restarting, return_exceptions=True)
                await service.says("restart is given up")
                async with asyncio.timeout(20):
                    while first in running_in(tmp_path):  # noqa: ASYNC110  # nobody tells
                        await asyncio.sleep(0.05)
            finally:
                with suppress(ProcessLookupError):
                    os.kill(first, signal.SIGCONT)
            assert [worker["pid"] for worker in await workers_of(service)][1] == second

    run(main(), timeout_seconds=120)


async def first_pid(service: Process) -> Any:
    status, told = await service.get(f"{service.admin_url}/health/live")
    assert status == 200, told
    return told["workers"][0]["pid"]


async def counted(service: Process, name: str) -> list[float]:
    """Return what the metrics say of each series of a name."""
    async with service.client.get(f"{service.admin_url}/metrics") as answer:
        told = (await answer.text()).splitlines()
    return [float(line.rpartition(" ")[2]) for line in told if line.startswith(f"{name}{{")]


async def reloads_of(service: Process) -> list[float]:
    """Return how many reloads the metrics tell of: swapped, failed."""
    return await counted(service, "orchestrator_reloads_total")


def test_a_restart_loses_nothing_that_was_counted(two: Two) -> None:
    async def main(service: Process) -> None:
        before = sum(await counted(service, "orchestrator_requests_total"))
        asked = 0
        for _ in range(2):
            load = Load(service.url, reuse=False)
            clients = [asyncio.create_task(load.client()) for _ in range(4)]
            await load.answered(20)
            assert (await service.get(f"{service.admin_url}/restart", method="POST"))[0] == 200
            load.stopped = True
            await asyncio.gather(*clients)
            asked += load.count
        assert sum(await counted(service, "orchestrator_requests_total")) - before == asked
        assert sum(await counted(service, "orchestrator_requests_total")) - before == asked

    two.run(main)


def test_what_a_worker_writes_to_the_store_when_it_stops_is_counted(run: RunFixture, tmp_path: Path) -> None:
    """And so is what it drops then."""
    config = f"{FILES['config/config.yaml']}tracking: {{store: {{type: folder}}}}\n"
    slow = STORE.replace("import pickle", "import asyncio, pickle").replace(
        "for execution in", "await asyncio.sleep(0.3)\n            for execution in", 1
    )
    files = {**FILES, "config/config.yaml": config, "plugins/store.py": slow}

    async def main() -> None:
        async with serving(tmp_path, files, *TWO) as service:
            load = Load(service.url, reuse=False)
            clients = [asyncio.create_task(load.client()) for _ in range(2)]
            await load.answered(20)
            assert (await service.get(f"{service.admin_url}/restart", method="POST"))[0] == 200
            load.stopped = True
            await asyncio.gather(*clients)
            await service.get(f"{service.admin_url}/executions?limit=1")  # when those that serve have written theirs
            async with service.client.get(f"{service.admin_url}/metrics") as answer:
                told = dict(line.rsplit(" ", 1) for line in (await answer.text()).splitlines() if line[0] != "#")
            assert float(told["orchestrator_tracking_written_total"]) == load.count
            tracking = (await service.get(f"{service.admin_url}/config"))[1]["tracking"]
            assert (tracking["finished"], tracking["written"]) == (load.count, load.count)

    run(main())


def test_a_worker_that_somebody_tells_to_stop_leaves_what_it_counted(two: Two) -> None:
    async def main(service: Process) -> None:
        before = sum(await counted(service, "orchestrator_requests_total"))
        await pids_of(service, asks=20)
        first, _ = await workers_of(service)
        os.kill(first["pid"], signal.SIGTERM)
        await gone(first["pid"])
        await until(lambda told: told[0]["pid"] not in (None, first["pid"]), service)
        assert sum(await counted(service, "orchestrator_requests_total")) - before == 20

    two.run(main)


def test_metrics_count_the_reloads_of_the_service_and_not_those_that_each_worker_knows(two: Two) -> None:
    async def main(service: Process) -> None:
        for _ in range(2):
            await service.get(f"{service.admin_url}/reload", method="POST")
        swapped, failed = await reloads_of(service)
        await service.get(f"{service.admin_url}/restart", method="POST")
        assert await reloads_of(service) == [swapped, failed]
        await service.get(f"{service.admin_url}/reload", method="POST")
        (two.folder / "key").unlink()
        await service.get(f"{service.admin_url}/reload", method="POST")
        assert await reloads_of(service) == [swapped + 1, failed + 1]

    two.run(main)


def test_metrics_do_not_wait_for_a_worker_that_answers_nothing(two: Two) -> None:
    """What it said last stands: the figures are there also when one is in trouble."""

    async def main(service: Process) -> None:
        first, _ = await workers_of(service)
        await reloads_of(service)
        os.kill(first["pid"], signal.SIGSTOP)
        try:
            async with asyncio.timeout(8):  # before Prometheus gives up
                assert len(await reloads_of(service)) == 2
        finally:
            os.kill(first["pid"], signal.SIGCONT)

    two.run(main)


@pytest.mark.parametrize("stored_first", [False, True])
def test_executions_are_whole_and_told_once_when_a_reload_has_changed_the_store(
    run: RunFixture, tmp_path: Path, stored_first: bool
) -> None:
    """The workers that serve keep to what they began with; one that is started later begins with what is new."""
    memory = FILES["config/config.yaml"]
    stored = f'{memory}tracking: {{store: {{type: sql, url: "sqlite:///../executions.db"}}}}\n'
    first, then = (stored, memory) if stored_first else (memory, stored)

    async def main() -> None:
        async with serving(tmp_path, {**FILES, "config/config.yaml": first}, *TWO) as service:
            await pids_of(service)
            write_files(tmp_path, {"config/config.yaml": then})
            assert (await service.get(f"{service.admin_url}/reload", method="POST"))[0] == 200
            await pids_of(service)
            assert len(await executions_of(service)) == 80
            os.kill((await workers_of(service))[0]["pid"], signal.SIGTERM)  # in good order: it has stored what it had
            await until(lambda told: told[0]["restarts"] == 1 and states(told) == ["serving", "serving"], service)
            before = len(await executions_of(service))
            await pids_of(service)
            assert len(await executions_of(service)) == before + 40

    run(main(), timeout_seconds=60)


async def executions_of(service: Process) -> list[str]:
    """Return the ids of all executions, over several pages; each is told once."""
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        query = {"limit": "15", **({"cursor": cursor} if cursor else {})}
        _, page = await service.get(f"{service.admin_url}/executions", params=query)
        found += [execution["id"] for execution in page["executions"]]
        cursor = page["cursor"]
    assert len(set(found)) == len(found)
    return found


def test_a_second_signal_ends_a_worker_that_hears_nothing(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service:
            first, _ = await workers_of(service)
            os.kill(first["pid"], signal.SIGSTOP)
            service.process.send_signal(signal.SIGINT)
            await service.says("stopping")
            async with asyncio.timeout(20):
                await asyncio.sleep(0.5)  # else the two are one
                service.process.send_signal(signal.SIGINT)
                assert await service.process.wait() == 0  # and not after server.shutdown_timeout, which is 30 s

    run(main(), timeout_seconds=60)


def test_a_worker_that_cannot_start_is_given_up_and_the_others_take_its_connections(two: Two) -> None:
    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        (two.folder / "die").touch()
        os.kill(first["pid"], signal.SIGKILL)
        workers = await until(lambda told: states(told) == ["failed", "serving"], service, 60)
        assert workers[0]["last_exit"] == "it ended before it served: exit status 3"
        assert await pids_of(service) == [second["pid"]]
        await service.says("given up until the next reload")
        (two.folder / "die").unlink()
        assert (await service.get(f"{service.admin_url}/reload", method="POST"))[0] == 200
        await until(lambda told: states(told) == ["serving", "serving"], service)

    two.run(main)


def test_who_waits_for_a_worker_that_starts_late_is_answered_by_the_others(two: Two) -> None:
    """Its source hangs, say: those who were in its queue would wait for as long."""

    async def main(service: Process) -> None:
        first, second = await workers_of(service)
        (two.folder / "waits").touch()
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda told: states(told) == ["starting", "serving"], service)
        assert await pids_of(service) == [second["pid"]]
        (two.folder / "waits").unlink()
        workers = await until(lambda told: states(told) == ["serving", "serving"], service)
        async with asyncio.timeout(20):  # the other one still accepts at its socket too, and may be quicker
            while await pids_of(service) != sorted(worker["pid"] for worker in workers):
                pass

    two.run(main)


def test_without_a_worker_nobody_says_that_there_are_no_executions(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, SHARED, *TWO) as service:
            workers = await workers_of(service)
            (tmp_path / "die").touch()
            for worker in workers:
                os.kill(worker["pid"], signal.SIGKILL)
            while (await service.get(f"{service.admin_url}/health/ready"))[0] == 200:  # noqa: ASYNC110  # it is asked, not told
                await asyncio.sleep(0.02)
            status, told = await service.get(f"{service.admin_url}/executions")
            assert (status, told["detail"]) == (503, "no worker answers")

    run(main())


def test_the_pause_before_a_worker_is_started_again_grows_to_a_second() -> None:
    assert [pause_after(failures) for failures in (0, 1, 2, 3, 4, 5, 10_000)] == [0.0, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_workers_end_with_their_supervisor_however_it_ends(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service:
            first, second = [worker["pid"] for worker in await workers_of(service)]
            async with client_of(first, service) as one, client_of(second, service) as other:
                held_by_first = asyncio.create_task(held(one, service.url, "first"))
                held_by_second = asyncio.create_task(held(other, service.url, "second"))
                await asyncio.sleep(0.2)
                service.process.kill()
                address = urlsplit(service.url)
                async with asyncio.timeout(2):
                    while is_taken(address.hostname, address.port):  # noqa: ASYNC110  # nobody tells
                        await asyncio.sleep(0.05)
                assert not held_by_first.done()  # and whoever starts the service again can
                for holding, pid, name in ((held_by_first, first, "first"), (held_by_second, second, "second")):
                    (tmp_path / name).touch()
                    assert await holding == (200, pid)
                    await gone(pid)
            assert not [line for line in service.lines if "[error" in line]

    run(main(), timeout_seconds=180)


def test_a_worker_without_a_supervisor_ends_though_a_source_does_not_close(run: RunFixture, tmp_path: Path) -> None:
    config = f"{FILES['config/config.yaml']}server: {{shutdown_timeout: 100ms}}\n"

    async def main() -> None:
        async with serving(tmp_path, {**HANGS, "config/config.yaml": config}, *TWO) as service:
            service.process.kill()
            async with asyncio.timeout(20):
                while running_in(tmp_path):  # noqa: ASYNC110  # nobody tells
                    await asyncio.sleep(0.1)

    run(main(), timeout_seconds=60)


@asynccontextmanager
async def client_of(pid: int, service: Process) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield a client whose one connection is to this worker."""
    async with AsyncExitStack() as stack:
        while True:
            client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)))
            async with client.get(f"{service.url}/pid") as answer:
                if await answer.json() == pid:
                    break
        yield client


async def held(client: aiohttp.ClientSession, url: str, until_file: str) -> tuple[int, Any]:
    """Ask for what is answered once there is such a file in the service's folder."""
    async with client.post(f"{url}/held", json=until_file) as answer:
        return answer.status, await answer.json(content_type=None)


def test_sigterm_during_a_rolling_restart_lets_requests_of_all_workers_finish(run: RunFixture, tmp_path: Path) -> None:
    """The first worker has its successor and drains, and so does the second one, which is to have none any more."""

    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service:
            first, second = [worker["pid"] for worker in await workers_of(service)]
            async with client_of(first, service) as one, client_of(second, service) as other:
                held_by_first = asyncio.create_task(held(one, service.url, "first"))
                held_by_second = asyncio.create_task(held(other, service.url, "second"))
                await asyncio.sleep(0.3)
                restarting = asyncio.create_task(service.get(f"{service.admin_url}/restart", method="POST"))
                await until(lambda told: told[0]["pid"] not in (None, first), service)
                service.process.send_signal(signal.SIGTERM)
                service.process.send_signal(signal.SIGUSR2)
                await asyncio.sleep(0.5)
                (tmp_path / "first").touch()
                assert await held_by_first == (200, first)
                status, told = await restarting
                assert (status, told["restarted"], told["error"]) == (503, 1, "worker 1: the service is stopping")
                service.process.send_signal(signal.SIGUSR2)
                await asyncio.sleep(0.3)
                assert not held_by_second.done()
                (tmp_path / "second").touch()
                assert await held_by_second == (200, second)
                assert await asyncio.wait_for(service.process.wait(), 30) == 0
            assert running_in(tmp_path) == []

    run(main(), timeout_seconds=60)


@pytest.mark.parametrize("supervisor_ends_first", [False, True])
def test_sigterm_for_each_process_of_the_service_lets_requests_finish(
    run: RunFixture, tmp_path: Path, supervisor_ends_first: bool
) -> None:
    """A worker is told more than once then: from outside, and by its supervisor or by that one's end."""

    async def main() -> None:
        async with serving(tmp_path, FILES, *TWO) as service:
            pids = [worker["pid"] for worker in await workers_of(service)]
            answers = [asyncio.create_task(held(service.client, service.url, "done")) for _ in range(8)]
            await asyncio.sleep(0.5)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            service.process.send_signal(signal.SIGKILL if supervisor_ends_first else signal.SIGTERM)
            await asyncio.sleep(0.3)
            for pid in pids:
                os.kill(pid, signal.SIGTERM)
            await asyncio.sleep(0.3)
            (tmp_path / "done").touch()
            assert {status for status, _ in await asyncio.gather(*answers)} == {200}
            assert await service.process.wait() == (-signal.SIGKILL if supervisor_ends_first else 0)
            while running_in(tmp_path):  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)

    run(main(), timeout_seconds=60)


def test_a_second_signal_ends_requests_of_workers_without_killing_them(run: RunFixture, tmp_path: Path) -> None:
    """What they opened is closed in order."""

    async def main() -> None:
        config = "slow: {sources: {default: {closes: closes}}}"
        async with serving(tmp_path, {**FILES, "config/database.yaml": config}, *TWO) as service:
            slow = [asyncio.create_task(service.get(f"{service.url}/slow", method="POST", json=60)) for _ in range(8)]
            await asyncio.sleep(0.5)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.6)
            assert not any(task.done() for task in slow)
            service.process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(service.process.wait(), 20) == 0
            assert [status for status, _ in await asyncio.gather(*slow)] == [503] * 8
            assert (tmp_path / "closes").read_text() == "closed\n" * 2

    run(main(), timeout_seconds=60)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_restart_that_is_asked_for_during_the_start_follows_it(run: RunFixture, tmp_path: Path) -> None:
    """No worker is started beside those that start, and forgotten."""
    files = {**FILES, "config/database.yaml": "slow: {sources: {default: {opens_in: 1}}}"}
    url = f"http://127.0.0.1:{(port := free_port())}"

    async def main() -> None:
        arguments = (*TWO, "--admin-port", str(port))
        async with starting(tmp_path, files, *arguments) as process, aiohttp.ClientSession() as client:
            told = None
            while told is None:
                with suppress(aiohttp.ClientConnectorError):  # the admin listener is not there yet
                    async with client.post(f"{url}/restart") as answer:
                        told = await answer.json()
                await asyncio.sleep(0.02)
            assert (told["restarted"], told["error"]) == (2, None)
            others = set(running_in(tmp_path)) - {process.pid, *(worker["pid"] for worker in told["workers"])}
            assert len(others) <= 1  # the spare
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
            assert running_in(tmp_path) == []

    run(main(), timeout_seconds=60)


def test_a_start_that_is_given_up_ends_the_workers_that_serve_already(run: RunFixture, tmp_path: Path) -> None:
    files = {
        **FILES,
        "config/database.yaml": "slow: {sources: {default: {first: first, opens: opens, opens_in: 600}}}",
    }
    port = free_port()
    url = f"http://127.0.0.1:{port}/orchestrator/d"

    async def client_of_who_serves(stack: AsyncExitStack) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=0.5)
        while True:
            client = await stack.enter_async_context(aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)))
            with suppress(aiohttp.ClientError, TimeoutError):  # or it waits in the queue of the one that opens
                async with client.get(f"{url}/version", timeout=timeout) as answer:
                    assert await answer.json() == 1
                    return client
            await asyncio.sleep(0.02)

    async def main() -> None:
        async with starting(tmp_path, files, *TWO, "--port", str(port)) as process, AsyncExitStack() as stack:
            client = await client_of_who_serves(stack)
            while not (tmp_path / "opens").exists():  # noqa: ASYNC110  # nobody tells
                await asyncio.sleep(0.02)
            answer = asyncio.create_task(held(client, url, "done"))
            await asyncio.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            (tmp_path / "done").touch()
            assert await process.wait() == 0
            assert running_in(tmp_path) == []
            assert (await answer)[0] == 200
            _, told = await process.communicate()
            assert b"Traceback" not in told

    run(main(), timeout_seconds=60)


def is_taken(host: str | None, port: int | None) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((host, port))
        except OSError:
            return True
        return False


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while alive(pid):  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.05)


def start(folder: Path, *arguments: str) -> Any:
    async def ended() -> tuple[int | None, str]:
        with_it = serving(folder, {}, *TWO, *arguments)
        try:
            async with with_it:
                raise AssertionError("it serves")
        except AssertionError as error:
            return None, str(error)

    return ended()


def test_a_configuration_with_problems_is_told_once_and_not_served(run: RunFixture, tmp_path: Path) -> None:
    write_files(tmp_path, {"config/domains/d.yaml": "endpoints: {e: {response_mapping: $x}}"})
    _, told = run(start(tmp_path), timeout_seconds=180)
    assert told.count("ORC502") == 1
    assert "1 problem in 1 file" in told


def test_problems_of_a_hundred_endpoints_and_secrets_of_a_megabyte_come_through(
    run: RunFixture, tmp_path: Path
) -> None:
    """What supervisor and workers say to each other may be long."""
    broken = "".join(f"  e{number}: {{response_mapping: $x}}\n" for number in range(200))
    write_files(tmp_path, {"config/domains/d.yaml": f"endpoints:\n{broken}"})
    _, told = run(start(tmp_path), timeout_seconds=180)
    assert told.count("ORC502") == 200

    async def main() -> None:
        async with serving(tmp_path, {**SHARED, "key": "s" * 100_000}, *TWO) as service:
            assert len(await pids_of(service)) == 2
            write_files(tmp_path, {"key": "s" * 2_000_000})
            status, told = await service.get(f"{service.admin_url}/reload", method="POST")
            assert (status, told["swapped"]) == (200, True)

    run(main(), timeout_seconds=60)


def test_a_worker_that_fails_before_it_knows_the_secrets_shows_none() -> None:
    ours, theirs = socket.socketpair()
    order = {"slot": 0, "image": {"files": "/nowhere", "secrets": {"/run/key": "a-canary"}}}  # and no sockets
    with ours, theirs:
        command = [sys.executable, "-m", "orchestrator_core.workers", "--channel", str(theirs.fileno())]
        ours.sendall(f'{{"plugins_dir": null}}\n{json.dumps(order)}\n'.encode())
        done = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "KeyError: 'sockets'" in done.stderr
    assert "a-canary" not in done.stderr


def test_a_port_that_is_taken_is_told_also_when_it_could_be_shared(run: RunFixture, tmp_path: Path) -> None:
    write_files(tmp_path, {"config/domains/d.yaml": "endpoints: {e: {response_mapping: 1}}"})
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, told = run(start(tmp_path, "--port", str(port)), timeout_seconds=180)
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in told


def test_a_folder_that_cannot_be_written_is_told(
    run: RunFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose file system is read-only."""
    write_files(tmp_path, {"config/domains/d.yaml": "endpoints: {e: {response_mapping: 1}}", "file": ""})
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "file" / "run"))
    _, told = run(start(tmp_path), timeout_seconds=180)
    assert told == (
        f"Error: a worker did not start: {tmp_path / 'file' / 'run'}: Not a directory\n"
        "  = workers share a folder: set ORCHESTRATOR_RUNTIME_DIR to one that can be written\n"
    )


def test_a_start_for_which_the_system_is_short_of_something_says_of_what(run: RunFixture, tmp_path: Path) -> None:
    async def main() -> None:
        shell = "export ORCHESTRATOR_RUNTIME_DIR=$PWD/run && ulimit -n 40"  # it may leave its folder there
        async with starting(tmp_path, FILES, "--workers", "16", shell=shell) as process:
            assert process.stderr is not None
            told = (await process.stderr.read()).decode()
            assert await process.wait() == 1
        assert told.endswith(
            "Error: cannot start: too many open files\n  = allow it more open files (ulimit -n, LimitNOFILE) or "
            "processes (TasksMax, pids limit), or serve with fewer workers\n"
        )

    run(main(), timeout_seconds=120)
