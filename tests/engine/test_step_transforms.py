"""Transformers on a step's parameters and on its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator_core.errors import ConfigError
from orchestrator_core.plugin_api import TransformerKind, hookimpl
from orchestrator_core.testing import check_problems, service

from .lab import Lab, planned, ran, request, step

RunFixture = Callable[[Any], Any]
WRAP_AND_RENAME = {"params": {"x": ["lab_wrap", "lab_wrap"]}, "result": [{"lab_rename": {"x": "y"}}]}


def test_a_parameter_passes_through_its_transformers_in_order_and_the_others_do_not(run: RunFixture) -> None:
    async def main() -> None:
        steps = [step("a", params={"x": "$request.body", "z": "$request.body"}, transform=WRAP_AND_RENAME)]
        async with planned(Lab(), *steps) as ready:
            got = await ran(ready, request({"income": 1}))
        assert got.result == {"y": [[{"income": 1}]], "z": {"income": 1}}

    run(main())


def test_a_constant_parameter_is_transformed_too(run: RunFixture) -> None:
    async def main() -> None:
        async with planned(Lab(), step("a", params={"x": 1}, transform=WRAP_AND_RENAME)) as ready:
            got = await ran(ready)
        assert got.result == {"y": [[1]]}

    run(main())


def test_transformers_of_a_parameter_that_is_not_passed_are_a_problem(run: RunFixture) -> None:
    async def main() -> None:
        transform = {"params": {"featurs": ["lab_wrap"]}}
        async with planned(Lab(), step("a", params={"features": 1}, transform=transform)):
            pass

    with pytest.raises(ConfigError) as caught:
        run(main())
    (problem,) = caught.value.problems
    assert (problem.code, problem.message) == ("ORC407", "the step passes no parameter 'featurs'")
    assert problem.hint == "did you mean 'features'?"
    assert problem.path == "endpoints.e.data_sources[0].transform.params.featurs"


PLUGIN = """
from orchestrator_core.plugin_api import SourceError, TransformerKind, hookimpl


def build(options):
    def needs_income(value):
        if "income" not in value:
            raise SourceError("needs_income: field 'income' is missing")
        return value

    return needs_income


@hookimpl
def orchestrator_transformers():
    return [TransformerKind("needs_income", "Insists on a field.", dict[str, str], build)]
"""


@pytest.mark.parametrize(("source", "status"), [("$request.body", 422), ("$before", 502)])
def test_a_value_that_cannot_be_transformed_is_the_callers_or_the_steps_fault(
    run: RunFixture, source: str, status: int
) -> None:
    domain = f"""
endpoints:
  e:
    data_sources:
      - {{name: before, type: direct, params: {{age: 3}}}}
      - {{name: a, type: direct, params: {{x: "{source}"}}, transform: {{params: {{x: [needs_income]}}}}}}
    primary_source: a
"""

    async def main() -> None:
        async with service({"domains/d.yaml": domain}, plugins={"strict": PLUGIN}) as running:
            answer = await running.post("/orchestrator/d/e", {"age": 3})
        assert answer.status == status
        assert answer.json["step"] == "a"
        assert answer.json["detail"] == "step 'a': needs_income: field 'income' is missing"

    run(main())


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda _: None, "TypeError: build returned NoneType, expected a function of a value"),
        (lambda options: options["field"], "KeyError: 'field'"),
    ],
)
def test_a_transformer_that_cannot_be_built_is_a_problem_that_names_its_plugin(build: Any, said: str) -> None:
    class FailingPlugin:
        @hookimpl
        def orchestrator_transformers(self) -> list[TransformerKind[dict[str, str]]]:
            return [TransformerKind("broken", "Never works.", dict[str, str], build)]

    domain = "endpoints: {e: {data_sources: [{name: a, type: direct, params: {}}], transform: [broken]}}\n"
    (problem,) = check_problems({"domains/d.yaml": domain}, plugins={"failing": FailingPlugin()})
    assert (problem.code, problem.path) == ("ORC204", "endpoints.e.transform[0]")
    assert problem.message == f"broken: cannot be built: {said}"
    assert problem.hint.startswith("a defect of ")


def test_a_step_called_response_keeps_its_transformers_beside_the_answers(run: RunFixture) -> None:
    async def main() -> None:
        steps = [step("response", params={"x": 1}, transform=[{"lab_rename": {"x": "y"}}])]
        async with planned(Lab(), *steps, transform=["lab_wrap"]) as ready:
            got = await ran(ready)
        assert got.result == [{"y": 1}]

    run(main())
