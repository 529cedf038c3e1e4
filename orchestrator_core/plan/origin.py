"""Which step gave a value of the answer: asked only when the answer cannot be written."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator_core.expressions import ArrayNode, Node, ObjectNode, ReferenceNode, references
from orchestrator_core.plan.model import Plan, PlannedStep

Place = Sequence[str | int]
"""The keys that lead to a value."""


def giver(plan: Plan, place: Place) -> PlannedStep | None:
    """Return the step that the value at a place of the answer is from; None where several may have given it.

    Steps of the type ``direct`` pass on what they were given.
    """
    steps = {step.name: step for step in plan.steps}
    node = plan.response
    if node is None:
        fields = tuple((name, ReferenceNode(name, ())) for name in steps)
        node = ReferenceNode(plan.answers_with, ()) if plan.answers_with else ObjectNode(fields)
    return _giver(steps, node, () if plan.transforms else place)


def _giver(steps: dict[str, PlannedStep], node: Node, place: Place) -> PlannedStep | None:
    part, rest = _part(node, place)
    names = {reference.root for reference in references(part)} & steps.keys()
    if len(names) != 1:
        return None
    step = steps[names.pop()]
    if step.spec.kind.name != "direct" or step.transforms or step.for_each or not isinstance(part, ReferenceNode):
        return step
    return _giver(steps, ObjectNode(step.params), (*part.path, *rest)) or step


def _part(node: Node, place: Place) -> tuple[Node, Place]:
    """Return what makes the value at a place, or the whole that it is a part of, and the way from there."""
    for depth, key in enumerate(place):
        if isinstance(node, ObjectNode) and key in dict(node.fields):
            node = dict(node.fields)[str(key)]
        elif isinstance(node, ArrayNode) and isinstance(key, int) and key < len(node.items):
            node = node.items[key]
        else:
            return node, place[depth:]
    return node, ()


__all__ = ["Place", "giver"]
