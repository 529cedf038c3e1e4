"""From a request's path to an endpoint's plan, with one look into a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from urllib.parse import unquote

from attrs import frozen

from orchestrator_core.errors import BadRequest
from orchestrator_core.plan import Plan
from orchestrator_core.plugin_api import Finished
from orchestrator_core.snapshot import ReadyPlan

ROOT = "/orchestrator"


@frozen
class Route:
    """An endpoint's route. ``template`` has, for each segment after the endpoint, a word or a parameter's name.

    ``path`` is the whole of it as one text, and ``finished`` what telemetry is told each finished run with, or None.
    ``hides_path`` says that nobody is told the path itself, since something of the request is redacted.
    """

    ready: ReadyPlan
    methods: frozenset[str]
    template: tuple[tuple[bool, str], ...]
    bare: bool
    path: str
    only_parameter: str | None = None
    finished: Finished | None = None
    hides_path: bool = False

    def match(self, segments: list[str]) -> dict[str, str] | None:
        """Return the path parameters, or None if the segments are not the route's."""
        if self.only_parameter is not None and len(segments) == 1 and segments[0]:
            return {self.only_parameter: decode(segments[0])}
        if len(segments) != len(self.template):
            return {} if not segments and self.bare else None
        params = {}
        for segment, (is_parameter, word) in zip(segments, self.template, strict=True):
            if not is_parameter:
                if segment != word and decode(segment) != word:
                    return None
            elif not segment:
                return None
            else:
                params[word] = decode(segment)
        return params


def decode(segment: str) -> str:
    """Return a path segment without its percent-encoding. Raises :class:`BadRequest` for what is no text."""
    if "%" not in segment:
        return segment
    try:
        text = unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise BadRequest("the path is not UTF-8") from None
    if "\0" in text:
        raise BadRequest("the path holds a NUL character")
    return text


def make_route(ready: ReadyPlan, finished: Finished | None = None) -> Route:
    plan = ready.plan
    template = tuple(
        (True, segment[1:-1]) if segment.startswith("{") else (False, segment) for segment in plan.path.split("/")[1:]
    )
    methods: set[str] = set(plan.config.methods)
    if "GET" in methods:
        methods.add("HEAD")
    only = template[0][1] if len(template) == 1 and template[0][0] else None
    hides_path = ready.capture is not None and ready.capture.hides_request
    return Route(ready, frozenset(methods), template, plan.bare, paths(plan)[0], only, finished, hides_path)


def make_routes(
    plans: Iterable[ReadyPlan], observe: Callable[[ReadyPlan], Finished | None] | None = None
) -> dict[tuple[str, str], Route]:
    return {(ready.domain, ready.name): make_route(ready, observe and observe(ready)) for ready in plans}


def paths(plan: Plan) -> tuple[str, ...]:
    """Return the paths at which a plan is served, the full one first."""
    base = f"{ROOT}/{plan.domain}/{plan.name}"
    return (base + plan.path, base) if plan.path and plan.bare else (base + plan.path,)


def listing(plans: Mapping[tuple[str, str], ReadyPlan], domain: str) -> list[dict[str, object]]:
    """Return what ``GET /orchestrator/{domain}`` lists of each endpoint."""
    return [
        {
            "endpoint": ready.name,
            "description": ready.plan.config.description,
            "paths": list(paths(ready.plan)),
            "methods": list(ready.plan.config.methods),
        }
        for (owner, _), ready in plans.items()
        if owner == domain
    ]
