"""What an endpoint reads of a request, and which of it every request must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attrs import frozen

from orchestrator_core.expressions import ConditionalNode, LogicalNode, Node, ReferenceNode, references
from orchestrator_core.expressions.nodes import children
from orchestrator_core.plan import REQUEST_PARTS, Plan, PlannedStep

Path = tuple[str | int, ...]


@frozen
class RequestUses:
    """What an endpoint reads of a request: for each part, the paths into it and whether they are always read.

    The part ``""`` holds ``$request.x``, which is looked for in the path, then the query, then the body.
    """

    parts: Mapping[str, Mapping[Path, bool]]

    def names(self, part: str) -> dict[str, bool]:
        """Return the first names of the paths into a part."""
        found: dict[str, bool] = {}
        for path, always in self.parts[part].items():
            if path and isinstance(path[0], str):
                found[path[0]] = found.get(path[0], False) or always
        return found


def request_uses(plan: Plan) -> RequestUses:
    always = {reference.path for reference in _always_read(plan)}
    parts: dict[str, dict[Path, bool]] = {part: {} for part in (*REQUEST_PARTS, "")}
    for reference in plan.request_references:
        path = reference.path
        if path and path[0] in REQUEST_PARTS:
            parts[str(path[0])][path[1:]] = path in always
        else:
            parts[""][path] = path in always
    for step in plan.steps:
        if isinstance(step.for_each, ReferenceNode) and step.for_each.root == "request":
            _add_items(parts, step, step.for_each.path, always=step.for_each.path in always)
    return RequestUses(parts)


def _add_items(parts: Mapping[str, dict[Path, bool]], step: PlannedStep, path: Path, *, always: bool) -> None:
    """Add what a step with ``for_each`` reads of each item of a list in the request."""
    part, rest = (str(path[0]), path[1:]) if path and path[0] in REQUEST_PARTS else ("", path)
    parts[part].setdefault((*rest, 0), always)
    needed = {node.path for _, param in step.params for node in _unconditional(param, "item")}
    for _, param in step.params:
        for reference in references(param):
            if reference.root == "item":
                parts[part][(*rest, 0, *reference.path)] = always and reference.path in needed


def _always_read(plan: Plan) -> Iterator[ReferenceNode]:
    """Yield the references to the request without which every request fails."""
    for step in plan.steps:
        if step.condition is not None:
            yield from _unconditional(step.condition)
        elif step.for_each is not None and not step.optional:
            yield from _unconditional(step.for_each)  # with no items, nothing else is asked for
        elif not step.optional:
            for _, node in step.params:
                yield from _unconditional(node)
    if plan.response is not None:
        yield from _unconditional(plan.response)


def _unconditional(node: Node, root: str = "request") -> Iterator[ReferenceNode]:
    match node:
        case ReferenceNode(root=found) if found == root:
            yield node
        case LogicalNode(operator="&&", operands=(first, *_)):
            yield from _unconditional(first, root)
        case LogicalNode():
            return
        case ConditionalNode(condition=condition):
            yield from _unconditional(condition, root)
        case _:
            for child in children(node):
                yield from _unconditional(child, root)


__all__ = ["RequestUses", "request_uses"]
