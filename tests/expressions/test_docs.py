"""The page about expressions: every example on it gives what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator_core.errors import ExpressionError, MissingReference
from orchestrator_core.expressions import (
    FUNCTIONS,
    MISSING,
    ExpressionSyntaxError,
    compile_expression,
    parse,
    parse_value,
)

PAGE = Path(__file__).parents[2].joinpath("docs", "expressions.md").read_text("utf-8")


def blocks(language: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))


def examples(language: str) -> list[tuple[str, ...]]:
    return [tuple(line.split(" → ")) for line in blocks(language).splitlines()]


DATA: dict[str, Any] = json.loads(blocks("json"))
ENVIRONMENT = DATA | {
    "request": SimpleNamespace(**DATA["request"]),
    "execution": SimpleNamespace(**DATA["execution"], started_at=1.5),
    "partner": MISSING,
}


def outcome(text: str, read: Any) -> str:
    try:
        value = compile_expression(read(text), list(ENVIRONMENT))(*ENVIRONMENT.values())
    except ExpressionSyntaxError as error:
        return f"syntax error: {error}"
    except MissingReference as error:
        return f"missing: {error}"
    except ExpressionError as error:
        return f"error: {error}"
    return json.dumps(value, ensure_ascii=False)


@pytest.mark.parametrize(("text", "result"), examples("expression"))
def test_an_example_gives_what_the_page_says(text: str, result: str) -> None:
    assert outcome(text, parse) == result


@pytest.mark.parametrize(("text", "result"), examples("value"))
def test_an_example_of_a_yaml_value_gives_what_the_page_says(text: str, result: str) -> None:
    assert outcome(json.loads(text), parse_value) == result


def test_every_function_has_a_row_and_its_example_is_run() -> None:
    rows = dict(re.findall(r"^\| `(\w+)\(.*\| `(.+)` \|$", PAGE, re.MULTILINE))
    assert sorted(rows) == sorted(FUNCTIONS)
    assert set(rows.values()) <= {text for text, _ in examples("expression")}


def test_every_function_that_can_fail_shows_how() -> None:
    failing = {result.split()[1] for _, result in examples("expression") if result.startswith("error: ")}
    assert FUNCTIONS.keys() - failing == {"str", "now"}
