"""What `check` says of features, keys and parameters: of the operation, and of the step that overrides it."""

from __future__ import annotations

from typing import Any

import orchestrator_source_feast.plugin as plugin
import pytest
from feast_kit import Made

from orchestrator_core.testing import check_problems

SOURCE = """
feast:
  sources:
    default:
      repo_path: "{folder}"
      entity_key: {entity_key}
      operations:
        get: {operation}
        bare: {{}}
"""
STEP = """
endpoints:
  predict:
    data_sources:
      - name: features
        type: feast
        operation: {operation}
        params: {params}
    response_mapping: {{answer: "{answer}"}}
"""
GOOD = '{features: ["customer:visits", "customer:tier"]}'
ENTITY = 'entity_id: "$request.path_params.entity_id"'


def told(
    made: Made,
    *,
    declared: str = GOOD,
    operation: str = "get",
    params: str = f"{{{ENTITY}}}",
    answer: str = "$features.tier",
    entity_key: str = "customer_id",
) -> list[tuple[str, str, str, str]]:
    """Return where each problem points, the text there, the message and the hint."""
    files = {
        "integrations/feast.yaml": SOURCE.format(folder=made.folder, operation=declared, entity_key=entity_key),
        "domains/shop.yaml": STEP.format(operation=operation, params=params, answer=answer),
    }
    return [
        (problem.path, problem.source_line[problem.column - 1 :][: problem.length], problem.message, problem.hint)
        for problem in check_problems(files, plugins={"feast": plugin})
    ]


def test_nothing_is_wrong_with_what_is_right(sqlite: Made) -> None:
    assert told(sqlite) == []
    override = f'{{{ENTITY}, feature_refs: ["customer:vip"]}}'
    assert told(sqlite, params=override, answer="$features.vip") == []
    assert told(sqlite, params=override, operation="undeclared", answer="$features.vip") == []
    service = "{feature_service: recommender}"
    assert told(sqlite, declared=service, params=f"{{{ENTITY}, merchant: shop}}", answer="$features.spent") == []


