"""A model server that is started, shared, supervised and ended: real processes, which are found in /proc."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from orchestrator_model_artifact.launch import MOST_OUTPUT, cut_down, tail
from orchestrator_model_artifact.plugin import ARTIFACT
from orchestrator_model_artifact.serving import ServedModel
from orchestrator_model_http.plugin import HTTP

from orchestrator_core.errors import SourceError, SourceUnavailable
from orchestrator_core.plugin_api import EndedByOthers, Ends, KeepsLogs, ReadyCheck
from orchestrator_core.testing import open_model

Run = Callable[[Callable[[], Awaitable[None]]], None]

SERVER = '''
"""A model server: doubles x. GET /crash ends it, GET /ready is 503 until it has run for DELAY seconds."""
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

started = time.monotonic()
print("serving on", os.environ["PORT"], "as", os.getpid(), "with", sys.argv[1:], flush=True)
if os.environ.get("EXIT"):
    print("no such model", file=sys.stderr, flush=True)
    sys.exit(int(os.environ["EXIT"]))
if os.environ.get("STUBBORN"):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.environ.get("CHILD"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        if self.path == "/crash":
            print("crashing", flush=True)
            os._exit(7)
        ready = time.monotonic() - started > float(os.environ.get("DELAY", 0))
        self.answer(200 if ready or self.path != "/ready" else 503, {"pid": os.getpid()})
    def do_POST(self):
        row = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(200, {"y": row["x"] * 2, "pid": os.getpid(), "path": os.environ.get("MODEL_PATH")})
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_): pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a configuration folder with the server beside it; no process of the test is left afterwards."""
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TEST_MARK", str(tmp_path))
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "server.py").write_text(SERVER)
    yield tmp_path / "config"
    left = servers(tmp_path)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert left == []


