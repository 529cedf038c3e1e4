"""Reloading: a configuration is swapped as a whole, what did not change is carried over, nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import linecache
import os
import shutil
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field, frozen
from structlog.testing import capture_logs

from orchestrator_core import watching
from orchestrator_core.config.load import load_configuration
from orchestrator_core.errors import ConfigError
from orchestrator_core.plugin_api import Inspection, SourceError, SourceKind, SourceUnavailable, hookimpl, option
from orchestrator_core.snapshot import sources as sources_of_snapshots
from orchestrator_core.tasks import beside
from orchestrator_core.testing import RunningService, leaves_nothing, service
from orchestrator_core.testing.service import write_files
from orchestrator_core.watching import watch
from tests.memory import resident_bytes

RunFixture = Callable[..., Any]


@frozen
class NotedOptions:
    """Options of the noted source."""

    n: int = option(0, help="A number that the source returns.")
    key: str = option("", help="Another that it returns.")
    breaks: bool = option(False, help="Whether it cannot be opened.")


@define(eq=False)
class Noted:
    """A source that returns its options after a few turns of the loop, and notices use after it was closed."""

    options: NotedOptions
    closed: bool = False

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
            if self.closed:
                raise RuntimeError("used after it was closed")
        await asyncio.sleep(params.get("seconds", 0))
        if self.closed:
            raise RuntimeError("used after it was closed")
        return {"n": self.options.n, "key": self.options.key}


@define
class Plugin:
    """Keeps every source that was opened."""

    opened: list[Noted] = field(factory=list)

    @property
    def open_now(self) -> int:
        return sum(not source.closed for source in self.opened)

    @asynccontextmanager
    async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
        if options.breaks:
            raise SourceError("it does not want to")
        source = Noted(options)
        self.opened.append(source)
        try:
            yield source
        finally:
            await asyncio.sleep(0)
            source.closed = True

    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        return [SourceKind("noted", "Notes.", NotedOptions, self.open)]


def sources(**options: str) -> str:
    return "noted:\n  sources:\n" + "".join(f"    {name}: {value}\n" for name, value in options.items())


def domain(n: int, seconds: float = 0) -> str:
    return f"""
        endpoints:
          e:
            data_sources:
              - {{name: one, type: noted, source_id: changing, operation: x, params: {{seconds: {seconds}}}}}
              - {{name: two, type: noted, source_id: changing, operation: x}}
              - {{name: kept, type: noted, source_id: stable, operation: x, depends_on: [one]}}
            response_mapping: {{config: {n}, one: "$one.n", two: "$two.n", kept: "$kept.n"}}
    """


FILES = {
    "config.yaml": "reload: {drain_timeout: 20}\n",
    "integrations/noted.yaml": sources(changing="{n: 1}", stable="{n: 0}"),
    "domains/d.yaml": domain(1),
}
ANSWER = {"config": 1, "one": 1, "two": 1, "kept": 0}


@asynccontextmanager
async def serving(plugin: Plugin, files: Mapping[str, str] = FILES, **more: Any) -> AsyncIterator[RunningService]:
    async with service(files, plugins={"noted": plugin}, **more) as shop:
        yield shop
    assert plugin.open_now == 0


async def until(condition: Callable[[], Any], seconds: float = 5) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0.005)


def test_sources_that_did_not_change_are_carried_over_and_those_that_did_are_replaced(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            changing, stable = plugin.opened
            before = shop.running.live.snapshot
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}", changing="{n: 2}"))
            shop.write("domains/d.yaml", domain(2))
            assert (await shop.reload()).status == 200
            after = shop.running.live.snapshot
            assert after.sources["", "noted", "stable"] is before.sources["", "noted", "stable"]
            assert after.sources["", "noted", "stable"].source is stable
            assert len(plugin.opened) == 3
            await until(lambda: changing.closed)
            assert not stable.closed
            assert (await shop.get("/orchestrator/d/e")).json == {"config": 2, "one": 2, "two": 2, "kept": 0}

    run(main())


def test_a_source_that_is_gone_from_the_configuration_is_closed(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            shop.remove("domains/d.yaml")
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}"))
            assert (await shop.reload()).status == 200
            await until(lambda: plugin.open_now == 1)
            assert (await shop.get("/orchestrator/d/e")).status == 404

    run(main())


def test_a_reload_without_changes_keeps_every_source_and_the_generation(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            first = (await shop.get("/orchestrator")).json["generation"]
            for _ in range(3):
                reloaded = await shop.reload()
                assert (reloaded.status, reloaded.json["generation"]) == (200, first)
            assert len(plugin.opened) == 2
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER

    run(main())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("domains/d.yaml", "endpoints: {", "not valid YAML: did not find expected node content"),
        ("domains/d.yaml", "endpoints: {e: {response_mapping: $x}}", "there is no step 'x'"),
        (
            "integrations/noted.yaml",
            sources(changing="{n: one}", stable="{n: 0}"),
            "expected an integer, got a string 'one'",
        ),
        (
            "integrations/noted.yaml",
            sources(changing="{n: 2, breaks: true}", stable="{n: 5}"),
            "noted.changing cannot be opened: it does not want to",
        ),
        ("config.yaml", "server: {prot: 1}", "unknown key 'prot'"),
    ],
)
def test_a_broken_configuration_leaves_the_old_one_serving_and_is_told(
    run: RunFixture, name: str, text: str, message: str
) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            before = shop.running.live.snapshot
            shop.write(name, text)
            refused = await shop.reload()
            assert (refused.status, refused.json["swapped"]) == (422, False)
            assert any(problem["message"].startswith(message) for problem in refused.json["problems"])
            assert shop.running.live.snapshot is before
            assert plugin.open_now == 2
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER
            assert (await shop.admin("GET", "/config")).json["last_reload"]["problems"] == refused.json["problems"]
            shop.write(name, FILES[name])
            assert (await shop.reload()).status == 200
            assert (await shop.admin("GET", "/config")).json["last_reload"]["problems"] == []

    run(main())


def test_a_request_in_flight_ends_on_the_configuration_it_began_with(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, {**FILES, "domains/d.yaml": domain(1, seconds=1.5)}) as shop:
            old = shop.running.live.snapshot
            in_flight = [asyncio.create_task(shop.get("/orchestrator/d/e")) for _ in range(5)]
            await until(lambda: old.running == 5)
            shop.write("integrations/noted.yaml", sources(stable="{n: 7}", changing="{n: 2}"))
            shop.write("domains/d.yaml", domain(2))
            assert (await shop.reload()).status == 200
            assert (await shop.get("/orchestrator/d/e")).json == {"config": 2, "one": 2, "two": 2, "kept": 7}
            assert plugin.open_now == 4
            for answer in await asyncio.gather(*in_flight):
                assert answer.json == ANSWER
            await until(lambda: plugin.open_now == 2)
            generations = {execution["generation"] for execution in await shop.executions()}
            assert len(generations) == 2

    run(main())


def test_a_request_that_outlives_the_drain_does_not_hold_the_old_sources_for_ever(run: RunFixture) -> None:
    plugin = Plugin()
    files = {**FILES, "config.yaml": "reload: {drain_timeout: 50ms}\n", "domains/d.yaml": domain(1, seconds=0.4)}

    async def main() -> None:
        async with serving(plugin, files) as shop:
            old = shop.running.live.snapshot
            late = asyncio.create_task(shop.get("/orchestrator/d/e"))
            await until(lambda: old.running == 1)
            shop.write("integrations/noted.yaml", sources(stable="{n: 7}", changing="{n: 2}"))
            assert (await shop.reload()).status == 200
            await until(lambda: plugin.open_now == 2)
            assert (await late).status == 500
            assert (await shop.get("/health/ready")).status == 200

    run(main())


def test_a_secret_that_changed_replaces_the_source_that_uses_it(
    run: RunFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin = Plugin()
    monkeypatch.setenv("NOTED_KEY", "first-key")
    files = {
        "integrations/noted.yaml": sources(changing='{key: "${env:NOTED_KEY}"}', stable="{n: 0}"),
        "domains/d.yaml": domain(1),
    }

    async def main() -> None:
        async with serving(plugin, files) as shop:
            changing, stable = plugin.opened
            assert changing.options.key == "first-key"
            monkeypatch.setenv("NOTED_KEY", "second-key")
            assert (await shop.reload()).status == 200
            await until(lambda: changing.closed)
            assert not stable.closed
            assert plugin.opened[2].options.key == "second-key"

    run(main())


def test_what_fails_in_the_new_configuration_alone_never_touches_the_old_one(run: RunFixture) -> None:
    """One source of the new configuration opens, another does not: nothing is left of it, and the old ones go on."""
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, {**FILES, "domains/d.yaml": domain(1, seconds=0.1)}) as shop:
            changing, stable = plugin.opened
            users = [source.users for source in shop.running.live.snapshot.sources.values()]
            in_flight = [asyncio.create_task(shop.get("/orchestrator/d/e")) for _ in range(5)]
            await until(lambda: shop.running.live.snapshot.running == 5)
            async with leaves_nothing("a reload that fails"):
                shop.write(
                    "integrations/noted.yaml",
                    sources(changing="{n: 2}", stable="{n: 0}", other="{n: 3}", broken="{breaks: true}"),
                )
                shop.write(
                    "domains/d.yaml",
                    """
                    endpoints:
                      e:
                        data_sources:
                          - {name: a, type: noted, source_id: changing, operation: x}
                          - {name: b, type: noted, source_id: stable, operation: x}
                          - {name: c, type: noted, source_id: other, operation: x}
                          - {name: d, type: noted, source_id: broken, operation: x}
                    """,
                )
                refused = await shop.running.live.reload()
                assert [problem.message for problem in refused.problems] == [
                    "noted.broken cannot be opened: it does not want to"
                ]
                assert [answer.json for answer in await asyncio.gather(*in_flight)] == [ANSWER] * 5
            assert [source.options.n for source in plugin.opened] == [1, 0, 2, 3]
            assert [source.closed for source in plugin.opened] == [False, False, True, True]
            assert [source.users for source in shop.running.live.snapshot.sources.values()] == users
            assert (changing.closed, stable.closed) == (False, False)
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER

    run(main())


@pytest.mark.parametrize("where", ["open", "inspect"])
def test_a_source_that_calls_sys_exit_is_refused_and_ends_nothing(run: RunFixture, where: str) -> None:
    """It would leave its task, and the event loop with it."""

    @define(eq=False)
    class Asked(Noted):
        async def inspect(self) -> Inspection:
            if self.options.breaks:
                sys.exit(7)
            return Inspection()

    class Exiting(Plugin):
        @asynccontextmanager
        async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
            if options.breaks and where == "open":
                sys.exit(7)
            yield Asked(options)

    async def main() -> None:
        async with serving(Exiting()) as shop:
            shop.write("integrations/noted.yaml", sources(changing="{breaks: true}", stable="{n: 0}"))
            answer = await shop.reload()
            assert [problem["message"] for problem in answer.json["problems"]] == [
                "noted.changing cannot be opened: it calls sys.exit(7), which would end the service"
            ]
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER

    run(main())


def test_a_source_that_hangs_while_it_is_opened_is_refused(run: RunFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It held the reload for good."""
    given_up: list[bool] = []

    class Hanging(Plugin):
        @asynccontextmanager
        async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
            if options.breaks:
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up.append(True)
            yield Noted(options)

    async def main() -> None:
        async with serving(Hanging()) as shop:
            monkeypatch.setattr("orchestrator_core.snapshot.sources.OPEN_SECONDS", 0.01)
            shop.write("integrations/noted.yaml", sources(changing="{breaks: true}", stable="{n: 0}"))
            answer = await shop.reload()
            assert [problem["message"] for problem in answer.json["problems"]] == [
                "noted.changing cannot be opened: it did not open within 0.01 s"
            ]
            assert given_up == [True]
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER

    run(main())


