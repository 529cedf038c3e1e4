"""A plan bound to live sources: its coroutine, and what is known of it when it runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import FunctionType

from orchestrator_core.answer_cache import Answers
from orchestrator_core.capture import Capture
from orchestrator_core.codegen import Coroutine, Generated, generate
from orchestrator_core.each import AtOnce
from orchestrator_core.expressions import Literal, Node, ReferenceNode, references
from orchestrator_core.models import Slot
from orchestrator_core.plan import ITEM_ROOTS, Plan, PlannedStep
from orchestrator_core.plugin_api import JSON
from orchestrator_core.policies.notes import Guarded
from orchestrator_core.schemas import pointer
from orchestrator_core.time_limits import TimeLimit

Call = Callable[..., Awaitable[JSON]] | Guarded | AtOnce


class ReadyPlan:
    """A plan bound to live sources: what the engine runs."""

    __slots__ = (
        "answers",
        "capture",
        "domain",
        "generated",
        "generation",
        "models",
        "name",
        "on_request_only",
        "plan",
        "redact",
        "request_only",
        "run",
        "sequential",
        "step_names",
        "time_limit",
    )

    def __init__(
        self,
        plan: Plan,
        generation: str,
        calls: Mapping[str, Call],
        capture: Capture | None = None,
        redact: Callable[[str], str] = str,
    ) -> None:
        self.plan = plan
        self.capture = capture
        self.redact = redact
        self.domain = plan.domain
        self.name = plan.name
        self.generation = generation
        self.time_limit = TimeLimit(float(plan.config.timeout))
        self.step_names = tuple(step.name for step in plan.steps)
        self.sequential = all(
            step.waits_for & set(self.step_names[:index]) for index, step in enumerate(plan.steps) if index
        )
        self.models: dict[str, Slot] = {}
        self.answers: Answers | None = None
        self.request_only = {step.name: _request_only(step) for step in plan.steps}
        self.on_request_only = frozenset(step.name for step in plan.steps if not step.waits_for)
        guarded = {
            name for name, call in calls.items() if isinstance(call.call if isinstance(call, AtOnce) else call, Guarded)
        }
        self.generated: Generated = generate(plan, generation, guarded)
        self.run: Coroutine = self.generated.compile(calls)

    def let_go(self) -> None:
        """Let go of what the plan calls; it cannot be run any more.

        The coroutine function and its module refer to each other, and those of the first configuration are kept from
        the garbage collector: what its policies remember would be there, and shown, for as long as the service runs.
        """
        assert isinstance(self.run, FunctionType)
        self.run.__globals__.clear()


def _request_only(step: PlannedStep) -> dict[str, str]:
    """Return the parameters whose values come from the request alone, and are the caller's to mend.

    Each has the pointer to its value in the request, or to the parameter where the value is computed.
    """
    listed = () if step.for_each is None else references(step.for_each)
    items_are = bool(listed) and all(reference.root == "request" for reference in listed)
    return {
        name: _pointer(name, node)
        for name, node in step.params
        if not isinstance(node, Literal)
        and all(
            reference.root == "request" or (reference.root in ITEM_ROOTS and items_are)
            for reference in references(node)
        )
    }


def _pointer(name: str, node: Node) -> str:
    if isinstance(node, ReferenceNode) and node.root == "request" and node.path:
        return pointer(node.path)
    return f"/{name}"


__all__ = ["Call", "ReadyPlan"]
