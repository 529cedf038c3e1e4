"""The page about transformers: its examples, run by a service, give what they say, and it has every transformer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from orchestrator_transform_standard.plugin import TRANSFORMERS

from orchestrator_core.testing import check_problems, run, service

PAGE = Path(__file__).parents[3].joinpath("docs", "transformers.md").read_text("utf-8")
README = Path(__file__).parents[1].joinpath("README.md").read_text("utf-8")

EXAMPLES = re.findall(r"^```yaml\n(transform:\n.*?)^```\n```transform\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
CASES = [
    (number, *line.split(" → ")) for number, (_, block) in enumerate(EXAMPLES) for line in block.splitlines() if line
]
ENDPOINTS = "endpoints:\n" + "".join(
    f'  e{number}:\n    response_mapping: "$request.body"\n{indent(yaml, "    ")}'
    for number, (yaml, _) in enumerate(EXAMPLES)
)


@pytest.fixture(scope="module")
def answers() -> dict[tuple[int, str], tuple[int, Any]]:
    """What the service answers to every example."""

    async def ask() -> dict[tuple[int, str], tuple[int, Any]]:
        async with service({"domains/page.yaml": ENDPOINTS}) as running:
            found = {}
            for number, text, _ in CASES:
                answer = await running.request("POST", f"/orchestrator/page/e{number}", body=text.encode())
                found[number, text] = answer.status, answer.json
            return found

    answered: dict[tuple[int, str], tuple[int, Any]] = run(ask())
    return answered


@pytest.mark.parametrize(("number", "text", "expected"), CASES)
def test_an_example_gives_what_the_page_says(
    number: int, text: str, expected: str, answers: dict[tuple[int, str], tuple[int, Any]]
) -> None:
    status, found = answers[number, text]
    if expected.startswith("error: "):
        assert (status, f"error: {found['detail']}") == (502, expected)
    else:
        assert (status, json.dumps(found, ensure_ascii=False)) == (200, expected)


def test_every_transformer_has_an_example_and_a_row_with_its_summary() -> None:
    shown = {name for yaml, _ in EXAMPLES for name in re.findall(r"^  - (\w+)", yaml, re.MULTILINE)}
    assert shown == {kind.name for kind in TRANSFORMERS}
    on_page = dict(re.findall(r"^\| \[`(\w+)`\]\(#\1\) \| .* \| (.*) \|$", PAGE, re.MULTILINE))
    in_readme = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE))
    assert on_page == in_readme == {kind.name: kind.summary for kind in TRANSFORMERS}


def test_the_configuration_of_the_readme_has_no_problems() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert check_problems({"domains/customers.yaml": example}) == []


def test_the_first_configuration_of_the_page_has_no_problems_with_its_transformers() -> None:
    example = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[0]
    as_direct = re.sub(r"type: database\n +operation: get_customer", "type: direct", example)
    assert "direct" in as_direct
    assert check_problems({"domains/customers.yaml": as_direct}) == []
