"""What the example answers: the story of its named customers, and the three fetches that overlap."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import combinations
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from example import places
from orchestrator_core.testing.pytest_plugin import Served, serving
from tests.example.commands import import_feast
from tests.example.demo import wait_until
from tests.example.workspace import servers

pytestmark = pytest.mark.filterwarnings("ignore")  # Feast and what it imports warn of their own affairs

FETCHES = ("applicant", "behavior_features", "credit_data")
PARTNER_SECONDS = 0.3


@pytest.fixture(scope="module", autouse=True)
def feast_is_imported() -> None:
    import_feast()


@contextmanager
def served(workspace: Path, environment: Mapping[str, str]) -> Iterator[Served]:
    with serving() as serve, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        service = serve({}, folder=workspace / "example" / "config")
        wait_until(lambda: service.get("/health/ready").status == 200)  # with its models, which take their time
        yield service


@pytest.fixture(scope="module")
def example(workspace: Path, environment: Mapping[str, str]) -> Iterator[Served]:
    """The example, served on free ports."""
    with served(workspace, environment) as service:
        yield service


def predict(example: Served, domain: str, customer_id: object) -> Any:
    answer = example.get(f"/orchestrator/{domain}/predict/{customer_id}")
    assert answer.status == 200, answer.json
    return answer.json


def record_of(example: Served, headers: Mapping[str, str]) -> Any:
    return example.admin("GET", f"/executions/{headers['X-Execution-Id']}").json


# --- the story -----------------------------------------------------------------------------------------------------

RISKS = {
    1001: (0.0027, "low"),
    1002: (0.0595, "low"),
    1003: (0.2846, "medium"),
    1004: (0.5864, "high"),
    1005: (0.8849, "high"),
    1007: (0.1107, "low"),
}
CHURN = {
    1001: (0.0102, "low"),
    1002: (0.4448, "medium"),
    1003: (0.9039, "high"),
    1004: (0.3036, "medium"),
    1005: (0.0484, "low"),
    1006: (0.923, "high"),
    1007: (0.71, "high"),
}
RECOMMENDED = {
    1001: (["milk frother", "kettle", "kitchen scale"], [0.418, 0.402, 0.352]),
    1002: (["watering can", "hose reel", "raised bed"], [0.417, 0.396, 0.351]),
    1003: (["hammock", "camping stove", "headlamp"], [0.25, 0.239, 0.2]),
    1004: (["phono cable", "record brush", "speaker stands"], [0.477, 0.474, 0.35]),
    1005: (["raised bed", "espresso machine", "rose shears"], [0.205, 0.199, 0.198]),
    1006: (["tent", "camping stove", "sleeping bag"], [0.408, 0.395, 0.337]),
}
LOANS = {
    1001: (0.9997, "approved", 4.25),
    1002: (0.0656, "refused", 11.9),
    1003: (0.9017, "approved", 8.1),
    1004: (0.6177, "review", 9.35),
    1005: (0.0011, "refused", 14.65),
}


@pytest.mark.parametrize("customer_id", RISKS)
def test_credit_risk_comes_from_the_database(customer_id: int, example: Served) -> None:
    score, tier = RISKS[customer_id]
    assert predict(example, "credit_risk", customer_id) == {
        "customer_id": customer_id,
        "risk_score": pytest.approx(score, abs=0.00006),
        "risk_tier": tier,
    }


@pytest.mark.parametrize("customer_id", CHURN)
def test_churn_comes_from_the_partner(customer_id: int, example: Served) -> None:
    probability, level = CHURN[customer_id]
    assert predict(example, "churn", customer_id) == {
        "customer_id": customer_id,
        "churn_probability": probability,
        "risk_level": level,
    }


@pytest.mark.parametrize("customer_id", RECOMMENDED)
def test_recommendations_come_from_the_feature_store(customer_id: int, example: Served) -> None:
    products, scores = RECOMMENDED[customer_id]
    assert predict(example, "recommendations", customer_id) == {
        "customer_id": customer_id,
        "recommendations": products,
        "relevance_scores": scores,
    }


@pytest.mark.parametrize("customer_id", LOANS)
def test_a_loan_is_decided_by_all_three(customer_id: int, example: Served) -> None:
    probability, decision, rate = LOANS[customer_id]
    assert predict(example, "loan_approval", customer_id) == {
        "applicant_id": customer_id,
        "approval_probability": probability,
        "decision": decision,
        "suggested_interest_rate": rate,
    }


def test_the_named_customers_come_to_every_outcome() -> None:
    assert {tier for _, tier in RISKS.values()} == {"low", "medium", "high"}
    assert {level for _, level in CHURN.values()} == {"low", "medium", "high"}
    assert {decision for _, decision, _ in LOANS.values()} == {"approved", "review", "refused"}
    assert len({products[0] for products, _ in RECOMMENDED.values()}) == len(RECOMMENDED)
    rates = [rate for _, decision, rate in LOANS.values() if decision == "approved"]
    assert max(rates) - min(rates) > 3


def test_a_generated_customer_is_answered_by_all_four(example: Served) -> None:
    keys = {"credit_risk": "customer_id", "churn": "customer_id", "recommendations": "customer_id"}
    for domain, key in {**keys, "loan_approval": "applicant_id"}.items():
        assert predict(example, domain, 11_000)[key] == 11_000


# --- what cannot be answered ---------------------------------------------------------------------------------------

UNKNOWN = {
    "credit_risk": ("customer_data", "get_customer: nothing found for customer_id=99"),
    "churn": ("customer_profile", "get_customer_profile: nothing found for customer_id=99"),
    "recommendations": (
        "customer_features",
        "get_customer_features: there is no customer_id=99 in feature view 'customer' of the online store",
    ),
}


@pytest.mark.parametrize("domain", UNKNOWN)
def test_an_unknown_customer_is_not_found_and_the_step_is_named(domain: str, example: Served) -> None:
    answer = example.get(f"/orchestrator/{domain}/predict/99")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    step, reason = UNKNOWN[domain]
    assert (answer.json["step"], answer.json["detail"]) == (step, f"step '{step}': {reason}")


def test_an_unknown_applicant_is_not_found_by_whichever_fetch_is_first(example: Served) -> None:
    answer = example.get("/orchestrator/loan_approval/predict/99")
    assert (answer.status, answer.json["title"]) == (404, "not found")
    assert answer.json["step"] in FETCHES
    assert "99" in answer.json["detail"]


@pytest.mark.parametrize(
    ("domain", "step"), [("recommendations", "customer_features"), ("loan_approval", "behavior_features")]
)
def test_a_customer_who_is_not_in_the_feature_store_is_not_scored(domain: str, step: str, example: Served) -> None:
    answer = example.get(f"/orchestrator/{domain}/predict/1007")
    assert (answer.status, answer.json["step"]) == (404, step)
    assert "there is no customer_id=1007 in feature view" in answer.json["detail"]


@pytest.mark.parametrize(("domain", "step"), [("credit_risk", "risk_prediction"), ("loan_approval", "loan_prediction")])
def test_a_customer_whose_income_is_not_known_gets_no_score(domain: str, step: str, example: Served) -> None:
    answer = example.get(f"/orchestrator/{domain}/predict/1006")
    assert (answer.status, answer.json["step"]) == (502, step)
    assert answer.json["detail"] == f"step '{step}': feature 'income' must be a number, got null"


@pytest.mark.parametrize("domain", ["credit_risk", "churn", "recommendations", "loan_approval"])
def test_a_customer_number_that_is_none_is_refused(domain: str, example: Served) -> None:
    answer = example.get(f"/orchestrator/{domain}/predict/ada")
    assert (answer.status, [error["pointer"] for error in answer.json["errors"]]) == (422, ["/entity_id"])


def test_the_bureau_refuses_who_has_no_token(workspace: Path, environment: Mapping[str, str]) -> None:
    with served(workspace, {**environment, "CREDIT_TOKEN": "another-token"}) as example:
        answer = example.get("/orchestrator/loan_approval/predict/1001")
        assert (answer.status, answer.json["step"]) == (502, "credit_data")
        assert "401" in answer.json["detail"]
        assert "another-token" not in str(answer)


# --- what is told of an answer -------------------------------------------------------------------------------------


def test_the_answer_carries_the_time_of_each_step(example: Served) -> None:
    answer = example.get("/orchestrator/loan_approval/predict/1001")
    metrics = re.findall(r"(\w+);dur=(\d+\.\d+)", answer.headers["Server-Timing"])
    assert [name for name, _ in metrics] == [*FETCHES, "loan_prediction", "engine"]
    assert all(0 < float(milliseconds) < 5000 for _, milliseconds in metrics)


def test_the_execution_record_names_the_model(example: Served, workspace: Path) -> None:
    answer = example.get("/orchestrator/credit_risk/predict/1001")
    record = record_of(example, answer.headers)
    assert [(step["name"], step["status"]) for step in record["steps"]] == [
        ("customer_data", "ok"),
        ("risk_prediction", "ok"),
    ]
    (model,) = record["models"]
    described = (workspace / "example" / places.CREDIT_MODEL / "MLmodel").read_text()
    version = re.search(r"^model_uuid: (\w+)$", described, re.M)
    assert version is not None
    assert model["version"] == version[1]
    assert re.fullmatch("sha256:[0-9a-f]{64}", model["digest"])


def test_the_openapi_document_has_the_endpoints(example: Served) -> None:
    paths = example.get("/openapi.json").json["paths"]
    for domain in ("churn", "credit_risk", "loan_approval", "recommendations"):
        operation = paths[f"/orchestrator/{domain}/predict/{{entity_id}}"]["get"]
        assert operation["summary"] or operation["description"]
        (parameter,) = (each for each in operation["parameters"] if each["in"] == "path")
        assert (parameter["name"], parameter["schema"]["type"]) == ("entity_id", "integer")


# --- the three fetches at once -------------------------------------------------------------------------------------


def test_the_three_fetches_overlap_and_the_slowest_decides(workspace: Path) -> None:
    """Each backend is held up: the partner by its option, the two SQLite files by a lock until it is under way."""
    stores = [workspace / "example" / part for part in (places.DATABASE, places.ONLINE_STORE)]
    with servers(workspace, "--delay", str(PARTNER_SECONDS)) as environment, served(workspace, environment) as example:
        predict(example, "loan_approval", 1001)
        with locked(stores, seconds=PARTNER_SECONDS / 2):
            answer = example.get("/orchestrator/loan_approval/predict/1003")
        record = record_of(example, answer.headers)
    assert answer.json["decision"] == "approved"
    steps = {step["name"]: (step["start_ms"], step["start_ms"] + step["duration_ms"]) for step in record["steps"]}
    for (one_start, one_end), (other_start, other_end) in combinations([steps[name] for name in FETCHES], 2):
        assert max(one_start, other_start) < min(one_end, other_end)
    assert steps["loan_prediction"][0] >= max(steps[name][1] for name in FETCHES)
    timing = {
        name: float(milliseconds)
        for name, milliseconds in re.findall(r"(\w+);dur=(\d+\.\d+)", answer.headers["Server-Timing"])
    }
    slowest = max(timing[name] for name in FETCHES)
    assert slowest >= PARTNER_SECONDS * 1000
    assert record["duration_ms"] < sum(timing[name] for name in FETCHES)
    beyond = record["duration_ms"] - slowest - timing["loan_prediction"]
    assert beyond < min(timing[name] for name in FETCHES)


@contextmanager
def locked(databases: list[Path], seconds: float) -> Iterator[None]:
    """Keep readers out of SQLite databases for some time, or until the block is left."""
    with ExitStack() as stack:
        connections = []
        for database in databases:
            connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
            stack.callback(connection.close)
            connection.execute("BEGIN EXCLUSIVE")
            connections.append(connection)
        timer = Timer(seconds, lambda: [connection.rollback() for connection in connections])
        timer.start()
        stack.callback(timer.join)
        yield
