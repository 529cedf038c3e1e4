"""Whose value of an answer cannot be written: the step is named, and its source, however its result got there."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from orchestrator_core.testing import service
from tests.engine.lab import Lab

STEPS = """
      data_sources:
        - {name: good, type: lab, operation: good}
        - {name: bad, type: lab, source_id: other, operation: bad}
        - {name: passed, type: direct, params: {list: ["$good", "$bad.deep"], sum: "$bad.deep.number"}}
"""
MAPPINGS = {
    "by_name": ("{a: {b/c: [1, '$bad.deep']}, good: $good}", "bad", "/a/b~1c/1/number"),
    "through_direct": ("{a: $passed.list}", "bad", "/a/1/number"),
    "through_direct_whole": ("$passed", "bad", "/list/1/number"),
    "one_of_two": ('{a: "$good.x > 0 ? $bad.deep : $good"}', "", "/a/number"),
    "all": ("null", "bad", "/bad/deep/number"),
}


async def good(_: Any) -> Any:
    return {"x": 1}


async def bad(_: Any) -> Any:
    return {"deep": {"number": float("inf")}}


LAB = Lab({"good": good, "bad": bad})


@pytest.mark.parametrize("name", MAPPINGS)
def test_the_step_and_source_of_an_unfit_value_are_named(
    name: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    endpoints = "".join(
        f"    {key}:{STEPS}      response_mapping: {mapping}\n" for key, (mapping, _, _) in MAPPINGS.items()
    )

    async def main() -> None:
        files = {
            "domains/d.yaml": f"endpoints:\n{endpoints}",
            "database.yaml": "lab: {sources: {default: {}, other: {}}}",
        }
        async with service(files, plugins={"lab": LAB}) as served:
            answer = await served.get(f"/orchestrator/d/{name}")
        _, step, place = MAPPINGS[name]
        said = f"the answer holds a number that JSON cannot (NaN or infinite) at {place}"
        assert answer.status == 502
        assert answer.json.get("step", "") == step
        assert answer.json["detail"] == (f"step '{step}': lab.other: {said}" if step else said)

    run(main())
