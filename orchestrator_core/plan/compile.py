"""An endpoint's configuration to a plan: a checked graph of steps with parsed expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, field, frozen

from orchestrator_core.applied import Applied, Defaults, applied, unfit_backoff
from orchestrator_core.catalog import Catalog, SourceSpec
from orchestrator_core.config.model import RESERVED_ROOTS, UNSET, Endpoint, EndpointConfig, Step, StepConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.direct import DIRECT
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.expressions import Literal, Node, ObjectNode, TemplateNode, parse
from orchestrator_core.plan.cache_keys import answer_cache, key_of_answer, key_of_source, key_of_step
from orchestrator_core.plan.called import operation_of, source_of
from orchestrator_core.plan.model import Plan, PlannedStep
from orchestrator_core.plan.order import in_order, step_of
from orchestrator_core.plan.reading import Reading, at
from orchestrator_core.plan.references import check_references
from orchestrator_core.plan.route import route_of
from orchestrator_core.plan.transforms import transforms_of, transforms_of_step
from orchestrator_core.plugin_api import JSON
from orchestrator_core.plugins import Registry
from orchestrator_core.schemas import FOREIGN_REFERENCE, RequestSchema, SchemaError, compile_schema

JSON_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")


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


def compile_plan(
    endpoint: Endpoint,
    catalog: Catalog,
    registry: Registry,
    *,
    incomplete: bool = False,
    defaults: Defaults | None = None,
) -> Compiled:
    """Check an endpoint and compile it. ``incomplete`` silences what an unreadable file would explain."""
    return _Compiler(Reading(endpoint), catalog, registry, incomplete, defaults or Defaults()).compile()


@define
class _Compiler:
    reading: Reading
    catalog: Catalog
    registry: Registry
    incomplete: bool
    defaults: Defaults

    @property
    def endpoint(self) -> Endpoint:
        return self.reading.endpoint

    def compile(self) -> Compiled:
        config, located = self.endpoint.config, self.endpoint.located
        steps = self.unique_steps()
        planned = [item for step in steps if (item := self.step(step))]
        response = self.response(config, located)
        answer_key = key_of_answer(self.reading, config, located)
        self.unreadable()
        names = {step.config.name for step in steps} | self.endpoint.unreadable_names
        check_references(self.reading, names, {step.config.name: step for step in steps})
        self.check_kind(config, located, steps)
        self.check_primary(config, located, names)
        if not steps and not self.endpoint.unreadable and config.response_mapping is None:
            hint = "give data_sources, a response_mapping, or both"
            self.reading.report(located, "ORC203", "the endpoint has nothing to answer with", at_key=True, hint=hint)
        transforms = transforms_of(self.reading, self.registry, config.transform, located, "transform")
        path, path_params, bare = route_of(self.reading, config, located)
        input_schema = self.schema(config.input_schema, located, "input_schema")
        output_schema = self.schema(config.output_schema, located, "output_schema")
        ordered = in_order(self.reading, planned, steps)
        unplanned = len(planned) < len(steps)  # such as one whose source is broken, which its own file is told of
        if self.reading.broken or self.endpoint.unreadable or unplanned:
            return Compiled(None, tuple(self.reading.problems), tuple(planned), response, located)
        asked = tuple(reference for reference, _, _ in self.reading.references if reference.root == "request")
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
            cache=answer_cache(self.reading, config, located, answer_key, asked),
        )
        if self.reading.broken:
            return Compiled(None, tuple(self.reading.problems), tuple(planned), response, located)
        return Compiled(plan, tuple(self.reading.problems), tuple(planned), response, located)

    def unique_steps(self) -> list[Step]:
        steps: dict[str, Step] = {}
        for step in self.endpoint.steps:
            first = steps.setdefault(step.config.name, step)
            if first is not step:
                line = first.located.document.values[(*first.located.path, "name")].line
                message = f"two steps are named '{step.config.name}'"
                self.reading.report(step.located, "ORC410", message, "name", hint=f"the first is at line {line}")
        return list(steps.values())

    def unreadable(self) -> None:
        """Check the expressions of the entries that are no steps for other reasons."""
        for entry in self.endpoint.unreadable:
            if isinstance(entry.data, dict) and isinstance(params := entry.data.get("params"), dict):
                for name, value in params.items():
                    self.reading.parse(value, entry, ("params", name))

    def step(self, step: Step) -> PlannedStep | None:
        config, located = step.config, step.located
        start = len(self.reading.references)
        params = self.params(config, located)
        condition = self.condition(config, located)
        for_each = self.for_each(config, located)
        cache_key = key_of_step(self.reading, config, located)
        referred = {step_of(reference) for reference, _, _ in self.reading.references[start:]} - set(RESERVED_ROOTS)
        for index, name in enumerate(config.depends_on):
            self.reading.known_step(name, located, "depends_on", index)
        transforms, conversions = transforms_of_step(self.reading, self.registry, config, located)
        default = self.default(config, located)
        spec = source_of(self.reading, self.catalog, self.registry, config, located, incomplete=self.incomplete)
        operation = operation_of(self.reading, spec, config, located) if spec else None
        if spec is None or operation is None:
            return None
        policies = applied(self.defaults, spec, operation, step)
        self.check_policies(config, located, spec, policies)
        if (unfit := unfit_backoff(self.defaults, spec, operation, step, policies.retry)) is not None:
            self.reading.problems.append(unfit)
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
            key_of_source(self.reading, policies.cache, spec, operation, config) if cache_key is None else None,
        )

    def check_policies(self, config: StepConfig, located: Located, spec: SourceSpec, policies: Applied) -> None:
        """Report a policy that the step asks for and that does not apply to what it calls, or that calls nothing."""
        for name, policy in policies:
            if name == "timeout" or not getattr(config, name) or policy.options is not None:
                continue  # a step's timeout is its own
            if spec.kind is DIRECT:
                message = f"{name} stands around the call of a source, and a direct step calls none"
                hint = f"remove it; give {name} to the step whose source is called"
                self.reading.report(located, "ORC204", message, name, at_key=True, hint=hint)
                continue
            reason = policy.why.removeprefix("off: ")
            hint = "if a second call does no harm: {non_idempotent: true}" if "idempotent" in reason else ""
            problem = located.problem("ORC413", f"{name} does nothing here: {reason}", name, at_key=True, hint=hint)
            self.reading.problems.append(problem.as_warning())

    def default(self, config: StepConfig, located: Located) -> JSON:
        if config.default is UNSET:
            return None
        start = len(self.reading.references)
        node = self.reading.parse(config.default, located, ("default",))
        if len(self.reading.references) > start:
            del self.reading.references[start:]
            message = "a default is a constant: it is used when the step has failed"
            self.reading.report(located, "ORC506", message, "default", hint="use ?? where the result is referred to")
        return node.value if isinstance(node, Literal) else None

    def params(self, config: StepConfig, located: Located) -> tuple[tuple[str, Node], ...]:
        items = config.params.items()
        return tuple((name, self.reading.parse(value, located, ("params", name))) for name, value in items)

    def condition(self, config: StepConfig, located: Located) -> Node | None:
        if config.condition is True:
            return None
        if config.condition is False:
            return Literal(False)
        return self.reading.parse(config.condition, located, ("condition",), _condition)

    def for_each(self, config: StepConfig, located: Located) -> Node | None:
        if config.for_each is None:
            if "max_concurrency" in located.data:
                message = "max_concurrency says how many items run at once, and the step has no for_each"
                self.reading.report(located, "ORC204", message, "max_concurrency", at_key=True)
            return None
        value = list(config.for_each) if isinstance(config.for_each, tuple) else config.for_each
        node = self.reading.parse(value, located, ("for_each",))
        text = isinstance(node, TemplateNode | ObjectNode)
        if text or (isinstance(node, Literal) and not isinstance(node.value, list)):
            hint = "an expression starts with $, such as $request.body.items"
            message = "for_each is not a list: expected an expression or a list"
            self.reading.report(located, "ORC204", message, "for_each", hint=hint)
        return node

    def response(self, config: EndpointConfig, located: Located) -> Node | None:
        if config.response_mapping is None:
            return None
        return self.reading.parse(config.response_mapping, located, ("response_mapping",))

    def check_kind(self, config: EndpointConfig, located: Located, steps: Sequence[Step]) -> None:
        kind = config.endpoint_type
        if kind is None or kind == "composite":
            return
        known = {*self.registry.sources, "database", "api", "feast", "ml", "composite"}
        if kind not in known:
            hint = did_you_mean(kind, known)
            self.reading.report(located, "ORC408", f"unknown endpoint_type '{kind}'", "endpoint_type", hint=hint)
            return
        for step in steps:
            if step.config.type not in (kind, "direct"):
                message = f"endpoint_type is {kind}, but the step '{step.config.name}' is of type {step.config.type}"
                self.reading.report(located, "ORC408", message, "endpoint_type", hint="write composite")
                return

    def check_primary(self, config: EndpointConfig, located: Located, names: set[str]) -> None:
        if config.primary_source is not None and config.primary_source not in names:
            self.reading.known_step(config.primary_source, located, "primary_source")

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
            if error.path[-1:] == ("type",) and isinstance(word := at(schema, error.path), str):
                message, hint = f"not a JSON Schema: '{word}' is not a type", did_you_mean(word, JSON_TYPES)
            self.reading.report(located, "ORC409", message, key, *error.path, hint=hint, near=near)
            return None


def _condition(value: Any) -> Node:
    """Parse a condition: an expression whatever it starts with, since no text could be one."""
    if value is None:
        return Literal(True)
    return parse(value)


__all__ = ["Compiled", "compile_plan"]
