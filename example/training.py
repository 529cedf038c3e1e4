"""The example's models, learned from what became of the generated customers.

========== ================================== ==============================================
credit     an MLflow model folder             scored in the service, by scikit-learn
the same   numbers in a JSON file             scored by ``credit``, behind HTTP and in containers
loan       an ONNX file with two outputs      scored in the service, by onnxruntime
churn      numbers in a JSON file             scored by ``model_server``, behind HTTP
recommender counts in a JSON file             the same
========== ================================== ==============================================

Nothing here is imported by what serves.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from example.people import CATALOGUE
from example.tables import People

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

CREATED = "2026-01-01 00:00:00"  # what the credit model says of itself: it is the same whenever it is built
CREDIT_FEATURES = ("credit_score", "income")
LOAN_FEATURES = ("age", "income", "payment_history", "credit_score")
CHURN_FEATURES = ("tenure", "monthly_charges")
CHURN_TIERS = {"low": 0.25, "medium": 0.6, "high": 1.0}
LOWEST_RATE, HIGHEST_RATE = 1.9, 24.9
RATE_STEPS = 20  # in a percent: rates are quoted in steps of 0.05
DIGITS = 10_000.0  # a probability is told to four digits
OPSET, IR_VERSION = 17, 8  # old enough for every onnxruntime that the plugin takes


# --- credit: MLflow -------------------------------------------------------------------------------------------------


def log_credit_model(people: People, folder: Path, mlflow: Any, pandas: Any, made_by: str) -> Pipeline:
    """Learn how likely a default is, log the model with its signature and an input example, and return it."""
    rows = [(who.credit_score, who.annual_income, past.defaulted) for who, past in people if past]
    history = pandas.DataFrame(rows, columns=["credit_score", "income", "defaulted"])
    history = history.astype({"income": float, "defaulted": int})
    features = history[list(CREDIT_FEATURES)]
    model = _classifier(features, history["defaulted"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns of its own type hints
        mlflow.sklearn.save_model(
            model,
            folder,
            serialization_format="skops",  # loads without running code, unlike a pickle
            signature=_credit_signature(),
            input_example=features.head(5),
            pip_requirements=[f"{package}=={version(package)}" for package in ("scikit-learn", "skops")],
            mlflow_model=mlflow.models.Model(utc_time_created=CREATED, model_uuid=made_by[:32]),
        )
    return model


def write_credit_weights(model: Pipeline, path: Path) -> None:
    """Write the numbers of the credit model: the same model for a server that has no scikit-learn."""
    weights, intercept = _linear(model)
    numbers = {"weights": dict(zip(CREDIT_FEATURES, weights, strict=True)), "intercept": intercept}
    path.write_text(json.dumps(numbers, indent=1) + "\n")


def _classifier(features: Any, happened: Any) -> Pipeline:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(features, happened)


def _credit_signature() -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    inputs = Schema([ColSpec("long", "credit_score"), ColSpec("double", "income")])
    return ModelSignature(inputs, Schema([ColSpec("long", "defaulted")]))


# --- loans: ONNX ----------------------------------------------------------------------------------------------------


def export_loan_model(people: People, path: Path) -> None:
    """Learn which applications were granted, and at which rate; write both as one ONNX model."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper
    from sklearn.linear_model import LinearRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = [
        ((who.age, who.annual_income, who.payment_history, who.bureau_score), past.granted, past.interest_rate)
        for who, past in people
        if past
    ]
    features = np.array([row for row, _, _ in rows], dtype=float)
    granted = np.array([was for _, was, _ in rows])
    rates = np.array([rate for _, _, rate in rows if rate is not None])
    approval = _linear(_classifier(features, granted))
    rate = _linear(make_pipeline(StandardScaler(), LinearRegression()).fit(features[granted], rates))

    def constant(name: str, values: Any) -> Any:
        array = np.array(values, dtype=float)
        return helper.make_tensor(name, TensorProto.DOUBLE, array.shape, array.ravel())

    def column(name: str) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.DOUBLE, ["rows", 1])

    constants = {
        "approval_weights": [[weight] for weight in approval[0]],
        "approval_intercept": [approval[1]],
        "rate_weights": [[weight] for weight in rate[0]],
        "rate_intercept": [rate[1]],
        "digits": DIGITS,
        "rate_steps": RATE_STEPS,
        "lowest": LOWEST_RATE,
        "highest": HIGHEST_RATE,
    }
    nodes = [
        helper.make_node("Concat", LOAN_FEATURES, ["features"], axis=1),
        helper.make_node("MatMul", ["features", "approval_weights"], ["weighed"]),
        helper.make_node("Add", ["weighed", "approval_intercept"], ["odds"]),
        helper.make_node("Sigmoid", ["odds"], ["chance"]),
        *_rounded(helper, "chance", "digits", "probability"),
        helper.make_node("MatMul", ["features", "rate_weights"], ["weighed_rate"]),
        helper.make_node("Add", ["weighed_rate", "rate_intercept"], ["any_rate"]),
        helper.make_node("Clip", ["any_rate", "lowest", "highest"], ["rate"]),
        *_rounded(helper, "rate", "rate_steps", "interest_rate"),
    ]
    graph = helper.make_graph(
        nodes,
        "loan_approval",
        [column(name) for name in LOAN_FEATURES],
        [column("probability"), column("interest_rate")],
        [constant(name, values) for name, values in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=IR_VERSION, model_version=1)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def _linear(model: Pipeline) -> tuple[list[float], float]:
    """Return weights and intercept of a scaler and a linear model as one."""
    scaler, linear = (step for _, step in model.steps)
    weights = linear.coef_.ravel() / scaler.scale_
    intercept = float(linear.intercept_.item() if hasattr(linear.intercept_, "item") else linear.intercept_)
    return [float(weight) for weight in weights], intercept - float(weights @ scaler.mean_)


def _rounded(helper: Any, value: str, steps: str, result: str) -> list[Any]:
    return [
        helper.make_node("Mul", [value, steps], [f"{value}_in_steps"]),
        helper.make_node("Round", [f"{value}_in_steps"], [f"{value}_in_whole_steps"]),
        helper.make_node("Div", [f"{value}_in_whole_steps", steps], [result]),
    ]


# --- churn and recommendations: JSON for the model server ----------------------------------------------------------


def write_churn_model(people: People, path: Path) -> None:
    """Learn who leaves."""
    import numpy as np

    features = np.array([(who.tenure, who.monthly_charges) for who, past in people if past], dtype=float)
    weights, intercept = _linear(_classifier(features, [past.churned for _, past in people if past]))
    model = {"weights": dict(zip(CHURN_FEATURES, weights, strict=True)), "intercept": intercept, "tiers": CHURN_TIERS}
    path.write_text(json.dumps(model, indent=1) + "\n")


def write_recommender(people: People, path: Path) -> None:
    """Count what was bought together: for each product the share of its buyers who also bought another."""
    baskets = [who.purchases for who, past in people if past]
    bought = Counter(product for basket in baskets for product in basket)
    pairs = Counter((a, b) for basket in baskets for a in basket for b in basket if a != b)
    model = {
        "categories": {product: category for category, products in CATALOGUE.items() for product in products},
        "also_bought": {
            product: {other: round(pairs[product, other] / bought[product], 4) for other in bought if other != product}
            for product in sorted(bought)
        },
    }
    path.write_text(json.dumps(model, indent=1, sort_keys=True) + "\n")