def test_a_source_that_is_missing_in_the_new_configuration_alone_is_refused(run: RunFixture) -> None:
    """If the one that serves is missing as well, nothing is lost by the change: its backend may come back."""
    gone: set[int] = set()
    busy: set[int] = set()

    @define(eq=False)
    class Backed(Noted):
        async def check_ready(self) -> None:
            if self.options.n in busy:
                raise SourceUnavailable("all connections are in use", busy=True)
            if self.options.n in gone:
                raise SourceUnavailable(f"nobody is at {self.options.n}")

        async def inspect(self) -> Inspection:
            await self.check_ready()
            return Inspection()

    class Asking(Plugin):
        @asynccontextmanager
        async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
            yield Backed(options)

    async def main() -> None:
        async with serving(Asking()) as shop:
            gone.add(2)
            for more in ({"changing": "{n: 2}"}, {"changing": "{n: 1}", "added": "{n: 2}"}):
                shop.write("integrations/noted.yaml", sources(stable="{n: 0}", **more))
                answer = await shop.reload()
                message = f"noted.{list(more)[-1]} cannot be reached: nobody is at 2"
                found = [(problem["severity"], problem["message"]) for problem in answer.json["problems"]]
                assert (answer.status, found) == (422, [("error", message)])
                assert (await shop.get("/orchestrator/d/e")).json == ANSWER
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}", changing="{n: 2}"))
            busy.add(1)
            assert (await shop.reload()).status == 422
            told = {source["source_id"]: source for source in (await shop.admin("GET", "/sources")).json["sources"]}
            assert (told["changing"]["state"], told["changing"]["error"]) == ("busy", "all connections are in use")
            assert told["stable"]["state"] == "ready"
            busy.clear()
            gone.add(1)
            answer = await shop.reload()
            assert (answer.status, [found["severity"] for found in answer.json["problems"]]) == (200, ["warning"])

    run(main())


