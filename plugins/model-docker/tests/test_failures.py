"""What cannot be started says why, in words; what may be started later is told from what never can."""

from __future__ import annotations

import asyncio
import gc
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from docker_kit import Engine, connect, failure, opened
from orchestrator_model_docker import containers
from orchestrator_model_docker.plugin import DOCKER

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_core.testing.opening import look_at_model


def started(error: Exception) -> Any:
    assert isinstance(error, SourceUnavailable)
    return error.started


def test_a_container_that_exits_says_its_status_and_its_last_lines(
    engine: Engine, machine: Engine, tmp_path: Path
) -> None:
    image = machine.image("exits", command=["sh", "-c", "echo loading >&2; echo 'cannot read the weights' >&2; exit 3"])
    error = failure(image, tmp_path)
    assert re.fullmatch(
        r"the container orchestrator-score-\w{12} exited with status 3; its last lines:\n"
        r"loading\ncannot read the weights",
        str(error),
    )
    assert started(error) is True


def test_a_container_that_needs_too_much_memory_says_so_and_names_the_limit(
    engine: Engine, machine: Engine, tmp_path: Path
) -> None:
    image = machine.image("greedy", command=["tail", "/dev/zero"])
    error = failure(image, tmp_path, limits={"memory": "32MiB"})
    assert "was killed because it used more memory than its limit of 32 MiB (limits.memory)" in str(error)
    assert started(error) is True


def test_an_image_for_another_processor_is_named_so(engine: Engine, machine: Engine, tmp_path: Path) -> None:
    image = machine.image("foreign", command=["/model"], files={"model": b"\x7fELF\x02\x01\x01" + b"\0" * 100})
    assert "its image was built for another processor than the engine's" in str(failure(image, tmp_path))


def test_a_command_that_the_image_does_not_have(engine: Engine, score_image: str, tmp_path: Path) -> None:
    error = failure(score_image, tmp_path, command=["mlserver", "start"])
    assert isinstance(error, SourceError)
    assert str(error).startswith(f"the image {score_image} has no such program: ")
    assert '"mlserver": executable file not found' in str(error)


def test_a_user_and_a_network_that_are_not_there(engine: Engine, score_image: str, tmp_path: Path) -> None:
    assert str(failure(score_image, tmp_path, user="nobody-here")).startswith(
        f"user: the image {score_image} does not know the user 'nobody-here': "
    )
    error = failure(score_image, tmp_path, network="no-such-network")
    assert isinstance(error, SourceError)
    assert str(error) == ("network: the engine has no network 'no-such-network': see docker network create")


def test_a_volume_that_is_not_there_is_not_made(engine: Engine, score_image: str, tmp_path: Path) -> None:
    error = failure(score_image, tmp_path, volumes={"./weights": "/weights"})
    assert isinstance(error, ValueError)
    assert str(error) == f"volumes: './weights': there is no file or folder {tmp_path}/weights"
    assert not (tmp_path / "weights").exists()