def servers(mark: Path) -> list[int]:
    """Return the processes that were started under the test's mark, but for this one."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with suppress(OSError):
                environment = Path(f"/proc/{name}/environ").read_bytes().split(b"\0")
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
                if f"TEST_MARK={mark}".encode() in environment and state not in "ZX":
                    found.append(int(name))
    return found


COMMAND = [sys.executable, "server.py"]


@asynccontextmanager
async def opened(folder: Path, **options: Any) -> AsyncIterator[ServedModel]:
    options = {"startup_command": COMMAND, "readiness": {"interval": "20ms", "timeout": "20s"}, **options}
    async with open_model(ARTIFACT, options, folder=folder, name="ml.doubler", models=[HTTP]) as model:
        assert isinstance(model, ServedModel)
        yield model


async def pid_of(model: ServedModel) -> int:
    (answer,) = await model.predict([{"x": 4}])
    assert isinstance(answer, dict)
    assert answer["y"] == 8
    return int(answer["pid"])  # type: ignore[arg-type]  # it is a number


async def refused(folder: Path, kind: type[Exception] = SourceError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        async with opened(folder, **options):
            pass
    return str(caught.value)


def test_a_server_is_started_on_a_free_port_called_and_ended(folder: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(folder) as model:
            pid = await pid_of(model)
            assert servers(folder.parent) == [pid]
            assert await model.predict_one({"x": 1.5}) == {"y": 3.0, "pid": pid, "path": None}
            await model.check_ready()
            assert isinstance(model, Ends | KeepsLogs | ReadyCheck)
            assert await model.logs(1) == f"serving on {model.server.port} as {pid} with []"
            assert os.getsid(pid) == pid != os.getsid(0)
        assert servers(folder.parent) == []
        assert list((folder.parent / "run").glob("*.log")) == []

    run(test)


def test_the_command_is_split_as_a_shell_would_and_no_shell_runs_it(folder: Path, run: Run) -> None:
    async def test() -> None:
        command = f"{sys.executable} server.py --at={{port}} 'two words' \"$HOME\" `id` ; rm -rf *"
        async with opened(folder, startup_command=command) as model:
            words = [f"--at={model.server.port}", "two words", "$HOME", "`id`", ";", "rm", "-rf", "*"]
            assert (await model.logs(1)).endswith(f"with {words}")
        async with opened(folder, startup_command=[*COMMAND, "a b", "{port}"]) as model:
            assert (await model.logs(1)).endswith(f"with {['a b', str(model.server.port)]}")

    run(test)


def test_port_path_environment_and_working_dir_are_given_to_the_server(folder: Path, run: Run) -> None:
    async def test() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (folder.parent / "elsewhere").mkdir()
        (folder / "server.py").rename(folder.parent / "elsewhere" / "other.py")
        (folder.parent / "weights.bin").write_bytes(b"w")
        options: dict[str, Any] = {
            "startup_command": [sys.executable, "other.py", "{path}"],
            "port": port,
            "path": "../weights.bin",
            "working_dir": "../elsewhere",
            "version": "7",
        }
        async with opened(folder, **options) as model:
            assert model.server.port == port
            answer: Any = await model.predict_one({"x": 1})
            assert answer["path"] == str(folder.parent / "weights.bin")
            identity = model.identity()
            assert (identity.version, identity.digest[:7]) == ("7", "sha256:")
            assert not await model.changed()
            (folder.parent / "weights.bin").write_bytes(b"other")
            assert await model.changed()

    run(test)


def test_a_server_is_used_only_when_its_readiness_path_answers_2xx(folder: Path, run: Run) -> None:
    async def test() -> None:
        readiness = {"path": "/ready", "interval": "20ms", "timeout": "10s"}
        before = time.monotonic()
        async with opened(folder, environment={"DELAY": "0.7"}, readiness=readiness):
            assert time.monotonic() - before > 0.7
        readiness["timeout"] = "600ms"
        message = await refused(folder, SourceUnavailable, environment={"DELAY": "60"}, readiness=readiness)
        assert message.startswith(
            "the model server was not ready within 0.6 s: GET /ready was answered with 503;"
            " its last output:\nserving on"
        )
        lifted: dict[str, Any] = {
            "environment": {"DELAY": "0.9"},
            "startup_delay": "10s",
            "readiness": {**readiness, "timeout": "100ms"},
        }
        async with opened(folder, **lifted) as model:
            await pid_of(model)

    run(test)


def test_a_server_that_ends_while_it_starts_is_reported_with_its_status_and_last_output(folder: Path, run: Run) -> None:
    async def test() -> None:
        with pytest.raises(SourceUnavailable) as caught:
            async with opened(folder, environment={"EXIT": "3"}):
                pass
        first, *lines = str(caught.value).splitlines()
        assert first == "the model server ended with status 3; its last output:"
        assert lines[1] == "no such model"
        assert caught.value.started is True

    run(test)


def test_the_death_of_a_server_is_told_within_a_moment_with_status_and_output(
    folder: Path, run_on_each_loop: Any
) -> None:
    async def test() -> None:
        async with opened(folder) as model:
            pid = await pid_of(model)
            waiting = asyncio.ensure_future(model.ended())
            await asyncio.sleep(0.05)
            assert not waiting.done()
            os.kill(pid, signal.SIGKILL)
            async with asyncio.timeout(2):
                how = await waiting
            assert (
                how == "the model server was killed by SIGKILL; its last output:\n"
                f"serving on {model.server.port} as {pid} with []"
            )
            assert isinstance(how, EndedByOthers)
            with pytest.raises(SourceUnavailable, match="the model server was killed by SIGKILL"):
                await model.check_ready()
        async with opened(folder) as model:
            with suppress(Exception):
                await asyncio.to_thread(
                    __import__("urllib.request").request.urlopen, f"http://127.0.0.1:{model.server.port}/crash"
                )
            how = await model.ended()
            assert how.startswith("the model server ended with status 7; its last output:")
            assert not isinstance(how, EndedByOthers)

    run_on_each_loop(test())


def test_a_server_that_is_killed_again_and_again_is_started_again_each_time(folder: Path, run: Run) -> None:
    async def test() -> None:
        for _ in range(7):
            async with opened(folder) as model:
                os.kill(await pid_of(model), signal.SIGKILL)
                await model.ended()

    run(test)


def test_a_server_that_hangs_is_ended_for_all_who_share_it(folder: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(folder, stop_timeout="100ms") as model, opened(folder, stop_timeout="100ms") as other:
            pid = await pid_of(model)
            os.kill(pid, signal.SIGSTOP)
            how = await model.end_for_all("it hangs")
            assert re.fullmatch(rf"it hangs; its last output:\nserving on \d+ as {pid} with \[\]", how), how
            assert await other.ended()
            assert await other.end_for_all("it hangs") == how  # another has done it
            assert servers(folder.parent) == []

    run(test)


def test_the_whole_group_is_ended_also_what_does_not_listen(folder: Path, run: Run) -> None:
    async def test() -> None:
        environment = {"CHILD": "1", "STUBBORN": "1"}
        async with opened(folder, environment=environment, stop_timeout="300ms"):
            assert len(servers(folder.parent)) == 2
            before = time.monotonic()
        assert 0.25 < time.monotonic() - before < 5
        assert servers(folder.parent) == []

    run(test)


def test_children_that_outlive_their_server_are_ended_too(folder: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(folder, environment={"CHILD": "1"}) as model:
            os.kill(await pid_of(model), signal.SIGKILL)
            await model.ended()
            assert len(servers(folder.parent)) == 1
        assert servers(folder.parent) == []

    run(test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"startup_command": "no_such_program --port {port}"},
            "startup_command: there is no program 'no_such_program'",
        ),
        ({"startup_command": ["./server.py"]}, "startup_command: there is no program './server.py' that can be run"),
        ({"working_dir": "nowhere"}, "working_dir 'nowhere' is no folder"),
        ({"startup_command": [*COMMAND, "{path}"]}, "startup_command names {path}, and there is no path"),
        ({"path": "../../x"}, "path '../../x' is "),
        ({"path": "server.py", "sha256": "0" * 64}, "the model's content has sha256 "),
        ({"path": "models:/a/1"}, "an MLflow URI cannot be given to startup_command"),
    ],
)
def test_what_can_never_start_is_refused_before_anything_runs_also_by_check(
    folder: Path, run: Run, options: dict[str, Any], message: str
) -> None:
    async def test() -> None:
        assert (await refused(folder, **options)).startswith(message)
        from orchestrator_core.http_client import HttpClient
        from orchestrator_core.plugin_api import OpenContext
        from orchestrator_core.testing import structured

        assert ARTIFACT.look is not None
        given = structured(ARTIFACT.options, {"startup_command": COMMAND, **options})
        async with HttpClient() as http:
            with pytest.raises(SourceError) as caught:
                await ARTIFACT.look(given, OpenContext("m", folder, http))
        assert str(caught.value).startswith(message)

    run(test)


def test_a_port_that_another_program_has_is_named(folder: Path, run: Run) -> None:
    async def test() -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            message = await refused(folder, SourceUnavailable, port=port)
        assert message == (
            f"port {port} is taken by another program: Address already in use:"
            " give the model server another, or leave port out for any free one"
        )

    run(test)


# --- several services -------------------------------------------------------------------------------------------------


def test_two_models_of_one_configuration_share_a_server_until_the_last_leaves(folder: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(folder) as first:
            async with opened(folder) as second:
                assert await pid_of(first) == await pid_of(second)
            assert await pid_of(first)
        assert servers(folder.parent) == []

    run(test)


def test_other_options_are_another_server_and_a_fixed_port_waits_for_the_old_one(folder: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(folder) as old:
            async with opened(folder, environment={"NEW": "1"}) as new:
                assert await pid_of(old) != await pid_of(new)
            assert await pid_of(old)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with opened(folder, port=port):
            message = await refused(folder, SourceUnavailable, port=port, environment={"NEW": "1"})
            assert message.startswith(
                f"port {port} is still used by the model server of the configuration before this one"
            )
        async with opened(folder, port=port, environment={"NEW": "1"}) as new:
            assert await pid_of(new)

    run(test)


class Service:
    """A process that serves the configuration, as one of several on the host would."""

    def __init__(self, folder: Path, **options: Any) -> None:
        given = json.dumps({"startup_command": COMMAND, "readiness": {"interval": "20ms"}, **options})
        code = f"""