def test_a_source_that_says_nothing_holds_up_no_reload_for_good(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_of_snapshots, "INSPECT_SECONDS", 0.05)

    @define(eq=False)
    class Hanging(Noted):
        async def inspect(self) -> Inspection:
            if self.options.n == 2:
                await asyncio.Event().wait()
            return Inspection()

    class Asking(Plugin):
        @asynccontextmanager
        async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
            yield Hanging(options)

    async def main() -> None:
        async with serving(Asking()) as shop:
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}", changing="{n: 2}"))
            answer = await asyncio.wait_for(shop.reload(), 5)
            (found,) = answer.json["problems"]
            assert (answer.status, found["code"]) == (422, "ORC604")
            assert found["message"] == "noted.changing cannot be reached: no answer within 0.05 s"
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER

    run(main())


def test_a_prepared_configuration_serves_only_when_it_is_committed(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            live = shop.running.live
            before = live.snapshot
            assert (await shop.get("/orchestrator/d/e")).json == ANSWER
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}", changing="{n: 2}"))
            shop.write("domains/d.yaml", domain(2))
            new = load_configuration(shop.folder)
            async with leaves_nothing("a configuration that was prepared and abandoned"):
                assert await live.prepare(new) == ()
                assert (live.snapshot is before, plugin.open_now) == (True, 3)
                assert (await shop.get("/orchestrator/d/e")).json == ANSWER
                await live.abandon()
                assert plugin.open_now == 2
            with pytest.raises(LookupError, match=f"generation {new.generation} is not prepared"):
                await live.commit(new.generation)
            await live.prepare(new)
            await live.prepare(new)  # the one before is given up
            assert plugin.open_now == 3
            with pytest.raises(LookupError):
                await live.commit(before.generation)
            assert (await live.commit(new.generation)).swapped
            assert (await shop.get("/orchestrator/d/e")).json == {"config": 2, "one": 2, "two": 2, "kept": 0}
            await until(lambda: plugin.open_now == 2)
            await live.prepare(load_configuration(shop.folder))  # one that is left is closed with the service

    run(main())


