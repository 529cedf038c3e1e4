"""This service as a contestant: a configuration folder for each flow, served by the real command."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.task import FEATURES, POOL_SIZE, SELECT, Settings

DATABASE = """\
database:
  sources:
    default: {{connection_string: "{url}", pool_size: {pool_size}}}
  operations:
    get_customer:
      query: "{select}:customer_id"
      params: {{customer_id: integer}}
"""

MODELS = {
    "onnx": """\
ml:
  sources:
    risk:
      source:
        type: artifact
        path: {model}
        model_root: .
        features: [{features}]
        outputs: {{score: probability, label: label}}
""",
    "http": """\
ml:
  sources:
    risk:
      base_url: "{model_url}"
      models:
        default: {{endpoint: /predict, timeout: 10s}}
""",
}

NOOP = """\
endpoints:
  noop:
    path: "/{entity_id}"
    response_mapping: {entity_id: "$request.path_params.entity_id"}
"""

SCORING = """\
endpoints:
  {flow}:
    data_sources:
      - {{name: customer, type: database, operation: get_customer,
         params: {{customer_id: "$request.path_params.entity_id"}}}}
      - {{name: risk, type: ml, source_id: risk, operation: predict,
         params: {{features: {features}}}}}
    response_mapping:
{mapping}"""

INSTANT = """\
endpoints:
  engine:
    data_sources:
      - name: customer
        type: direct
        params:
          {{customer_id: "$request.path_params.entity_id", segment: retail, region: north, age: 41,
           annual_income: 51200.5, credit_score: 640, debt_ratio: 0.31, loan_amount: 12000.0}}
      - name: risk
        type: direct
        params: {{score: 0.25, label: 0, credit_score: "$customer.credit_score", debt_ratio: "$customer.debt_ratio"}}
    response_mapping:
{mapping}"""

MAPPING = """\
      customer_id: $customer.customer_id
      segment: $customer.segment
      region: $customer.region
      age: $customer.age
      annual_income: $customer.annual_income
      credit_score: $customer.credit_score
      debt_ratio: $customer.debt_ratio
      loan_amount: $customer.loan_amount
      score: $risk.score
      label: $risk.label
      band: "$risk.score < 0.2 ? 'low' : $risk.score < 0.5 ? 'medium' : 'high'"
      decision: "$risk.score < 0.5 ? 'approve' : 'refer'"
"""


def command(folder: Path, given: Settings, profile: Path | None = None) -> list[str]:
    """Write the flow's configuration and return the command that serves it."""
    write_configuration(folder, given)
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    return [
        *(sys.executable, *profiler, "-m", "orchestrator_core", "serve"),
        *("--config", str(folder), "--port", str(given.port), "--admin-port", "0"),
    ]


def write_configuration(folder: Path, given: Settings) -> None:
    (folder / "domains").mkdir(parents=True)
    (folder / "integrations").mkdir()
    (folder / "config.yaml").write_text("server: {}\n")
    (folder / "domains" / "bench.yaml").write_text(endpoints(given.flow))
    if given.flow in ("noop", "engine"):
        return
    url = f"sqlite:///{given.sqlite}" if given.flow == "sqlite" else given.postgresql
    (folder / "database.yaml").write_text(DATABASE.format(url=url, pool_size=POOL_SIZE, select=SELECT))
    model = MODELS["http" if given.flow == "http" else "onnx"]
    link = folder / "model.onnx"
    if given.flow != "http":
        link.write_bytes(Path(given.model).read_bytes())
    (folder / "integrations" / "ml.yaml").write_text(
        model.format(model=link.name, features=", ".join(FEATURES), model_url=given.model_url)
    )


def endpoints(flow: str) -> str:
    if flow == "noop":
        return NOOP
    if flow == "engine":
        return INSTANT.format(mapping=MAPPING)
    by_name = ", ".join(f"{name}: $customer.{name}" for name in FEATURES)
    features = f"{{{by_name}}}" if flow == "http" else "$customer"
    return SCORING.format(flow=flow, features=features, mapping=MAPPING)
