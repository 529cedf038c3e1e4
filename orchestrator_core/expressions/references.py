"""What an expression refers to: the edges of a plan's graph."""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from orchestrator_core.expressions.nodes import (
    NOT_IN_TEXT,
    ArrayNode,
    Literal,
    LogicalNode,
    Node,
    ObjectNode,
    ReferenceNode,
    children,
    reference_text,
)

__all__ = ["Reference", "references"]


@frozen
class Reference:
    """One reference, ``$customer_data.credit_score``, and where it stands.

    ``root`` is ``request``, ``execution``, ``item``, ``index`` or the name of a step, ``path`` what follows it.
    ``guarded`` says that ``??`` or ``||`` catches it when it finds nothing. ``offset`` counts inside the string that
    contains it; ``where`` leads to that string inside the value that was given to ``parse_value``.
    """

    root: str
    path: tuple[str | int, ...]
    text: str
    offset: int
    guarded: bool
    where: tuple[str | int, ...] = ()


def references(node: Node) -> tuple[Reference, ...]:
    """All references of the node in the order in which they are written."""
    return tuple(_references(node, guarded=False, where=()))


def _references(node: Node, *, guarded: bool, where: tuple[str | int, ...]) -> Iterator[Reference]:
    match node:
        case Literal():
            return
        case ReferenceNode(root=root, path=path, offset=offset):
            yield Reference(root, path, reference_text(root, path), offset, guarded, where)
        case LogicalNode(operator="??" | "||", operands=(*caught, last)):
            for operand in caught:
                yield from _references(operand, guarded=True, where=where)
            yield from _references(last, guarded=guarded, where=where)
        case ObjectNode(fields=fields):
            for name, value in fields:
                yield from _references(value, guarded=guarded, where=(*where, name))
        case ArrayNode(items=items, offset=offset) if offset == NOT_IN_TEXT:
            for index, item in enumerate(items):
                yield from _references(item, guarded=guarded, where=(*where, index))
        case _:
            for child in children(node):
                yield from _references(child, guarded=guarded, where=where)
