"""What holds for every expression: it prints and parses, and all forms of it mean what a plain evaluator says."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import frozen
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from orchestrator_core.errors import ExpressionError, MissingReference
from orchestrator_core.expressions import (
    FUNCTIONS,
    MISSING,
    ArithmeticNode,
    ArrayNode,
    CallNode,
    CompareNode,
    ConditionalNode,
    ExpressionSyntaxError,
    IndexNode,
    Literal,
    LogicalNode,
    NegateNode,
    Node,
    NotNode,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
    compile_expression,
    emit,
    emit_condition,
    namespace,
    parse,
    parse_value,
    references,
    unparse,
)

ROOTS = ("request", "execution", "item", "index", "a", "b", "skipped")

thorough = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])

# --- generated expressions --------------------------------------------------------------------------------------

names = st.sampled_from(["x", "y", "in", "null", "odd key", "it's", "path_params", "query_params", "headers", "body"])
positions = st.integers(-3, 3)
steps = st.one_of(names, positions)
texts = st.one_of(
    st.sampled_from(["", "x", "true", "12", " -3.5e2 ", "2024-02-29T23:30:00-02:00"]), st.text(max_size=6)
)
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 0.0, -0.0, 1.0, 2.5, 2**63, 2**64 - 1, -(2**63), 1e308, 86400]),
    st.integers(-20, 20),
    st.floats(allow_nan=False, allow_infinity=False),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
    max_leaves=8,
)


def references_to(root: str) -> st.SearchStrategy[Node]:
    paths = st.lists(steps, max_size=3).map(tuple)
    if root == "execution":
        paths = st.sampled_from([("id",), ("degraded",)])
    if root == "request":
        paths = st.one_of(st.just(()), st.tuples(names), st.tuples(names, steps), st.tuples(names, steps, steps))
    return st.builds(ReferenceNode, st.just(root), paths)


def array(items: list[Node]) -> Node:
    constants = [item.value for item in items if isinstance(item, Literal)]
    return ArrayNode(tuple(items)) if len(constants) < len(items) else Literal(constants)


def negate(operand: Node) -> Node:
    match operand:
        case Literal(value=bool()):
            return NegateNode(operand)
        case Literal(value=int() | float() as number):
            return Literal(-number if -number >= -(2**63) else 0)
        case _:
            return NegateNode(operand)


def index(target: Node, key: Node) -> Node:
    if isinstance(key, Literal) and (type(key.value) not in (str, int)):
        key = Literal("x")
    match target, key:
        case ReferenceNode(root="request" | "execution"), _:
            return target
        case ReferenceNode(root=root, path=path), Literal(value=str() | int() as step):
            return ReferenceNode(root, (*path, step))
        case _:
            return IndexNode(target, key)


def chain(node: type[ArithmeticNode], operators: str, operands: list[Node]) -> Node:
    return node(operators[: len(operands) - 1], tuple(operands))


def calls(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def call(name: str) -> st.SearchStrategy[Node]:
        function = FUNCTIONS[name]
        arguments = st.lists(inner, min_size=function.minimum, max_size=function.maximum or 3)
        return st.builds(CallNode, st.just(name), arguments.map(tuple))

    return st.sampled_from(sorted(FUNCTIONS.keys() - {"now"})).flatmap(call)


def composed(inner: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(inner, min_size=2, max_size=4)
    return st.one_of(
        st.builds(array, st.lists(inner, max_size=3)),
        st.builds(index, inner, inner),
        st.builds(negate, inner),
        st.builds(NotNode, inner),
        st.builds(chain, st.just(ArithmeticNode), st.text("+-", min_size=3, max_size=3), several),
        st.builds(chain, st.just(ArithmeticNode), st.text("*/%", min_size=3, max_size=3), several),
        st.builds(CompareNode, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "in"]), inner, inner),
        st.builds(LogicalNode, st.sampled_from(["??", "||", "&&"]), several.map(tuple)),
        st.builds(LogicalNode, st.sampled_from(["??", "||"]), st.lists(inner, min_size=17, max_size=20).map(tuple)),
        st.builds(ConditionalNode, inner, inner, inner),
        calls(inner),
    )


leaves = st.one_of(st.builds(Literal, scalars), *map(references_to, ROOTS))
expressions: st.SearchStrategy[Node] = st.recursive(leaves, composed, max_leaves=25)
yaml_values: st.SearchStrategy[Node] = st.one_of(
    expressions,
    st.builds(TemplateNode, st.lists(expressions, min_size=1, max_size=3).map(tuple)),
    st.builds(ObjectNode, st.lists(st.tuples(names, expressions), unique_by=lambda f: f[0], max_size=3).map(tuple)),
)


# --- an evaluator that is as plain as can be --------------------------------------------------------------------


class Missing(Exception):
    pass


class Unfit(Exception):
    pass


@frozen
class Request:
    path_params: dict[str, Any]
    query_params: dict[str, Any]
    headers: dict[str, str]
    body: Any


def checked(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise Unfit
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        raise Unfit
    return value


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return set(left) == set(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return type(left == right) is bool and left == right


def follow(value: Any, key: Any) -> Any:
    if isinstance(value, dict) and isinstance(key, str) and key in value:
        return value[key]
    if isinstance(value, list) and isinstance(key, int):
        try:
            return value[key]
        except IndexError:
            raise Missing from None
    raise Missing


def request_root(request: Request, path: tuple[str | int, ...]) -> tuple[Any, tuple[str | int, ...]]:
    if path[:1] == ("body",):
        return request.body, path[1:]
    if path and path[0] in ("path_params", "query_params", "headers"):
        return getattr(request, str(path[0])), path[1:]
    if path:
        for part in (request.path_params, request.query_params, request.body):
            if isinstance(part, dict) and path[0] in part:
                return part[path[0]], path[1:]
        raise Missing
    whole = {part: getattr(request, part) for part in ("path_params", "query_params", "headers", "body")}
    return {part: value for part, value in whole.items() if value is not MISSING}, ()


def to_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def call(name: str, arguments: list[Any]) -> Any:
    first = arguments[0]
    members = arguments if len(arguments) > 1 else first
    match name, arguments:
        case "len", [str() | list() | dict()]:
            return len(first)
        case "lower", [str()]:
            return first.lower()
        case "upper", [str()]:
            return first.upper()
        case "trim", [str()]:
            return first.strip()
        case "round", [number] if is_number(number):
            return checked(round(number))
        case "round", [number, int() as digits] if is_number(number) and is_number(digits) and -20 <= digits <= 20:
            return checked(round(number, digits))
        case "abs", [number] if is_number(number):
            return checked(abs(number))
        case "sum", _ if isinstance(members, list) and all(map(is_number, members)):
            return checked(sum(members))
        case "min" | "max", _ if isinstance(members, list) and members:
            if all(map(is_number, members)) or all(isinstance(member, str) for member in members):
                return min(members) if name == "min" else max(members)
        case "int", [str()] if re.fullmatch("[+-]?[0-9]+", first):
            return checked(int(first))
        case "int", [number] if is_number(number):
            return checked(int(number))
        case "float", [str()] if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?", first):
            return checked(float(first))
        case "float", [number] if is_number(number):
            return float(number)
        case "str", [_]:
            return to_text(first)
        case "bool", [str()]:
            if first.lower() in ("true", "false", ""):
                return first.lower() == "true"
        case "bool", [_]:
            return first not in (None, False, 0, [], {})
        case "keys", [dict()]:
            return list(first)
        case "values", [dict()]:
            return list(first.values())
        case "date", [str()]:
            try:
                moment = datetime.fromisoformat(first)
                return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC).date().isoformat()
            except (ValueError, OverflowError):
                raise Unfit from None
        case "date", [number] if is_number(number) and -62135596800 <= number < 253402300800:
            return datetime.fromtimestamp(number, UTC).date().isoformat()
    raise Unfit


def arithmetic(operator: str, left: Any, right: Any) -> Any:
    if operator == "+" and type(left) is type(right) and isinstance(left, str | list):
        return left + right
    if not is_number(left) or not is_number(right) or (operator in "/%" and right == 0):
        raise Unfit
    match operator:
        case "+":
            return checked(left + right)
        case "-":
            return checked(left - right)
        case "*":
            return checked(left * right)
        case "/":
            return checked(left / right)
        case _:
            return checked(left % right)


def compare(operator: str, left: Any, right: Any) -> bool:
    if operator in ("==", "!="):
        return same(left, right) == (operator == "==")
    if operator == "in" and isinstance(right, list):
        return any(same(left, element) for element in right)
    if operator == "in":
        if not isinstance(left, str) or not isinstance(right, str | dict):
            raise Unfit
        return left in right
    if not (is_number(left) and is_number(right)) and not (isinstance(left, str) and isinstance(right, str)):
        raise Unfit
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[operator]


def evaluate(node: Node, env: dict[str, Any]) -> Any:
    match node:
        case Literal(value=value):
            return value
        case ReferenceNode(root="execution", path=(name,)):
            return getattr(env["execution"], str(name))
        case ReferenceNode(root=root, path=path):
            value = env[root]
            if root == "request":
                value, path = request_root(value, path)
            for key in path:
                value = follow(value, key)
            if value is MISSING:
                raise Missing
            return value
        case IndexNode(target=target, key=key):
            value, step = evaluate(target, env), evaluate(key, env)
            if type(step) not in (str, int):
                raise Unfit
            return follow(value, step)
        case ArrayNode(items=items):
            return [evaluate(item, env) for item in items]
        case ObjectNode(fields=fields):
            return {name: evaluate(value, env) for name, value in fields}
        case TemplateNode(parts=parts):
            return "".join([to_text(evaluate(part, env)) for part in parts])
        case CallNode(function=function, arguments=arguments):
            return call(function, [evaluate(argument, env) for argument in arguments])
        case NegateNode(operand=operand):
            value = evaluate(operand, env)
            if not is_number(value):
                raise Unfit
            return checked(-value)
        case NotNode(operand=operand):
            return evaluate(operand, env) in (None, False) and type(evaluate(operand, env)) not in (int, float)
        case ArithmeticNode(operators=operators, operands=operands):
            result, *rest = [evaluate(operand, env) for operand in operands]
            for operator, operand in zip(operators, rest, strict=True):
                result = arithmetic(operator, result, operand)
            return result
        case CompareNode(operator=operator, left=left, right=right):
            return compare(operator, evaluate(left, env), evaluate(right, env))
        case ConditionalNode(condition=condition, then=then, otherwise=otherwise):
            value = evaluate(condition, env)
            return evaluate(otherwise if value is None or value is False else then, env)
        case LogicalNode(operator="&&", operands=(*first, last)):
            for operand in first:
                value = evaluate(operand, env)
                if value is None or value is False:
                    return value
            return evaluate(last, env)
        case LogicalNode(operator=operator, operands=(*first, last)):
            for operand in first:
                try:
                    value = evaluate(operand, env)
                except Missing:
                    continue
                if value is not None and (value is not False or operator == "??"):
                    return value
            return evaluate(last, env)


environments = st.fixed_dictionaries(
    {
        "a": st.one_of(st.dictionaries(names, values), values),
        "b": values,
        "item": values,
        "index": positions,
        "skipped": st.just(MISSING),
        "execution": st.builds(SimpleNamespace, id=st.just("e1"), degraded=st.booleans()),
        "request": st.builds(
            Request,
            st.dictionaries(names, texts, max_size=3),
            st.dictionaries(names, texts, max_size=3),
            st.dictionaries(names, texts, max_size=3),
            st.one_of(st.just(MISSING), values),
        ),
    }
)


def outcome(evaluation: Any) -> str:
    """The value as text, which tells 1 from true and 1.0, or what kind of error there was."""
    try:
        return repr(evaluation())
    except (Missing, MissingReference):
        return "a reference is missing"
    except (Unfit, ExpressionError):
        return "the values are unfit"


# --- the properties ---------------------------------------------------------------------------------------------


@thorough
@given(expressions)
def test_an_expression_prints_and_parses_to_itself(node: Node) -> None:
    assert parse(unparse(node)) == node


@thorough
@given(yaml_values, environments)
@example(parse("$skipped == 1 || $a.x"), {"a": {"x": 5}, "skipped": MISSING})
@example(parse("($a ?? $skipped)[$b]"), {"a": None, "b": "x", "skipped": MISSING})
@example(parse("!0"), {})
def test_the_exact_form_means_what_the_plain_evaluator_says(node: Node, env: dict[str, Any]) -> None:
    compiled = compile_expression(node, list(env))

    assert outcome(lambda: compiled(*env.values())) == outcome(lambda: evaluate(node, env))


@thorough
@given(yaml_values, environments)
@example(parse("$a.x[0] ?? 1"), {"a": {"x": "text"}})
@example(parse("$a.x[0]"), {"a": {"x": "text"}})
@example(parse("($a ?? 1)[0]"), {"a": "text"})
@example(parse("$a.x == 1"), {"a": {"x": True}})
@example(parse("$a.x in [1, 0]"), {"a": {"x": True}})
@example(parse("$request.body ?? 1"), {"request": Request({}, {}, {}, MISSING)})
@example(parse("1 ?? $a ?? 2 ?? 3 ?? 4 ?? 5 ?? 6 ?? 7 ?? 8 ?? 9 ?? 10 ?? 11 ?? 12 ?? 13 ?? 14 ?? 15 ?? 16"), {"a": 1})
def test_the_optimistic_form_means_the_same_with_the_exact_one_behind_it(node: Node, env: dict[str, Any]) -> None:
    bare = [reference for reference in references(node) if reference.root == "skipped" and not reference.path]
    assume(all(reference.guarded for reference in bare))
    variables = {root: f"v_{root}" for root in env}
    known = {f"v_{root}": value for root, value in env.items()} | namespace()
    optimistic = compile(emit(node, variables, exact=False), "<optimistic>", "eval")
    exact = compile(emit(node, variables, exact=True), "<exact>", "eval")
    condition = compile(f"1 if {emit_condition(node, variables, exact=True)} else 0", "<condition>", "eval")

    def run() -> Any:
        try:
            return eval(optimistic, dict(known))
        except (KeyError, TypeError, IndexError):
            return eval(exact, dict(known))

    expected = outcome(lambda: evaluate(node, env))
    assert outcome(run) == expected
    assert outcome(lambda: eval(condition, dict(known))) == (
        expected if expected.startswith(("a reference", "the values")) else str(int(expected not in ("None", "False")))
    )


TOKENS = r"""
    $a $request $execution .x .id . $ ( ) [ ] , ? ?? : || && | ! == = != < <= > >= in + - * / % null true 1 2.5 1e5
    'x' " ' \ len round now and x {{ }} { } $$ ${
