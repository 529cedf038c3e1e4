"""The configured sources, each with its kind, its checked options and what is known of its operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import attrs
from attrs import field, frozen

from orchestrator_core.config.model import Configuration, Section
from orchestrator_core.config.structure import Located, kind_of, option_problem, structure
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.models import ML, PREDICT, CommonOptions, MlOptions, ModelSpec, entries, operation_of
from orchestrator_core.plugin_api import Finding, OperationFacts, SourceKind
from orchestrator_core.plugins import Plugin, Registry
from orchestrator_core.policies.options import PolicyOptions

SourceKey = tuple[str, str, str]
"""Scope (``""`` or a domain's file), type and source id."""

DEFAULT_SOURCE = "default"


POLICIES = tuple(attribute.name for attribute in attrs.fields(PolicyOptions))


@frozen
class SourcePolicies:
    """What a source, or one model of it, says of the policies around its calls, and where that stands."""

    options: PolicyOptions
    located: Located = field(repr=False)


@frozen
class SourceSpec:
    """A source as it is configured. ``places`` says where each operation stands.

    ``policies`` is what it says of the policies around its calls: by ``""`` for all of them, and by operation what one
    model says, which wins. A source whose policies alone have changed is the same source.
    """

    key: SourceKey
    kind: SourceKind[Any]
    plugin: Plugin
    options: Any
    operations: Mapping[str, Any]
    facts: Mapping[str, OperationFacts] = field(eq=False)
    places: Mapping[str, Located] = field(eq=False, repr=False)
    located: Located | None = field(default=None, eq=False, repr=False)
    policies: Mapping[str, SourcePolicies] = field(factory=dict, eq=False, repr=False)

    @property
    def label(self) -> str:
        """Return ``database.default``, the way messages and metrics name it."""
        scope, type_name, source_id = self.key
        return f"{type_name}.{source_id}" if not scope else f"{type_name}.{source_id} ({scope})"

    def takes(self, operation: str) -> bool:
        return self.kind.operation is None or self.kind.undeclared_operations or operation in self.operations


@frozen
class Catalog:
    """All sources by key, and the keys of those that something is wrong with."""

    specs: Mapping[SourceKey, SourceSpec]
    broken: frozenset[SourceKey] = frozenset()
    problems: tuple[Problem, ...] = ()

    def find(self, scope: str, type_name: str, source_id: str) -> SourceSpec | None:
        """Return the source as the endpoints of a domain see it: the domain's own wins over the global one."""
        return self.specs.get((scope, type_name, source_id)) or self.specs.get(("", type_name, source_id))

    def is_broken(self, scope: str, type_name: str, source_id: str) -> bool:
        return bool({(scope, type_name, source_id), ("", type_name, source_id)} & self.broken)

    def ids(self, scope: str, type_name: str) -> set[str]:
        return {key[2] for key in (*self.specs, *self.broken) if key[0] in ("", scope) and key[1] == type_name}


def build_catalog(configuration: Configuration, registry: Registry) -> Catalog:
    """Check every source section against the kind of its type."""
    builder = _Builder(configuration, registry)
    for (scope, type_name), section in configuration.sections.items():
        builder.section(scope, type_name, section)
    builder.implicit()
    return Catalog(builder.specs, frozenset(builder.broken), tuple(builder.problems))


class _Builder:
    def __init__(self, configuration: Configuration, registry: Registry) -> None:
        self.configuration = configuration
        self.registry = registry
        self.specs: dict[SourceKey, SourceSpec] = {}
        self.broken: set[SourceKey] = set()
        self.problems: list[Problem] = []

    def section(self, scope: str, type_name: str, section: Section) -> None:
        provided = self.registry.sources.get(type_name)
        sources = self.visible_sources(scope, type_name, section)
        if provided is None:
            code, message, hint = self.registry.missing("source type", type_name, self.registry.sources)
            self.problems.append(section.located.problem(code, message, at_key=True, hint=hint))
            self.broken.update((scope, type_name, source_id) for source_id in sources)
            return
        shared = dict(section.operations)
        if scope and (above := self.configuration.sections.get(("", type_name))):
            shared = {**above.operations, **shared}
        for source_id, located in sources.items():
            spec = self.source((scope, type_name, source_id), provided.kind, provided.plugin, located, shared)
            if spec:
                self.specs[spec.key] = spec
            else:
                self.broken.add((scope, type_name, source_id))

    def visible_sources(self, scope: str, type_name: str, section: Section) -> dict[str, Located]:
        """Return the section's sources; a domain that adds operations sees the global sources with them."""
        above = self.configuration.sections.get(("", type_name))
        if scope and section.operations and above:
            return {**above.sources, **section.sources}
        return dict(section.sources)

    def source(
        self, key: SourceKey, kind: SourceKind[Any], plugin: Plugin, located: Located, shared: Mapping[str, Located]
    ) -> SourceSpec | None:
        data = {} if located.data is None else located.data
        if not isinstance(data, dict):
            self.problems.append(located.problem("ORC202", f"expected a mapping, got {kind_of(data)}"))
            return None
        own = data.get("operations")
        if own is not None and not isinstance(own, dict):
            message = f"expected a mapping of names to operations, got {kind_of(own)}"
            self.problems.append(located.problem("ORC202", message, "operations"))
            own = {}
        policies: dict[str, SourcePolicies] = {}
        rest, unfit = _without_policies(data, kind.options, "", located, policies)
        rest.pop("operations", None)
        options, problems = structure(kind.options, Located(located.document, located.path, rest))
        problems += unfit
        places = {**shared, **{name: located["operations"][name] for name in own or ()}}
        operations: dict[str, Any] = {}
        more: list[Problem] = []
        if kind is not ML:
            operations, more = _operations(kind, places)
        else:
            for place in places.values():
                message, hint = "an ml source has no operations: its models are what steps call", "give models: {…}"
                more.append(place.problem("ORC201", message, at_key=True, hint=hint))
            if options:
                operations, places, found = self.models(options, located, policies)
                more += found
        self.problems += [*problems, *more]
        if options is None or any(problem.severity == "error" for problem in more):
            return None
        try:
            facts = facts_told(kind.facts(options, operations), "facts") if kind.facts else {}
        except ValueError as error:
            self.problems.append(option_problem(located, str(error), error))
            return None
        except Exception as error:  # a defect of the plugin's: the rest of the configuration is told of all the same
            message = f"what {key[1]}.{key[2]} takes and returns cannot be told: {type(error).__name__}: {error}"
            self.problems.append(located.problem("ORC601", message, at_key=True, hint=f"a defect of {plugin}"))
            return None
        return SourceSpec(key, kind, plugin, options, operations, facts, places, located, policies)

    def models(
        self, options: MlOptions, located: Located, policies: dict[str, SourcePolicies]
    ) -> tuple[dict[str, ModelSpec], dict[str, Located], list[Problem]]:
        operations: dict[str, ModelSpec] = {}
        places: dict[str, Located] = {}
        problems: list[Problem] = []
        found = entries(options)
        if options.source is not None and "default" in options.models and found.fallback is None:
            message = "the model 'default' is given twice: as source and in models"
            problems.append(located.problem("ORC206", message, "source", at_key=True))
        if not options.source and not options.models:
            hint = "give source: {type: …} for one model, or models: {name: {…}}"
            problems.append(located.problem("ORC203", "there is no model in this source", at_key=True, hint=hint))
        for name, (path, data) in found.models.items():
            place = Located(located.document, (*located.path, *path), data)
            spec, more = self.model(name, place, options.base_url, policies)
            problems += [each for each in _of_base_url(more, place, located) if each not in problems]
            if spec:
                operations[operation_of(name)] = spec
            places[operation_of(name)] = place
        if found.fallback is not None:
            spec, more = self.fallback(found.fallback, located, options.base_url)
            path, data = found.fallback
            problems += _of_base_url(more, Located(located.document, (*located.path, *path), data), located)
            if spec and PREDICT in operations:
                operations[PREDICT] = attrs.evolve(operations[PREDICT], fallback=spec)
        return operations, places, problems

    def fallback(
        self, entry: tuple[tuple[str, ...], Mapping[str, Any]], located: Located, base_url: str | None
    ) -> tuple[ModelSpec | None, list[Problem]]:
        """Return the model of type http that answers while the source's own is not ready."""
        path, data = entry
        place = Located(located.document, (*located.path, *path), data)
        if data.get("type", "http") != "http":
            message = "beside a source, models.default is the fallback at base_url, which is of type http"
            return None, [place.problem("ORC206", message, "type", hint="leave base_url out, or the type")]
        common = {attribute.name for attribute in attrs.fields(CommonOptions)} - {"type"}
        unfit = [
            place.problem("ORC201", f"the fallback has no '{name}': it is called as it is", name, at_key=True)
            for name in data
            if name in common or name in set(POLICIES) - {"timeout"}
        ]
        spec, problems = self.model("fallback", place, base_url, {})
        return (None if unfit else spec), [*unfit, *problems]

    def model(
        self, name: str, place: Located, base_url: str | None, policies: dict[str, SourcePolicies]
    ) -> tuple[ModelSpec | None, list[Problem]]:
        own = {attribute.name for attribute in attrs.fields(CommonOptions)}
        head = {key: value for key, value in place.data.items() if key in own}
        common, problems = structure(CommonOptions, Located(place.document, place.path, head))
        type_name = place.data.get("type", "http")
        if not isinstance(type_name, str):
            return None, problems
        provided = self.registry.models.get(type_name)
        if provided is None:
            code, message, hint = self.registry.missing("model type", type_name, self.registry.models)
            return None, [*problems, place.problem(code, message, "type", hint=hint)]
        others = {key: value for key, value in place.data.items() if key not in own}
        rest, unfit = _without_policies(others, provided.kind.options, operation_of(name), place, policies)
        problems += unfit
        if base_url is not None and "base_url" in {field.name for field in attrs.fields(provided.kind.options)}:
            rest.setdefault("base_url", base_url)
        options, more = structure(provided.kind.options, Located(place.document, place.path, rest))
        problems += more
        if common is None or options is None:
            return None, problems
        return ModelSpec(name, provided.kind, options, common, plugin=str(provided.plugin)), problems

    def implicit(self) -> None:
        """Add the default source of every kind that has nothing to configure."""
        for type_name, provided in self.registry.sources.items():
            key = ("", type_name, DEFAULT_SOURCE)
            options = provided.kind.options
            nothing_to_say = attrs.has(options) and not attrs.fields(options)
            if nothing_to_say and key not in self.specs and key not in self.broken:
                self.specs[key] = SourceSpec(key, provided.kind, provided.plugin, options(), {}, {}, {})


def _of_base_url(problems: Iterable[Problem], model: Located, source: Located) -> list[Problem]:
    """Return the problems of a model, those of a ``base_url`` that it has from its source where the source gives it."""
    if "base_url" in model.data:
        return list(problems)
    inherited = model.problem("", "", "base_url").path
    return [
        source.problem(each.code, each.message, "base_url", hint=each.hint) if each.path == inherited else each
        for each in problems
    ]


def _without_policies(
    data: Mapping[str, Any], options: Any, operation: str, place: Located, policies: dict[str, SourcePolicies]
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the data without the keys of policies, which are noted, but for those that the options have themselves."""
    own = {attribute.name for attribute in attrs.fields(options)} if attrs.has(options) else set()
    given = {key: value for key, value in data.items() if key in POLICIES and key not in own}
    problems = []
    for key in data.keys() - own - {*POLICIES, "operations"}:
        hint = did_you_mean(key, (*own, *POLICIES))
        if own and any(hint == f"did you mean '{policy}'?" for policy in set(POLICIES) - own):
            problems.append(place.problem("ORC201", f"unknown key '{key}'", key, at_key=True, hint=hint))
    misspelt = {key for key in data if any(f"unknown key '{key}'" == problem.message for problem in problems)}
    if given:
        located = Located(place.document, place.path, given)
        policy_options, unfit = structure(PolicyOptions, located)
        problems += unfit
        if policy_options is not None:
            policies[operation] = SourcePolicies(policy_options, located)
    return {key: value for key, value in data.items() if key not in given and key not in misspelt}, problems


def _operations(kind: SourceKind[Any], places: Mapping[str, Located]) -> tuple[dict[str, Any], list[Problem]]:
    if kind.operation is None:
        return {name: place.data for name, place in places.items()}, []
    operations: dict[str, Any] = {}
    problems: list[Problem] = []
    for name, place in places.items():
        operation, found = structure(kind.operation, place)
        problems += map(_told_where_policies_stand, found)
        if operation is not None:
            operations[name] = operation
    return operations, problems


def facts_told(facts: Any, method: str) -> Mapping[str, OperationFacts]:
    """Return what a plugin's method told of operations. Raises ``TypeError`` for what a step would fail on later."""
    if not isinstance(facts, Mapping):
        raise TypeError(f"{method} returned {type(facts).__name__}, expected a mapping of operations to OperationFacts")
    for name, told in facts.items():
        if not isinstance(told, OperationFacts):
            raise TypeError(f"{method} returned {type(told).__name__} for '{name}', expected OperationFacts")
    return facts


def findings_told(findings: Any, method: str) -> None:
    """Raise ``TypeError`` unless a plugin's method found what can be shown."""
    for finding in findings:
        if not isinstance(finding, Finding):
            raise TypeError(f"{method} returned {type(finding).__name__} in its findings, expected Finding")


def _told_where_policies_stand(problem: Problem) -> Problem:
    if any(problem.message == f"unknown key '{policy}'" for policy in POLICIES):
        return attrs.evolve(problem, hint="policies stand beside the options of the source, or on a step")
    return problem