AT = "endpoints.predict.data_sources[0].params"
KNOWN = "expected one of: entity_id, feature_refs"
IN = "feast.sources.default.operations.get"


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        pytest.param(
            {"declared": '{features: ["customer:visits", "customer:purchase_histroy"]}', "answer": "$features.visits"},
            [
                (
                    f"{IN}.features[1]",
                    "purchase_histroy",
                    "the feature view 'customer' has no feature 'purchase_histroy'",
                    "did you mean 'purchase_history'?",
                )
            ],
            id="a feature of the operation that is not in the registry",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: ["customer:visits", "customer:purchase_histroy", "custmer:tier"]}}'},
            [
                (
                    f"{AT}.feature_refs[1]",
                    "purchase_histroy",
                    "the feature view 'customer' has no feature 'purchase_histroy'",
                    "did you mean 'purchase_history'?",
                ),
                (
                    f"{AT}.feature_refs[2]",
                    "custmer",
                    "there is no feature view 'custmer'",
                    "did you mean 'customer'?",
                ),
            ],
            id="features of the step that are not in the registry",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: ["customer.visits"]}}'},
            [
                (
                    f"{AT}.feature_refs[0]",
                    "customer.visits",
                    "'customer.visits' is not a feature reference; expected feature_view:feature",
                    "",
                )
            ],
            id="what is no reference",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: "customer:visits"}}'},
            [
                (
                    f"{AT}.feature_refs",
                    '"customer:visits"',
                    "parameter 'feature_refs' expected a list of feature references such as feature_view:feature",
                    "",
                )
            ],
            id="what is no list",
        ),
        pytest.param(
            {"declared": "{feature_service: recomender}", "answer": "x"},
            [
                (
                    f"{IN}.feature_service",
                    "recomender",
                    "there is no feature service 'recomender'",
                    "did you mean 'recommender'?",
                )
            ],
            id="an unknown feature service",
        ),
        pytest.param(
            {"declared": '{features: ["customer:tier"], entity_key: customr_id}', "params": "{}"},
            [
                (
                    f"{IN}.entity_key",
                    "customr_id",
                    "these features have no join key 'customr_id' (theirs: customer_id)",
                    "did you mean 'customer_id'?",
                ),
            ],
            id="an operation's wrong entity key",
        ),
        pytest.param(
            {"entity_key": "customr_id"},
            [
                (
                    "feast.sources.default.entity_key",
                    "customr_id",
                    "the registry has no join key 'customr_id'",
                    "did you mean 'customer_id'?",
                ),
            ],
            id="the source's wrong entity key",
        ),
        pytest.param(
            {"params": f"{{{ENTITY}, merchant: shop}}"},
            [(f"{AT}.merchant", "merchant", "feast.default get takes no parameter 'merchant'", KNOWN)],
            id="an unknown parameter",
        ),
        pytest.param(
            {"params": '{customer_id: "$request.path_params.entity_id"}'},
            [
                (AT, "params", "feast.default get needs the parameter 'entity_id'", ""),
                (
                    f"{AT}.customer_id",
                    "customer_id",
                    "feast.default get takes no parameter 'customer_id'",
                    "expected one of: entity_id",
                ),
            ],
            id="the join key's own name beside entity_id",
        ),
        pytest.param(
            {"declared": '{features: ["on_demand:per_visit", "spending:spent"]}', "answer": "$features.spent"},
            [
                (AT, "params", "feast.default get needs the parameter 'amount'", ""),
                (AT, "params", "feast.default get needs the parameter 'merchant'", ""),
            ],
            id="missing parameters",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: ["spending:spent"]}}', "answer": "$features.spent"},
            [(AT, "params", "feast.default get needs the parameter 'merchant'", "")],
            id="a join key that the step's features have",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: ["market:rate"]}}', "answer": "$features.rate"},
            [
                (
                    f"{AT}.entity_id",
                    '"$request.path_params.entity_id"',
                    "entity_id fills the join key 'customer_id', which these features do not have (theirs: none)",
                    "",
                )
            ],
            id="entity_id for features without that key",
        ),
        pytest.param(
            {"params": "{entity_id: ada}"},
            [(f"{AT}.entity_id", "ada", "parameter 'entity_id' expected integer, got 'ada'", "")],
            id="a constant of the wrong type",
        ),
        pytest.param(
            {"answer": "$features.visist"},
            [
                (
                    "endpoints.predict.response_mapping.answer",
                    "$features.visist",
                    "the step 'features' returns no field 'visist'",
                    "did you mean 'visits'?",
                )
            ],
            id="a field that does not come back",
        ),
        pytest.param(
            {"params": f'{{{ENTITY}, feature_refs: ["customer:vip"]}}', "answer": "$features.tier"},
            [
                (
                    "endpoints.predict.response_mapping.answer",
                    "$features.tier",
                    "the step 'features' returns no field 'tier'",
                    "expected one of: vip",
                )
            ],
            id="a field of the operation that the step's own features replace",
        ),
        pytest.param(
            {"operation": "gte"},
            [
                (
                    AT,
                    "params",
                    "this operation is not declared, so the parameter 'feature_refs' is needed",
                    "did you mean 'get'?",
                )
            ],
            id="an undeclared operation without features",
        ),
        pytest.param(
            {"operation": "bare"},
            [(AT, "params", "it declares no features, so the parameter 'feature_refs' is needed", "")],
            id="a declared operation without features",
        ),
    ],
)
def test_what_is_wrong_is_found_where_it_stands(
    sqlite: Made, given: dict[str, Any], problems: list[tuple[str, str, str, str]]
) -> None:
    assert told(sqlite, **given) == problems


def test_features_that_an_expression_names_are_not_known(sqlite: Made) -> None:
    assert told(sqlite, params=f'{{{ENTITY}, feature_refs: "$request.body.refs"}}', answer="$features.anything") == []
    inside = f'{{{ENTITY}, feature_refs: ["customer:teir", "$request.body.ref"]}}'
    assert told(sqlite, params=inside, answer="$features.anything") == []