def test_reloads_at_the_same_time_run_one_after_the_other(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin) as shop:
            shop.write("integrations/noted.yaml", sources(stable="{n: 0}", changing="{n: 2}"))
            answers = await asyncio.gather(*(shop.reload() for _ in range(5)))
            assert [answer.status for answer in answers] == [200] * 5
            await until(lambda: plugin.open_now == 2)
            assert len(plugin.opened) == 3

    run(main())


def test_the_old_configuration_is_freed_and_its_executions_are_still_told(run: RunFixture) -> None:
    async def main() -> None:
        async with serving(Plugin()) as shop:
            assert (await shop.get("/orchestrator/d/e")).status == 200
            (execution,) = await shop.executions()
            old = [weakref.ref(shop.running.live.snapshot), weakref.ref(shop.running.live.snapshot.configuration)]
            for number in (2, 3):  # a collection comes with each reload, of what the one before left
                shop.write("domains/d.yaml", domain(number))
                assert (await shop.reload()).status == 200
                await until(lambda: not shop.running.live._retiring)
            assert [reference() for reference in old] == [None, None]
            assert await shop.executions() == [execution]

    run(main())


# --- watching -----------------------------------------------------------------------------------------------------


async def serves(shop: RunningService, n: int) -> None:
    """Wait until the configuration with this number serves."""
    async with asyncio.timeout(10):
        while (await shop.get("/orchestrator/d/e")).json["config"] != n:  # noqa: ASYNC110  # it is asked, not told
            await asyncio.sleep(0.02)


