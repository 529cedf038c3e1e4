"""This service as a contestant: a configuration folder for each flow, served by the real command."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.bench.task import BEHAVIOR, BEHAVIOR_REFERENCES, FEATURES, POOL_SIZE, SELECT, Settings

DATABASE = """\
database:
  sources:
    default: {{connection_string: "{url}", pool_size: {pool_size}{off}}}
  operations:
    get_customer:
      query: "{select}:customer_id"
      params: {{customer_id: integer}}
"""

MODELS = {
    "onnx": """\
ml:
  sources:
    risk:{off_lines}
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
    risk:{off_lines}
      base_url: "{model_url}"
      models:
        default: {{endpoint: /predict, timeout: 10s}}
""",
}

API = """\
api:
  sources:
    bureau: {{base_url: "{api_url}", timeout: 10s{off}}}
  operations:
    get_report: {{path: "/reports/{{customer_id}}"}}
"""

FEAST = """\
feast:
  sources:
    default: {{repo_path: "{feast}", entity_key: customer_id{off}}}
  operations:
    get_behavior: {{features: [{features}]}}
"""

POLICIES_OFF = {"retry": "false", "circuit_breaker": "false"}
EXTRAS = {
    "": "server: {}\n",
    "lean": "logging: {requests: false}\ntelemetry: false\n",
    "full": "logging: {requests: false}\ntelemetry: {}\n"
    "tracking: {store: {type: sql, url: 'sqlite:///../executions.db'}}\n",
}
"""What config.yaml says: as it is by default, with nothing that can be left out, and with all that is there."""

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

OF_MANY = """\
endpoints:
  {flow}:
    input_schema: {{properties: {{entity_id: {{type: integer}}}}}}
    data_sources:
      - {{name: customer, type: database, operation: get_customer,
         params: {{customer_id: "$request.path_params.entity_id"}}}}
      - {{name: report, type: api, source_id: bureau, operation: get_report,
         params: {{customer_id: "$request.path_params.entity_id"}}}}
{behavior}\
      - {{name: risk, type: ml, source_id: risk, operation: predict,
         params: {{features: {features}}}}}
    response_mapping:
{mapping}"""

BEHAVIOR_STEP = """\
      - {name: behavior, type: feast, operation: get_behavior,
         params: {entity_id: "$request.path_params.entity_id"}}
"""

CACHED = """\
  cached:
    path: "/{entity_id}"
    data_sources:
      - {name: customer, type: database, operation: get_customer, cache: {ttl: 1h},
         params: {customer_id: "$request.path_params.entity_id"}}
    response_mapping: {entity_id: "$customer.customer_id"}
  kept:
    path: "/{entity_id}"
    cache: {ttl: 1h}
    data_sources:
      - {name: customer, type: database, operation: get_customer,
         params: {customer_id: "$request.path_params.entity_id"}}
    response_mapping: {entity_id: "$customer.customer_id"}
"""

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

MAPPING_REPORT = """\
      bureau_score: $report.score
      bureau_grade: $report.grade
"""

MAPPING_BEHAVIOR = """\
      payment_history: $behavior.payment_history
      tier: $behavior.tier
"""


def command(folder: Path, given: Settings, profile: Path | None = None, extras: str = "") -> list[str]:
    """Write the flow's configuration, with one of the ``EXTRAS``, and return the command that serves it."""
    write_configuration(folder, given, extras)
    profiler = ["-m", "cProfile", "-o", str(profile)] if profile else []
    return [
        *(sys.executable, *profiler, "-m", "orchestrator_core", "serve"),
        *("--config", str(folder), "--port", str(given.port), "--admin-port", "0"),
    ]


def write_configuration(folder: Path, given: Settings, extras: str = "") -> None:
    (folder / "domains").mkdir(parents=True)
    (folder / "integrations").mkdir()
    (folder / "config.yaml").write_text(EXTRAS[extras])
    (folder / "domains" / "bench.yaml").write_text(endpoints(given.flow))
    if given.flow in ("noop", "engine"):
        return
    policies = POLICIES_OFF if extras == "lean" else {}
    off = "".join(f", {name}: {value}" for name, value in policies.items())
    off_lines = "".join(f"\n      {name}: {value}" for name, value in policies.items())
    url = f"sqlite:///{given.sqlite}" if given.flow in ("sqlite", "cached") else given.postgresql
    (folder / "database.yaml").write_text(DATABASE.format(url=url, pool_size=POOL_SIZE, select=SELECT, off=off))
    if given.flow == "cached":
        return
    model = MODELS["onnx" if given.flow in ("sqlite", "postgresql") else "http"]
    link = folder / "model.onnx"
    if given.flow in ("sqlite", "postgresql"):
        link.write_bytes(Path(given.model).read_bytes())
    if given.kind in ("multi", "loan"):
        (folder / "integrations" / "api.yaml").write_text(API.format(api_url=given.api_url, off=off))
    if given.kind == "loan":
        text = FEAST.format(feast=given.feast, features=", ".join(BEHAVIOR_REFERENCES), off=off)
        (folder / "integrations" / "feast.yaml").write_text(text)
    (folder / "integrations" / "ml.yaml").write_text(
        model.format(model=link.name, features=", ".join(FEATURES), model_url=given.model_url, off_lines=off_lines)
    )


def endpoints(flow: str) -> str:
    if flow == "noop":
        return NOOP
    if flow == "cached":
        return NOOP + CACHED
    if flow == "engine":
        return INSTANT.format(mapping=MAPPING)
    by_name = ", ".join(f"{name}: $customer.{name}" for name in FEATURES)
    kind = flow.removesuffix("_slow")
    if kind in ("multi", "loan"):
        by_name += ", bureau_score: $report.score, utilization: $report.utilization"
        mapping, behavior = MAPPING + MAPPING_REPORT, ""
        if kind == "loan":
            by_name += "".join(f", {name}: $behavior.{name}" for name in BEHAVIOR)
            mapping, behavior = mapping + MAPPING_BEHAVIOR, BEHAVIOR_STEP
        return OF_MANY.format(flow=flow, behavior=behavior, features=f"{{{by_name}}}", mapping=mapping)
    features = f"{{{by_name}}}" if flow == "http" else "$customer"
    return SCORING.format(flow=flow, features=features, mapping=MAPPING)