import asyncio, json, sys
sys.path[:] = {sys.path!r}
from pathlib import Path
from orchestrator_core.errors import OrchestratorError
from orchestrator_core.testing import open_model
from orchestrator_model_artifact.plugin import ARTIFACT
from orchestrator_model_http.plugin import HTTP

async def main():
    options = json.loads({given!r})
    there = {{"folder": Path({str(folder)!r}), "name": "ml.doubler", "models": [HTTP]}}
    loop = asyncio.get_running_loop()
    while True:
        try:
            async with open_model(ARTIFACT, options, **there) as model:
                print(json.dumps(await model.predict_one({{"x": 1}})), flush=True)
                await loop.run_in_executor(None, sys.stdin.readline)
                return
        except OrchestratorError as error:
            print(json.dumps([type(error).__name__, str(error)]), flush=True)
            if type(error).__name__ == "SourceError":
                return
            await asyncio.sleep(0.05)

asyncio.run(main())
"""
        environment = {name: value for name, value in os.environ.items() if name != "TEST_MARK"}
        # The mark comes back by the options: a service is no server.
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def said(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def server(self) -> int:
        return int(self.said()["pid"])

    def leave(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        assert self.process.wait(20) == 0
        self.process.stdout.close()

    def kill(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def services(folder: Path, count: int, **options: Any) -> list[Service]:
    environment = {"TEST_MARK": str(folder.parent), **options.pop("environment", {})}
    return [Service(folder, environment=environment, **options) for _ in range(count)]


def test_four_services_share_one_server_and_the_last_to_leave_ends_it(folder: Path) -> None:
    four = services(folder, 4)
    (pid,) = {service.server() for service in four}
    assert servers(folder.parent) == [pid]
    for service in four[:3]:
        service.leave()
        assert servers(folder.parent) == [pid]
    four[3].leave()
    assert servers(folder.parent) == []


def test_killing_one_or_all_services_and_starting_again_leaves_exactly_one_server(folder: Path) -> None:
    three = services(folder, 3)
    (pid,) = {service.server() for service in three}
    three[0].kill()
    three += services(folder, 1)
    assert three[-1].server() == pid
    for service in three[1:]:
        service.kill()
    assert servers(folder.parent) == [pid]
    again = services(folder, 2)
    assert {service.server() for service in again} == {pid}
    assert servers(folder.parent) == [pid]
    for service in again:
        service.leave()
    assert servers(folder.parent) == []


def test_a_server_of_other_options_that_was_left_behind_is_ended(folder: Path) -> None:
    (old,) = services(folder, 1, environment={"CHILD": "1"})
    pid = old.server()
    old.kill()
    assert len(servers(folder.parent)) == 2
    (new,) = services(folder, 1, environment={"NEW": "1"})
    other = new.server()
    assert other != pid
    assert servers(folder.parent) == [other]
    new.leave()


def test_a_stranger_with_the_id_of_a_server_is_left_alone(folder: Path, run: Run) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True, env={})
    try:
        (old,) = services(folder, 1)
        pid = old.server()
        old.kill()
        os.kill(pid, signal.SIGKILL)
        (noted,) = [path for path in (folder.parent / "run").glob("*.json") if "servers" in path.read_text()]
        state = json.loads(noted.read_text())
        (entry,) = state["servers"].values()
        entry["process"]["pid"] = stranger.pid
        noted.write_text(json.dumps(state))
        (new,) = services(folder, 1)
        assert new.server() not in (pid, stranger.pid)
        new.leave()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_starts_that_fail_are_counted_over_all_services(folder: Path) -> None:
    four = services(folder, 4, environment={"EXIT": "3"})
    last = []
    for service in four:
        while (said := service.said())[0] != "SourceError":
            assert said[0] == "SourceUnavailable"
        last.append(said[1])
        service.process.wait(20)
    assert all(
        message.startswith("the model server was started 5 times within 5 minutes by the services") for message in last
    )
    (log,) = (folder.parent / "run").glob("*.log")
    assert log.read_text().count("no such model") == 5
    for service in four:
        service.leave()
    (anew,) = services(folder, 1, environment={"EXIT": "3"})
    assert anew.said()[0] == "SourceUnavailable"  # services that are gone do not count
    anew.kill()


def test_output_is_kept_within_bounds(tmp_path: Path) -> None:
    output = tmp_path / "log"
    lines = [f"line {number}" for number in range(500_000)]
    output.write_text("\n".join(lines) + "\n")
    assert tail(output, 2) == "line 499998\nline 499999"
    cut_down(output)
    assert output.stat().st_size <= MOST_OUTPUT // 2
    assert output.read_text().splitlines() == lines[-len(output.read_text().splitlines()) :]
    assert (tail(output, 0), tail(tmp_path / "none", 5)) == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected path, or startup_command"),
        ({"path": "x", "port": 80}, "port needs startup_command: it is for a model server"),
        (
            {"startup_command": "a", "trust": True},
            "trust is for a model that is loaded, and startup_command starts a server",
        ),
        ({"startup_command": ""}, "startup_command is empty"),
        ({"startup_command": "a 'b"}, "startup_command cannot be split as a shell would: no closing quotation"),
        ({"startup_command": "a", "port": 70000}, "expected a port between 1 and 65535, got 70000"),
        ({"startup_command": "a", "environment": {"A=B": "c"}}, "'A=B' cannot name an environment variable"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        ARTIFACT.options(**options)
