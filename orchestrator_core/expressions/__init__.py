"""The expression language of the configuration: ``$customer.credit_score ?? 0``.

:func:`parse` and :func:`parse_value` read, :func:`references` tells what a plan depends on, :func:`emit` writes the
Python source that a plan runs, and :func:`compile_expression` makes a function of a single expression.
"""

from __future__ import annotations

from orchestrator_core.expressions.compiled import CompiledValue, compile_value
from orchestrator_core.expressions.emitter import compile_expression, emit, emit_condition
from orchestrator_core.expressions.functions import FUNCTIONS
from orchestrator_core.expressions.nodes import (
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
    reference_text,
)
from orchestrator_core.expressions.parser import parse, parse_value
from orchestrator_core.expressions.printer import unparse
from orchestrator_core.expressions.references import Reference, references
from orchestrator_core.expressions.runtime import Request, namespace
from orchestrator_core.expressions.values import JSON, MISSING, Missing

__all__ = [
    "FUNCTIONS",
    "JSON",
    "MISSING",
    "ArithmeticNode",
    "ArrayNode",
    "CallNode",
    "CompareNode",
    "CompiledValue",
    "ConditionalNode",
    "ExpressionSyntaxError",
    "IndexNode",
    "Literal",
    "LogicalNode",
    "Missing",
    "NegateNode",
    "Node",
    "NotNode",
    "ObjectNode",
    "Reference",
    "ReferenceNode",
    "Request",
    "TemplateNode",
    "compile_expression",
    "compile_value",
    "emit",
    "emit_condition",
    "namespace",
    "parse",
    "parse_value",
    "reference_text",
    "references",
    "unparse",
]
