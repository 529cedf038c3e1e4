"""A model in a container as the service lives with it: killed, crashing, without its engine, asked by many at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from docker_kit import DOMAIN, OPTIONS, Answer, Engine, Process, configuration, private_engine, wait_until

from orchestrator_core.testing import RunningService, service

Start = Callable[..., Process]
OBEYS = ["sh", "-c", "trap 'exit 0' TERM; httpd -p 8080 -h /www; while sleep 0.1; do :; done"]
LATE = ["sh", "-c", "sleep 1; exec httpd -f -p 8080 -h /www"]


class Traffic:
    """What clients saw who asked without a pause: a model, and an endpoint that needs none."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.answers: list[tuple[float, float, Answer]] = []
        self.hello: Counter[int] = Counter()
        self.slowest_hello = 0.0
        self.over = threading.Event()

    def ask(self) -> None:
        while not self.over.is_set():
            asked = time.monotonic()
            self.answers.append((asked, time.monotonic(), self.process.score()))
            time.sleep(0.002)

    def greet(self) -> None:
        while not self.over.is_set():
            asked = time.monotonic()
            self.hello[self.process.ask("/orchestrator/d/hello").status] += 1
            self.slowest_hello = max(self.slowest_hello, time.monotonic() - asked)
            time.sleep(0.005)

    def statuses(self, since: float) -> list[int]:
        return [answer.status for asked, _, answer in list(self.answers) if asked >= since]


@contextmanager
def traffic(process: Process) -> Iterator[Traffic]:
    seen = Traffic(process)
    with ThreadPoolExecutor(3) as clients:
        asking = [clients.submit(work) for work in (seen.ask, seen.ask, seen.greet)]
        try:
            yield seen
        finally:
            seen.over.set()
    for work in asking:
        work.result()


def test_a_killed_container_is_noticed_answered_with_503_and_started_again(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start, record_property: Callable[..., None]
) -> None:
    image = machine.image("late", command=LATE)
    began = time.monotonic()
    process = start(configuration(tmp_path / "config", image)).ready()
    start_up = 1.0 + min(1.0, time.monotonic() - began - 1)  # the model's own second, and what a container takes
    before = engine.only()
    with traffic(process) as seen:
        time.sleep(0.3)
        killed = time.monotonic()
        before.kill()
        wait_until(lambda: 503 in seen.statuses(killed), 5, "a 503")
        noticed = next(answered for asked, answered, answer in seen.answers if answer.status == 503) - killed
        wait_until(lambda: seen.statuses(killed)[-1] == 200, 20, "a score after the kill")
        recovered = next(
            answered for asked, answered, answer in seen.answers if answer.status == 200 and asked > killed + noticed
        ) - killed  # fmt: skip
    assert noticed < 2, noticed
    assert recovered < start_up + 5, recovered
    refused = [answer for asked, _, answer in seen.answers if answer.status != 200]
    assert {answer.status for answer in refused} == {503}
    assert all(int(answer.headers["Retry-After"]) >= 0 for answer in refused)
    assert set(seen.hello) == {200}
    model = process.model()
    assert (model["state"], model["restarts"]) == ("ready", 1)
    assert "was ended by signal 9 (SIGKILL)" in model["last_error"]
    assert engine.only().id != before.id
    process.stop()
    record_property("noticed_seconds", round(noticed, 3))
    record_property("recovered_seconds", round(recovered, 3))
    print(f"noticed after {noticed:.3f} s, answered again after {recovered:.3f} s")


def test_a_container_that_exits_at_once_is_started_five_times_and_then_failed(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    (tmp_path / "counted").mkdir()
    command = ["sh", "-c", "echo start >>/counted/starts; echo 'cannot read the weights'; exit 3"]
    image = machine.image("exits-at-once", command=command)
    options: dict[str, Any] = {"volumes": {"../counted": "/counted"}, "restart": {"backoff": "100ms"}}
    process = start(configuration(tmp_path / "config", image, **options))
    wait_until(lambda: _state(process) == "failed", 30, "the state failed")
    time.sleep(1)
    assert (tmp_path / "counted" / "starts").read_text().splitlines() == ["start"] * 5
    model = process.model()
    assert (model["state"], model["starts"]) == ("failed", 5)
    assert model["last_error"].endswith("exited with status 3; its last lines:\ncannot read the weights")
    answer = process.score()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "60")
    assert answer.json["detail"].endswith("exited with status 3")
    assert process.ask("/orchestrator/d/hello").json == "hello"
    assert engine.containers() == []
    process.stop()


