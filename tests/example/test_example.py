"""The worked example: built the same each time, clean under `check`, and answering as its README says."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from example import build
from orchestrator_core.testing.pytest_plugin import Served, serving
from tests.example.workspace import ENVIRONMENT, make_workspace
from tests.example.workspace import build as build_by_hand


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.getbasetemp() / "workspace")


@pytest.fixture(scope="module")
def example(workspace: Path) -> Iterator[Served]:
    """The example, served on free ports."""
    with serving() as serve:
        yield serve({}, folder=workspace / "example" / "config")


# --- building ----------------------------------------------------------------------------------------------------


def test_the_database_is_the_same_byte_for_byte_whenever_it_is_built(workspace: Path, rebuilt: Path) -> None:
    first, second = (hashlib.sha256((at / build.DATABASE).read_bytes()) for at in (workspace / "example", rebuilt))
    assert first.hexdigest() == second.hexdigest()


def test_the_model_predicts_the_same_whenever_it_is_built(workspace: Path, rebuilt: Path) -> None:
    first, second = (predictions(at / build.MODEL) for at in (workspace / "example", rebuilt))
    assert first == second
    assert len(set(first)) > 50


def test_the_model_says_the_same_of_itself_whenever_it_is_built(workspace: Path, rebuilt: Path) -> None:
    first, second = ((at / build.MODEL / "MLmodel").read_text() for at in (workspace / "example", rebuilt))
    assert first == second


@pytest.fixture(scope="session")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rebuilt")
    build_by_hand(folder)
    return folder


def predictions(model: Path) -> list[float]:
    import pandas
    import skops.io

    rows = [(score, income) for score in range(300, 851, 50) for income in range(12_000, 200_000, 20_000)]
    features = pandas.DataFrame(rows, columns=["credit_score", "income"])
    probabilities: list[float] = skops.io.load(model / "model.skops").predict_proba(features)[:, 1].tolist()
    return probabilities


def test_it_is_built_anew_when_what_builds_it_has_changed(workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(workspace / "example", folder)
    assert build.is_built(folder)
    (folder / build.STAMP).write_text("another version")
    assert not build.is_built(folder)


@pytest.mark.parametrize("part", [build.STAMP, build.DATABASE, build.MODEL / "MLmodel"])
def test_it_is_built_anew_when_a_part_is_missing(part: Path, workspace: Path, tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(workspace / "example", folder)
    (folder / part).unlink()
    assert not build.is_built(folder)


def test_a_build_that_is_interrupted_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / build.DATABASE).write_text("as it was")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "train_and_log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build.build(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["data", "data/customers.db"]
    assert (tmp_path / build.DATABASE).read_text() == "as it was"


def test_what_is_built_is_ignored_by_git(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "example", tmp_path / "example")
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    assert not [name for name in listed.stdout.split() if name.startswith(("example/data", "example/models"))]
    assert "example/config/config.yaml" in listed.stdout


# --- what it answers -----------------------------------------------------------------------------------------------

RISKS = {
    1001: (0.003, "low"),
    1002: (0.057, "low"),
    1003: (0.285, "medium"),
    1004: (0.596, "high"),
    1005: (0.892, "high"),
}


@pytest.mark.parametrize("customer_id", RISKS)
def test_a_named_customer_has_the_expected_risk(customer_id: int, example: Served) -> None:
    score, tier = RISKS[customer_id]
    answer = example.get(f"/orchestrator/credit_risk/predict/{customer_id}")
    assert answer.status == 200
    assert answer.json == {
        "customer_id": customer_id,
        "risk_score": pytest.approx(score, abs=0.0006),
        "risk_tier": tier,
    }


def test_every_tier_is_there_among_the_named_customers() -> None:
    assert {tier for _, tier in RISKS.values()} == {"low", "medium", "high"}


def test_a_customer_whose_income_is_not_known_gets_no_score(example: Served) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/1006")
    assert (answer.status, answer.json["step"]) == (502, "risk_prediction")
    assert "'income'" in answer.json["detail"]
    assert "null" in answer.json["detail"]


def test_an_unknown_customer_is_not_found(example: Served) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/99")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert (answer.json["step"], "customer_id=99" in answer.json["detail"]) == ("customer_data", True)


def test_a_customer_number_that_is_none_is_refused(example: Served) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/ada")
    assert (answer.status, [error["pointer"] for error in answer.json["errors"]]) == (422, ["/entity_id"])


def test_the_answer_carries_the_time_of_each_step(example: Served) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/1001")
    metrics = re.findall(r"(\w+);dur=(\d+\.\d+)", answer.headers["Server-Timing"])
    assert [name for name, _ in metrics] == ["customer_data", "risk_prediction", "engine"]
    assert all(0 < float(milliseconds) < 5000 for _, milliseconds in metrics)


def test_the_execution_record_names_the_model(example: Served, workspace: Path) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/1001")
    record = example.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
    assert [(step["name"], step["status"]) for step in record["steps"]] == [
        ("customer_data", "ok"),
        ("risk_prediction", "ok"),
    ]
    (model,) = record["models"]
    version = re.search(r"^model_uuid: (\w+)$", (workspace / "example" / build.MODEL / "MLmodel").read_text(), re.M)
    assert version is not None
    assert model["version"] == version[1]
    assert re.fullmatch("sha256:[0-9a-f]{64}", model["digest"])


def test_the_openapi_document_has_the_endpoint(example: Served) -> None:
    document = example.get("/openapi.json").json
    operation = document["paths"]["/orchestrator/credit_risk/predict/{entity_id}"]["get"]
    assert operation["summary"] or operation["description"]
    (parameter,) = (each for each in operation["parameters"] if each["in"] == "path")
    assert (parameter["name"], parameter["schema"]["type"]) == ("entity_id", "integer")


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_configuration_is_clean(workspace: Path) -> None:
    done = orchestrator(workspace, "check", "--config", "example/config")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("example/config: 1 endpoint, 2 sources: no problems (")


MISTAKES = {
    ("domains/credit_risk.yaml", "$customer_data.credit_score", "$customer_data.credt_score"): """
        example/config/domains/credit_risk.yaml:29:28: ORC505 the step 'customer_data' returns no field 'credt_score'
           29 |             credit_score: "$customer_data.credt_score"
              |                            ^^^^^^^^^^^^^^^^^^^^^^^^^^
              = did you mean 'credit_score'?
        """,
    ("domains/credit_risk.yaml", "income: ", "incom: "): """
        example/config/domains/credit_risk.yaml:30:13: ORC412 ml.credit_model predict knows no 'incom' in features
           30 |             incom: "$customer_data.annual_income"
              |             ^^^^^
              = did you mean 'income'?
        """,
    ("database.yaml", "annual_income", "anual_income"): """
        example/config/database.yaml:12:49: ORC602 there is no column 'anual_income' in customers
           12 |         SELECT customer_id, name, credit_score, anual_income
              |                                                 ^^^^^^^^^^^^
              = did you mean 'annual_income'?
        """,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2])
def test_a_misspelt_word_is_caught_before_anything_is_served(
    mistake: tuple[str, str, str], workspace: Path, tmp_path: Path
) -> None:
    file, right, wrong = mistake
    shutil.copytree(workspace / "example", tmp_path / "example")
    path = tmp_path / "example/config" / file
    path.write_text(path.read_text().replace(right, wrong, 1))
    done = orchestrator(tmp_path, "check", "--config", "example/config")
    assert done.stdout == dedent(MISTAKES[mistake]).lstrip("\n") + "1 problem in 1 file\n"
    assert done.returncode == 1


def orchestrator(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestrator_core", *arguments],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip


# --- python -m example -----------------------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m example` of the workspace, not of the repository."""
    where = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]]), **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "example", *arguments], cwd=folder, env=where, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def get(url: str) -> Any:
    from urllib.request import urlopen

    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stderr
    read = ""
    for line in process.stderr:
        read += line
        if word in line:
            return read
    raise AssertionError(read)