def test_a_changed_file_is_noticed_however_it_is_changed(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, watch=True) as shop:
            path = shop.folder / "domains/d.yaml"
            await asyncio.sleep(0.2)  # the watch starts in a thread of its own, and nobody tells when
            shop.write("domains/d.yaml", domain(2))
            await serves(shop, 2)
            temporary = path.with_name(".d.yaml.swp")
            temporary.write_text(domain(3).replace("\n        ", "\n"))
            os.replace(temporary, path)
            await serves(shop, 3)
            path.unlink()
            shop.write("domains/d.yaml", domain(4))
            await serves(shop, 4)
            broken = shop.running.live.last
            shop.write("domains/d.yaml", "endpoints: {")
            await until(lambda: shop.running.live.last is not broken)
            assert shop.running.live.last.failed
            await serves(shop, 4)
            shop.write("domains/d.yaml", domain(5))
            await serves(shop, 5)

    run(main())


def test_a_config_map_s_swap_of_symbolic_links_is_noticed(run: RunFixture, tmp_path: Path) -> None:
    """Kubernetes writes ``..2024_x/`` and turns the link ``..data`` to it; the files are links through ``..data``."""
    plugin = Plugin()
    folder = tmp_path / "config"

    def version(number: int) -> Path:
        data = folder / "domains" / f"..version_{number}"
        data.mkdir(parents=True)
        (data / "d.yaml").write_text(domain(number).replace("\n        ", "\n"))
        return data

    version(1)
    (folder / "domains/..data").symlink_to("..version_1")
    (folder / "domains/d.yaml").symlink_to("..data/d.yaml")

    async def main() -> None:
        files = {name: text for name, text in FILES.items() if name != "domains/d.yaml"}
        async with serving(plugin, files, folder=folder, watch=True) as shop:
            await serves(shop, 1)
            await asyncio.sleep(0.2)  # as above
            for number in (2, 3):
                version(number)
                turned = folder / "domains/..data_tmp"
                turned.symlink_to(f"..version_{number}")
                os.replace(turned, folder / "domains/..data")
                await serves(shop, number)

    run(main())


def test_a_secret_file_s_change_is_noticed_and_so_is_the_turning_of_a_link_on_the_way(
    run: RunFixture, tmp_path: Path
) -> None:
    """The files of the folder stay the same: only what a file elsewhere says has changed."""
    plugin = Plugin()
    write_files(tmp_path, {"versions/1/key": "first-key", "versions/2/key": "second-key", "mounted/x": ""})
    (tmp_path / "mounted/..data").symlink_to("../versions/1")
    (tmp_path / "mounted/key").symlink_to("..data/key")
    files = {**FILES, "integrations/noted.yaml": sources(changing='{key: "${file:../mounted/key}"}', stable="{n: 0}")}

    async def main() -> None:
        async with serving(plugin, files, folder=tmp_path / "config", watch=True) as shop:
            generation = shop.running.live.snapshot.generation
            (tmp_path / "mounted/..tmp").symlink_to("../versions/2")
            os.replace(tmp_path / "mounted/..tmp", tmp_path / "mounted/..data")
            await until(lambda: len(plugin.opened) == 3, 20)
            (tmp_path / "versions/2/key").unlink()
            await until(lambda: shop.running.live.last.failed, 20)
            assert [problem.code for problem in shop.running.live.last.problems] == ["ORC303"]
            (tmp_path / "versions/2/key").write_text("third-key")
            await until(lambda: len(plugin.opened) == 4, 20)
            assert [source.options.key for source in plugin.opened] == ["first-key", "", "second-key", "third-key"]
            assert shop.running.live.snapshot.generation == generation

    run(main())


