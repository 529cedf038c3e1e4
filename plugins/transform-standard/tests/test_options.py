"""What may be written, and what is said when it is not: whole messages, as `orchestrator check` gives them."""

from __future__ import annotations

import attrs
import pytest
from orchestrator_transform_standard import categories, fields, numbers, query

from orchestrator_core.testing import check_problems


def problem(entry: str) -> tuple[str, int]:
    """Return the one problem of a transformer, without its place, and the column."""
    domain = f'endpoints:\n  e:\n    response_mapping: "$request.body"\n    transform:\n      - {entry}\n'
    (found,) = check_problems({"domains/d.yaml": domain})
    assert (found.file, found.line) == ("domains/d.yaml", 5)
    hint = f" ({found.hint})" if found.hint else ""
    return f"{found.code} {found.message}{hint}", found.column


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("renam: {a: b}", "ORC401 no installed plugin provides the transformer 'renam' (did you mean 'rename'?)"),
        ("rename", "ORC204 rename: name at least one field"),
        ("rename: {a: 1}", "ORC202 expected a string, got an integer 1: put it in quotes"),
        ("rename: {a: c, b: c}", "ORC204 rename: two fields would be named 'c'"),
        ("select: []", "ORC204 select: name at least one field"),
        ("select: [a, b, a]", "ORC204 select: the field 'a' stands twice in the list"),
        ("select: a", "ORC202 expected a list or a mapping such as {fields: …}, got a string 'a'"),
        ("drop: {fields: [a], on_mising: allow}", "ORC201 unknown key 'on_mising' (did you mean 'on_missing'?)"),
        ("drop: {fields: [a], on_missing: ignore}", "ORC202 expected one of error, allow, got 'ignore'"),
        (
            "cast: {age: int}",
            "ORC202 expected one of integer, number, string, boolean, date, got 'int': did you mean 'integer'?",
        ),
        (
            'default: {a: "$value.b"}',
            (
                "ORC204 default: a: '$value.b' is an expression, where a constant is expected;"
                ' write compute: {a: "$value.a ?? …"}'
            ),
        ),
        ("scale: {income: {mim: 0, max: 1}}", "ORC201 unknown key 'mim' (did you mean 'min'?)"),
        (
            "scale: {income: {min: 0, std: 1}}",
            "ORC204 scale: income: expected min and max, mean and std, or factor and offset, got min and std",
        ),
        (
            "scale: {income: {}}",
            "ORC204 scale: income: expected min and max, mean and std, or factor and offset, got nothing",
        ),
        ("scale: {income: {min: 5, max: 5}}", "ORC204 scale: income: max must be greater than min, got 5 and 5"),
        ("scale: {income: {min: -1e308, max: 1e308}}", "ORC204 scale: income: max - min is not a finite number"),
        ("scale: {income: {mean: 5, std: 0}}", "ORC204 std must be greater than 0, got 0"),
        ("bucket: {age: {edges: []}}", "ORC204 edges must have at least one number"),
        ("bucket: {age: {edges: [18, 18]}}", "ORC204 edges must rise, got 18 and then 18"),
        ("bucket: {age: {edges: [18], labels: [a]}}", "ORC204 bucket: age: 2 ranges take as many labels, got 1"),
        ("bucket: {age: {labels: [a]}}", "ORC203 'edges' is missing"),
        ("one_hot: {plan: {values: []}}", "ORC204 values must have at least one value"),
        ('one_hot: {plan: {values: [1, "1"]}}', "ORC204 the value '1' stands twice in the list"),
        (
            "one_hot: {a: {values: [x], prefix: p_}, b: {values: [x], prefix: p_}}",
            "ORC204 one_hot: two fields would be named 'p_x'",
        ),
        ("one_hot: {plan: {values: [1, 1.0]}}", "ORC204 two of the values are the same number"),
        (
            "one_hot: {plan: {values: [20000000000000000000]}}",
            "ORC204 a value cannot be written as JSON: the number does not fit in a 64-bit integer",
        ),
        (
            "default: {a: [{b: 20000000000000000000}]}",
            ("ORC204 default: a: a constant cannot be written as JSON: the number does not fit in a 64-bit integer"),
        ),
        (
            "compute: {a: 20000000000000000000}",
            "ORC204 compute: a: the number does not fit in a 64-bit integer, at character 1 of '20000000000000000000'",
        ),
        ("map_values: {grade: {values: {}}}", "ORC204 values must have at least one key"),
        ("map_values: {grade: {values: {1: a, 1.0: b}}}", "ORC204 the keys '1' and '1.0' are the same number"),
        (
            'map_values: {grade: {values: {A: "{{ $value.x }}"}}}',
            (
                "ORC204 map_values: grade: '{{ $value.x }}' is an expression, where a constant is expected;"
                " compute takes expressions"
            ),
        ),
        ('flatten: {separator: ""}', "ORC204 a separator has at least one character"),
        ("compute", "ORC204 compute: name at least one field"),
        (
            'compute: {ratio: "$value.a /"}',
            "ORC204 compute: ratio: expected an operand after '/', at character 11 of '$value.a /'",
        ),
        ('compute: {ratio: "$vaule.a"}', "ORC204 compute: ratio: there is no $vaule here, only $value"),
        (
            'compute: {nested: {list: ["len($value.a)"]}}',
            (
                "ORC204 compute: nested: 'len($value.a)' is a text; an expression starts with $,"
                " inside a text it is written {{ $value… }}"
            ),
        ),
        ("round", "ORC204 round: give a number of digits, or the fields with a number of digits for each"),
        ("round: 21", "ORC204 round: expected a number of digits between -20 and 20, got 21"),
        ("round: {a: -21}", "ORC204 round: a: expected a number of digits between -20 and 20, got -21"),
        ("round: 1.5", "ORC202 expected an integer or a mapping, got a number 1.5"),
        ("jmespath", "ORC203 'expression' is missing"),
        ('jmespath: ""', "ORC204 jmespath: the expression is empty"),
        ('jmespath: "a."', "ORC204 jmespath: 'a.' ends too early"),
        ('jmespath: "a ]"', "ORC204 jmespath: unexpected ']', at character 3 of 'a ]'"),
        ('jmespath: "a # b"', "ORC204 jmespath: unknown token #, at character 3 of 'a # b'"),
        ('jmespath: "lenght(a)"', "ORC204 jmespath: unknown function 'lenght'; did you mean 'length'?"),
        ('jmespath: "length(a, b)"', "ORC204 jmespath: length takes 1 argument, got 2"),
        ('jmespath: "not_null()"', "ORC204 jmespath: not_null takes at least 1 argument, got 0"),
        ('jmespath: "sort_by(a, b)"', "ORC204 jmespath: sort_by takes an expression that starts with &"),
        (
            'jmespath: "to_array(&a)"',
            "ORC204 jmespath: & stands only before an argument of map, max_by, min_by or sort_by",
        ),
        ('jmespath: "a[::0]"', "ORC204 jmespath: the step of a slice cannot be 0"),
        (
            'jmespath: "`1e999`"',
            "ORC204 jmespath: a literal cannot be written as JSON: the number is not finite",
        ),
    ],
)
def test_an_option_that_is_wrong_is_a_problem_that_names_it(entry: str, message: str) -> None:
    assert problem(entry)[0] == message


def test_a_problem_stands_at_the_option() -> None:
    before = "      - scale: {income: {mean: 5, std: "
    assert problem("scale: {income: {mean: 5, std: 0}}")[1] == len(before) + 1


def test_every_option_has_its_help() -> None:
    classes = [
        cls
        for module in (categories, fields, numbers, query)
        for cls in vars(module).values()
        if isinstance(cls, type) and attrs.has(cls) and cls.__module__ == module.__name__
    ]
    assert len(classes) == 8
    assert [a.name for cls in classes for a in attrs.fields(cls) if not a.metadata.get("help")] == []
