"""The Python that a plan runs, and what references a plan is told of."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator_core.errors import MissingReference
from orchestrator_core.expressions import (
    MISSING,
    Reference,
    compile_expression,
    emit,
    emit_condition,
    namespace,
    parse,
    parse_value,
    references,
)

VARIABLES = {name: name for name in ("request", "customer", "b", "item")} | {"execution": "run"}


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("$customer.address.city", "customer['address']['city']"),
        ("$customer.list[0]", "_at(customer['list'], 0)"),
        ("$request.path_params.entity_id", "request.path_params['entity_id']"),
        ("$request.headers['x-api-key']", "request.headers['x-api-key']"),
        ("$request.body.x", "request.body['x']"),
        ("$request.x.y", "_request_value(request, 'x')['y']"),
        ("$execution.id", "run.id"),
        ("$customer ?? 5", "(customer if customer is not None and customer is not _MISSING else 5)"),
        ("$customer.score ?? 5", "(_v if (_v := _maybe(customer, 'score')) is not None else 5)"),
        (
            "$request.query_params.limit || 5",
            "(_v if (_v := request.query_params.get('limit')) is not None and _v is not False else 5)",
        ),
        ("$customer.tier == 'gold' ? 1 : -1", "(1 if (customer['tier'] == 'gold') else -1)"),
        ("$customer.tier in ['gold', 'silver']", "(customer['tier'] in ('gold', 'silver'))"),
        ("$customer.count == 1", "_equal(customer['count'], 1)"),
        ("$customer.a + 1", "_add(customer['a'], 1)"),
        ("len($customer.a) ?? 0", "(_v if (_v := _attempt(lambda: _len(customer['a']))) is not None else 0)"),
    ],
)
def test_the_optimistic_form_is_what_one_would_write(text: str, source: str) -> None:
    assert emit(parse(text), VARIABLES, exact=False) == source


def test_a_condition_is_python_truth_of_the_language_s_truth() -> None:
    assert emit_condition(parse("$b.x > 1 && $b.y == 'z'"), VARIABLES, exact=False) == (
        "((_greater(b['x'], 1) and (b['y'] == 'z')))"
    )
    assert eval(emit_condition(parse("$b"), VARIABLES, exact=True), namespace() | {"b": 0}) is True


def test_emitted_names_all_start_with_an_underscore() -> None:
    assert [name for name in namespace() if not name.startswith("_")] == []


def test_a_root_that_nobody_holds_is_a_key_error() -> None:
    with pytest.raises(KeyError, match="unknown"):
        emit(parse("$unknown.x"), VARIABLES, exact=True)


@pytest.mark.parametrize("text", ["$a", "$a.x", "[$a]", "$a == null", "$a ? 1 : 2", "$b ?? $a", "len($a)"])
def test_a_skipped_step_is_missing_wherever_nothing_catches_it(text: str) -> None:
    with pytest.raises(MissingReference) as caught:
        compile_expression(parse(text), ["a", "b"])(MISSING, None)
    assert str(caught.value).endswith(" is missing: the step 'a' was skipped")


@pytest.mark.parametrize(
    "text", ["$a ?? 1", "$a || 1", "$a.x ?? 1", "$a == null ?? 1", "[$a] || 1", "(1 + len($a.x)) ?? 1"]
)
def test_a_skipped_step_is_caught(text: str) -> None:
    for exact in (True, False):
        assert eval(emit(parse(text), {"a": "a"}, exact=exact), namespace() | {"a": MISSING}) == 1


def test_a_message_names_fields_and_never_shows_values() -> None:
    data = {f"field_{number:02}": "secret" for number in range(12)}
    with pytest.raises(MissingReference) as caught:
        compile_expression(parse("$a[$key]"), ["a", "key"])(data, "secret key")
    assert str(caught.value) == (
        "$a[$key] is missing: $a has no field of that name (it has: field_00, field_01, field_02, field_03, field_04, "
        "field_05, field_06, field_07, field_08, field_09, and 2 more)"
    )
    assert caught.value.reference == "$a[$key]"


def test_data_nested_deeply_by_a_client_can_be_compared() -> None:
    deep: Any = []
    other: Any = []
    for _ in range(100_000):
        deep, other = [deep], [other]
    assert compile_expression(parse("$a == $b"), ["a", "b"])(deep, other) is True


def test_references_say_where_they_stand_and_whether_something_catches_them() -> None:
    value: Any = {"p": ["$a.x ?? $b['y z'][0]", "n {{ $item }}"], "q": "lower($d)"}
    assert references(parse_value(value)) == (
        Reference("a", ("x",), "$a.x", 0, True, ("p", 0)),
        Reference("b", ("y z", 0), "$b['y z'][0]", 8, False, ("p", 0)),
        Reference("item", (), "$item", 5, False, ("p", 1)),
    )
    assert references(parse("lower(($a[$i] + $b ?? $c) || $d)")) == (
        Reference("a", (), "$a", 7, True),
        Reference("i", (), "$i", 10, True),
        Reference("b", (), "$b", 16, True),
        Reference("c", (), "$c", 22, True),
        Reference("d", (), "$d", 29, False),
    )