def test_a_folder_that_is_replaced_is_noticed_and_so_is_what_is_behind_links(run: RunFixture, tmp_path: Path) -> None:
    """Of none of it the system tells whoever watches the folder: a link is turned, a folder renamed, or made again."""
    plugin = Plugin()

    def release(number: int) -> Path:
        write_files(tmp_path / f"{number}", {**FILES, "domains/d.yaml": domain(number)})
        return tmp_path / f"{number}"

    folder = tmp_path / "config"
    folder.symlink_to(release(1))

    async def main() -> None:
        async with serving(plugin, {}, folder=folder, watch=True) as shop:
            (tmp_path / "turned").symlink_to(release(2))
            os.replace(tmp_path / "turned", folder)
            await serves(shop, 2)
            shop.write("domains/d.yaml", domain(3))
            await serves(shop, 3)
            folder.unlink()
            release(4).rename(folder)
            await serves(shop, 4)
            shutil.rmtree(folder)
            await until(lambda: shop.running.live.last.failed)
            assert [problem.code for problem in shop.running.live.last.problems] == ["ORC100"]
            folder.mkdir()
            (folder / "domains").mkdir()
            assert (await shop.running.live.reload()).swapped is False  # nothing is in it yet
            await serves(shop, 4)
            shutil.rmtree(folder)
            release(5).rename(folder)
            await serves(shop, 5)
            write_files(tmp_path / "elsewhere", {"d.yaml": domain(6)})
            (folder / "domains/d.yaml").unlink()
            (folder / "domains/d.yaml").symlink_to(tmp_path / "elsewhere/d.yaml")
            await serves(shop, 6)
            write_files(tmp_path / "elsewhere", {"d.yaml": domain(7)})
            await serves(shop, 7)

    run(main())


