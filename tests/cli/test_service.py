"""`orchestrator serve` as a process, and the commands that talk to it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from attrs import frozen

from orchestrator_core.documents import execution_json, execution_of, problem_json, problem_of
from orchestrator_core.errors import Problem
from orchestrator_core.plugin_api import Execution, Identity, StepRecord
from orchestrator_core.testing.ports import free_port

from .conftest import Invoke, Write

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
HELLO = """
    endpoints:
      greet:
        data_sources: [{name: guest, type: direct, params: {name: "$request.path_params.name"}}]
        response_mapping: "hello {{ $guest.name }}"
    """
CONFIG = {"config/config.yaml": "reload: {watch: false}\n", "config/domains/hello.yaml": HELLO}
WAITS_FOR_A_START = (
    "config/config.yaml:1:10: ORC209 warning: server.max_body_size is read at the start only:"
    " it changes when the service is started again\n"
    "    1 | server: {max_body_size: 10MiB}\n"
    "      |          ^^^^^^^^^^^^^\n"
)


@frozen
class Running:
    process: subprocess.Popen[str]
    announced: str
    url: str
    admin: str

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path) as answer:
            content: bytes = answer.read()
            return content


@pytest.fixture
def service(write: Write, folder: Path) -> Iterator[Running]:
    write(CONFIG)
    command = [sys.executable, "-m", "orchestrator_core", "serve", "--port", "0", "--admin-port", "0"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        announced = "".join(process.stderr.readline() for _ in range(3))
        url, admin = (re.search(rf"(http://\S+)/{word}\n", announced) for word in ("orchestrator", "executions"))
        assert url, announced
        assert admin, announced
        yield Running(process, announced, url[1], admin[1])
        process.kill()


def test_serve_announces_where_it_listens_and_stops_cleanly(service: Running) -> None:
    assert re.fullmatch(
        r"serving config \(generation [0-9a-f]{12}\) on http://127\.0\.0\.1:\d+/orchestrator\n"
        r"  documentation  http://127\.0\.0\.1:\d+/docs\n"
        r"  admin          http://127\.0\.0\.1:\d+/executions\n",
        service.announced,
    )
    assert service.get("/orchestrator/hello/greet/Ada") == b'"hello Ada"'

    service.process.send_signal(signal.SIGINT)

    assert service.process.wait(20) == 0
    assert service.process.stderr
    assert "Traceback" not in service.process.stderr.read()


def test_serve_announces_in_json_where_the_log_is_json(write: Write, folder: Path) -> None:
    write({**CONFIG, "config/config.yaml": "logging: {format: json}\n"})
    write({"config/domains/warned.yaml": "endpoints: {e: {response_mapping: {a: at most $request.x}}}\n"})
    command = [sys.executable, "-m", "orchestrator_core", "serve", "--port", "0", "--admin-port", "0"]
    with subprocess.Popen(command, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        warned, serving = (json.loads(process.stderr.readline()) for _ in range(2))
        process.terminate()
        rest = [json.loads(line) for line in process.stderr]

    assert (warned["level"], "ORC508" in warned["event"]) == ("warning", True)
    assert (serving["event"], serving["config"]) == ("serving", "config")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", serving["url"])
    assert serving["admin_url"] != serving["url"]
    assert [line["event"] for line in rest] == ["stopping"]


def test_serve_does_not_serve_a_configuration_with_problems(write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": "server: {prot: 1}\n"})

    result = orchestrator("serve", "--port", "0", "--admin-port", "0")

    assert result.exit_code == 1
    assert result.stderr == (
        "config/config.yaml:1:10: ORC201 unknown key 'prot'\n"
        "    1 | server: {prot: 1}\n"
        "      |          ^^^^\n"
        "      = did you mean 'port'?\n"
        "1 problem in 1 file\n"
    )


def test_so_many_workers_that_one_must_be_mistaken_are_refused(write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": "server: {workers: 8080}\n"})

    asked = orchestrator("serve", "--workers", "513")
    configured = orchestrator("serve")

    assert (asked.exit_code, asked.stderr.splitlines()[-1]) == (
        2,
        "Error: Invalid value for '--workers': 513 is not in the range 1<=x<=512.",
    )
    assert configured.exit_code == 1
    assert configured.stderr.splitlines()[0] == (
        "config/config.yaml:1:19: ORC204 expected at most 512, got 8080: one for each core is a good number"
    )


@pytest.mark.parametrize("listener", ["server", "admin"])
def test_an_empty_address_is_not_every_address(listener: str, write: Write, orchestrator: Invoke) -> None:
    write({"config/config.yaml": f'{listener}: {{host: "${{env:NOWHERE_SET:-}}"}}\n'})

    result = orchestrator("check")

    assert result.exit_code == 1
    assert "ORC204 expected an address; write 0.0.0.0 for every address of the machine" in result.stdout


def test_a_port_that_is_taken_is_said(write: Write, folder: Path) -> None:
    write(CONFIG)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "orchestrator_core", "serve", "--port", port, "--admin-port", "0"]
        done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=30)

    assert done.returncode == 1
    assert done.stderr == (
        f"Error: cannot listen on 127.0.0.1:{port}: address already in use\n"
        "  = take another with --port or --admin-port, or server.port and admin.port in config.yaml\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_both_listeners_are_to_have_is_said(workers: str, write: Write, orchestrator: Invoke) -> None:
    port = free_port()
    write(CONFIG | {"config/config.yaml": f"server: {{port: {port}}}\nadmin: {{port: {port}}}\n"})

    result = orchestrator("serve", "--workers", workers)

    assert result.exit_code == 1
    assert result.stderr == (
        f"Error: cannot listen on 127.0.0.1:{port}: address already in use\n"
        "  = the public listener and the admin listener are both to have this port: "
        "take another with --port or --admin-port, or server.port and admin.port in config.yaml\n"
    )


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("nowhere.invalid", "Error: cannot listen on nowhere.invalid:8000: "),
        ("192.0.2.1", "Error: cannot listen on 192.0.2.1:8000: cannot assign requested address\n"),
        ("fe80::1", "Error: cannot listen on fe80::1:8000: "),  # of which network is not said
    ],
)
def test_a_host_that_is_none_is_said(host: str, said: str, workers: str, write: Write, orchestrator: Invoke) -> None:
    write(CONFIG)

    result = orchestrator("serve", "--host", host, "--port", "8000", "--admin-port", "0", "--workers", workers)

    assert result.exit_code == 1
    assert result.output.startswith(said)
    assert result.output.endswith(
        "\n  = give an address of this machine with --host, or server.host and admin.host in config.yaml\n"
    )


def test_reload_says_which_generation_serves(service: Running, write: Write, orchestrator: Invoke) -> None:
    write({"config/domains/hello.yaml": HELLO.replace("hello {{", "good day {{")})

    result = orchestrator("reload", "--admin", service.admin)

    assert re.fullmatch(r"generation [0-9a-f]{12} serves\n", result.output)
    assert result.output.split()[1] not in service.announced
    assert result.exit_code == 0
    assert service.get("/orchestrator/hello/greet/Ada") == b'"good day Ada"'


def test_reload_says_which_settings_wait_for_the_next_start(
    service: Running, write: Write, orchestrator: Invoke
) -> None:
    write({"config/config.yaml": "server: {max_body_size: 10MiB}\nreload: {watch: false}\n"})

    result = orchestrator("reload", "--admin", service.admin)

    assert result.exit_code == 0
    assert result.stderr == WAITS_FOR_A_START
    assert service.process.stderr
    told = [service.process.stderr.readline() for _ in range(2)]
    assert [line for line in told if "settings=server.max_body_size" in line]

    write({"config/config.yaml": "reload: {watch: false}\nserver: {limit: false, body_timeout: 9s}\n"})

    assert orchestrator("reload", "--admin", service.admin).stderr == ""


def test_reload_prints_problems_as_check_does(service: Running, write: Write, orchestrator: Invoke) -> None:
    write({"config/domains/hello.yaml": HELLO.replace("$guest.name", "$gest.name")})

    result = orchestrator("reload", "--admin", service.admin)

    assert result.exit_code == 1
    generation = re.findall("generation ([0-9a-f]+)", service.announced)[0]
    problems = orchestrator("check").output
    assert problems.startswith("config/domains/hello.yaml:4:33: ORC502 there is no step 'gest'\n")
    assert result.output == f"not reloaded, generation {generation} keeps serving\n{problems}"
    assert service.get("/orchestrator/hello/greet/Ada") == b'"hello Ada"'


def test_executions_are_listed_and_shown(service: Running, orchestrator: Invoke) -> None:
    where = ("--admin", service.admin)
    assert orchestrator("executions", "list", *where).output == "no executions\n"
    for name in ("Ada", "Grace"):
        service.get(f"/orchestrator/hello/greet/{name}")

    listed = orchestrator("executions", "list", "--limit", "1", *where).output

    head, row, more = listed.splitlines()
    assert head.split("  ")[0] == "id"
    assert head.split() == [
        "id",
        "started",
        "(UTC)",
        "endpoint",
        "status",
        "http",
        "duration",
        "degraded",
        "or",
        "error",
    ]
    assert re.fullmatch(
        r"[0-9a-f]{32}  \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  hello\.greet  ok      200 +[\d.]+ ms *", row
    ), row
    latest = row.split()[0]
    assert more == f"more: --cursor {latest}"
    rest = orchestrator("executions", "list", "--cursor", latest, "--status", "ok", *where).output.splitlines()
    assert len(rest) == 2
    assert len(orchestrator("executions", "list", "--since", "1.5h", *where).output.splitlines()) == 3
    for none in (("--until", "1d"), ("--since", "0s")):
        assert orchestrator("executions", "list", *none, *where).output == "no executions\n"
    unfit = orchestrator("executions", "list", "--since", "1 week", *where)
    words = "expected Unix seconds or an ISO 8601 time, or how long ago it was, such as 15m, 2h or 1d"
    assert (unfit.exit_code, words in " ".join(unfit.output.split())) == (2, True)
    shown = orchestrator("executions", "show", latest, *where).output
    assert re.match(rf"{latest}  hello\.greet  ok  200  [\d.]+ ms  \(engine [\d.]+ ms\)\nguest  ok  [\d.]+ ms  ", shown)
    assert orchestrator("executions", "show", latest, "--format", "json", *where).output.startswith("{\n")


def test_an_execution_that_is_not_kept(service: Running, orchestrator: Invoke) -> None:
    result = orchestrator("executions", "show", "nothing", "--admin", service.admin)

    assert result.exit_code == 1
    assert result.output == f"Error: {service.admin} answered 404: no execution nothing is kept\n"


@pytest.mark.parametrize("args", [("reload",), ("executions", "list"), ("executions", "show", "x")])
def test_nothing_listens(args: tuple[str, ...], write: Write, orchestrator: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    write({"config/config.yaml": f"admin: {{host: 0.0.0.0, port: {port}}}\n"})

    result = orchestrator(*args)

    assert result.exit_code == 1
    assert result.output == (
        f"Error: nothing listens on http://127.0.0.1:{port}: the service does not run there\n"
        "  = start it with `orchestrator serve`, or say where it is with --admin\n"
    )


@pytest.mark.parametrize("config", ["admin: {port: 8011\n", "admin: {port: none}\n"])
@pytest.mark.parametrize("command", [("reload",), ("executions", "list"), ("executions", "show", "01")])
def test_nothing_listens_where_a_configuration_that_is_broken_does_not_say(
    config: str, command: tuple[str, ...], write: Write, orchestrator: Invoke
) -> None:
    """The service goes on with what it read before: its problem is what there is to be told."""
    write({"config/config.yaml": config})

    result = orchestrator(*command)

    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[:3] == [
        "Error: nothing listens on http://127.0.0.1:8001: the service does not run there",
        "  = start it with `orchestrator serve`, or say where it is with --admin",
        "  = or it is where config.yaml says, which cannot be read:",
    ]
    assert lines[3].startswith("config/config.yaml:")


@pytest.mark.parametrize("command", [("reload",), ("executions", "list")])
def test_nothing_listens_where_the_configuration_is_not_there(command: tuple[str, ...], orchestrator: Invoke) -> None:
    result = orchestrator(*command, "--config", "nowhere")

    assert result.exit_code == 1
    assert result.output.startswith("Error: nothing listens on http://127.0.0.1:8001")
    assert "there is no configuration folder at nowhere" in result.output


def test_where_executions_are_stored_they_can_be_read_without_the_service(write: Write, orchestrator: Invoke) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    write({"config/config.yaml": f"admin: {{port: {port}}}\ntracking: {{store: {{type: any}}}}\n"})

    for args in (("list",), ("show", "x")):
        assert orchestrator("executions", *args).output.endswith(
            "\n  = start it with `orchestrator serve`, or say where it is with --admin,"
            " or read what is stored with --offline\n"
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "admin: {enabled: false}\n",
            (
                "the admin listener is off: config/config.yaml sets admin.enabled to false\n"
                "  = turn it on, or send the service SIGHUP to have it reload"
            ),
        ),
        ("admin: {port: 0}\n", "admin.port is 0, any free one: say which it is with --admin"),
    ],
)
def test_a_configuration_that_does_not_say_where_the_service_is(
    config: str, message: str, write: Write, orchestrator: Invoke
) -> None:
    write({"config/config.yaml": config})

    result = orchestrator("reload")

    assert result.exit_code == 1
    assert result.output == f"Error: {message}\n"


@pytest.mark.parametrize("address", ["ftp://here", "http://here:port", "here:99999", "http://:8001"])
def test_an_address_that_is_none(address: str, orchestrator: Invoke) -> None:
    result = orchestrator("reload", "--admin", address)

    assert result.exit_code == 2
    assert result.output.endswith(f"\nError: --admin takes a URL such as http://127.0.0.1:8001, got '{address}'\n")


@pytest.mark.parametrize(
    ("answer", "command", "message"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "list", "/executions answered 200 without a JSON document"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"up": 1}', "list", "/executions answered 200 without 'executions'"),
        (b'HTTP/1.1 200 OK\r\n\r\n{"id": 1}', "show a", "/executions/a answered 200 without 'steps'"),
        (b"\x15\x03\x01\x00\x02\x02\x16", "list", " cannot be asked: what it answers is not HTTP"),
    ],
)
def test_something_else_listens(answer: bytes, command: str, message: str, orchestrator: Invoke) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = orchestrator("executions", *command.split(), "--admin", url)

    hint = "" if "asked" in message else "  = is this the admin listener of the service?\n"
    assert result.exit_code == 1
    assert result.output == f"Error: {url}{message}\n{hint}"


def test_documents_carry_everything_there_and_back() -> None:
    execution = Execution(
        id="a1",
        domain="credit",
        endpoint="risk",
        generation="4e6f",
        status="degraded",
        http_status=200,
        started_at=1_700_000_000.25,
        duration_seconds=0.5,
        engine_seconds=0.125,
        trace_id="ab",
        degraded=("report",),
        models=(Identity("credit_risk", "3", "sha256:ab"),),
        steps=(StepRecord("report", "default", 0.25, 0.125, 2, "down"),),
        error="x",
    )
    problem = Problem("a.yaml", 3, 5, "ORC201", "m", "p", "h", "warning", "  abcdef", 4)

    assert execution_of(execution_json(execution)) == execution
    assert problem_of(problem_json(problem)) == problem
    assert str(problem_of(problem_json(problem))) == str(problem)
