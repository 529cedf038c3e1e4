"""Which policies apply to the calls of a step, and why: the default, or what the source, its model or the step says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from attrs import evolve, field, frozen

from orchestrator_core.catalog import SourceSpec
from orchestrator_core.config.model import Configuration, Step
from orchestrator_core.config.structure import Located
from orchestrator_core.direct import DIRECT
from orchestrator_core.errors import Problem
from orchestrator_core.models import ModelSpec
from orchestrator_core.plugin_api import OperationFacts
from orchestrator_core.policies.options import (
    BreakerOptions,
    CacheOptions,
    ConcurrencyOptions,
    DefaultPolicies,
    RetryOptions,
)

__all__ = [
    "CONFIGURED",
    "NOT_CONFIGURED",
    "Applied",
    "Defaults",
    "Place",
    "Policy",
    "applied",
    "defaults_of",
    "unfit_backoff",
]

DEFAULT = "default"
CONFIGURED = "configured"
OFF = "off"
NOT_CONFIGURED = "off: not configured"
NO_OWN_TIMEOUT = "what is left of the request's own: default"
_CLASSES: Mapping[str, type[Any] | None] = {
    "timeout": None,
    "retry": RetryOptions,
    "circuit_breaker": BreakerOptions,
    "concurrency": ConcurrencyOptions,
    "cache": CacheOptions,
}
_ON: Mapping[str, Any] = {"retry": RetryOptions(), "circuit_breaker": BreakerOptions()}


@frozen
class Place:
    """Where something stands: a file's name in the configuration folder, and a line."""

    file: str
    line: int


@frozen
class Policy:
    """One policy of a step: its options, or None where it is off, and why that is so.

    ``why`` is in words; ``places`` is where it is configured, the last one winning.
    """

    options: Any
    why: str
    places: tuple[Place, ...] = ()


@frozen
class Applied:
    """The policies of one step's calls. ``timeout`` is for one attempt; the step's own timeout is in its plan."""

    timeout: Policy
    retry: Policy
    circuit_breaker: Policy
    concurrency: Policy
    cache: Policy

    def __iter__(self) -> Iterator[tuple[str, Policy]]:
        return ((name, getattr(self, name)) for name in _CLASSES)

    @property
    def any(self) -> bool:
        """Return whether a call has anything around it."""
        return any(policy.options is not None for _, policy in self)


@frozen
class Defaults:
    """What ``config.yaml`` says under ``policies``, and where that stands."""

    options: DefaultPolicies = field(factory=DefaultPolicies)
    located: Located | None = field(default=None, repr=False)


@frozen
class _Layer:
    options: Any
    located: Located | None

    def given(self, name: str) -> Any:
        return getattr(self.options, name, None)

    def keys(self, name: str) -> set[str]:
        data = self.located.data.get(name) if self.located is not None else None
        known = {attribute.name for attribute in attrs.fields(type(self.given(name)))}
        return known & set(data) if isinstance(data, dict) else set()

    def place(self, name: str) -> Place:
        assert self.located is not None, "what is given stands somewhere"
        problem = self.located.problem("", "", name, at_key=True)
        return Place(problem.file, problem.line)


def defaults_of(configuration: Configuration) -> Defaults:
    """Return what ``config.yaml`` says of all sources."""
    at = configuration.app_located
    said = at is not None and "policies" in at.data
    return Defaults(configuration.app.policies, at["policies"] if at is not None and said else None)


def applied(defaults: Defaults, spec: SourceSpec, operation: str, step: Step | None = None) -> Applied:
    """Return what applies to the step's calls: what is said nearest to the step wins, option by option.

    Without a step it is what applies to all calls that say nothing themselves, and are idempotent.
    """
    if spec.kind is DIRECT:
        nothing = Policy(None, "a direct step calls nothing")
        return Applied(nothing, nothing, nothing, nothing, nothing)
    facts = spec.facts.get(operation) or OperationFacts()
    layers = _layers(defaults, spec, operation, step)
    found = {name: _policy(name, facts, layers) for name in _CLASSES}
    found["retry"] = _with_pauses(found["retry"], layers)
    if step is not None:
        found["retry"] = _if_idempotent(found["retry"], facts, spec, operation)
        if step.config.cache is None:
            found["cache"] = _if_no_write(found["cache"], spec, operation)
    if not facts.in_process:  # what a kind says of the time for a server is not for what has none
        found["timeout"] = _shorter(found["timeout"], _of_kind(spec, operation))
    return Applied(**found)