def test_a_change_that_is_told_of_twice_is_read_once(
    run: RunFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells of it after a look has found it, as on a machine that is busy."""
    late = asyncio.Event()
    read: list[str] = []
    looks: list[None] = []
    states = watching.states_of
    write_files(tmp_path, {"config.yaml": "{}"})

    async def hear(_: Path, changed: Callable[[], None], __: asyncio.Event) -> None:
        await late.wait()
        changed()

    async def reload() -> None:
        read.append((tmp_path / "config.yaml").read_text())

    async def main() -> None:
        async with beside(watch(tmp_path, dict, reload), "watch"):
            await until(lambda: read == ["{}"])
            write_files(tmp_path, {"config.yaml": "# one"})
            await until(lambda: read[1:] == ["# one"])
            late.set()
            looked = len(looks)
            await until(lambda: len(looks) >= looked + 2)  # for it, and once a second
            write_files(tmp_path, {"config.yaml": "# two, which comes later"})
            await until(lambda: read[-1].startswith("# two"))
            assert len(read) == 3

    def look(*given: Any) -> Any:
        looks.append(None)
        return states(*given)

    monkeypatch.setattr(watching, "states_of", look)
    monkeypatch.setattr(watching, "_hear", hear)
    run(main())


def test_what_is_saved_while_the_service_starts_is_noticed(run: RunFixture, tmp_path: Path) -> None:
    class Slow(Plugin):
        @asynccontextmanager
        async def open(self, options: NotedOptions, context: Any) -> AsyncIterator[Noted]:
            write_files(tmp_path, {"domains/d.yaml": domain(2)})
            async with super().open(options, context) as source:
                yield source

    async def main() -> None:
        async with serving(Slow(), folder=tmp_path, watch=True) as shop:
            await serves(shop, 2)

    run(main())


def test_a_secret_file_that_changed_between_its_reading_and_the_next_look_is_noticed(
    run: RunFixture, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    write_files(tmp_path, {"config/config.yaml": "{}", "changed": "second\n", "same": "said\n", "come": "here\n"})
    read: dict[Path, str | None] = {}
    reloads: asyncio.Queue[None] = asyncio.Queue()

    async def reload() -> None:
        reloads.put_nowait(None)

    async def main() -> None:
        looking = asyncio.create_task(watch(config, lambda: read, reload))
        await reloads.get()  # the one at the start
        read[tmp_path / "changed"] = "first"
        await reloads.get()
        read[tmp_path / "same"] = "said"
        read[tmp_path / "come"] = None
        await reloads.get()
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        assert reloads.empty()

    run(main())


def test_a_change_that_cannot_be_read_for_want_of_descriptors_is_read_later(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wrong with it, and nobody would tell of it once more."""
    read_bytes, short = Path.read_bytes, False

    def read(path: Path) -> bytes:
        if short and path.suffix == ".yaml":
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", read)

    async def main() -> None:
        nonlocal short
        async with serving(Plugin(), watch=True) as shop:
            await asyncio.sleep(0.2)  # as above
            short = True
            with capture_logs() as logs:
                shop.write("domains/d.yaml", domain(2))
                await until(lambda: [entry for entry in logs if entry["event"] == "reload is tried again"])
            answer = await shop.reload()
            said = "the configuration cannot be read at the moment: [Errno 24] Too many open files: "
            assert (answer.status, answer.json["detail"].startswith(said)) == (503, True)
            assert shop.running.live.last.swapped
            short = False
            await serves(shop, 2)

    run(main())


def test_files_that_are_not_configuration_cause_no_reload(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, watch=True) as shop:
            await asyncio.sleep(0.2)
            last = shop.running.live.last
            for name in ("domains/.d.yaml.swp", "domains/d.yaml~", "notes.txt", "domains/#d.yaml#"):
                shop.write(name, "x")
            shop.write("domains/d.yaml", FILES["domains/d.yaml"])  # the same content
            await asyncio.sleep(0.6)
            assert shop.running.live.last is last

    run(main())


def test_a_file_of_any_name_is_not_the_end_of_noticing_changes(
    run: RunFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """The system's words of a file whose name is not UTF-8 cannot be read, be it configuration or not."""
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, watch=True) as shop:
            await asyncio.sleep(0.2)
            (shop.folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
            await asyncio.sleep(0.5)
            shop.write("domains/d.yaml", domain(2))
            await serves(shop, 2)

    run(main())
    assert "changes are noticed once a second only" in "".join(capsys.readouterr())  # wherever the log goes


def test_a_file_that_is_not_read_is_told_though_the_configuration_is_the_same(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with serving(plugin, watch=True) as shop:
            await asyncio.sleep(0.2)
            shop.write("domains/new.yml", domain(2))
            await until(lambda: shop.running.live.last.failed)
            assert [problem.code for problem in shop.running.live.last.problems] == ["ORC112"]
            (shop.folder / "domains/new.yml").unlink()
            await until(lambda: shop.running.live.last.swapped)

    run(main())


# --- many ---------------------------------------------------------------------------------------------------------


def test_200_reloads_under_load_half_of_them_broken_fail_no_request_and_leave_nothing(run: RunFixture) -> None:
    plugin = Plugin()
    answered = 0
    generations: set[int] = set()

    def sources_kept() -> set[str]:
        return {name for name in linecache.cache if name.startswith("<plan d.e ")}

    others = sources_kept()

    async def ask(shop: RunningService, stop: asyncio.Event) -> None:
        nonlocal answered
        while not stop.is_set():
            answer = await shop.get("/orchestrator/d/e")
            assert answer.status == 200, answer.json
            seen = answer.json
            assert seen["config"] == seen["one"] == seen["two"], seen
            assert seen["kept"] == 0
            generations.add(seen["config"])
            answered += 1

    async def reload(shop: RunningService, number: int) -> None:
        if number % 2:
            broken = [
                ("domains/d.yaml", domain(number).replace("$one.n", "$on.n")),
                ("domains/d.yaml", "endpoints: ["),
                ("integrations/noted.yaml", sources(changing=f"{{n: {number}, breaks: true}}", stable="{n: 0}")),
                ("config.yaml", "reload: {drain_timeout: soon}"),
            ]
            name, text = broken[number // 2 % len(broken)]
            shop.write(name, text)
            assert (await shop.reload()).status == 422
        else:
            shop.write("config.yaml", FILES["config.yaml"])
            shop.write("integrations/noted.yaml", sources(changing=f"{{n: {number}}}", stable="{n: 0}"))
            shop.write("domains/d.yaml", domain(number))
            assert (await shop.reload()).status == 200

    async def main() -> None:
        async with serving(Plugin()):
            pass  # what is made once in a process and kept is made here
        async with leaves_nothing("the service"), serving(plugin, {**FILES, "domains/d.yaml": domain(1)}) as shop:
            stop = asyncio.Event()
            asking = [asyncio.create_task(ask(shop, stop)) for _ in range(4)]
            for number in range(2, 202):
                await reload(shop, number)
                if number == 60:
                    memory = resident_bytes()
            stop.set()
            await asyncio.gather(*asking)
            await until(lambda: plugin.open_now == 2)
            assert resident_bytes() - memory < 10 * 2**20
            assert len(plugin.opened) == 2 + 100
            assert plugin.opened[1].options.n == 0
            assert not plugin.opened[1].closed
            assert len(generations) > 20
            await until(lambda: len(sources_kept() - others) <= 2)

    run(main(), timeout_seconds=120)
    assert answered > 500
    assert not sources_kept() - others


def test_secrets_are_known_before_anything_of_a_configuration_is_opened(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        plugin = Plugin()
        told: list[tuple[int, str]] = []
        monkeypatch.setenv("CANARY", "canary-1")
        secret = {"integrations/noted.yaml": sources(changing='{key: "${env:CANARY}"}', stable="{n: 0}")}
        async with serving(plugin, {**FILES, **secret}) as shop:
            live = shop.running.live
            live.opening.append(lambda new: told.append((len(plugin.opened), new.redactor("canary-2"))))
            monkeypatch.setenv("CANARY", "canary-2")
            assert (await live.reload()).swapped
            assert told == [(2, "***")]
            assert len(plugin.opened) == 3

    run(main())


@frozen
class TellingOptions:
    """Options of a source that tells its key."""

    key: str = option(help="A secret.")
    opens: bool = option(True, help="Whether it can be opened.")


class Telling:
    """A source that cannot be reached, and says so with its key."""

    def __init__(self, options: TellingOptions) -> None:
        self.options = options

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        return None

    async def inspect(self) -> Inspection:
        raise SourceUnavailable(f"nobody there with {self.options.key}")


class TellingPlugin:
    """The plugin of such sources."""

    @asynccontextmanager
    async def open(self, options: TellingOptions, context: Any) -> AsyncIterator[Telling]:
        if not options.opens:
            raise SourceError(f"not with {options.key}")
        yield Telling(options)

    @hookimpl
    def orchestrator_source_kinds(self) -> Iterable[SourceKind[Any]]:
        return [SourceKind("telling", "Tells.", TellingOptions, self.open)]


def test_problems_are_without_secrets_whoever_opens_a_configuration(
    run: RunFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-4711")

    def files(more: str) -> dict[str, str]:
        step = "{name: s, type: telling, operation: x}"
        return {
            "database.yaml": f"telling: {{sources: {{default: {{key: '${{env:CANARY}}'{more}}}}}}}",
            "domains/d.yaml": f"endpoints: {{e: {{data_sources: [{step}]}}}}",
        }

    async def main() -> None:
        with pytest.raises(ConfigError, match=r"not with \*\*\*"):
            async with service(files(", opens: false"), plugins={"telling": TellingPlugin()}):
                pass
        async with service(files(""), plugins={"telling": TellingPlugin()}) as shop:
            live = shop.running.live
            prepared = await live.prepare(load_configuration(shop.folder))
            for problems in (live.snapshot.problems, prepared):
                assert [problem.message for problem in problems] == [
                    "telling.default cannot be reached: nobody there with ***"
                ]

    run(main())
