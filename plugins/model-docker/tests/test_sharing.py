"""Several processes that serve one configuration share one container, however they come and go."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker_kit import Answer, Engine, Process, configuration, opened, wait_until
from orchestrator_model_docker import sharing

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing import free_port

Start = Callable[..., Process]


@contextmanager
def asking(process: Process) -> Iterator[list[Answer]]:
    """Ask the model without a pause while the block runs; give the answers."""
    answers: list[Answer] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            answers.append(process.score())

    with ThreadPoolExecutor(1) as clients:
        asked = clients.submit(ask)
        try:
            yield answers
        finally:
            over.set()
        asked.result()


def test_four_processes_share_one_container_and_the_last_to_leave_takes_it_away(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    folder = configuration(tmp_path / "config", score_image)
    processes = [start(folder) for _ in range(4)]
    for process in processes:
        process.ready()
    container = engine.only()
    for process in processes[:3]:
        process.stop()
        assert engine.only().id == container.id
        assert processes[3].score().status == 200
    processes[3].stop()
    assert engine.containers() == []


def test_killing_one_or_all_and_starting_again_leaves_exactly_one_and_no_stranger(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    folder = configuration(tmp_path / "config", score_image)
    first = [start(folder).ready() for _ in range(2)]
    container = engine.only()
    first[0].kill()
    assert first[1].score().status == 200
    assert engine.only().id == container.id
    first[1].kill()
    assert engine.only().id == container.id  # nobody was there to take it away
    second = [start(folder) for _ in range(2)]
    for process in second:
        process.ready()
    assert engine.only().id == container.id  # adopted
    for process in second:
        process.stop()
    assert engine.containers() == []


def test_after_all_were_killed_a_changed_configuration_replaces_the_container(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    folder = configuration(tmp_path / "config", score_image, environment={"WHO": "old"})
    process = start(folder).ready()
    assert process.score().json["who"] == "old"
    process.kill()
    configuration(folder, score_image, environment={"WHO": "new"})
    process = start(folder).ready()
    assert process.score().json["who"] == "new"
    assert len(engine.containers()) == 1
    process.stop()
    assert engine.containers() == []


@pytest.mark.parametrize("fixed_port", [False, True])
def test_a_reload_replaces_the_container_when_its_options_changed_and_only_then(
    fixed_port: bool, engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    options: dict[str, Any] = {"host_port": free_port()} if fixed_port else {}
    folder = configuration(tmp_path / "config", score_image, environment={"WHO": "old"}, **options)
    process, other = start(folder).ready(), start(folder).ready()
    container = engine.only()
    # Another file, and an option that is not the container's.
    (folder / "domains" / "more.yaml").write_text("endpoints: {more: {response_mapping: 1}}\n")
    assert process.admin("/reload", {}).status == 200
    configuration(folder, score_image, environment={"WHO": "old"}, timeout="1s", **options)
    assert process.admin("/reload", {}).status == 200
    process.ready()
    assert engine.only().id == container.id

    configuration(folder, score_image, environment={"WHO": "new"}, **options)
    assert process.admin("/reload", {}).status == 200
    assert process.score().json["who"] == "new"
    assert len(engine.containers(status="running")) == 2
    assert other.score().json["who"] == "old"
    assert other.admin("/reload", {}).status == 200
    assert other.score().json["who"] == "new"
    wait_until(lambda: len(engine.containers()) == 1, what="the end of the old container")
    assert engine.only().id != container.id
    process.stop()
    other.stop()
    assert engine.containers() == []


def test_a_model_that_fails_in_the_new_configuration_alone_leaves_the_old_one_its_port(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    port = free_port()
    folder = configuration(tmp_path / "config", score_image, environment={"WHO": "old"}, host_port=port)
    process = start(folder).ready()
    container = engine.only()
    broken = engine.image("breaks", command=["sh", "-c", "echo no weights; exit 1"])
    restart = {"backoff": "50ms", "max_backoff": "500ms"}
    configuration(folder, broken, environment={"WHO": "new"}, host_port=port, restart=restart)
    refused = process.admin("/reload", {})
    assert refused.status == 422
    assert "no weights" in str(refused.json)
    assert process.score().json["who"] == "old"
    assert engine.only().id == container.id
    process.stop()
    assert engine.containers() == []


def test_a_reload_that_another_model_has_refused_leaves_the_old_container_its_port(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    port = free_port()
    broken = engine.image("breaks-beside", command=["sh", "-c", "sleep 1; echo no weights; exit 1"])
    folder = configuration(tmp_path / "config", score_image, environment={"WHO": "old"}, host_port=port)
    process = start(folder).ready()
    container = engine.only()
    configuration(folder, score_image, environment={"WHO": "new"}, host_port=port)
    beside = {"ml": {"sources": {"beside": {"source": {"type": "docker", "image": broken, "stop_timeout": 0}}}}}
    (folder / "integrations" / "beside.yaml").write_text(json.dumps(beside))
    with asking(process) as answers:
        refused = process.admin("/reload", {})
    assert refused.status == 422
    assert "no weights" in str(refused.json)
    assert {(answer.status, answer.json["who"]) for answer in answers} == {(200, "old")}
    assert engine.only().id == container.id
    process.stop()
    assert engine.containers() == []


def test_a_reload_with_a_fixed_port_loses_no_request_and_ends_on_that_port(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    port = free_port()
    folder = configuration(tmp_path / "config", score_image, environment={"WHO": "old"}, host_port=port)
    process = start(folder).ready()
    configuration(folder, score_image, environment={"WHO": "new"}, host_port=port, timeout="500ms")

    def moved() -> bool:
        return [each["HostPort"] for container in engine.containers() for each in ports(container)] == [str(port)]

    def ports(container: Any) -> list[Any]:
        return container.ports.get("8080/tcp") or []

    with asking(process) as answers:
        assert process.admin("/reload", {}).status == 200
        assert process.score().json["who"] == "new"
        wait_until(moved, what="one container, on the port")
    assert {answer.status for answer in answers} == {200}
    assert process.score().json["who"] == "new"
    assert process.model()["starts"] == 1
    process.stop()
    assert engine.containers() == []


def test_what_nobody_holds_and_no_model_wants_is_removed(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "SWEEP_AFTER_SECONDS", 0.1)

    async def abandon(name: str) -> None:
        """Leave a container behind, as a process does that is killed."""
        left = sharing.Share.leave

        async def leave(self: sharing.Share) -> None:
            self._lease.release()

        monkeypatch.setattr(sharing.Share, "leave", leave)
        async with opened(score_image, tmp_path, name=name):
            pass
        monkeypatch.setattr(sharing.Share, "leave", left)

    async def main() -> None:
        await abandon("ml.removed.default")
        (stranger,) = engine.containers()
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        async with opened(score_image, elsewhere):
            await asyncio.sleep(0.5)
            assert stranger.id in {container.id for container in engine.containers()}  # another folder's
        async with opened(score_image, tmp_path, name="ml.other.default"):
            async with asyncio.timeout(10):
                while len(engine.containers()) > 1:  # noqa: ASYNC110 - the engine is asked
                    await asyncio.sleep(0.05)
            assert stranger.id != engine.only().id

    run(main())


def test_a_container_that_was_paused_or_stopped_by_hand_is_started_anew(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def leave(self: sharing.Share) -> None:
        self._lease.release()

    async def main() -> None:
        for by_hand in ("pause", "stop"):
            with monkeypatch.context() as patch:
                patch.setattr(sharing.Share, "leave", leave)
                async with opened(score_image, tmp_path):
                    before = engine.only()
            getattr(before, by_hand)(**({"timeout": 0} if by_hand == "stop" else {}))
            async with opened(score_image, tmp_path) as model:
                await model.predict([{"tenure": 1}])
                assert engine.only().id != before.id

    run(main())


def crash_loop(engine: Engine, tmp_path: Path) -> tuple[str, Path]:
    """Return an image whose container counts its starts in a file and exits, and the folder of the file."""
    counted = tmp_path / "counted"
    counted.mkdir()
    image = engine.image("crashes", command=["sh", "-c", "echo start >>/counted/starts; echo no weights; exit 1"])
    return image, counted


def test_starts_in_a_crash_loop_are_limited_over_all_processes_together(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    image, counted = crash_loop(machine, tmp_path)
    restart = {"backoff": "50ms", "max_backoff": "500ms"}
    folder = configuration(tmp_path / "config", image, volumes={str(counted): "/counted"}, restart=restart)
    processes = [start(folder) for _ in range(4)]

    def all_failed() -> bool:
        try:
            return all(process.model()["state"] == "failed" for process in processes)
        except OSError:
            return False

    wait_until(all_failed, 60, "the state failed in all four processes")
    starts = len((counted / "starts").read_text().splitlines())
    assert starts <= 5, starts
    for process in processes:
        assert "exited with status 1; its last lines:\nno weights" in process.model()["last_error"]
        answer = process.score()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
        assert process.ask("/orchestrator/d/hello").json == "hello"
    # Somebody asks for another try: it is made, and not refused because of what was.
    processes[0].admin("/models/score/restart", {})
    wait_until(lambda: len((counted / "starts").read_text().splitlines()) > starts, what="another start")
    for process in processes:
        process.stop()
    assert engine.containers() == []


def test_a_process_that_begins_later_tries_again(
    engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, counted = crash_loop(machine, tmp_path)
    options = {"volumes": {str(counted): "/counted"}}

    def starts() -> int:
        return len((counted / "starts").read_text().splitlines())

    async def attempt() -> Exception:
        try:
            async with opened(image, tmp_path, **options):
                pytest.fail("it was opened")
        except (SourceError, SourceUnavailable) as error:
            return error

    async def main() -> None:
        errors = [await attempt() for _ in range(5)]
        assert {type(error) for error in errors} == {SourceUnavailable}
        assert starts() == 5
        monkeypatch.setattr("orchestrator_model_docker.starts._PROCESS_BEGAN", 1.0)  # as another one, that saw nothing
        refused = await attempt()
        assert isinstance(refused, SourceUnavailable)
        assert refused.started is True
        assert str(refused).startswith("it was started 5 times in a row and did not stay up; the container ")
        assert str(refused).endswith("its last lines:\nno weights")
        assert starts() == 5
        import time

        monkeypatch.setattr("orchestrator_model_docker.starts._PROCESS_BEGAN", time.time())
        await attempt()
        assert starts() == 6

    run(main())


def test_the_notes_of_a_container_hold_no_secret(
    engine: Engine, score_image: str, tmp_path: Path, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path, environment={"TOKEN": "hunter2-hunter2"}):
            notes = [path.read_text() for path in (tmp_path / "run").glob("*.json")]
            assert notes
            assert "hunter2" not in json.dumps(notes)

    run(main())
