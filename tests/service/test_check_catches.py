"""`check` on the loan flow, with the plugins that it takes: what it says of a mistake in each of its parts, whole."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from orchestrator_core.testing import check_problems
from tests.faults.features import make

DOMAIN = """\
endpoints:
  predict:
    data_sources:
      - name: behavior_features
        type: feast
        operation: get_features
        params: {entity_id: "$request.path_params.entity_id"}
      - name: credit_data
        type: api
        source_id: credit_api
        operation: get_credit_score
        params: {applicant_id: "$request.path_params.entity_id"}
        transform:
          - scale: {score: {min: 300, max: 850}}
      - name: loan_prediction
        type: ml
        source_id: loan_model
        operation: predict
        params:
          features: {visits: "$behavior_features.visits", credit_score: "$credit_data.score"}
    response_mapping: {decision: "$loan_prediction.decision"}
"""
SOURCES = """\
feast:
  sources:
    default: {{repo_path: "{repository}", entity_key: customer_id}}
  operations:
    get_features: {{features: ["customer:visits"]}}
api:
  sources:
    credit_api:
      base_url: "http://127.0.0.1:9"
      operations:
        get_credit_score: {{path: "/scores/{{applicant_id}}", result: {{score: "$response.body.score"}}}}
ml:
  sources:
    loan_model:
      source: {{type: artifact, path: "{model}", model_root: /, outputs: {{decision: {{output: decision}}}}}}
"""


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real repository and a real model, which asks for `visits` and `credit_score`."""
    import onnx
    from onnx import TensorProto, helper

    folder = tmp_path_factory.mktemp("parts")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 1]) for name in ("visits", "credit_score")]
    output = helper.make_tensor_value_info("decision", TensorProto.FLOAT, [None, 1])
    node = helper.make_node("Add", ["visits", "credit_score"], ["decision"])
    graph = helper.make_graph([node], "loan", inputs, [output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    onnx.save(model, str(folder / "loan.onnx"))
    (folder / "repository").mkdir()
    make(folder / "repository", {"type": "sqlite", "path": "online.db"})
    return {"repository": folder / "repository", "model": folder / "loan.onnx"}


def said(parts: dict[str, Path], was: str = "", becomes: str = "") -> list[str]:
    """Return what `check` says after a part of the configuration was changed."""
    sources, domain = SOURCES.format(**parts), DOMAIN
    if was:
        assert (sources.count(was), domain.count(was)) in ((1, 0), (0, 1))
        sources, domain = sources.replace(was, becomes), domain.replace(was, becomes)
    return [str(each) for each in check_problems({"integrations/all.yaml": sources, "domains/loans.yaml": domain})]


def test_the_flow_as_it_should_be_has_no_problems(parts: dict[str, Path]) -> None:
    assert said(parts) == []


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        (
            '["customer:visits"]',
            '["customer:visists"]',
            """\
            integrations/all.yaml:5:41: ORC602 the feature view 'customer' has no feature 'visists'
                5 |     get_features: {features: ["customer:visists"]}
                  |                                         ^^^^^^^
                  = did you mean 'visits'?""",
        ),
        (
            '["customer:visits"]',
            '["custmer:visits"]',
            """\
            integrations/all.yaml:5:32: ORC602 there is no feature view 'custmer'
                5 |     get_features: {features: ["custmer:visits"]}
                  |                                ^^^^^^^
                  = did you mean 'customer'?""",
        ),
        (
            "operation: get_credit_score",
            "operation: get_credit_scor",
            """\
            domains/loans.yaml:11:20: ORC406 the source api.credit_api has no operation 'get_credit_scor'
               11 |         operation: get_credit_scor
                  |                    ^^^^^^^^^^^^^^^
                  = did you mean 'get_credit_score'?""",
        ),
        (
            ', credit_score: "$credit_data.score"}',
            "}",
            (
                "domains/loans.yaml:20:11: ORC412 ml.loan_model predict asks for 'credit_score' in features, "
                "which nobody fills\n"
                '   20 |           features: {visits: "$behavior_features.visits"}\n'
                "      |           ^^^^^^^^"
            ),
        ),
        (
            ', credit_score: "$credit',
            ', credit_scroe: "$credit',
            """\
            domains/loans.yaml:20:59: ORC412 ml.loan_model predict knows no 'credit_scroe' in features
               20 |           features: {visits: "$behavior_features.visits", credit_scroe: "$credit_data.score"}
                  |                                                           ^^^^^^^^^^^^
                  = did you mean 'credit_score'?""",
        ),
        (
            "scale: {score: {min: 300, max: 850}}",
            "scale: {score: {min: 300, mx: 850}}",
            """\
            domains/loans.yaml:14:39: ORC201 unknown key 'mx'
               14 |           - scale: {score: {min: 300, mx: 850}}
                  |                                       ^^
                  = did you mean 'max'?""",
        ),
        (
            "scale: {score: {min: 300, max: 850}}",
            "scal: {score: {min: 300, max: 850}}",
            """\
            domains/loans.yaml:14:13: ORC401 no installed plugin provides the transformer 'scal'
               14 |           - scal: {score: {min: 300, max: 850}}
                  |             ^^^^
                  = did you mean 'scale'?""",
        ),
        (
            "$behavior_features.visits",
            "$behavior_features.visit",
            """\
            domains/loans.yaml:20:31: ORC505 the step 'behavior_features' returns no field 'visit'
               20 |           features: {visits: "$behavior_features.visit", credit_score: "$credit_data.score"}
                  |                               ^^^^^^^^^^^^^^^^^^^^^^^^
                  = did you mean 'visits'?""",
        ),
    ],
)
def test_a_mistake_is_found_with_its_place_and_the_word_that_was_meant(
    parts: dict[str, Path], was: str, becomes: str, message: str
) -> None:
    assert said(parts, was, becomes) == [dedent(message)]


def test_all_mistakes_are_found_at_once(parts: dict[str, Path]) -> None:
    sources = SOURCES.format(**parts).replace("customer:visits", "customer:visists")
    domain = DOMAIN.replace("operation: get_credit_score", "operation: get_credit_scor").replace("min: 300", "mim: 300")
    found = check_problems({"integrations/all.yaml": sources, "domains/loans.yaml": domain})
    assert [f"{each.file}:{each.line} {each.code}" for each in found] == [
        "domains/loans.yaml:11 ORC406",
        "domains/loans.yaml:14 ORC201",
        "integrations/all.yaml:5 ORC602",
    ]
