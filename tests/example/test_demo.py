"""`python -m example`: what it starts, what it says, and that nothing is left of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from example import processes
from tests.example.demo import READY, get, ports_of_its_own, read_until, started, wait_until, words


def children(process: subprocess.Popen[str]) -> dict[str, int]:
    """Return the process ids of what a process has started, by module."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    found = {}
    for line in listed.splitlines():
        child, parent, args = line.split(None, 2)
        module = re.search(r"-m (example\.\w+)", args)
        if int(parent) == process.pid and module:
            found[module[1]] = int(child)
    return found


def is_taken(port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def is_there(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def ports() -> dict[str, str]:
    return ports_of_its_own()


def test_it_serves_what_is_built_and_leaves_nothing_behind_on_ctrl_c(workspace: Path, ports: dict[str, str]) -> None:
    base = f"http://127.0.0.1:{ports['--port']}/orchestrator"
    with started(workspace, *words(ports)) as process:
        said = read_until(process, READY)
        assert f"curl http://localhost:{ports['--port']}/orchestrator/loan_approval/predict/1003" in said
        assert "importing Feast" not in said
        assert get(f"{base}/credit_risk/predict/1005")["risk_tier"] == "high"
        assert get(f"{base}/churn/predict/1003")["risk_level"] == "high"
        assert get(f"{base}/recommendations/predict/1003")["recommendations"][0] == "hammock"
        assert get(f"{base}/loan_approval/predict/1003")["decision"] == "approved"
        assert_can_be_tried(re.findall(r"curl '?(http://\S+?)'? ", said))
        servers = children(process)
        assert set(servers) == {"example.partner", "example.model_server"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr
        said = process.stderr.read()
        assert "Traceback" not in said
        assert [line for line in said.splitlines() if "error" in line and "404" not in line] == []
        assert not any(map(is_there, servers.values()))
        assert not any(is_taken(int(port)) for port in ports.values())


def assert_can_be_tried(invited: list[str]) -> None:
    assert len(invited) == 8
    for url in invited:
        if url.endswith("recommendations/predict/1007"):
            with pytest.raises(OSError, match="404"):
                get(url)
        else:
            assert get(url)


def test_a_server_that_crashes_is_reported_and_the_rest_goes_on(workspace: Path, ports: dict[str, str]) -> None:
    base = f"http://127.0.0.1:{ports['--port']}/orchestrator"
    with started(workspace, *words(ports)) as process:
        read_until(process, READY)
        os.kill(children(process)["example.partner"], signal.SIGKILL)
        said = read_until(process, "partner API").splitlines()[-1]
        assert said == (
            "error: the partner API was killed by signal 9:"
            " churn and loan_approval cannot be answered until it is started again"
        )
        assert get(f"{base}/recommendations/predict/1003")["customer_id"] == 1003
        with pytest.raises(OSError, match="502"):
            get(f"{base}/churn/predict/1003")


def test_it_builds_what_is_missing_and_serves_and_its_servers_end_with_it_even_when_it_is_killed(
    workspace: Path, tmp_path: Path, ports: dict[str, str]
) -> None:
    shutil.copytree(workspace / "example", tmp_path / "example", ignore=shutil.ignore_patterns("data", "models"))
    port = ports.pop("--port")
    with started(tmp_path, *words(ports), PORT=port) as process:
        said = read_until(process, READY)
        assert "writing 10,000 customers" in said
        assert "materialising the feature store" in said
        assert "logging the credit model with MLflow" in said
        assert get(f"http://127.0.0.1:{port}/orchestrator/loan_approval/predict/1001")["decision"] == "approved"
        servers = children(process)
        process.kill()
        process.wait()
        assert len(servers) == 2
        wait_until(lambda: not any(is_taken(int(taken)) for taken in (port, *ports.values())))


@pytest.mark.parametrize("listener", ["--port", "--admin-port"])
def test_a_port_that_is_taken_is_named_with_the_way_out(listener: str, workspace: Path, ports: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(workspace, *words({**ports, listener: str(port)})) as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[0] == f"error: port {port} is taken by another program"
    assert "make demo PORT=8080" in said


def test_a_server_port_that_was_asked_for_and_is_taken_is_named(workspace: Path, ports: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with started(workspace, *words({**ports, "--models-port": str(port)})) as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-2:] == [
        f"error: the model server cannot listen on port {port}: Address already in use",
        "  = take another, or leave MODELS_PORT out and any free one is taken",
    ]


def test_a_usual_server_port_that_is_taken_is_replaced_by_a_free_one(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        partner = processes.PARTNER._replace(port=taken)
        monkeypatch.setattr(processes, "PARTNER", partner)
        ports = {processes.MODELS: 0}
        with processes.running(workspace / "example", ports, said.append) as environment:
            port = environment["PARTNER_PORT"]
            assert get(f"http://127.0.0.1:{port}/health") == {"status": "ok"}
    moved = f"note: port {taken} is taken, the partner API listens on {port}"
    assert said == [f"{moved} (commands in another terminal need PARTNER_PORT={port})"]


@pytest.mark.parametrize("name", ["PARTNER_PORT", "MODELS_PORT"])
def test_a_port_in_the_environment_that_is_none_is_refused(name: str, workspace: Path) -> None:
    with started(workspace, **{name: "ninety"}) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.splitlines()[-1] == f"python -m example: error: {name} is 'ninety', which is no port"
