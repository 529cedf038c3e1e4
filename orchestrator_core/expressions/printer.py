"""From syntax tree to text."""

from __future__ import annotations

import math
from typing import Final

import orjson

from orchestrator_core.expressions.nodes import (
    ArithmeticNode,
    ArrayNode,
    CallNode,
    CompareNode,
    ConditionalNode,
    IndexNode,
    Literal,
    LogicalNode,
    NegateNode,
    Node,
    NotNode,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
    quote,
    reference_text,
    step_text,
)
from orchestrator_core.expressions.values import JSON

__all__ = ["unparse"]

_CONDITIONAL: Final = 0
_COMPARE: Final = 4
_UNARY: Final = 7
_PRIMARY: Final = 8
_PRECEDENCE: Final = {"??": 1, "||": 2, "&&": 3, "+": 5, "-": 5, "*": 6, "/": 6, "%": 6}


def unparse(node: Node) -> str:
    """The node as an expression: ``parse(unparse(node)) == node`` for every node that :func:`parse` returns, unless
    the spaces that are added here make the text too long.

    A template is written as the sum of its parts, which means the same. An object, for which expressions have no
    syntax, is written as in YAML; that text is for reading only.
    """
    match node:
        case Literal(value=value):
            return _constant(value)
        case ReferenceNode(root=root, path=path):
            return reference_text(root, path)
        case IndexNode(target=target, key=Literal(value=str() | int() as key)):
            return _operand(target, _PRIMARY) + step_text(key)
        case IndexNode(target=target, key=key):
            return f"{_operand(target, _PRIMARY)}[{unparse(key)}]"
        case ArrayNode(items=items):
            return f"[{', '.join(map(unparse, items))}]"
        case ObjectNode(fields=fields):
            return "{" + ", ".join(f"{quote(name)}: {unparse(value)}" for name, value in fields) + "}"
        case TemplateNode(parts=parts):
            return " + ".join(_constant(p.value) if isinstance(p, Literal) else f"str({unparse(p)})" for p in parts)
        case CallNode(function=function, arguments=arguments):
            return f"{function}({', '.join(map(unparse, arguments))})"
        case NegateNode(operand=operand):
            return f"-{_operand(operand, _UNARY)}"
        case NotNode(operand=operand):
            return f"!{_operand(operand, _UNARY)}"
        case ArithmeticNode(operators=operators, operands=operands):
            level = _PRECEDENCE[operators[0]] + 1
            rest = (f" {operator} {_operand(o, level)}" for operator, o in zip(operators, operands[1:], strict=True))
            return _operand(operands[0], level) + "".join(rest)
        case CompareNode(operator=operator, left=left, right=right):
            return f"{_operand(left, _COMPARE + 1)} {operator} {_operand(right, _COMPARE + 1)}"
        case LogicalNode(operator=operator, operands=operands):
            return f" {operator} ".join(_operand(operand, _PRECEDENCE[operator] + 1) for operand in operands)
        case ConditionalNode(condition=condition, then=then, otherwise=otherwise):
            return f"{_operand(condition, _CONDITIONAL + 1)} ? {unparse(then)} : {unparse(otherwise)}"


def _operand(node: Node, level: int) -> str:
    """The node, in parentheses if it binds looser than ``level``."""
    text = unparse(node)
    return text if _precedence(node) >= level else f"({text})"


def _precedence(node: Node) -> int:
    match node:
        case ConditionalNode():
            return _CONDITIONAL
        case LogicalNode(operator=operator):
            return _PRECEDENCE[operator]
        case CompareNode():
            return _COMPARE
        case ArithmeticNode(operators=operators):
            return _PRECEDENCE[operators[0]]
        case TemplateNode():
            return _PRECEDENCE["+"]
        case NegateNode() | NotNode():
            return _UNARY
        case Literal(value=int() | float() as number) if math.copysign(1, number) < 0:
            return _UNARY
        case _:
            return _PRIMARY


def _constant(value: JSON) -> str:
    if isinstance(value, str):
        return quote(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_constant, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quote(name)}: {_constant(item)}" for name, item in value.items()) + "}"
    return orjson.dumps(value).decode()
