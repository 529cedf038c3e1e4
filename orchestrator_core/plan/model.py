"""What a plan is: an endpoint's checked steps in their order, its answer, its route."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from attrs import field, frozen

from orchestrator_core.applied import Applied
from orchestrator_core.catalog import SourceSpec
from orchestrator_core.config.model import REQUEST_PARTS, UNSET, EndpointConfig, StepConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.expressions import CompiledValue, Node, Reference
from orchestrator_core.plugin_api import JSON
from orchestrator_core.policies.options import CacheOptions
from orchestrator_core.schemas import RequestSchema

ITEM_ROOTS = ("item", "index")

Transform = Callable[[JSON], JSON]


@frozen
class PlannedStep:
    """A step of a plan. ``waits_for`` are the steps whose results, or mere ends, it needs.

    ``cache_key`` is what tells its results apart in a cache where the step says so by an expression, and
    ``source_cache_key`` where its source does, on ``$params``.
    """

    name: str
    config: StepConfig
    spec: SourceSpec
    operation: str
    params: tuple[tuple[str, Node], ...]
    condition: Node | None
    waits_for: frozenset[str]
    default: JSON
    transforms: tuple[Transform, ...]
    conversions: Mapping[str, Transform]
    located: Located = field(repr=False)
    policies: Applied
    for_each: Node | None = None
    cache_key: Node | None = None
    source_cache_key: CompiledValue | None = None

    @property
    def optional(self) -> bool:
        """Return whether the request goes on when the step fails."""
        return not self.config.required or self.config.default is not UNSET


@frozen
class AnswerCache:
    """How an endpoint's answers are kept. ``key`` tells them apart; None for all that they can depend on.

    That is the path and query parameters, the body and, of the headers, ``headers``.
    """

    options: CacheOptions
    key: Node | None
    headers: tuple[str, ...]


@frozen
class Plan:
    """An endpoint, compiled. ``steps`` are in an order in which each comes after those it waits for.

    ``path`` is the route after ``/orchestrator/<domain>/<endpoint>``, such as ``/{entity_id}`` or ``""``;
    ``bare`` says that the route without the parameter is served as well.
    """

    domain: str
    name: str
    config: EndpointConfig
    steps: tuple[PlannedStep, ...]
    response: Node | None
    transforms: tuple[Transform, ...]
    path: str
    path_params: tuple[str, ...]
    bare: bool
    request_references: tuple[Reference, ...]
    input: RequestSchema | None
    output: RequestSchema | None
    located: Located = field(repr=False)
    cache: AnswerCache | None = None

    @property
    def id(self) -> str:
        return f"{self.domain}.{self.name}"

    @property
    def guarded(self) -> frozenset[str]:
        """Return the steps whose calls have policies around them."""
        return frozenset(step.name for step in self.steps if step.policies.any)

    @property
    def answers_with(self) -> str | None:
        """Return the step whose result is the answer when there is no response mapping."""
        if self.config.primary_source:
            return self.config.primary_source
        return self.steps[0].name if len(self.steps) == 1 else None


__all__ = ["ITEM_ROOTS", "REQUEST_PARTS", "AnswerCache", "Plan", "PlannedStep", "Transform"]
