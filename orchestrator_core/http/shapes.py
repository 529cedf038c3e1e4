"""JSON Schemas of what endpoints take and answer, as parts of an OpenAPI document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import urljoin

from orchestrator_core.expressions import (
    ArithmeticNode,
    ArrayNode,
    CallNode,
    CompareNode,
    ConditionalNode,
    Literal,
    NegateNode,
    Node,
    NotNode,
    ObjectNode,
    ReferenceNode,
    TemplateNode,
)
from orchestrator_core.plan import REQUEST_PARTS, Plan, PlannedStep
from orchestrator_core.schemas import pointer

Schema = dict[str, Any]

_OF_NAMES = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
_OF_DATA = ("const", "enum", "default", "example", "examples")
_IDENTITY = ("$id", "$schema", "$anchor", "$dynamicAnchor")

_OF_FUNCTIONS: Mapping[str, Schema] = {
    **{name: {"type": "string"} for name in ("lower", "upper", "trim", "str", "now")},
    "date": {"type": "string", "format": "date"},
    "len": {"type": "integer"},
    "int": {"type": "integer"},
    **{name: {"type": "number"} for name in ("abs", "float", "round", "sum")},
    "bool": {"type": "boolean"},
    "keys": {"type": "array", "items": {"type": "string"}},
    "values": {"type": "array"},
}


class Embedded:
    """A schema of the configuration that can become a component of the document.

    Inside a document ``#/$defs/x`` leads elsewhere than in the schema alone, and few tools know ``$id`` and anchors
    there. So the whole schema becomes a component, and each reference inside it becomes a JSON Pointer into that.
    ``used`` says whether there is one: else the component need not be there.
    """

    def __init__(self, schema: Mapping[str, Any], component: str) -> None:
        self.schema = schema
        self.component = component
        self.used = False
        self._base = str(schema.get("$id", ""))
        self._targets = dict(_targets(schema, "", ()))

    def reference(self) -> Schema:
        return {"$ref": self._pointer("")}

    def whole(self) -> Schema:
        """Return the component."""
        whole: Schema = self._part(self.schema, "")
        return whole

    def part(self, schema: Mapping[str, Any]) -> Schema:
        """Return a part of the schema, such as a property, that means the same in the document."""
        done: Schema = self._part(schema, self._base)
        return done

    def _part(self, schema: Any, base: str) -> Any:
        if isinstance(schema, list):
            return [self._part(item, base) for item in schema]
        if not isinstance(schema, Mapping):
            return schema
        base = _join(base, str(schema.get("$id", "")))
        done: Schema = {}
        for key, value in schema.items():
            if key in ("$ref", "$dynamicRef") and isinstance(value, str):
                done["$ref"] = self._target(_join(base, value), value)
            elif key in _OF_DATA:
                done[key] = value
            elif key in _OF_NAMES and isinstance(value, Mapping):
                done[key] = {name: self._part(item, base) for name, item in value.items()}
            elif key not in _IDENTITY:
                done[key] = self._part(value, base)
        return done

    def _target(self, uri: str, reference: str) -> str:
        resource, _, fragment = uri.partition("#")
        if uri in self._targets:
            return self._pointer(self._targets[uri])
        if resource in self._targets:
            return self._pointer(self._targets[resource] + fragment)
        return reference

    def _pointer(self, fragment: str) -> str:
        self.used = True
        return f"#/components/schemas/{self.component}{fragment}"


def _join(base: str, reference: str) -> str:
    # urljoin does not add a fragment to a URI such as urn:example:x.
    return base + reference if reference.startswith("#") else urljoin(base, reference)


def _targets(schema: Any, base: str, path: tuple[str | int, ...]) -> Iterator[tuple[str, str]]:
    """Yield the URI of the schema, and of all that is in it and has one, with the JSON Pointer to it."""
    if isinstance(schema, list):
        for index, item in enumerate(schema):
            yield from _targets(item, base, (*path, index))
    if not isinstance(schema, Mapping):
        return
    if not path or "$id" in schema:
        base = _join(base, str(schema.get("$id", "")))
        yield base, pointer(path)
    for keyword in ("$anchor", "$dynamicAnchor"):
        if keyword in schema:
            yield f"{base}#{schema[keyword]}", pointer(path)
    for key, value in schema.items():
        if key in _OF_NAMES and isinstance(value, Mapping):
            for name, item in value.items():
                yield from _targets(item, base, (*path, key, name))
        elif key not in _OF_DATA:
            yield from _targets(value, base, (*path, key))


def object_of(paths: Iterable[tuple[tuple[str | int, ...], bool]]) -> Schema:
    """Return the shape of a value of which these paths are read. True marks a path that is always read."""
    below: dict[str | int, list[tuple[tuple[str | int, ...], bool]]] = {}
    for path, always in paths:
        if path:
            below.setdefault(path[0], []).append((path[1:], always))
    names = [key for key in below if isinstance(key, str)]
    if not below:
        return {}
    if not names:
        items = object_of(path for paths_below in below.values() for path in paths_below)
        return {"type": "array", "items": items}
    required = [name for name in names if any(always for _, always in below[name])]
    properties = {name: object_of(below[name]) for name in names}
    return {"type": "object", "properties": properties} | ({"required": required} if required else {})


def answer_shape(plan: Plan, input_schema: Embedded | None) -> Schema:
    """Return what can be known of an endpoint's answers without an ``output_schema``."""
    if plan.transforms:
        return {}
    shapes = _Shapes(plan, input_schema)
    if plan.response is not None:
        return shapes.of(plan.response)
    if plan.answers_with:
        return shapes.of_step(plan.answers_with)
    return {"type": "object", "properties": {step.name: shapes.of_step(step.name) for step in plan.steps}}