def test_the_command_serves_what_is_built_and_stops_cleanly_on_ctrl_c(workspace: Path) -> None:
    port, admin_port = free_port(), free_port()
    with started(workspace, "--port", str(port), "--admin-port", str(admin_port)) as process:
        said = read_until(process, "admin")
        assert f"curl http://localhost:{port}/orchestrator/credit_risk/predict/1001" in said
        assert "importing MLflow" not in said
        assert get(f"http://127.0.0.1:{port}/orchestrator/credit_risk/predict/1005")["risk_tier"] == "high"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr
        assert "Traceback" not in process.stderr.read()


def test_the_command_builds_what_is_missing_and_then_serves(workspace: Path, tmp_path: Path) -> None:
    shutil.copytree(workspace / "example", tmp_path / "example", ignore=shutil.ignore_patterns("data", "models"))
    port = free_port()
    with started(tmp_path, "--admin-port", str(free_port()), PORT=str(port)) as process:
        said = read_until(process, "admin")
        assert "writing 10,000 customers" in said
        assert "logged the credit model" in said
        assert get(f"http://127.0.0.1:{port}/orchestrator/credit_risk/predict/1001")["risk_tier"] == "low"


@pytest.mark.parametrize("listener", ["--port", "--admin-port"])
def test_a_port_that_is_taken_is_named_with_the_way_out(listener: str, workspace: Path) -> None:
    with closing(socket.socket()) as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        ports = {"--port": str(free_port()), "--admin-port": str(free_port()), listener: str(port)}
        with started(workspace, *(word for pair in ports.items() for word in pair)) as process:
            _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[0] == f"error: port {port} is taken by another program"
    assert "make demo PORT=8080" in said