def test_a_port_that_is_taken(engine: Engine, score_image: str, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        error = failure(score_image, tmp_path, host_port=port)
    assert str(error) == (
        f"the port {port} of this host (host_port) is taken: free it, choose another, or leave host_port out"
    )
    assert started(error) is False


def test_a_container_whose_removal_takes_its_time_is_waited_for(
    engine: Engine, score_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = containers.create

    async def after_another(asked: containers.Engine, design: containers.Design) -> None:
        """Create it when its name is taken, as that of one is which the engine removes and does not show any more."""
        await create(asked, design)
        await create(asked, design)

    monkeypatch.setattr(containers, "create", after_another)
    error = failure(score_image, tmp_path)
    assert started(error) is False
    assert str(error).startswith("the engine still has a container orchestrator-score-")


def test_no_engine_says_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    error = failure("score:1", tmp_path)
    assert str(error) == f"no Docker engine answers at unix://{tmp_path}/docker.sock (from DOCKER_HOST): start it"
    assert started(error) is False


def test_a_socket_that_this_user_may_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may use any: so it is given the error that the kernel gives to others."""

    def refuse(self: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr("orchestrator_model_docker.engine.Engine._knock", refuse)
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    error = failure("score:1", tmp_path)
    assert isinstance(error, SourceError)
    assert str(error) == (
        "this user may not use the Docker engine at unix:///var/run/docker.sock: add the user to the group docker and "
        "log in anew, or set DOCKER_HOST to an engine of the user's own"
    )


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[str]:
    """The address of an engine that takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "silent.sock"))
        server.listen()
        yield f"unix://{tmp_path}/silent.sock"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_does_not_answer_in_time(
    silent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("DOCKER_HOST", silent)
    monkeypatch.setattr("orchestrator_model_docker.engine.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("orchestrator_model_docker.engine.LOOK_SECONDS", 0.2)
    error = failure("score:1", tmp_path)
    assert str(error) == f"the Docker engine at {silent} did not answer within 0.5 s"
    assert started(error) is False
    with pytest.raises(SourceUnavailable, match=r"did not answer within 0\.2 s"):  # nothing is made: that is quicker
        run(look_at_model(DOCKER, {"image": "score:1"}, folder=tmp_path))
    del error
    gc.collect()  # the SDK leaves its socket open


class Slow:
    """Forwards to the engine, and keeps back its answer to the one request that contains a word."""

    def __init__(self, folder: Path, word: bytes, seconds: float) -> None:
        self.path = folder / "slow.sock"
        self.word, self.seconds = word, seconds
        self.kept = 0
        self.closing = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        server = await asyncio.start_unix_server(self.forward, str(self.path))
        try:
            yield
        finally:
            self.closing.set()
            server.close()
            await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "forward"))

    async def forward(self, asked: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        asyncio.current_task().set_name("forward")  # type: ignore[union-attr]
        answered, asks = await asyncio.open_unix_connection("/var/run/docker.sock")
        late = asyncio.Event()
        await asyncio.gather(self.copy(asked, asks, late, True), self.copy(answered, answers, late, False))

    async def copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, late: asyncio.Event, asking: bool
    ) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if asking and self.word in data:
                    late.set()
                    self.kept += 1
                elif not asking and late.is_set():
                    late.clear()
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self.closing.wait(), self.seconds)
                target.write(data)
                await target.drain()
        target.close()


@pytest.mark.parametrize("word", [b"/containers/create", b"/start "])
def test_a_container_counts_that_the_engine_made_too_late(
    word: bytes,
    engine: Engine,
    score_image: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[..., Any],
) -> None:
    slow = Slow(tmp_path, word, 2.5)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{slow.path}")
    monkeypatch.setattr("orchestrator_model_docker.engine.ANSWER_SECONDS", 2)

    async def main() -> None:
        async with slow.running(), opened(score_image, tmp_path) as model:
            assert len(engine.containers()) == 1
            assert slow.kept == 1
            await model.predict([{"tenure": 1}])

    run(main())


def test_an_engine_that_cannot_tell_whether_the_image_has_moved_does_not_cost_the_model(
    engine: Engine, score_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    slow = Slow(tmp_path, b"never said", 60)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{slow.path}")

    async def main() -> None:
        async with slow.running(), opened(score_image, tmp_path) as model:
            monkeypatch.setattr(model._engine._client, "timeout", 0.2)
            slow.word = b"/images/"
            assert await model.changed() is False
            assert slow.kept == 1
            monkeypatch.setattr(model._engine._client, "timeout", 60)  # taking the container away takes longer
            slow.closing.set()
            await model.predict([{"tenure": 1}])

    run(main())


def test_opening_that_is_given_up_leaves_nothing(
    engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any]
) -> None:
    image = machine.image("never", command=["sleep", "1000"])

    async def main() -> None:
        async def enter() -> None:
            async with opened(image, tmp_path):
                pass

        for seconds in (0.01, 0.1, 0.2, 0.4, 0.8):
            opening = asyncio.create_task(enter())
            await asyncio.sleep(seconds)
            opening.cancel()
            await asyncio.wait([opening])
            assert engine.containers() == []

    run(main())


def test_connect_skips_and_does_not_fail_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    monkeypatch.setattr("docker_kit.shutil.which", str)  # busybox is there
    with pytest.raises(pytest.skip.Exception, match="no Docker engine answers"):
        connect()
    gc.collect()  # a socket that is left open fails the test