"""
tokens = st.sampled_from(TOKENS.split())


@thorough
@given(st.one_of(st.text(), st.lists(tokens, max_size=60).map("".join), st.lists(tokens, max_size=60).map(" ".join)))
def test_any_text_parses_or_is_a_syntax_error_inside_the_text(text: str) -> None:
    for read in (parse, parse_value):
        error = None
        try:
            node = read(text)
            assert emit(node, dict.fromkeys({r.root for r in references(node)}, "v"), exact=True)
        except ExpressionSyntaxError as caught:
            error = caught
        assert error is None or (0 <= error.offset <= len(text) and 0 < error.length <= max(1, len(text)))


@pytest.mark.parametrize(
    "unit", ["(", "[", "!", "-", "$a[", "len(", "1 ? ", "1 ? 2 : ", "$a ?? ", "'", "\\'", "$a.", "{{", "{{'"]
)
def test_any_text_repeated_to_the_limit_is_read_in_time(unit: str) -> None:
    for text in (unit * (9_990 // len(unit)), unit * 3_000 + "1" + ")]}"[len(unit) % 3] * 3_000, unit * 300 + "1"):
        for read in (parse, parse_value):
            try:
                node = read(text)
            except ExpressionSyntaxError:
                continue
            compile(emit(node, {"a": "a"}, exact=False), "<source>", "eval")


@thorough
@given(values)
def test_a_value_without_expressions_stands_for_itself(value: Any) -> None:
    assume("$" not in repr(value) and "{{" not in repr(value))
    assert parse_value(value) == Literal(value)