def unfit_backoff(defaults: Defaults, spec: SourceSpec, operation: str, step: Step, retry: Policy) -> Problem | None:
    """Return the problem of a step's retry whose ``backoff`` has no effect: no pause may be as long."""
    options = retry.options
    if options is None or options.backoff <= options.max_backoff:
        return None
    for layer in reversed(_layers(defaults, spec, operation, step)):
        keys = _said_of_retry(layer)
        if "backoff" in keys and layer.located is not None:
            message = f"no pause is longer than max_backoff, which is {options.max_backoff:g} s here, "
            message += f"and backoff is {options.backoff:g} s"
            hint = "give a longer max_backoff too, or a shorter backoff"
            return layer.located.problem("ORC204", message, "retry", "backoff", hint=hint)
        if "max_backoff" in keys:  # said nearer to the step, to shorten the pauses
            return None
    return None


def _layers(defaults: Defaults, spec: SourceSpec, operation: str, step: Step | None) -> list[_Layer]:
    """Return what says something of a call, the nearest last."""
    said = [spec.policies[key] for key in dict.fromkeys(("", operation)) if key in spec.policies]
    layers = [_Layer(defaults.options, defaults.located), *(_Layer(of.options, of.located) for of in said)]
    if step is not None:  # its own timeout is for the step as a whole, with everything that is around its call
        layers.append(_Layer(evolve(step.config, timeout=None), step.located))
    return layers


def _policy(name: str, facts: OperationFacts, layers: list[_Layer]) -> Policy:
    options, why = _ON.get(name), DEFAULT
    if facts.in_process and name in _ON:
        options, why = None, "off: it runs in this process, where nothing is transient"
        layers = layers[1:]
    elif options is None:
        why = NO_OWN_TIMEOUT if name == "timeout" else NOT_CONFIGURED
    places: tuple[Place, ...] = ()
    for layer in layers:
        given = layer.given(name)
        if given is None:
            continue
        why = CONFIGURED
        if given is False:
            options, why, places = None, OFF, (layer.place(name),)
        elif given is True:
            before = () if options is None else places  # what has switched it off says nothing of what it is now
            options, places = options or _ON[name], (*before, layer.place(name))
        elif options is None or not attrs.has(type(given)):
            options, places = given, (layer.place(name),)
        else:
            keys = layer.keys(name)
            options = evolve(options, **{key: getattr(given, key) for key in keys})
            places = (*places, layer.place(name))
    return Policy(options, why, places)


def _with_pauses(retry: Policy, layers: list[_Layer]) -> Policy:
    """Return the retry with pauses as long as its ``backoff``, where nobody has said how long they may be at most."""
    options = retry.options
    if (
        options is None
        or options.backoff <= options.max_backoff
        or any("max_backoff" in _said_of_retry(layer) for layer in layers)
    ):
        return retry
    return evolve(retry, options=evolve(options, max_backoff=options.backoff))


def _said_of_retry(layer: _Layer) -> set[str]:
    """Return the options that the layer says itself; none where it only switches retries on or off."""
    return layer.keys("retry") if isinstance(layer.given("retry"), RetryOptions) else set()


def _if_idempotent(retry: Policy, facts: OperationFacts, spec: SourceSpec, operation: str) -> Policy:
    if retry.options is None or retry.options.non_idempotent:
        return retry
    if facts.idempotent or spec.kind.idempotent:
        return evolve(retry, why=f"{retry.why}, {operation} is idempotent") if not retry.places else retry
    what = operation or f"an operation of type {spec.kind.name}"
    return Policy(None, f"off: {what} is not known to be idempotent", retry.places)


def _if_no_write(cache: Policy, spec: SourceSpec, operation: str) -> Policy:
    """Return the cache of a source for an operation of it: what may be a write has to be done each time."""
    facts = spec.facts.get(operation)
    if cache.options is None or facts is None or facts.idempotent is not False or spec.kind.idempotent:
        return cache
    return Policy(None, f"off: {operation} is not idempotent", cache.places)


def _shorter(policy: Policy, own: _OwnTimeout | None) -> Policy:
    """Return the timeout that is in force of a policy and the kind's own, which wins where it is configured."""
    if own is None or (policy.options is not None and not own.places and policy.options < own.seconds):
        return policy
    return Policy(None, f"{own.seconds:g} s, kept by the {own.whose} itself", own.places)


@frozen
class _OwnTimeout:
    """The timeout that a kind keeps itself, so that nothing more is put around the call, and where it is configured."""

    seconds: float
    whose: str
    places: tuple[Place, ...]


def _of_kind(spec: SourceSpec, operation: str) -> _OwnTimeout | None:
    """Return the own timeout that is said nearest to a call: of the operation or the model, else of the source."""
    of_operation, whose = spec.operations.get(operation), "source"
    if isinstance(of_operation, ModelSpec):
        of_operation, whose = of_operation.options, "model"
    for options, located in ((of_operation, spec.places.get(operation)), (spec.options, spec.located)):
        seconds = getattr(options, "timeout", None)
        if seconds is not None:
            given = located is not None and isinstance(located.data, dict) and "timeout" in located.data
            places = (_Layer(options, located).place("timeout"),) if given else ()
            return _OwnTimeout(float(seconds), whose, places)
    return None