@pytest.mark.parametrize("by_hand", [["kill"], ["rm", "-f"]], ids=["kill", "remove"])
def test_a_container_that_somebody_ends_again_and_again_comes_back_soon_each_time(
    by_hand: list[str], engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    process = start(configuration(tmp_path / "config", score_image)).ready()
    for ends in range(1, 7):
        began = time.monotonic()
        subprocess.run(["docker", *by_hand, engine.only().id], check=True, stdout=subprocess.DEVNULL)
        wait_until(lambda ends=ends: (_state(process), process.model()["restarts"]) == ("ready", ends), 15, "ready")
        assert time.monotonic() - began < 5 + 2  # the longest pause, and the start on a busy machine
    process.stop()
    assert engine.containers() == []


def test_a_container_that_somebody_restarts_is_not_waited_for_until_it_has_stopped(
    engine: Engine, score_image: str, tmp_path: Path, start: Start
) -> None:
    process = start(configuration(tmp_path / "config", score_image, stop_timeout=30)).ready()
    subprocess.run(["docker", "restart", "-t", "0", engine.only().id], check=True, stdout=subprocess.DEVNULL)
    wait_until(lambda: process.model()["starts"] == 2 and _state(process) == "ready", 15, "the next start")
    assert process.score().status == 200
    process.kill()
    engine.only().remove(force=True)  # which does not wait, either


def test_a_container_that_ends_comes_back_from_its_own_image_though_the_tag_has_moved(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    def tagged(who: str, **options: Any) -> str:
        return machine.image("moves", changes=[f"ENV WHO={who}"], **options)

    process = start(configuration(tmp_path / "config", tagged("first"), restart={"max_starts": 2})).ready()
    tagged("broken", command=["sh", "-c", "exit 3"])
    assert process.admin("/reload", {}).status != 200
    tagged("unasked")
    for ends in (1, 2):
        subprocess.run(["docker", "kill", engine.only().id], check=True, stdout=subprocess.DEVNULL)
        wait_until(lambda ends=ends: (_state(process), process.model()["restarts"]) == ("ready", ends), 15, "ready")
        assert process.score().json["who"] == "first"
    tagged("second")
    assert process.admin("/reload", {}).status == 200
    assert process.score().json["who"] == "second"
    tagged("third")
    assert process.admin("/models/score/restart", {}).status in (200, 202)
    wait_until(lambda: process.score().json.get("who") == "third", 15, "the third")
    process.stop()
    assert engine.containers() == []


def test_a_worker_that_is_killed_and_started_again_shares_the_container_though_the_tag_has_moved(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    def tagged(who: str, **options: Any) -> str:
        return machine.image("shared", changes=[f"ENV WHO={who}"], **options)

    def workers() -> list[dict[str, Any]]:
        answer = process.admin("/config")
        return list(answer.json["workers"]) if answer.status == 200 else []

    def serve_again(gone: set[int]) -> bool:
        return [each["state"] for each in workers() if each["pid"] not in gone] == ["serving"] * 2

    folder = configuration(tmp_path / "config", tagged("first"))
    (folder / "config.yaml").write_text("reload: {watch: false}\nserver: {workers: 2}\n")
    process = start(folder).ready()
    container = engine.only()
    tagged("broken", command=["sh", "-c", "exit 3"])
    assert process.admin("/reload", {}).status != 200
    for killed in (1, 2):
        gone = {each["pid"] for each in workers()[:killed]}
        for pid in gone:
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda gone=gone: serve_again(gone), 30, "both workers")
        assert {process.score().json.get("who") for _ in range(20)} == {"first"}
        assert engine.only().id == container.id
    tagged("second")
    assert process.admin("/restart", {}).status == 200
    assert {process.score().json.get("who") for _ in range(20)} == {"second"}
    process.stop()
    assert engine.containers() == []


def test_a_container_whose_image_is_gone_when_it_ends_comes_back_from_what_there_is(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    folder = configuration(tmp_path / "config", machine.image("goes", changes=["ENV WHO=first"]))
    process = start(folder).ready()
    before = engine.only()
    image = before.attrs["Image"]
    machine.image("goes", changes=["ENV WHO=second"])
    before.remove(force=True)
    engine.api.remove_image(image, force=True)
    wait_until(lambda: process.score().json.get("who") == "second", 15, "the second")
    process.stop()
    assert "the image that the model had is gone" in process.said()


def test_a_container_that_hangs_is_replaced_for_all_who_share_it_and_not_for_ever(
    engine: Engine, score_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    monkeypatch.setattr("orchestrator_core.models.life.HANGS_SECONDS", 1.0)
    quick = {"health_check": {"interval": "50ms", "timeout": "200ms"}, "restart": {"max_starts": 2, "backoff": "100ms"}}
    model = {"type": "docker", "image": score_image, **OPTIONS, **quick}
    files = {
        "integrations/models.yaml": json.dumps({"ml": {"sources": {"score": {"source": model}}}}),
        "domains/d.yaml": DOMAIN,
    }

    async def shown(shop: RunningService) -> Any:
        return (await shop.admin("GET", "/models/score")).json

    async def until(state: str, starts: int, *shops: RunningService) -> None:
        async with asyncio.timeout(30):
            for shop in shops:
                while ((now := await shown(shop))["state"], now["starts"]) != (state, starts):  # noqa: ASYNC110 - it is asked
                    await asyncio.sleep(0.05)

    async def main() -> None:
        folder = tmp_path / "config"
        async with service(files, folder=folder) as one, service(files, folder=folder) as other:
            first = engine.only()
            os.kill(first.attrs["State"]["Pid"], signal.SIGSTOP)
            await until("ready", 2, one, other)
            second = engine.only()
            assert second.id != first.id
            assert (await one.post("/orchestrator/d/score", {"tenure": 1})).status == 200
            why = [(await shown(shop))["last_error"] for shop in (one, other)]
            assert any(said.startswith("it hangs: its health checks got no answer for ") for said in why), why
            os.kill(second.attrs["State"]["Pid"], signal.SIGSTOP)
            async with asyncio.timeout(30):
                while {(await shown(shop))["state"] for shop in (one, other)} != {"failed"}:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.05)
            assert engine.containers() == []

    run(main())


def test_a_container_that_exits_soon_after_it_was_ready_is_started_five_times_and_then_failed(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    image = machine.image("exits-soon", command=["sh", "-c", "httpd -p 8080 -h /www; sleep 1; exit 3"])
    process = start(configuration(tmp_path / "config", image, restart={"backoff": "100ms"}))
    wait_until(lambda: _state(process) == "failed", 60, "the state failed")
    model = process.model()
    assert (model["starts"], model["restarts"]) == (5, 4)
    assert "exited with status 3" in model["last_error"]
    process.stop()


def _state(process: Process) -> Any:
    try:
        return process.model()["state"]
    except OSError:
        assert process.process.poll() is None, process.said()
        return None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_that_stops_and_starts_again_takes_nothing_else_along(
    number: signal.Signals, machine: Engine, tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    with private_engine() as private:
        client = private.client()
        own = Engine(client)
        image = own.image("score", command=OBEYS)
        process = start(configuration(tmp_path / "config", image), DOCKER_HOST=private.host).ready()
        with traffic(process) as seen:
            private.stop(number)
            stopped = time.monotonic()
            if number is signal.SIGTERM:  # it takes its containers along
                wait_until(lambda: 503 in seen.statuses(stopped), 5, "a 503")
            time.sleep(2)
            assert _state(process) in ("restarting", "unhealthy", "ready")
            private.start()
            began = time.monotonic()
            wait_until(lambda: _state(process) == "ready" and seen.statuses(began)[-1:] == [200], 40, "the model")
            print(f"ready again {time.monotonic() - began:.1f} s after the engine")
            time.sleep(1)
        assert set(seen.statuses(0)) <= {200, 503}
        assert set(seen.hello) == {200}
        assert seen.slowest_hello < 1
        assert [container.status for container in own.containers()] == ["running"]
        assert process.score().status == 200
        process.stop()
        assert own.containers() == []
        client.close()


def test_an_engine_that_hangs_holds_up_neither_the_model_nor_the_service(
    machine: Engine, tmp_path: Path, start: Start
) -> None:
    with private_engine() as private:
        client = private.client()
        own = Engine(client)
        process = start(configuration(tmp_path / "config", own.image("score")), DOCKER_HOST=private.host).ready()
        private.send(signal.SIGSTOP)
        with traffic(process) as seen:
            time.sleep(2)
        private.send(signal.SIGCONT)
        assert set(seen.statuses(0)) == {200}
        assert set(seen.hello) == {200}
        assert seen.slowest_hello < 1
        process.stop()
        assert own.containers() == []
        client.close()


def test_a_hundred_first_requests_at_once_start_one_container(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    image = machine.image("late", command=LATE)
    process = start(configuration(tmp_path / "config", image, preload=False, timeout=30))
    wait_until(lambda: _state(process) == "stopped", what="the service")
    assert engine.containers() == []
    with ThreadPoolExecutor(100) as clients:
        answers = [answer.result() for answer in [clients.submit(process.score) for _ in range(100)]]
    assert Counter(answer.status for answer in answers) == {200: 100}
    assert (len(engine.containers()), process.model()["starts"]) == (1, 1)
    process.stop()


def test_the_admin_listener_shows_identity_and_output_and_executions_name_the_image(
    engine: Engine, machine: Engine, tmp_path: Path, start: Start
) -> None:
    image = machine.image("says", command=["sh", "-c", "echo weights loaded; exec httpd -f -p 8080 -h /www"])
    process = start(configuration(tmp_path / "config", image)).ready()
    name, version = image.rsplit(":", 1)
    identity = {"name": name, "version": version, "digest": engine.client.images.get(image).id}
    assert process.model()["identity"] == identity
    assert process.admin("/models/score/logs").json == "weights loaded"
    (execution,) = process.admin("/executions?status=ok&limit=1").json["executions"]
    assert execution["models"] == [identity]
    process.stop()
