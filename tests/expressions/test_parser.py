"""What a bad expression is told, and where the caret goes."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from orchestrator_core.expressions import (
    ArithmeticNode,
    ArrayNode,
    ExpressionSyntaxError,
    Literal,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
    parse,
    parse_value,
    unparse,
)


def drawn(text: str) -> str:
    """The error as a person sees it: message, text, caret, hint."""
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse(text)
    error = caught.value
    return "\n".join([error.message, text, " " * error.offset + "^" * error.length, error.hint])


MISTAKES = """
expected an operand after '+'
$a +
    ^


expected an operand after '+', not '*'
$a + * 2
     ^


unclosed '('
2 * ($a + 1
    ^


'[' is closed by ')'
len($a[0)
        ^


')' closes nothing
$a + 1)
      ^


'(' is closed by ']'
($a]
   ^


expected an expression between '(' and ')'
()
 ^


unclosed string
$a == 'x
      ^
close it with ', and write ' inside it as \\'

unknown escape '\\q'
'a\\qb'
  ^^
write a backslash as \\\\

unknown function 'lenght'
1 + lenght($a)
    ^^^^^^
did you mean 'len'?

round takes 1 or 2 arguments, got 3
round($a, 1, 2)
^^^^^


min takes at least 1 argument, got 0
min()
^^^


'len' is a function
len + 1
^^^
write len(...), or $len for a step of that name

unknown word 'gold'
$a == gold
      ^^^^
write 'gold' for a text, or $gold for a step

unknown word 'api'
$request.headers.x-api-key
                   ^^^
a field with a dash in its name is written ['odd-key']

'and' is not an operator
$a and $b
   ^^^
write '&&'

'=' is not an operator
$a = 1
   ^
compare with '=='

'<' after another comparison
1 < $a < 3
       ^
comparisons do not chain: join two with '&&'

expected an operator between '$a' and '$b'
$a $b
   ^^


'?' without ':'
($a ? 1)
    ^
write condition ? value : otherwise

':' without '?'
$a : 1
   ^
write condition ? value : otherwise

unclosed '('
$a ? (1 : 2
     ^


expected a field name after '.'
$a.0
  ^
write .name, ['odd key'] or [0]

what stands in [ ] must be a string or an integer, not null
$a[null]
  ^


expected a name after '$'
$
^
write '$$' for a text that starts with '$'

expected a name after '$'
${env:HOME}
^
'${...}' is read in config.yaml, database.yaml and integrations only

an expression cannot contain '{'
len({a: 1})
    ^
write objects in YAML, with an expression for each value

a number cannot start with 0: '010'
010
^^^


'99999999999999999999' does not fit in a 64-bit integer
99999999999999999999
^^^^^^^^^^^^^^^^^^^^


'1e999' is too large for a number
1e999
^^^^^


$execution has no field 'degrade'
$execution.degrade
^^^^^^^^^^
did you mean 'degraded'?

$execution is not a value
[$execution]
 ^^^^^^^^^^
write $execution.id, $execution.degraded or $execution.models

a part of $request cannot be computed
$request[$a]
^^^^^^^^
name the part: $request.body[...], $request.path_params[...]
"""


@pytest.mark.parametrize("expected", MISTAKES.strip("\n").split("\n\n"))
def test_a_mistake_is_named_and_pointed_at(expected: str) -> None:
    lines = [*expected.strip("\n").split("\n"), ""]
    assert drawn(lines[1]) == "\n".join(lines[:4])


def test_an_empty_expression_is_refused() -> None:
    assert drawn("  ") == "expected an expression, found nothing\n  \n^\n"


def test_an_expression_that_is_too_long_or_too_deep_is_refused() -> None:
    assert drawn("1" * 10_001).startswith("an expression can have 10000 characters, this one has 10001\n")
    assert drawn("!" * 60 + "$a").startswith("nested more than 50 levels deep\n")
    assert drawn("[" * 60 + "]" * 60).startswith("nested more than 50 levels deep\n")
    assert drawn("$a" + "[0]" * 60).startswith("nested more than 50 levels deep\n")


def test_long_chains_and_many_parentheses_are_no_nesting() -> None:
    parsed = parse(" + ".join(["$a"] * 200))
    assert isinstance(parsed, ArithmeticNode)
    assert len(parsed.operands) == 200
    assert parse("(" * 3000 + "1" + ")" * 3000) == Literal(1)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("1+2*3", "1 + 2 * 3"),
        ("(1+2)*3", "(1 + 2) * 3"),
        ("1-(2-3)", "1 - (2 - 3)"),
        ("(1-2)-3", "(1 - 2) - 3"),
        ("- 1", "-1"),
        ("-(-$a)", "--$a"),
        ("!($a && $b)||$c", "!($a && $b) || $c"),
        ("$a??$b||$c&&$d", "$a ?? $b || $c && $d"),
        ("($a??$b)||$c", "($a ?? $b) || $c"),
        ("$a?$b:$c?$d:$e", "$a ? $b : $c ? $d : $e"),
        ("($a?$b:$c)?$d:$e", "($a ? $b : $c) ? $d : $e"),
        ("$a.in.null . true", "$a.in.null.true"),
        ("$a['b']['c d'][-1]", "$a.b['c d'][-1]"),
        ("($a).b", "$a.b"),
        ("($a??$b)['c']", "($a ?? $b).c"),
        ("$a[$b.c].d", "$a[$b.c].d"),
        ('"it\'s"', "'it\\'s'"),
        ("'\\ud83d\\ude00'", "'😀'"),
    ],
)
def test_precedence_is_kept_when_printed(text: str, printed: str) -> None:
    assert unparse(parse(text)) == printed


def test_a_yaml_value_is_parsed_string_by_string_and_constants_are_one_literal() -> None:
    value: Any = {"a": "$x.y", "b": [1, "$$z"], "c": "n: {{ $x }}", "d": ["$x"]}
    x = ReferenceNode("x")
    assert parse_value(value) == ObjectNode(
        (
            ("a", ReferenceNode("x", ("y",))),
            ("b", Literal([1, "$z"])),
            ("c", TemplateNode((Literal("n: "), x))),
            ("d", ArrayNode((x,))),
        )
    )
    assert parse_value("{{ 1 }}, {{ '}}' }} and {{ null }}") == Literal("1, }} and null")


@pytest.mark.parametrize(
    ("value", "path", "offset", "message"),
    [
        ({"a": ["ok", "$x +"]}, ("a", 1), 4, "expected an operand after '+'"),
        ({"a": "text {{ $x. }}"}, ("a",), 10, "expected a field name after '.'"),
        ("{{ $x }} {{ 1 + }}", (), 16, "expected an operand after '+'"),
        ("a {{ $x", (), 2, "unclosed '{{'"),
        ("a {{ 'x }}", (), 5, "unclosed string"),
        ("a {{ }}", (), 2, "expected an expression between '{{' and '}}'"),
        ({"a": float("nan")}, ("a",), 0, "the number is not a finite number"),
        ([2**64], (0,), 0, "the number does not fit in a 64-bit integer"),
        ({1: 2}, (), 0, "a field name must be a string, not a number"),
    ],
)
def test_a_mistake_in_a_yaml_value_comes_with_its_path(
    value: Any, path: tuple[str | int, ...], offset: int, message: str
) -> None:
    with pytest.raises(ExpressionSyntaxError) as caught:
        parse_value(value)
    assert (caught.value.path, caught.value.offset, caught.value.message) == (path, offset, message)


def test_a_yaml_value_nested_without_end_is_refused() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(ExpressionSyntaxError, match="nested more than 50 levels deep"):
        parse_value(value)


def test_lark_is_imported_by_the_first_parse_and_not_before() -> None:
    code = """
import sys, orchestrator_core.expressions as expressions
print("lark" in sys.modules)
expressions.parse("1")
print("lark" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["False", "True"]
