"""An endpoint's configuration to a plan: a checked graph of steps with parsed expressions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from attrs import define, evolve, field, frozen

from orchestrator_core.applied import Applied, Defaults, Policy, applied
from orchestrator_core.catalog import Catalog, SourceSpec
from orchestrator_core.config.model import (
    RESERVED_ROOTS,
    UNSET,
    Endpoint,
    EndpointConfig,
    Step,
    StepConfig,
    StepTransforms,
)
from orchestrator_core.config.structure import Located, option_problem, structure
from orchestrator_core.config.yaml import DataPath
from orchestrator_core.errors import InvalidParam, Problem, SourceError, did_you_mean
from orchestrator_core.expressions import (
    ArrayNode,
    CompiledValue,
    ExpressionSyntaxError,
    Literal,
    Node,
    ObjectNode,
    Reference,
    TemplateNode,
    compile_value,
    parse,
    parse_value,
    references,
)
from orchestrator_core.plugin_api import JSON
from orchestrator_core.plugins import Registry
from orchestrator_core.policies.options import CacheOptions
from orchestrator_core.schemas import FOREIGN_REFERENCE, RequestSchema, SchemaError, compile_schema

REQUEST_PARTS = ("path_params", "query_params", "headers", "body")
ITEM_ROOTS = ("item", "index")
JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
_SHORT_PARTS = {"path": "path_params", "params": "path_params", "query": "query_params"}
_PARAMETER = re.compile(r"\{([^{}]*)\}")
_REFERENCE = re.compile(r"\$([A-Za-z_]\w*)")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")

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


def compile_plan(
    endpoint: Endpoint,
    catalog: Catalog,
    registry: Registry,
    *,
    incomplete: bool = False,
    defaults: Defaults | None = None,
) -> Compiled:
    """Check an endpoint and compile it. ``incomplete`` silences what an unreadable file would explain."""
    return _Compiler(endpoint, catalog, registry, incomplete, defaults or Defaults()).compile()


@frozen
class Compiled:
    """A plan, or None where there is none to be had, and the problems of the endpoint.

    ``steps`` and ``response`` are what could be read of it, for :mod:`orchestrator_core.facts`.
    """

    plan: Plan | None
    problems: tuple[Problem, ...]
    steps: tuple[PlannedStep, ...]
    response: Node | None
    located: Located = field(repr=False)


@define
class _Compiler:
    endpoint: Endpoint
    catalog: Catalog
    registry: Registry
    incomplete: bool
    defaults: Defaults
    problems: list[Problem] = field(factory=list)
    references: list[tuple[Reference, Located, DataPath]] = field(factory=list)

    def compile(self) -> Compiled:
        config, located = self.endpoint.config, self.endpoint.located
        steps = self.unique_steps()
        planned = [item for step in steps if (item := self.step(step))]
        response = self.response(config, located)
        answer_key = self.answer_key(config, located)
        self.unreadable()
        names = {step.config.name for step in steps} | self.endpoint.unreadable_names
        self.check_references(names, {step.config.name: step for step in steps})
        self.check_kind(config, located, steps)
        self.check_primary(config, located, names)
        if not steps and not self.endpoint.unreadable and config.response_mapping is None:
            hint = "give data_sources, a response_mapping, or both"
            self.report(located, "ORC203", "the endpoint has nothing to answer with", at_key=True, hint=hint)
        transforms = self.transforms(config.transform, located, "transform")
        path, path_params, bare = self.route(config, located)
        input_schema = self.schema(config.input_schema, located, "input_schema")
        output_schema = self.schema(config.output_schema, located, "output_schema")
        ordered = self.order(planned, steps)
        if any(problem.severity == "error" for problem in self.problems) or self.endpoint.unreadable:
            return Compiled(None, tuple(self.problems), tuple(planned), response, located)
        asked = tuple(reference for reference, _, _ in self.references if reference.root == "request")
        plan = Plan(
            domain=self.endpoint.domain,
            name=self.endpoint.name,
            config=config,
            steps=ordered,
            response=response,
            transforms=transforms,
            path=path,
            path_params=path_params,
            bare=bare,
            request_references=asked,
            input=input_schema,
            output=output_schema,
            located=located,
            cache=self.answer_cache(config, located, answer_key, asked),
        )
        if any(problem.severity == "error" for problem in self.problems):
            return Compiled(None, tuple(self.problems), tuple(planned), response, located)
        return Compiled(plan, tuple(self.problems), tuple(planned), response, located)

    def report(self, located: Located, code: str, message: str, *sub: str | int, **place: Any) -> None:
        self.problems.append(located.problem(code, message, *sub, **place))

    # --- steps ---------------------------------------------------------------------------------------------------

    def unique_steps(self) -> list[Step]:
        steps: dict[str, Step] = {}
        for step in self.endpoint.steps:
            first = steps.setdefault(step.config.name, step)
            if first is not step:
                line = first.located.document.values[(*first.located.path, "name")].line
                message = f"two steps are named '{step.config.name}'"
                self.report(step.located, "ORC410", message, "name", hint=f"the first is at line {line}")
        return list(steps.values())

    def unreadable(self) -> None:
        """Check the expressions of the entries that are no steps for other reasons."""
        for entry in self.endpoint.unreadable:
            if isinstance(entry.data, dict) and isinstance(params := entry.data.get("params"), dict):
                for name, value in params.items():
                    self.parse(value, entry, ("params", name))

    def step(self, step: Step) -> PlannedStep | None:
        config, located = step.config, step.located
        start = len(self.references)
        params = self.params(config, located)
        condition = self.condition(config, located)
        for_each = self.for_each(config, located)
        cache_key = self.step_cache_key(config, located)
        referred = {_step_of(reference) for reference, _, _ in self.references[start:]} - set(RESERVED_ROOTS)
        for index, name in enumerate(config.depends_on):
            self.known_step(name, located, "depends_on", index)
        transforms, conversions = self.step_transforms(config, located)
        default = self.default(config, located)
        spec = self.source(config, located)
        operation = self.operation(spec, config, located) if spec else None
        if spec is None or operation is None or params is None:
            return None
        policies = applied(self.defaults, spec, operation, step)
        waits_for = frozenset((referred | set(config.depends_on)) - {config.name})
        return PlannedStep(
            config.name,
            config,
            spec,
            operation,
            params,
            condition,
            waits_for,
            default,
            transforms,
            conversions,
            located,
            policies,
            for_each,
            cache_key,
            self.source_cache_key(policies.cache, spec, operation, config) if cache_key is None else None,
        )

    # --- what tells cached results apart ---------------------------------------------------------------------------

    def step_cache_key(self, config: StepConfig, located: Located) -> Node | None:
        """Return the step's own key where it is an expression; names have to be those of parameters."""
        key = config.cache.key if isinstance(config.cache, CacheOptions) else None
        if isinstance(key, str) and _is_expression(key):
            return self.parse(key, located, ("cache", "key"))
        self.check_key_names(key, config, located, "cache", "key")
        return None

    def source_cache_key(
        self, cache: Policy, spec: SourceSpec, operation: str, config: StepConfig
    ) -> CompiledValue | None:
        """Return the key that the source, or the model, has for the calls of all steps, where it is an expression."""
        if cache.options is None or (isinstance(config.cache, CacheOptions) and config.cache.key is not None):
            return None
        for said in (spec.policies.get(operation), spec.policies.get("")):
            key = said.options.cache.key if said and isinstance(said.options.cache, CacheOptions) else None
            if said is None or key is None:
                continue
            if not isinstance(key, str) or not _is_expression(key):
                self.check_key_names(key, config, said.located, "cache", "key")
                return None
            try:
                compiled = compile_value(key, ("params",))
            except ValueError as error:
                self.report(said.located, "ORC501", str(error), "cache", "key")
                return None
            for reference in compiled.references:
                name = str(reference.path[0]) if reference.path else ""
                if name and name not in config.params and not reference.guarded:
                    message = f"{reference.text} is not there: the step '{config.name}' passes no parameter '{name}'"
                    hint = did_you_mean(name, config.params)
                    self.report(said.located, "ORC407", message, "cache", "key", hint=hint, **place_of(reference))
            return compiled
        return None

    def check_key_names(
        self, key: str | tuple[str, ...] | None, config: StepConfig, located: Located, *at: str
    ) -> None:
        for name, place in _names_in(key):
            if name not in config.params:
                message = f"the step '{config.name}' passes no parameter '{name}'"
                self.report(located, "ORC407", message, *at, *place, hint=did_you_mean(name, config.params))

    def answer_key(self, config: EndpointConfig, located: Located) -> Node | None:
        """Return the key of the endpoint's own cache: an expression on the request, or names of what is in it."""
        key = config.cache.key if isinstance(config.cache, CacheOptions) else None
        if key is None:
            return None
        if isinstance(key, str) and _is_expression(key):
            start = len(self.references)
            node = self.parse(key, located, ("cache", "key"))
            for reference, _, path in self.references[start:]:
                if reference.root not in ("request",):
                    message = f"{reference.text} is not there yet: the cache is asked before any step is called"
                    hint = "the key is made of the request alone: $request…"
                    self.report(located, "ORC503", message, *path, hint=hint, **place_of(reference))
            self.references[start:] = [found for found in self.references[start:] if found[0].root == "request"]
            return node
        names = _names_in(key)
        declared = (config.input_schema or {}).get("properties") or {}
        known = {*declared, *_PARAMETER.findall(config.path or "")}
        for name, at in names:
            if known and name not in known:
                message = f"the request has no '{name}'"
                self.report(located, "ORC503", message, "cache", "key", *at, hint=did_you_mean(name, known))
        return ArrayNode(tuple(parse_value(f"$request[{json.dumps(name)}] ?? null") for name, _ in names))

    def answer_cache(
        self, config: EndpointConfig, located: Located, key: Node | None, asked: Sequence[Reference]
    ) -> AnswerCache | None:
        if not isinstance(config.cache, CacheOptions):
            return None
        headers = {str(reference.path[1]).lower() for reference in asked if _is_header(reference)}
        everything = next((found for found in asked if found.path in ((), ("headers",))), None)
        if key is None and everything is not None:
            message = f"the answer depends on all headers of a request, by {everything.text}: no two need be the same"
            self.report(located, "ORC204", message, "cache", at_key=True, hint="say what tells answers apart: key")
        return AnswerCache(config.cache, key, tuple(sorted(headers)) if key is None else ())

    # --- what is called --------------------------------------------------------------------------------------------

    def source(self, config: StepConfig, located: Located) -> SourceSpec | None:
        type_name, source_id, scope = config.type, config.source_id, self.endpoint.scope
        provided = self.registry.sources.get(type_name)
        if provided is None:
            code, message, hint = self.registry.missing("source type", type_name, self.registry.sources)
            self.report(located, code, message, "type", hint=hint)
            return None
        spec = self.catalog.find(scope, type_name, source_id)
        if spec or self.catalog.is_broken(scope, type_name, source_id) or self.incomplete:
            return spec
        ids = self.catalog.ids(scope, type_name)
        at = "source_id" if "source_id" in located.data else "type"
        if ids:
            message, hint = f"there is no {type_name} source '{source_id}'", did_you_mean(source_id, ids)
            if at == "type":
                hint = f"give a source_id: {', '.join(sorted(ids))}"
        else:
            message = f"there is no {type_name} source"
            hint = f"configure it: {type_name}: {{sources: {{{source_id}: …}}}}"
        self.report(located, "ORC405", message, at, hint=hint)
        return None

    def operation(self, spec: SourceSpec, config: StepConfig, located: Located) -> str | None:
        if config.operation is None:
            if len(spec.operations) == 1:
                return next(iter(spec.operations))
            if not spec.operations and spec.kind.operation is None:
                return ""
            hint = f"expected one of: {', '.join(sorted(spec.operations))}" if spec.operations else ""
            self.report(located, "ORC203", "'operation' is missing", at_key=True, hint=hint)
            return None
        operation = config.operation
        if spec.kind.name == "ml" and operation == "default" and "predict" in spec.operations:
            operation = "predict"
        if spec.takes(operation):
            return operation
        if spec.places.get(operation) is None:
            hint = did_you_mean(operation, spec.operations)
            message = f"the source {spec.label} has no operation '{operation}'"
            self.report(located, "ORC406", message, "operation", hint=hint)
        return None

    def default(self, config: StepConfig, located: Located) -> JSON:
        if config.default is UNSET:
            return None
        start = len(self.references)
        node = self.parse(config.default, located, ("default",))
        if len(self.references) > start:
            del self.references[start:]
            message = "a default is a constant: it is used when the step has failed"
            self.report(located, "ORC506", message, "default", hint="use ?? where the result is referred to")
        return node.value if isinstance(node, Literal) else None

    # --- expressions -----------------------------------------------------------------------------------------------

    def parse(
        self, value: Any, located: Located, path: DataPath, read: Callable[[Any], Node] = parse_value
    ) -> Node | None:
        """Parse a value and note its references. Every string of it that is no expression is a problem."""
        failed = False
        while True:
            try:
                node = read(value)
            except ExpressionSyntaxError as error:
                failed = True
                where = (*path, *error.path)
                hint = error.hint or _placeholder_hint(value, error.path)
                self.report(
                    located, "ORC501", error.message, *where, hint=hint, offset=error.offset, length=error.length
                )
                value = _replace(value, error.path)
            else:
                found = references(node)
                self.references += [(reference, located, (*path, *reference.where)) for reference in found]
                self.warn_of_text(value, located, path)
                return None if failed else node

    def warn_of_text(self, value: Any, located: Located, path: DataPath) -> None:
        """Warn of a text that was probably meant to be an expression, such as ``len($customer.orders)``."""
        if isinstance(value, dict):
            for key, item in value.items():
                self.warn_of_text(item, located, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.warn_of_text(item, located, (*path, index))
        elif isinstance(value, str) and path[:1] != ("condition",) and not value.startswith("$") and "{{" not in value:
            names = {step.config.name for step in self.endpoint.steps} | {"request", "execution"}
            names |= set(ITEM_ROOTS) if path[:1] == ("params",) and _runs_for_each(located) else set()
            if (match := _REFERENCE.search(value)) and match[1] in names:
                message = f"this is text, in which {match[0]} stands for itself"
                hint = "an expression starts with $; inside a text it is written {{ $… }}"
                problem = located.problem(
                    "ORC508", message, *path, hint=hint, offset=match.start(), length=match.end() - match.start()
                )
                self.problems.append(problem.as_warning())

    def params(self, config: StepConfig, located: Located) -> tuple[tuple[str, Node], ...] | None:
        nodes = {name: self.parse(value, located, ("params", name)) for name, value in config.params.items()}
        parsed = tuple((name, node) for name, node in nodes.items() if node is not None)
        return parsed if len(parsed) == len(nodes) else None

    def condition(self, config: StepConfig, located: Located) -> Node | None:
        if config.condition is True:
            return None
        if config.condition is False:
            return Literal(False)
        return self.parse(config.condition, located, ("condition",), parse_condition)

    def for_each(self, config: StepConfig, located: Located) -> Node | None:
        if config.for_each is None:
            if "max_concurrency" in located.data:
                message = "max_concurrency says how many items run at once, and the step has no for_each"
                self.report(located, "ORC204", message, "max_concurrency", at_key=True)
            return None
        value = list(config.for_each) if isinstance(config.for_each, tuple) else config.for_each
        node = self.parse(value, located, ("for_each",))
        text = isinstance(node, TemplateNode | ObjectNode)
        if text or (isinstance(node, Literal) and not isinstance(node.value, list)):
            hint = "an expression starts with $, such as $request.body.items"
            message = "for_each is not a list: expected an expression or a list"
            self.report(located, "ORC204", message, "for_each", hint=hint)
        return node

    def response(self, config: EndpointConfig, located: Located) -> Node | None:
        if config.response_mapping is None:
            return None
        return self.parse(config.response_mapping, located, ("response_mapping",))

    def known_step(self, name: str, located: Located, *sub: str | int) -> None:
        names = {step.config.name for step in self.endpoint.steps} | self.endpoint.unreadable_names
        if name not in names:
            self.report(located, "ORC502", f"there is no step '{name}'", *sub, hint=did_you_mean(name, names))

    def check_references(self, names: set[str], steps: Mapping[str, Step]) -> None:
        for reference, located, path in self.references:
            place = place_of(reference)
            if reference.root == "execution":
                self.check_execution_reference(reference, located, path, place, steps)
                continue
            if reference.root in ITEM_ROOTS:
                self.check_item(reference, located, path, place)
                continue
            if reference.root == "request":
                self.check_request_reference(reference, located, path, place)
            elif reference.root not in names:
                of_item = ITEM_ROOTS if path[:1] == ("params",) and _runs_for_each(located) else ()
                hint = did_you_mean(reference.root, [*names, "request", "execution", *of_item])
                message = f"there is no step '{reference.root}'"
                self.report(located, "ORC502", message, *path, hint=hint, **place)
            elif (step := steps.get(reference.root)) and not reference.guarded:
                self.check_presence(reference, step.config, located, path, place)

    def check_execution_reference(
        self,
        reference: Reference,
        located: Located,
        path: DataPath,
        place: dict[str, Any],
        steps: Mapping[str, Step],
    ) -> None:
        """Hold ``$execution.models.<step>`` against the steps: the step has to call a model, and to be sure to."""
        if reference.path[:1] != ("models",):
            return
        models = {name for name, step in steps.items() if step.config.type == "ml"}
        if len(reference.path) == 1:
            if path[:1] != ("response_mapping",):
                hint = f"name the step: {reference.text}.{min(models, default='step')}"
                message = f"{reference.text} is complete in the response_mapping only"
                self.report(located, "ORC503", message, *path, hint=hint, **place)
            return
        name = str(reference.path[1])
        step = steps.get(name)
        if step is None:
            if name not in self.endpoint.unreadable_names:
                self.report(
                    located, "ORC502", f"there is no step '{name}'", *path, hint=did_you_mean(name, models), **place
                )
        elif step.config.type != "ml":
            message = f"the step '{name}' calls no model"
            self.report(located, "ORC503", message, *path, hint=did_you_mean(name, models), **place)
        elif not reference.guarded:
            without_default = evolve(
                step.config, default=UNSET, required=step.config.default is UNSET and step.config.required
            )
            self.check_presence(reference, without_default, located, path, place)

    def check_item(self, reference: Reference, located: Located, path: DataPath, place: dict[str, Any]) -> None:
        """Report ``$item`` and ``$index`` where there is no item, and fields of a number."""
        if not _runs_for_each(located) or path[:1] not in (("params",), ("cache",)):
            message = f"{reference.text} is known only in the params of a step with for_each"
            hint = "give the step for_each: the list to run over"
            if path[:1] == ("for_each",):
                hint = "for_each is the list that the items come from"
            elif path[:1] == ("condition",):
                hint = "the condition is of the step as a whole, and decided before there are items"
            elif path[:1] != ("params",):
                hint = "refer to the results: $step is a list, with one result for each item, and $step[0] the first"
            self.report(located, "ORC509", message, *path, hint=hint, **place)
        elif reference.root == "index" and reference.path:
            message = f"{reference.text} finds nothing: $index is the number of the item, counted from 0"
            self.report(located, "ORC509", message, *path, hint="did you mean $item?", **place)

    def check_request_reference(
        self, reference: Reference, located: Located, path: DataPath, place: dict[str, Any]
    ) -> None:
        if not reference.path:
            return
        part = reference.path[0]
        declared = (self.endpoint.config.input_schema or {}).get("properties") or {}
        if part not in REQUEST_PARTS and len(reference.path) > 1 and part not in declared:
            hint = did_you_mean(_SHORT_PARTS.get(str(part), str(part)), REQUEST_PARTS)
            if hint.startswith("did you mean"):
                message = f"there is no part '{part}' of a request"
                self.report(located, "ORC503", message, *path, hint=hint, **place)
        template = self.endpoint.config.path
        if part == "path_params" and len(reference.path) > 1 and template is not None:
            names = _PARAMETER.findall(template)
            if str(reference.path[1]) not in names and not reference.guarded:
                message = f"the path {template} has no parameter '{reference.path[1]}'"
                hint = did_you_mean(str(reference.path[1]), names)
                self.report(located, "ORC503", message, *path, hint=hint, **place)

    def check_presence(
        self, reference: Reference, step: StepConfig, located: Located, path: DataPath, place: dict[str, Any]
    ) -> None:
        """Report a reference to what may not be there and that nothing falls back from."""
        # A step that runs for each item gives a list, in which an item that failed has its default.
        inside = reference.path if step.for_each is None else reference.path[1:]
        each = step.for_each is not None
        if step.condition is not True:
            reason = f"the step '{step.name}' has a condition, and may be skipped"
        elif each and not inside:
            return
        elif not step.required and step.default is UNSET:
            reason = f"the step '{step.name}' is not required, and may fail{' for an item' if each else ''}"
        elif step.default is not UNSET and not _reaches(step.default, inside):
            reason = f"the default of the step '{step.name}' has no {reference.text}"
        else:
            return
        hint = f"give a fallback: {reference.text} ?? …"
        self.report(located, "ORC504", f"{reference.text} may be missing: {reason}", *path, hint=hint, **place)

    # --- the graph ---------------------------------------------------------------------------------------------------

    def order(self, planned: Sequence[PlannedStep], steps: Sequence[Step]) -> tuple[PlannedStep, ...]:
        """Return the steps in an order that respects what they wait for, else as they are written."""
        by_name = {step.name: step for step in planned}
        waits = self.edges(steps)
        for name, names in waits.items():
            if name in names:
                located = next(step.located for step in steps if step.config.name == name)
                self.report(located, "ORC507", f"the step '{name}' refers to itself", "name")
                waits[name] = names - {name}
        sorter = TopologicalSorter({name: sorted(names, key=list(waits).index) for name, names in waits.items()})
        try:
            sorter.prepare()
        except CycleError as error:
            cycle = error.args[1]
            first = min(range(len(cycle) - 1), key=lambda index: list(waits).index(cycle[index]))
            turned = [*cycle[first:-1], *cycle[:first], cycle[first]]
            located = next(step.located for step in steps if step.config.name == turned[0])
            message = f"steps wait for each other: {' -> '.join(reversed(turned))}"
            self.report(located, "ORC507", message, "name")
            return ()
        ordered: list[PlannedStep] = []
        position = {name: index for index, name in enumerate(waits)}
        while sorter.is_active():
            ready = sorted(sorter.get_ready(), key=position.__getitem__)
            ordered += [by_name[name] for name in ready if name in by_name]
            sorter.done(*ready)
        return tuple(ordered)

    def edges(self, steps: Sequence[Step]) -> dict[str, set[str]]:
        names = {step.config.name for step in steps}
        waits: dict[str, set[str]] = {
            step.config.name: {name for name in step.config.depends_on if name in names} for step in steps
        }
        for reference, located, _ in self.references:
            for step in steps:
                if step.located is located and (name := _step_of(reference)) in names:
                    waits[step.config.name].add(name)
        return waits

    # --- the endpoint ----------------------------------------------------------------------------------------------

    def check_kind(self, config: EndpointConfig, located: Located, steps: Sequence[Step]) -> None:
        kind = config.endpoint_type
        if kind is None or kind == "composite":
            return
        known = {*self.registry.sources, "database", "api", "feast", "ml", "composite"}
        if kind not in known:
            hint = did_you_mean(kind, known)
            self.report(located, "ORC408", f"unknown endpoint_type '{kind}'", "endpoint_type", hint=hint)
            return
        for step in steps:
            if step.config.type not in (kind, "direct"):
                message = f"endpoint_type is {kind}, but the step '{step.config.name}' is of type {step.config.type}"
                self.report(located, "ORC408", message, "endpoint_type", hint="write composite")
                return

    def check_primary(self, config: EndpointConfig, located: Located, names: set[str]) -> None:
        if config.primary_source is not None and config.primary_source not in names:
            self.known_step(config.primary_source, located, "primary_source")

    def step_transforms(
        self, config: StepConfig, located: Located
    ) -> tuple[tuple[Transform, ...], Mapping[str, Transform]]:
        """Return what the result passes through, and for each converted parameter what its value does."""
        long_form = isinstance(config.transform, StepTransforms)
        result_at: DataPath = ("transform", "result") if long_form else ("transform",)
        conversions = {}
        for name, entries in config.transforms.params.items():
            if name not in config.params:
                hint = did_you_mean(name, config.params)
                message = f"the step passes no parameter '{name}'"
                self.report(located, "ORC407", message, "transform", "params", name, at_key=True, hint=hint)
            elif built := self.transforms(entries, located, "transform", "params", name):
                conversions[name] = _conversion(name, built)
        return self.transforms(config.transforms.result, located, *result_at), conversions

    def transforms(self, entries: Sequence[Any], located: Located, *key: str | int) -> tuple[Transform, ...]:
        """Return the transforms; one with a problem holds its place, so that nothing is concluded from its absence."""
        return tuple(
            self.transform(entry, located, *key, index) or _unreadable_transform for index, entry in enumerate(entries)
        )

    def transform(self, entry: Any, located: Located, *at: str | int) -> Transform | None:
        if isinstance(entry, str):
            options: Any = {}
            name = entry
            place = Located(located.document, (*located.path, *at), options)
        elif isinstance(entry, dict) and len(entry) == 1:
            name, options = next(iter(entry.items()))
            place = Located(located.document, (*located.path, *at, name), options)
        else:
            message = "a transform is a name, or one name with its options: {name: options}"
            self.report(located, "ORC202", message, *at)
            return None
        provided = self.registry.transformers.get(name)
        if provided is None:
            code, message, hint = self.registry.missing("transformer", name, self.registry.transformers)
            self.problems.append(place.problem(code, message, at_key=not isinstance(entry, str), hint=hint))
            return None
        value, problems = structure(provided.kind.options, place)
        self.problems += problems
        if problems:
            return None
        try:
            return provided.kind.build(value)
        except ValueError as error:
            self.problems.append(option_problem(place, f"{name}: {error}", error))
            return None

    def schema(self, schema: Mapping[str, Any] | None, located: Located, key: str) -> RequestSchema | None:
        if schema is None:
            return None
        try:
            return compile_schema(schema)
        except SchemaError as error:
            message, hint, near = f"not a JSON Schema: {error}", "", ""
            if FOREIGN_REFERENCE in message:
                near = message.rpartition(": ")[2]
                message, hint = f"{FOREIGN_REFERENCE}: {near}", "put the schema into $defs, and refer to #/$defs/name"
            if error.path[-1:] == ("type",) and isinstance(word := _at(schema, error.path), str):
                message, hint = f"not a JSON Schema: '{word}' is not a type", did_you_mean(word, JSON_TYPES)
            self.report(located, "ORC409", message, key, *error.path, hint=hint, near=near)
            return None

    def route(self, config: EndpointConfig, located: Located) -> tuple[str, tuple[str, ...], bool]:
        """Return the path after the endpoint's own, its parameters, and whether the bare path is served too."""
        if config.path is not None:
            return self.explicit_route(config.path, located)
        names = []
        for reference, _, _ in self.references:
            if reference.root == "request" and reference.path[:1] == ("path_params",) and len(reference.path) > 1:
                names.append(str(reference.path[1]))
        unique = tuple(dict.fromkeys(names))
        if len(unique) > 1:
            message = f"the endpoint uses {len(unique)} path parameters ({', '.join(unique)}) but has no path"
            hint = f'say how they are arranged: path: "{"".join(f"/{{{name}}}" for name in unique)}"'
            self.report(located, "ORC411", message, at_key=True, hint=hint)
        return (f"/{{{unique[0]}}}" if unique else ""), unique, True

    def explicit_route(self, path: str, located: Located) -> tuple[str, tuple[str, ...], bool]:
        prefix = f"/orchestrator/{self.endpoint.domain}/{self.endpoint.name}"
        rest = path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path
        rest = "" if rest == "/" else rest
        if rest and not rest.startswith("/"):
            self.report(located, "ORC411", "a path starts with /", "path", hint=f'did you mean "/{path}"?')
            return "", (), False
        names = []
        for segment in rest.split("/")[1:]:
            match = _PARAMETER.fullmatch(segment)
            if match and _IDENTIFIER.match(match[1]):
                names.append(match[1])
            elif not segment or "{" in segment or "}" in segment or segment in (".", ".."):
                message = f"'{segment}' cannot be a part of a path: write a word or one {{parameter}}"
                self.report(located, "ORC411", message, "path")
        for name in {name for name in names if names.count(name) > 1}:
            self.report(located, "ORC411", f"the parameter '{name}' stands twice in the path", "path")
        return rest, tuple(names), False


def _unreadable_transform(value: JSON) -> JSON:
    return value


def _conversion(param: str, transforms: Sequence[Transform]) -> Transform:
    """Return the transforms of a parameter as one function, whose failure names the parameter."""

    def convert(value: JSON) -> JSON:
        try:
            for transform in transforms:
                value = transform(value)
        except SourceError as error:
            raise InvalidParam(param, str(error)) from error
        return value

    return convert


def parse_condition(value: Any) -> Node:
    """Parse a condition: an expression whatever it starts with, since no text could be one."""
    if value is None:
        return Literal(True)
    return parse(value)


def _is_expression(key: str) -> bool:
    """Return whether a cache's key is an expression, not the name of a parameter."""
    return key.startswith("$") or "{{" in key


def _names_in(key: str | tuple[str, ...] | None) -> list[tuple[str, tuple[int, ...]]]:
    """Return the names in a cache's key, each with its place there."""
    return [(key, ())] if isinstance(key, str) else [(name, (place,)) for place, name in enumerate(key or ())]


def _is_header(reference: Reference) -> bool:
    return reference.path[:1] == ("headers",) and len(reference.path) > 1


def _step_of(reference: Reference) -> str:
    """Return the step that a reference waits for, or the root that is none."""
    if reference.root == "execution" and reference.path[:1] == ("models",) and len(reference.path) > 1:
        return str(reference.path[1])
    return reference.root


def _runs_for_each(located: Located) -> bool:
    return isinstance(located.data, dict) and located.data.get("for_each") is not None


def place_of(reference: Reference) -> dict[str, Any]:
    """Return what :meth:`Located.problem` needs to point at the reference."""
    return {"offset": reference.offset, "length": len(reference.text), "near": reference.text}


def _at(value: Any, path: DataPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _replace(value: Any, path: DataPath) -> Any:
    """Return the value with null at the path."""
    if not path:
        return None
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {key: _replace(item, rest) if key == head else item for key, item in value.items()}
    return [_replace(item, rest) if index == head else item for index, item in enumerate(value)]


def _placeholder_hint(value: Any, path: DataPath) -> str:
    value = _at(value, path)
    if isinstance(value, str) and value.startswith(("${", "$ENV[")):
        return "secrets are read in config.yaml, database.yaml and integrations, not in a domain file"
    return ""


def _reaches(value: Any, path: Iterable[str | int]) -> bool:
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
