"""From an endpoint to its graph: what refers to what, in which order, and what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.errors import ConfigError, Problem
from orchestrator_core.testing import check_problems
from orchestrator_core.testing import run as run_coroutine
from tests.engine.lab import Lab, planned, step

RunFixture = Callable[..., Any]


async def waits(*steps: Any, **endpoint: Any) -> dict[str, set[str]]:
    async with planned(Lab(), *steps, **endpoint) as ready:
        names = [planned.name for planned in ready.plan.steps]
        found = {planned.name: set(planned.waits_for) for planned in ready.plan.steps}
        assert all(names.index(other) < names.index(name) for name, others in found.items() for other in others)
        return found


async def problems_of(*steps: Any, **endpoint: Any) -> list[Problem]:
    try:
        async with planned(Lab(), *steps, **endpoint):
            return []
    except ConfigError as error:
        return list(error.problems)


@pytest.mark.parametrize(
    "refers",
    [
        {"params": {"x": "$a"}},
        {"params": {"x": {"deep": [1, {"er": "text {{ $a.b }} text"}]}}},
        {"params": {"x": "$request.body.y ?? $a"}},
        {"params": {"x": "$request.body[$a.field]"}},
        {"params": {"x": "true ? 1 : $a"}, "depends_on": ["a"]},
        {"condition": "$a.flag == true"},
        {"depends_on": ["a"]},
        {"params": {"x": "$a.x + len($a.y)"}},
    ],
)
def test_a_reference_anywhere_makes_a_step_wait(run: RunFixture, refers: dict[str, Any]) -> None:
    assert run(waits(step("b", **refers), step("a"))) == {"a": set(), "b": {"a"}}


def test_what_only_looks_like_a_reference_makes_nobody_wait(run: RunFixture) -> None:
    params = {"x": "$$a", "y": "costs $a", "z": "$request.a", "a": 1}
    assert run(waits(step("b", params=params), step("a"))) == {"b": set(), "a": set()}


def test_steps_are_ordered_as_written_where_references_leave_a_choice(run: RunFixture) -> None:
    async def main() -> list[str]:
        async with planned(Lab(), step("d"), step("c", params={"x": "$a"}), step("b"), step("a")) as ready:
            return [planned.name for planned in ready.plan.steps]

    assert run(main()) == ["d", "b", "a", "c"]


@given(st.permutations([step("a"), step("b", params={"x": "$a"}), step("c", params={"x": "$a", "y": "$b"}), step("d")]))
@settings(max_examples=24, deadline=None)
def test_the_written_order_does_not_change_the_graph(steps: list[Any]) -> None:
    assert run_coroutine(waits(*steps)) == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": set()}


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([step("a", params={"x": "$a"})], "the step 'a' refers to itself"),
        ([step("a", depends_on=["a"])], "the step 'a' refers to itself"),
        ([step("a", params={"x": "$b"}), step("b", depends_on=["a"])], "steps wait for each other: a -> b -> a"),
        (
            [
                step("z"),
                step("a", params={"x": "$c ?? 1"}),
                step("b", params={"x": "$a"}),
                step("c", condition="$b.x == $z.y"),
            ],
            "steps wait for each other: a -> c -> b -> a",
        ),
    ],
)
def test_a_cycle_is_told_from_step_to_step(run: RunFixture, steps: list[Any], message: str) -> None:
    (problem,) = run(problems_of(*steps))
    assert (problem.code, problem.message) == ("ORC507", message)


@pytest.mark.parametrize(
    ("maybe", "reference", "message"),
    [
        ({"condition": "$request.x"}, "$a.x", "$a.x may be missing: the step 'a' has a condition, and may be skipped"),
        ({"condition": False}, "$a", "$a may be missing: the step 'a' has a condition, and may be skipped"),
        ({"required": False}, "$a.x", "$a.x may be missing: the step 'a' is not required, and may fail"),
        ({"required": False}, "$a.x + 1", "$a.x may be missing: the step 'a' is not required, and may fail"),
        ({"default": {"y": 1}}, "$a.x", "$a.x may be missing: the default of the step 'a' has no $a.x"),
        ({"default": None}, "$a.x", "$a.x may be missing: the default of the step 'a' has no $a.x"),
    ],
)  # fmt: skip
def test_a_reference_to_what_may_be_missing_needs_a_fallback(
    run: RunFixture, maybe: dict[str, Any], reference: str, message: str
) -> None:
    for caught in (f"{reference} ?? 1", f"{reference} || 1"):
        assert run(problems_of(step("a", **maybe), response_mapping={"r": caught})) == []
    for told in (
        run(problems_of(step("a", **maybe), response_mapping={"r": reference})),
        run(problems_of(step("a", **maybe), step("b", params={"r": reference}))),
    ):
        (problem,) = told
        assert (problem.code, problem.message) == ("ORC504", message)
        assert problem.hint == f"give a fallback: {reference.split()[0]} ?? …"


def test_a_default_that_has_the_field_needs_no_fallback(run: RunFixture) -> None:
    assert run(problems_of(step("a", default={"x": [1]}), response_mapping="$a.x[0]")) == []


DOMAIN = """\
endpoints:
  e:
    data_sources:
      - {name: customer, type: direct, params: {id: "$request.path_params.id"}}
      - {name: score, type: direct, params: {x: $custmer.id, y: $request.qery_params}, depends_on: [custom]}
    primary_source: scroe
    response_mapping: {a: "$score.x +", b: "$nobody.at.all"}
    transform: [no_such]
    timeout: 0
    unknown: 1
"""


TOLD = """\
domains/d.yaml:5:49: ORC502 there is no step 'custmer'
    5 |       - {name: score, type: direct, params: {x: $custmer.id, y: $request.qery_params}, depends_on: [custom]}
      |                                                 ^^^^^^^^^^^
      = did you mean 'customer'?
domains/d.yaml:5:101: ORC502 there is no step 'custom'
    5 |       - {name: score, type: direct, params: {x: $custmer.id, y: $request.qery_params}, depends_on: [custom]}
      |                                                                                                     ^^^^^^
      = did you mean 'customer'?
domains/d.yaml:6:21: ORC502 there is no step 'scroe'
    6 |     primary_source: scroe
      |                     ^^^^^
      = did you mean 'score'?
domains/d.yaml:7:38: ORC501 expected an operand after '+'
    7 |     response_mapping: {a: "$score.x +", b: "$nobody.at.all"}
      |                                      ^
domains/d.yaml:7:45: ORC502 there is no step 'nobody'
    7 |     response_mapping: {a: "$score.x +", b: "$nobody.at.all"}
      |                                             ^^^^^^^^^^^^^^
      = expected one of: customer, execution, request, score
domains/d.yaml:8:17: ORC401 no installed plugin provides the transformer 'no_such'
    8 |     transform: [no_such]
      |                 ^^^^^^^
      = expected one of: bucket, cast, compute, default, drop, flatten, jmespath, map_values, one_hot, rename, \
round, scale, select
domains/d.yaml:9:14: ORC204 expected more than 0, got 0
    9 |     timeout: 0
      |              ^
domains/d.yaml:10:5: ORC201 unknown key 'unknown'
   10 |     unknown: 1
      |     ^^^^^^^
      = expected one of: cache, capture, data_sources, description, endpoint_type, input_schema, methods, \
output_schema, path, primary_source, response_mapping, timeout, transform"""


def test_every_problem_of_an_endpoint_is_told_at_once() -> None:
    assert "\n".join(map(str, check_problems({"domains/d.yaml": DOMAIN}))) == TOLD
