"""Reading expressions, and YAML values that contain them."""

from __future__ import annotations

import re
from typing import Final, Never

from orchestrator_core.errors import ExpressionError, did_you_mean
from orchestrator_core.expressions.functions import to_str
from orchestrator_core.expressions.nodes import (
    NOT_IN_TEXT,
    ArrayNode,
    ExpressionSyntaxError,
    IndexNode,
    Literal,
    Node,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
    children,
)
from orchestrator_core.expressions.values import JSON, in_range, kind

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "parse", "parse_value"]

MAX_LENGTH: Final = 10_000
"""How many characters an expression can have."""
MAX_DEPTH: Final = 50
"""How deep an expression, or a value with expressions in it, can be nested; CPython's own parser has a limit too."""
_MAX_TEMPLATE_PARTS: Final = 1_000

_EXECUTION_FIELDS: Final = ("id", "degraded", "models")
_MODEL_FIELDS: Final = ("name", "version", "digest")

_STRING_OR_END: Final = re.compile(r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+"|(?P<open>['"])|(?P<end>\}\})""", re.DOTALL)


def parse(text: str) -> Node:
    """Parse an expression: what starts with ``$`` in YAML, or the inside of ``{{ }}``.

    >>> parse("$customer.credit_score ?? 0")

    Raises :class:`ExpressionSyntaxError`, and nothing else, for any text that is no expression.
    """
    return _parse(text, 0, 0)


def parse_value(value: JSON) -> Node:
    """Parse a value of a YAML file, in which strings can be expressions.

    A string that starts with ``$`` is an expression, one that starts with ``$$`` the text without the first ``$``,
    and one that contains ``{{ expression }}`` a text with values in it. Everything else stands for itself. What is
    constant becomes one :class:`Literal`.

    Raises :class:`ExpressionSyntaxError` with ``path`` leading to the string and ``offset`` counted inside it.
    """
    return _parse_value(value, ())


def _parse_value(value: JSON, path: tuple[str | int, ...]) -> Node:
    try:
        if len(path) >= MAX_DEPTH:
            raise ExpressionSyntaxError(f"nested more than {MAX_DEPTH} levels deep")
        if isinstance(value, str):
            return _parse_string(value, len(path))
        if value is None or isinstance(value, bool):
            return Literal(value)
        if isinstance(value, int | float):
            return _number(value)
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ExpressionSyntaxError(f"a field name must be a string, not {kind(key)}")
        elif not isinstance(value, list):
            raise ExpressionSyntaxError(f"expected a JSON value, not {kind(value)}")
    except ExpressionSyntaxError as error:
        error.path = path
        raise
    if isinstance(value, dict):
        fields = tuple((key, _parse_value(item, (*path, key))) for key, item in value.items())
        constants = {key: item.value for key, item in fields if isinstance(item, Literal)}
        return ObjectNode(fields) if len(constants) < len(fields) else Literal(constants, NOT_IN_TEXT)
    items = tuple(_parse_value(item, (*path, index)) for index, item in enumerate(value))
    elements = [item.value for item in items if isinstance(item, Literal)]
    return ArrayNode(items, NOT_IN_TEXT) if len(elements) < len(items) else Literal(elements, NOT_IN_TEXT)


def _number(value: float) -> Node:
    try:
        return Literal(in_range(value, "a number"))
    except ExpressionError:
        reason = "does not fit in a 64-bit integer" if isinstance(value, int) else "is not a finite number"
        raise ExpressionSyntaxError(f"the number {reason}") from None


def _parse_string(text: str, depth: int) -> Node:
    if text.startswith("$$"):
        return Literal(text[1:])
    if text.startswith("$"):
        return _parse(text, 0, depth)
    if "{{" in text:
        return _parse_template(text, depth)
    return Literal(text)


def _parse_template(text: str, depth: int) -> Node:
    parts: list[Node] = []
    start = 0
    while (opening := text.find("{{", start)) >= 0:
        if len(parts) >= _MAX_TEMPLATE_PARTS:
            raise ExpressionSyntaxError(f"more than {_MAX_TEMPLATE_PARTS} parts in one text", opening, 2)
        if opening > start:
            parts.append(Literal(text[start:opening], start))
        inside = opening + 2
        closing = _closing_braces(text, opening)
        if not text[inside:closing].strip():
            raise ExpressionSyntaxError("expected an expression between '{{' and '}}'", opening, closing + 2 - opening)
        parts.append(_parse(text[inside:closing], inside, depth + 1))
        start = closing + 2
    if start < len(text):
        parts.append(Literal(text[start:], start))
    constants = [part.value for part in parts if isinstance(part, Literal)]
    if len(constants) < len(parts):
        return TemplateNode(tuple(parts))
    return Literal("".join(map(to_str, constants)))


def _closing_braces(text: str, opening: int) -> int:
    """Where the ``}}`` is that closes the ``{{`` at ``opening``; strings in between can contain braces."""
    for found in _STRING_OR_END.finditer(text, opening + 2):
        if found["end"]:
            return found.start()
        if found["open"]:
            raise ExpressionSyntaxError("unclosed string", found.start(), 1, f"close it with {found['open']}")
    raise ExpressionSyntaxError(
        "unclosed '{{'", opening, 2, "close it with '}}', or write {{ '{{' }} for the text '{{'"
    )


def _parse(text: str, base: int, depth: int) -> Node:
    if len(text) > MAX_LENGTH:
        message = f"an expression can have {MAX_LENGTH} characters, this one has {len(text)}"
        raise ExpressionSyntaxError(message, base, 1, "compute a part of it in a step of type 'direct'")
    from orchestrator_core.expressions.syntax import (
        read,  # not at the top: importing Lark and building the parser takes longer than all the rest
    )

    node = read(text, base)
    _check(node, depth)
    return node


def _check(node: Node, depth: int) -> None:
    """Refuse what the grammar cannot: nesting too deep, and parts of the reserved roots that do not exist."""
    # A loop, not recursion: this is what keeps every later recursion over the tree shallow.
    pending: list[tuple[Node, int]] = [(node, depth + 1)]
    while pending:
        node, depth = pending.pop()
        if isinstance(node, Literal):
            below: tuple[Node, ...] = ()
            if isinstance(node.value, list):
                below = tuple(Literal(item, node.offset) for item in node.value)
        elif isinstance(node, ReferenceNode):
            _check_reference(node)
            depth += len(node.path)
            below = ()
        else:
            below = children(node)
            if isinstance(node, IndexNode) and node.target == ReferenceNode("request"):
                hint = "name the part: $request.body[...], $request.path_params[...]"
                raise ExpressionSyntaxError("a part of $request cannot be computed", node.offset, len("$request"), hint)
        if depth > MAX_DEPTH:
            hint = "compute a part of it in a step of type 'direct'"
            raise ExpressionSyntaxError(f"nested more than {MAX_DEPTH} levels deep", node.offset, 1, hint)
        pending.extend((child, depth + 1) for child in below)


def _check_reference(node: ReferenceNode) -> None:
    def refuse(message: str, hint: str) -> Never:
        raise ExpressionSyntaxError(message, node.offset, len(node.root) + 1, hint)

    match node:
        case ReferenceNode(root="execution", path=()):
            refuse("$execution is not a value", "write $execution.id, $execution.degraded or $execution.models")
        case ReferenceNode(root="execution", path=(name, *_)) if name not in _EXECUTION_FIELDS:
            refuse(f"$execution has no field '{str(name)[:40]}'", did_you_mean(str(name), _EXECUTION_FIELDS))
        case ReferenceNode(root="execution", path=("models",) | ("models", str())):
            return
        case ReferenceNode(root="execution", path=("models", str(), name, *rest)):
            if name not in _MODEL_FIELDS:
                refuse(f"a model has no field '{str(name)[:40]}'", did_you_mean(str(name), _MODEL_FIELDS))
            if rest:
                refuse(f"the {name} of a model has no fields", f"leave out what follows .{name}")
        case ReferenceNode(root="execution", path=("models", *_)):
            refuse("$execution.models is not a list", "name the step: $execution.models.<step>.version")
        case ReferenceNode(root="execution", path=(name, _, *_)):
            refuse(f"$execution.{name} has no fields", f"write $execution.{name}")
        case ReferenceNode(root="request", path=(int(), *_)):
            refuse("$request is not a list", "name the part: $request.body[0]")