class _Shapes:
    def __init__(self, plan: Plan, input_schema: Embedded | None) -> None:
        self.steps = {step.name: step for step in plan.steps}
        self.input = input_schema

    def of(self, node: Node) -> Schema:
        match node:
            case Literal(value=value):
                return _of_value(value)
            case ObjectNode(fields=fields):
                return _of_fields([(name, self.of(value)) for name, value in fields])
            case ArrayNode(items=items):
                return {"type": "array", "items": _of_all([self.of(item) for item in items])}
            case TemplateNode():
                return {"type": "string"}
            case CompareNode() | NotNode():
                return {"type": "boolean"}
            case NegateNode():
                return {"type": "number"}
            case ArithmeticNode(operators=operators) if "+" not in operators:
                return {"type": "number"}
            case CallNode(function=function):
                return dict(_OF_FUNCTIONS.get(function, {}))
            case ConditionalNode(then=then, otherwise=otherwise):
                return _of_all([self.of(then), self.of(otherwise)])
            case ReferenceNode(root="execution", path=path):
                return _of_execution(path)
            case ReferenceNode(root="request", path=path):
                return self._of_request(path)
            case ReferenceNode(root=root, path=()) if root in self.steps:
                return self.of_step(root)
            case _:
                return {}

    def of_step(self, name: str) -> Schema:
        step = self.steps[name]
        if step.transforms or step.optional or step.condition is not None:
            return {}
        direct = step.spec.kind.name == "direct"
        shape = _of_fields([(param, self.of(node)) for param, node in step.params]) if direct else _of_facts(step)
        return shape if step.for_each is None else {"type": "array", "items": shape}

    def _of_request(self, path: Sequence[str | int]) -> Schema:
        part, *rest = path if path and path[0] in REQUEST_PARTS else ("", *path)
        if len(rest) != 1:
            return {}
        declared = (self.input.schema.get("properties") or {}) if self.input else {}
        if self.input and rest[0] in declared and part != "headers":
            shape = self.input.part(declared[rest[0]])
            return {key: value for key, value in shape.items() if key != "default"} if isinstance(shape, dict) else {}
        return {"type": "string"} if part in ("path_params", "headers") else {}


def _of_execution(path: Sequence[str | int]) -> Schema:
    if path[:1] != ("models",):
        return {"type": "boolean" if path == ("degraded",) else "string"}
    model = _of_fields([(name, {"type": "string"}) for name in ("name", "version", "digest")])
    return ({"type": "object", "additionalProperties": model}, model, {"type": "string"})[len(path) - 1]


def _of_facts(step: PlannedStep) -> Schema:
    facts = step.spec.facts.get(step.operation)
    if facts is None or facts.fields is None:
        return {}
    shape = _of_fields([(name, {}) for name in facts.fields])
    return {"type": "array", "items": shape} if facts.many else shape


def _of_fields(fields: Sequence[tuple[str, Schema]]) -> Schema:
    required = [name for name, _ in fields]
    return {"type": "object", "properties": dict(fields)} | ({"required": required} if required else {})


def _of_all(shapes: Sequence[Schema]) -> Schema:
    """Return the shape that all values have, if they have one."""
    return shapes[0] if shapes and all(shape == shapes[0] for shape in shapes) else {}


def _of_value(value: Any) -> Schema:
    if isinstance(value, Mapping):
        return _of_fields([(name, _of_value(item)) for name, item in value.items()])
    if isinstance(value, list | tuple):
        return {"type": "array", "items": _of_all([_of_value(item) for item in value])}
    words = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return {"type": words[type(value)]}
