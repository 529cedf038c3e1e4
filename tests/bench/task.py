"""What every contestant has to do: the request, the query, the features and the answer's dozen fields."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from attrs import asdict, frozen

FEATURES = (
    "age",
    "annual_income",
    "credit_score",
    "debt_ratio",
    "loan_amount",
    "months_employed",
    "open_accounts",
    "late_payments",
)
COLUMNS = ("customer_id", "segment", "region", *FEATURES)
BEHAVIOR = ("payment_history", "monthly_spend", "logins", "tier")
BEHAVIOR_VIEW = "behavior"
BEHAVIOR_REFERENCES = [f"{BEHAVIOR_VIEW}:{name}" for name in BEHAVIOR]
SLOW_API_SECONDS, SLOW_MODEL_SECONDS = 0.010, 0.020
SELECT = f"SELECT {', '.join(COLUMNS)} FROM customers WHERE customer_id = "
POOL_SIZE = 10
TIMEOUT_SECONDS = 10.0


@frozen
class Settings:
    """What a contestant is told: the flow it is to serve, and where its backends are."""

    flow: str
    port: int
    sqlite: str = ""
    postgresql: str = ""
    model: str = ""
    model_url: str = ""
    api_url: str = ""
    feast: str = ""

    @property
    def kind(self) -> str:
        """The flow without regard to how fast its backends are."""
        return self.flow.removesuffix("_slow")

    def to_argument(self) -> str:
        return json.dumps(asdict(self))


def settings() -> Settings:
    """Read the settings from the command line."""
    return Settings(**json.loads(sys.argv[1]))


def path(flow: str) -> str:
    return f"/orchestrator/bench/{flow}/"


def answer(customer: Mapping[str, Any], score: float, label: int) -> dict[str, Any]:
    """Return the answer of the flows that score a customer."""
    return {
        "customer_id": customer["customer_id"],
        "segment": customer["segment"],
        "region": customer["region"],
        "age": customer["age"],
        "annual_income": customer["annual_income"],
        "credit_score": customer["credit_score"],
        "debt_ratio": customer["debt_ratio"],
        "loan_amount": customer["loan_amount"],
        "score": score,
        "label": label,
        "band": "low" if score < 0.2 else "medium" if score < 0.5 else "high",
        "decision": "approve" if score < 0.5 else "refer",
    }


def answer_of_many(
    customer: Mapping[str, Any], report: Mapping[str, Any], score: float, label: int, behavior: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the answer of the flows that ask an API too; ``behavior`` is empty in the one without a feature store."""
    return {
        **answer(customer, score, label),
        "bureau_score": report["score"],
        "bureau_grade": report["grade"],
        **{name: behavior[name] for name in ("payment_history", "tier") if behavior},
    }
