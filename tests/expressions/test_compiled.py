"""Values with expressions in them, as plugins compile them."""

from __future__ import annotations

import pytest

from orchestrator_core.config.secrets import Secret
from orchestrator_core.errors import ExpressionError, MissingReference
from orchestrator_core.plugin_api import compile_value


def test_a_value_is_evaluated_at_any_depth() -> None:
    compiled = compile_value({"a": ["$params.x", {"b": "n-{{ $params.x }}"}], "c": "$$5", "d": 1}, ["params"])
    assert compiled.evaluate({"x": 2}) == {"a": [2, {"b": "n-2"}], "c": "$5", "d": 1}
    assert not compiled.is_constant


def test_roots_are_taken_in_their_order() -> None:
    assert compile_value("$b.x - $a", ["a", "b"]).evaluate(1, {"x": 3}) == 2


def test_references_say_where_they_stand_and_whether_they_are_caught() -> None:
    compiled = compile_value({"q": ["$params.x", "$params.y ?? 0"]}, ["params"])
    assert [(each.text, each.where, each.guarded) for each in compiled.references] == [
        ("$params.x", ("q", 0), False),
        ("$params.y", ("q", 1), True),
    ]


@pytest.mark.parametrize("value", [None, 1, "text", "$$x", ["a", {"b": 1}], {}])
def test_a_value_without_expressions_is_constant(value: object) -> None:
    compiled = compile_value(value, ["params"])
    assert compiled.is_constant
    assert compiled.evaluate({}) == ("$x" if value == "$$x" else value)


def test_a_secret_stands_for_itself_and_shows_in_no_error() -> None:
    value = {"key": Secret("$k {{"), "deep": [Secret("s-1"), "$params.x"], "n": "$params.n * 2"}
    compiled = compile_value(value, ["params"])
    result = compiled.evaluate({"x": 1, "n": 2})
    assert result == {"key": "$k {{", "deep": ["s-1", 1], "n": 4}
    assert [each.text for each in compiled.references] == ["$params.x", "$params.n"]
    with pytest.raises(ExpressionError) as caught:
        compiled.evaluate({"x": 1, "n": "a"})
    assert "s-1" not in str(caught.getrepr(style="short"))


def test_a_reference_that_finds_nothing_is_an_error() -> None:
    with pytest.raises(MissingReference, match=r"^\$params\.x is missing: \$params has no field 'x'"):
        compile_value(["$params.x"], ["params"]).evaluate({})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("$params.x +", "expected an operand after '+', at character 12 of '$params.x +'"),
        ({"a": ["x", "$param.x"]}, "a[1]: there is no $param here, only $params and $response"),
        ({"a": Secret("s"), "b": {"c": "{{ $params"}}, "b.c: unclosed '{{', at character 1 of '{{ $params'; "),
        ("$execution.id", "there is no $execution here, only $params and $response"),
    ],
)
def test_a_mistake_is_a_value_error_that_says_where(value: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the whole message is compared below
        compile_value(value, ["params", "response"])
    assert str(caught.value).startswith(message)
