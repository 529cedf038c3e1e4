"""The syntax tree of an expression, and the error of a text that is none.

Nodes are frozen values. ``offset`` is the character at which a node starts in its text; it is not compared.
"""

from __future__ import annotations

import re
from typing import Final, TypeAlias

from attrs import field, frozen

from orchestrator_core.expressions.values import JSON

__all__ = [
    "IDENTIFIER",
    "NOT_IN_TEXT",
    "ArithmeticNode",
    "ArrayNode",
    "CallNode",
    "CompareNode",
    "ConditionalNode",
    "ExpressionSyntaxError",
    "IndexNode",
    "Literal",
    "LogicalNode",
    "NegateNode",
    "Node",
    "NotNode",
    "ObjectNode",
    "ReferenceNode",
    "TemplateNode",
    "children",
    "quote",
    "reference_text",
]

IDENTIFIER: Final = r"[^\W\d]\w*"
NOT_IN_TEXT: Final = -1
"""The offset of an object or list that was written in YAML and not inside an expression."""

_is_identifier: Final = re.compile(IDENTIFIER).fullmatch
_unprintable: Final = re.compile(r"[\x00-\x1f\x7f'\\]")
_ESCAPES: Final = {"'": "\\'", "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


class ExpressionSyntaxError(Exception):
    """A text that is no expression.

    ``offset`` and ``length`` are the characters to put a caret under, ``hint`` the next step or ``""``. ``path`` leads
    to the text inside the value that :func:`parse_value` was given.
    """

    def __init__(self, message: str, offset: int = 0, length: int = 1, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.offset = offset
        self.length = length
        self.hint = hint
        self.path: tuple[str | int, ...] = ()


@frozen
class Literal:
    """A constant: any JSON value."""

    value: JSON = field(eq=repr)  # compared by repr because 1 == True == 1.0 in Python
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class ReferenceNode:
    """``$root.name[0]``: a root and the fields and positions to follow from it."""

    root: str
    path: tuple[str | int, ...] = ()
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class IndexNode:
    """``target[key]`` where the target is no reference or the key is computed."""

    target: Node
    key: Node
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class ArrayNode:
    items: tuple[Node, ...]
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class ObjectNode:
    """An object of a YAML value; expressions have no syntax for it."""

    fields: tuple[tuple[str, Node], ...]
    offset: int = field(default=NOT_IN_TEXT, eq=False, repr=False)


@frozen
class TemplateNode:
    """``text {{ expression }} text``: the parts, joined as the function ``str`` writes them."""

    parts: tuple[Node, ...]
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class CallNode:
    function: str
    arguments: tuple[Node, ...]
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class NegateNode:
    operand: Node
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class NotNode:
    operand: Node
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class ArithmeticNode:
    """``a + b - c`` or ``a * b / c % d``: one operator fewer than operands, all of one precedence."""

    operators: str
    operands: tuple[Node, ...]
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class CompareNode:
    """``left operator right`` with one of ``== != < <= > >= in``."""

    operator: str
    left: Node
    right: Node
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class LogicalNode:
    """``a ?? b ?? c``, ``a || b || c`` or ``a && b && c``."""

    operator: str
    operands: tuple[Node, ...]
    offset: int = field(default=0, eq=False, repr=False)


@frozen
class ConditionalNode:
    """``condition ? then : otherwise``"""

    condition: Node
    then: Node
    otherwise: Node
    offset: int = field(default=0, eq=False, repr=False)


Node: TypeAlias = (
    Literal
    | ReferenceNode
    | IndexNode
    | ArrayNode
    | ObjectNode
    | TemplateNode
    | CallNode
    | NegateNode
    | NotNode
    | ArithmeticNode
    | CompareNode
    | LogicalNode
    | ConditionalNode
)


def children(node: Node) -> tuple[Node, ...]:
    """The nodes directly below, in the order in which they are evaluated."""
    match node:
        case Literal() | ReferenceNode():
            return ()
        case IndexNode(target=target, key=key):
            return (target, key)
        case ArrayNode(items=items):
            return items
        case ObjectNode(fields=fields):
            return tuple(value for _, value in fields)
        case TemplateNode(parts=parts):
            return parts
        case CallNode(arguments=arguments):
            return arguments
        case NegateNode(operand=operand) | NotNode(operand=operand):
            return (operand,)
        case ArithmeticNode(operands=operands) | LogicalNode(operands=operands):
            return operands
        case CompareNode(left=left, right=right):
            return (left, right)
        case ConditionalNode(condition=condition, then=then, otherwise=otherwise):
            return (condition, then, otherwise)


def quote(text: str) -> str:
    """The text as a string literal of the expression language."""
    escaped = _unprintable.sub(lambda found: _ESCAPES.get(found[0]) or f"\\u{ord(found[0]):04x}", text)
    return f"'{escaped}'"


def step_text(key: str | int) -> str:
    """One step of a path as it is written: ``.name``, ``['odd key']`` or ``[0]``."""
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if _is_identifier(key) else f"[{quote(key)}]"


def reference_text(root: str, path: tuple[str | int, ...]) -> str:
    """A reference as it is written: ``$customer.address['post code'][0]``."""
    return f"${root}" + "".join(map(step_text, path))
