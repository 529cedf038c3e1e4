"""The commands on the example: clean as it is, and each mistake found before anything is served."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from click.testing import Result

from tests.example.commands import run_here
from tests.example.workspace import ENVIRONMENT, ROOT

DOMAINS = ("churn", "credit_risk", "loan_approval", "recommendations")


def orchestrator(folder: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Result:
    return run_here(folder, arguments, {**ENVIRONMENT, **(environment or {})})


def test_the_configuration_is_clean(workspace: Path, environment: Mapping[str, str]) -> None:
    """In a process of its own, as a user runs it."""
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator_core", "check", "--config", "example/config"],
        cwd=workspace, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert done.stdout.startswith("example/config: 9 endpoints, 11 sources: no problems (")


def test_offline_it_is_clean_with_nothing_built_and_nothing_running(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "example" / "config", tmp_path / "example" / "config")
    done = orchestrator(tmp_path, "check", "--offline", "--config", "example/config")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("example/config: 9 endpoints, 11 sources: no problems (")


def test_a_model_server_that_is_down_is_named_with_its_address(workspace: Path) -> None:
    done = orchestrator(workspace, "check", "--config", "example/config", environment={"MODELS_PORT": "1"})
    assert done.exit_code == 1
    found = re.findall(r"^(\S+?):\d+:\d+: (ORC\d+) (\S+ cannot be reached: GET \S+)", done.stdout, re.MULTILINE)
    models = "example/config/integrations/models.yaml"
    strategies = "example/config/integrations/credit_strategies.yaml"
    assert found == [
        (strategies, "ORC604", "ml.credit_http cannot be reached: GET http://127.0.0.1:1/health:"),
        (models, "ORC604", "ml.churn_model cannot be reached: GET http://127.0.0.1:1/health:"),
        (models, "ORC604", "ml.recommender_model cannot be reached: GET http://127.0.0.1:1/health:"),
    ]
    assert done.stdout.endswith("3 problems in 2 files\n")


def test_a_partner_that_is_down_fails_the_step_that_asks_it(workspace: Path) -> None:
    arguments = ("run", "churn.predict", "--config", "example/config", "--path-param", "entity_id=1003")
    done = orchestrator(workspace, *arguments, environment={"PARTNER_PORT": "1"})
    assert done.exit_code == 1
    problem = yaml.safe_load(done.stdout)
    assert (problem["status"], problem["step"]) == (502, "customer_profile")
    assert "cannot connect" in problem["detail"]


def test_the_loan_flow_is_drawn(workspace: Path) -> None:
    done = orchestrator(workspace, "plan", "loan_approval.predict", "--config", "example/config", "--format", "mermaid")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == (
        "flowchart TD\n"
        '    request(["GET POST /orchestrator/loan_approval/predict[/{entity_id}]"])\n'
        '    s0["applicant<br/>database.default get_applicant"]\n'
        '    s1["behavior_features<br/>feast.default get_features"]\n'
        '    s2["credit_data<br/>api.credit_api get_credit_score"]\n'
        '    s3["loan_prediction<br/>ml.loan_model predict"]\n'
        '    answer(["answer"])\n'
        "    request --> s0\n"
        "    request --> s1\n"
        "    request --> s2\n"
        "    s0 --> s3\n"
        "    s1 --> s3\n"
        "    s2 --> s3\n"
        "    s0 --> answer\n"
        "    s3 --> answer\n"
    )


def test_the_readme_shows_the_endpoints_as_they_are() -> None:
    shown = {}
    for page in ("README.md", "example/README.md"):
        for text in re.findall(r"^```yaml\n(endpoints:.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            endpoint = yaml.safe_load(text)["endpoints"]["predict"]
            shown[endpoint["description"]] = endpoint
    for domain in DOMAINS:
        file = ROOT / "example" / "config" / "domains" / f"{domain}.yaml"
        endpoint = yaml.safe_load(file.read_text())["endpoints"]["predict"]
        assert endpoint.pop("input_schema")
        assert shown.pop(endpoint["description"]) == endpoint
    assert shown == {}


# --- mistakes ------------------------------------------------------------------------------------------------------

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
    ("database.yaml", "credit_score, annual_income", "credit_score, anual_income"): """
        example/config/database.yaml:12:49: ORC602 there is no column 'anual_income' in customers
           12 |         SELECT customer_id, name, credit_score, anual_income
              |                                                 ^^^^^^^^^^^^
              = did you mean 'annual_income'?
        """,
    ("integrations/feast.yaml", "behavior:payment_history", "behavior:payment_histry"): """
        example/config/integrations/feast.yaml:10:45: ORC602 the feature view 'behavior' has no feature 'payment_histry'
           10 |         get_features: {features: ["behavior:payment_histry"]}
              |                                             ^^^^^^^^^^^^^^
              = did you mean 'payment_history'?
        """,
    ("integrations/feast.yaml", "behavior:payment_history", "behaviour:payment_history"): """
        example/config/integrations/feast.yaml:10:36: ORC602 there is no feature view 'behaviour'
           10 |         get_features: {features: ["behaviour:payment_history"]}
              |                                    ^^^^^^^^^
              = did you mean 'behavior'?
        """,
    ("domains/loan_approval.yaml", "operation: get_credit_score", "operation: get_credit_scores"): """
        example/config/domains/loan_approval.yaml:34:20: ORC406 the source api.credit_api has no operation 'get_credit_scores'
           34 |         operation: get_credit_scores
              |                    ^^^^^^^^^^^^^^^^^
              = did you mean 'get_credit_score'?
        """,  # noqa: E501
    ("domains/loan_approval.yaml", '            age: "$applicant.age"\n', ""): """
        example/config/domains/loan_approval.yaml:44:11: ORC412 ml.loan_model predict asks for 'age' in features, which nobody fills
           44 |           features:
              |           ^^^^^^^^
        """,  # noqa: E501
    ("domains/loan_approval.yaml", "$credit_data.score", "$credit_data.scroe"): """
        example/config/domains/loan_approval.yaml:48:28: ORC505 the step 'credit_data' returns no field 'scroe'
           48 |             credit_score: "$credit_data.scroe"
              |                            ^^^^^^^^^^^^^^^^^^
              = did you mean 'score'?
        """,
    (
        "domains/churn.yaml",
        "    response_mapping:",
        "    transform: [scale: {churn_probability: {factr: 100}}]\n    response_mapping:",
    ): """
        example/config/domains/churn.yaml:31:45: ORC201 unknown key 'factr'
           31 |     transform: [scale: {churn_probability: {factr: 100}}]
              |                                             ^^^^^
              = did you mean 'factor'?
        """,
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake[2].strip()[:40] or "left out")
def test_a_mistake_is_caught_before_anything_is_served(
    mistake: tuple[str, str, str], workspace: Path, environment: Mapping[str, str], tmp_path: Path
) -> None:
    file, right, wrong = mistake
    shutil.copytree(workspace / "example", tmp_path / "example")
    path = tmp_path / "example/config" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong, 1))
    done = orchestrator(tmp_path, "check", "--config", "example/config", environment=environment)
    assert done.stdout == dedent(MISTAKES[mistake]).lstrip("\n") + "1 problem in 1 file\n"
    assert done.exit_code == 1
