"""What tells cached results and answers apart: the ``key`` of a step's, a source's and an endpoint's ``cache``."""

from __future__ import annotations

import json
from collections.abc import Sequence

from orchestrator_core.applied import Policy
from orchestrator_core.catalog import SourceSpec
from orchestrator_core.config.model import EndpointConfig, StepConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.errors import did_you_mean
from orchestrator_core.expressions import (
    ArrayNode,
    CompiledValue,
    Node,
    Reference,
    compile_value,
    parse_value,
)
from orchestrator_core.plan.model import REQUEST_PARTS, AnswerCache
from orchestrator_core.plan.reading import Reading, place_of
from orchestrator_core.plan.route import PARAMETER
from orchestrator_core.policies.options import CacheOptions

_ANYTHING = ((), ("path_params",), ("query_params",), ("body",))
"""References to as much of a request that it is not known which names in it count."""


def key_of_step(reading: Reading, config: StepConfig, located: Located) -> Node | None:
    """Return the step's own key where it is an expression; names have to be those of parameters."""
    key = config.cache.key if isinstance(config.cache, CacheOptions) else None
    if isinstance(key, str) and _is_expression(key):
        return reading.parse(key, located, ("cache", "key"))
    _check_names(reading, key, config, located, "cache", "key")
    return None


def key_of_source(
    reading: Reading, cache: Policy, spec: SourceSpec, operation: str, config: StepConfig
) -> CompiledValue | None:
    """Return the key that the source, or the model, has for the calls of all steps, where it is an expression."""
    if cache.options is None or (isinstance(config.cache, CacheOptions) and config.cache.key is not None):
        return None
    for said in (spec.policies.get(operation), spec.policies.get("")):
        key = said.options.cache.key if said and isinstance(said.options.cache, CacheOptions) else None
        if said is None or key is None:
            continue
        if not isinstance(key, str) or not _is_expression(key):
            _check_names(reading, key, config, said.located, "cache", "key")
            return None
        try:
            compiled = compile_value(key, ("params",))
        except ValueError as error:
            reading.report(said.located, "ORC501", str(error), "cache", "key")
            return None
        for reference in compiled.references:
            name = str(reference.path[0]) if reference.path else ""
            if name and name not in config.params and not reference.guarded:
                message = f"{reference.text} is not there: the step '{config.name}' passes no parameter '{name}'"
                hint = did_you_mean(name, config.params)
                reading.report(said.located, "ORC407", message, "cache", "key", hint=hint, **place_of(reference))
        return compiled
    return None


def _check_names(
    reading: Reading, key: str | tuple[str, ...] | None, config: StepConfig, located: Located, *at: str
) -> None:
    for name, place in _names_in(key):
        if name not in config.params:
            message = f"the step '{config.name}' passes no parameter '{name}'"
            reading.report(located, "ORC407", message, *at, *place, hint=did_you_mean(name, config.params))


def key_of_answer(reading: Reading, config: EndpointConfig, located: Located) -> Node | None:
    """Return the key of the endpoint's own cache: an expression on the request, or names of what is in it."""
    key = config.cache.key if isinstance(config.cache, CacheOptions) else None
    if key is None:
        return None
    if isinstance(key, str) and _is_expression(key):
        start = len(reading.references)
        node = reading.parse(key, located, ("cache", "key"))
        for reference, _, path in reading.references[start:]:
            if reference.root not in ("request",):
                message = f"{reference.text} is not there yet: the cache is asked before any step is called"
                hint = "the key is made of the request alone: $request…"
                reading.report(located, "ORC503", message, *path, hint=hint, **place_of(reference))
        reading.references[start:] = [found for found in reading.references[start:] if found[0].root == "request"]
        return node
    names = _names_in(key)
    known = _names_of_request(reading, config)
    for name, at in names:
        if known is not None and name not in known:
            message = f"the request has no '{name}'"
            reading.report(located, "ORC503", message, "cache", "key", *at, hint=did_you_mean(name, known))
    return ArrayNode(tuple(parse_value(f"$request[{json.dumps(name)}] ?? null") for name, _ in names))


def _names_of_request(reading: Reading, config: EndpointConfig) -> set[str] | None:
    """Return what the endpoint declares and uses of the path, the query and the body; None where that may be anything.

    A name that is none of them would be missing from each request, and all would be given one answer.
    """
    declared = (config.input_schema or {}).get("properties") or {}
    known = {*declared, *PARAMETER.findall(config.path or "")}
    asked = [found.path for found, _, _ in reading.references if found.root == "request"]
    unknown = reading.broken or reading.endpoint.unreadable or any(path in _ANYTHING for path in asked)
    if unknown or not (known or asked):
        return None
    known |= {str(path[0]) for path in asked if path[0] not in REQUEST_PARTS}
    return known | {str(path[1]) for path in asked if path[0] in REQUEST_PARTS and path[0] != "headers" and path[1:]}


def answer_cache(
    reading: Reading, config: EndpointConfig, located: Located, key: Node | None, asked: Sequence[Reference]
) -> AnswerCache | None:
    """Return how the endpoint keeps its answers. ``asked`` is what the plan refers to of a request."""
    if not isinstance(config.cache, CacheOptions):
        return None
    headers = {str(reference.path[1]).lower() for reference in asked if _is_header(reference)}
    everything = next((found for found in asked if found.path in ((), ("headers",))), None)
    if key is None and everything is not None:
        message = f"the answer depends on all headers of a request, by {everything.text}: no two need be the same"
        reading.report(located, "ORC204", message, "cache", at_key=True, hint="say what tells answers apart: key")
    return AnswerCache(config.cache, key, tuple(sorted(headers)) if key is None else ())


def _is_expression(key: str) -> bool:
    """Return whether a cache's key is an expression, not the name of a parameter."""
    return key.startswith("$") or "{{" in key


def _names_in(key: str | tuple[str, ...] | None) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names in a cache's key, each with its place there."""
    return [(key, ())] if isinstance(key, str) else [(name, (place,)) for place, name in enumerate(key or ())]


def _is_header(reference: Reference) -> bool:
    return reference.path[:1] == ("headers",) and len(reference.path) > 1


__all__ = ["answer_cache", "key_of_answer", "key_of_source", "key_of_step"]
