"""JMESPath expressions: ``jmespath``.

In JMESPath a field that is not there is null. Here it is an error unless ``on_missing: allow`` says otherwise, so the
tree is walked by an interpreter of our own that is strict, except where an expression asks whether something is there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, Literal

import jmespath
from attrs import frozen
from jmespath.exceptions import (
    EmptyExpressionError,
    IncompleteExpressionError,
    JMESPathError,
    JMESPathTypeError,
    LexerError,
    ParseError,
)
from jmespath.functions import Functions
from jmespath.visitor import TreeInterpreter

from orchestrator_core.plugin_api import did_you_mean, option
from orchestrator_transform_standard.rows import (
    DEEPEST,
    NUMBERS,
    Transform,
    Unfit,
    expected,
    in_range,
    kind,
    missing,
    on_value,
)

Node = dict[str, Any]

# These can make numbers that JSON has not; all other functions only choose among what is there.
_COMPUTING: Final = frozenset({"avg", "ceil", "floor", "sum", "to_number"})


@frozen
class JmespathOptions:
    """The long form of an expression."""

    expression: str = option(help="The JMESPath expression.")
    on_missing: Literal["error", "allow"] = option(
        "error", help="What a field that is not there is: an `error`, or null as in JMESPath (`allow`)."
    )


def jmespath_query(options: str | JmespathOptions) -> Transform:
    given = JmespathOptions(options) if isinstance(options, str) else options
    tree = _parse(given.expression)
    nodes = list(_nodes(tree))
    _check(nodes)
    interpreter = _Lenient() if given.on_missing == "allow" else _Strict()
    computes = any(node["type"] == "function_expression" and node["value"] in _COMPUTING for node in nodes)

    def search(value: Any) -> Any:
        try:
            found = interpreter.visit(tree, value)
        except RecursionError:
            raise Unfit("the value is nested too deep") from None
        if computes:
            _check_numbers(found)
        return found

    return on_value("jmespath", search)


# --- at load -----------------------------------------------------------------------------------------------------


def _parse(expression: str) -> Node:
    try:
        tree: Node = jmespath.compile(expression).parsed
    except EmptyExpressionError:
        raise ValueError("the expression is empty") from None
    except IncompleteExpressionError:
        raise ValueError(f"'{expression}' ends too early") from None
    except LexerError as error:
        raise ValueError(_placed(str(error.message).lower(), error.lexer_position, expression)) from error
    except ParseError as error:
        if not error.token_value:
            raise ValueError(f"'{expression}' ends too early") from error
        raise ValueError(_placed(f"unexpected '{error.token_value}'", error.lex_position, expression)) from error
    except RecursionError:
        raise ValueError("the expression is nested too deep") from None
    return tree


def _placed(message: str, position: int, expression: str) -> str:
    return f"{message}, at character {position + 1} of '{expression}'"


def _nodes(tree: Node) -> Iterator[Node]:
    yield tree
    for child in tree["children"]:
        if isinstance(child, dict):
            yield from _nodes(child)


def _check(nodes: list[Node]) -> None:
    """Refuse what could only ever fail when it is run."""
    references = 0
    for node in nodes:
        match node["type"]:
            case "function_expression":
                references += _check_call(node["value"], node["children"])
            case "slice" if node["children"][2] == 0:
                raise ValueError("the step of a slice cannot be 0")
            case "literal":
                try:
                    _check_numbers(node["value"])
                except Unfit as error:
                    raise ValueError(f"a literal cannot be written as JSON: {error}") from error
            case "expref":
                references -= 1
    if references:
        raise ValueError("& stands only before an argument of map, max_by, min_by or sort_by")


def _check_call(name: str, arguments: list[Node]) -> int:
    """Check a call, and return how many of its arguments are expressions."""
    function = Functions.FUNCTION_TABLE.get(name)
    if function is None:
        hint = did_you_mean(name, Functions.FUNCTION_TABLE)
        raise ValueError(f"unknown function '{name}'{f'; {hint}' if hint else ''}")
    signature = function["signature"]
    count, least = len(arguments), len(signature)
    variadic = bool(signature) and signature[-1].get("variadic", False)
    if count < least or (count > least and not variadic):
        plural = "argument" if least == 1 else "arguments"
        raise ValueError(f"{name} takes {'at least ' if variadic else ''}{least} {plural}, got {count}")
    references = 0
    for argument, parameter in zip(arguments, signature, strict=False):
        if "expref" in parameter["types"]:
            references += 1
            if argument["type"] != "expref":
                raise ValueError(f"{name} takes an expression that starts with &")
    return references


# --- at run ------------------------------------------------------------------------------------------------------


def _check_numbers(value: Any, depth: int = 0) -> None:
    if type(value) in NUMBERS:
        in_range(value)
    elif type(value) in (dict, list):
        if depth > DEEPEST:
            raise Unfit(f"the value is nested more than {DEEPEST} levels deep")
        for item in value.values() if type(value) is dict else value:
            _check_numbers(item, depth + 1)


def _comparable(left: Any, right: Any) -> bool:
    one, other = type(left), type(right)
    return (one in NUMBERS and other in NUMBERS) or (one is str and other is str)


class _Lenient(TreeInterpreter):  # type: ignore[misc]  # jmespath ships no types
    """JMESPath as it is, with errors that name the function."""

    def visit_comparator(self, node: Node, value: Any) -> Any:
        left, right = (self.visit(child, value) for child in node["children"])
        if node["value"] in ("eq", "ne") or _comparable(left, right):
            return self.COMPARATOR_FUNC[node["value"]](left, right)
        return None

    def visit_function_expression(self, node: Node, value: Any) -> Any:
        name = node["value"]
        try:
            return super().visit_function_expression(node, value)
        except JMESPathTypeError as error:
            wanted = " or ".join(error.expected_types)
            raise Unfit(f"{name} takes {wanted}, got {kind(error.current_value)}") from error
        except (JMESPathError, TypeError, ValueError, ArithmeticError) as error:
            raise Unfit(f"{name} was given values it cannot work on") from error


class _Strict(_Lenient):
    """JMESPath in which what is missing is an error.

    To the left of ``||``, after ``!``, in ``not_null`` and in the condition of a filter it is null, for these ask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lenient = _Lenient()

    def visit_field(self, node: Node, value: Any) -> Any:
        field = node["value"]
        if type(value) is not dict:
            raise Unfit(f"field '{field}' is missing: {kind(value)} has no fields")
        if field not in value:
            raise missing(field, value)
        return value[field]

    def visit_index(self, node: Node, value: Any) -> Any:
        index = node["value"]
        if type(value) is not list:
            raise Unfit(f"element {index} is missing: {kind(value)} has no elements")
        if not -len(value) <= index < len(value):
            raise Unfit(f"element {index} is missing: the list has {len(value)}")
        return value[index]

    def visit_slice(self, node: Node, value: Any) -> Any:
        self.of_type(list, "a list before [:]", value)
        return super().visit_slice(node, value)

    def visit_comparator(self, node: Node, value: Any) -> Any:
        result = super().visit_comparator(node, value)
        if result is None:
            raise Unfit("a comparison takes two numbers or two strings")
        return result

    def visit_function_expression(self, node: Node, value: Any) -> Any:
        if node["value"] == "not_null":
            return self.lenient.visit(node, value)
        result = super().visit_function_expression(node, value)
        if result is None:
            raise Unfit(f"{node['value']} finds nothing to return; say what to take instead with ||")
        return result

    def visit_or_expression(self, node: Node, value: Any) -> Any:
        left, right = node["children"]
        found = self.lenient.visit(left, value)
        return self.visit(right, value) if self._is_false(found) else found

    def visit_not_expression(self, node: Node, value: Any) -> Any:
        return self.lenient.visit(node, value)

    def visit_multi_select_dict(self, node: Node, value: Any) -> Any:
        return super().visit_multi_select_dict(node, self.something(value))

    def visit_multi_select_list(self, node: Node, value: Any) -> Any:
        return super().visit_multi_select_list(node, self.something(value))

    def visit_projection(self, node: Node, value: Any) -> Any:
        base, each = node["children"]
        return self.project(each, self.of_type(list, "a list before [*]", self.visit(base, value)))

    def visit_filter_projection(self, node: Node, value: Any) -> Any:
        base, each, condition = node["children"]
        elements = self.of_type(list, "a list before [?]", self.visit(base, value))
        kept = [element for element in elements if self._is_true(self.lenient.visit(condition, element))]
        return self.project(each, kept)

    def visit_value_projection(self, node: Node, value: Any) -> Any:
        base, each = node["children"]
        return self.project(each, self.of_type(dict, "an object before *", self.visit(base, value)).values())

    def visit_flatten(self, node: Node, value: Any) -> Any:
        self.of_type(list, "a list before []", self.visit(node["children"][0], value))
        return super().visit_flatten(node, value)

    def project(self, each: Node, elements: Any) -> list[Any]:
        found = (self.visit(each, element) for element in elements)
        return [item for item in found if item is not None]

    def of_type(self, type_: type, what: str, value: Any) -> Any:
        if type(value) is not type_:
            raise expected(what, value)
        return value

    def something(self, value: Any) -> Any:
        if value is None:
            raise Unfit("fields are missing: null has no fields")
        return value
