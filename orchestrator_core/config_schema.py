"""JSON Schema of every configuration file, from the option classes that parse it, installed plugins included.

Editors complete and check YAML with it. A schema accepts what :mod:`orchestrator_core.config.structure` accepts: null
for a class whose options all have defaults, durations as numbers or as ``"250ms"``, no unknown key. What only an
option's validator knows, such as that a port is at most 65535, it does not say; ``orchestrator check`` does.

These rules are our converter's own, so the schemas are written out here: ``msgspec.json.schema`` knows attrs classes,
but leaves them open to unknown keys, has no place for ``option(help=…)`` and encodes defaults by rules of its own, and
mending all of that took more than the types themselves.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import attrs
from attrs import Factory, define, field

from orchestrator_core.config.model import (
    UNSET,
    AppConfig,
    DomainFile,
    EndpointConfig,
    StepConfig,
    StepTransforms,
    TrackingOptions,
)
from orchestrator_core.models import ML, CommonOptions, MlOptions
from orchestrator_core.plugin_api import Duration, ModelKind, Size, SourceKind, StoreKind
from orchestrator_core.plugins import Registry
from orchestrator_core.policies.options import PolicyOptions

Schema = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SOURCE_TYPES_OF_OTHERS = ("api", "composite", "database", "feast", "ml")
"""Words that ``endpoint_type`` takes whether or not a plugin is installed for them."""

_NUMBER_WITH_UNIT = r"^[0-9]+(\.[0-9]+)?({})$"
_DURATION: Schema = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": _NUMBER_WITH_UNIT.format("ms|s|m|h")},
    ]
}
_SIZE: Schema = {
    "anyOf": [
        {"type": "integer", "minimum": 0},
        {"type": "string", "pattern": _NUMBER_WITH_UNIT.format("B|KiB|MiB|GiB|KB|MB|GB")},
    ]
}
_PLACEHOLDER: Schema = {"type": "string", "pattern": r"\$\{(env|file):|\$ENV\["}
_JSON_SCHEMA: Schema = {"anyOf": [{"type": "null"}, {"allOf": [{"$ref": DIALECT}, {"type": "object"}]}]}


def config_schemas(registry: Registry) -> dict[str, Schema]:
    """Return the schema of each file, by its name in the configuration folder; ``*`` stands for any name.

    A domain's own ``domains/<domain>/database.yaml`` and ``integrations`` look like the global ones.
    """
    return {
        "config.yaml": _config_file(registry),
        "database.yaml": _sections_file(registry, "database.yaml"),
        "integrations/*.yaml": _sections_file(registry, "integrations/*.yaml"),
        "domains/*.yaml": _domain_file(registry),
    }


def _config_file(registry: Registry) -> Schema:
    types_ = _Types(placeholders=True)
    types_.define(TrackingOptions, {"store": types_.store(registry)})
    own = types_.properties(AppConfig, {"telemetry": _telemetry(types_, registry)})
    sections = {name: types_.section(provided.kind, registry) for name, provided in sorted(registry.sources.items())}
    return types_.document("config.yaml", {**own, **sections})


def _telemetry(types_: _Types, registry: Registry) -> Schema:
    switch: Schema = {"type": ["boolean", "null"]}
    if registry.telemetry is None:
        return {"enum": [False, None]}
    return {"anyOf": [switch, types_.of(registry.telemetry.kind.options)]}


def _sections_file(registry: Registry, title: str) -> Schema:
    types_ = _Types(placeholders=True)
    sections = {name: types_.section(provided.kind, registry) for name, provided in sorted(registry.sources.items())}
    return types_.document(title, sections)


def _domain_file(registry: Registry) -> Schema:
    types_ = _Types(placeholders=False)
    transform = {"type": "array", "items": _transform(types_, registry)}
    step_types: Schema = {"enum": sorted(registry.sources)}
    endpoint_types: Schema = {"enum": [*sorted({*SOURCE_TYPES_OF_OTHERS, *registry.sources}), None]}
    by_param = {"type": "object", "additionalProperties": transform}
    parts = types_.properties(StepTransforms, {"params": by_param, "result": transform})
    long_form = {"type": "object", "properties": parts, "additionalProperties": False}
    types_.define(StepConfig, {"type": step_types, "transform": {"anyOf": [transform, long_form]}})
    steps: Schema = {"anyOf": [{"type": "null"}, {"type": "array", "items": types_.of(StepConfig)}]}
    types_.define(
        EndpointConfig,
        {
            "endpoint_type": endpoint_types,
            "input_schema": _JSON_SCHEMA,
            "output_schema": _JSON_SCHEMA,
            "data_sources": steps,
            "transform": transform,
        },
    )
    endpoints = _or_null({"type": "object", "additionalProperties": types_.of(EndpointConfig)})
    return types_.document("domains/*.yaml", types_.properties(DomainFile, {"endpoints": endpoints}))


def _transform(types_: _Types, registry: Registry) -> Schema:
    options = {name: types_.of(provided.kind.options) for name, provided in sorted(registry.transformers.items())}
    return {
        "anyOf": [
            {"enum": list(options)},
            {
                "type": "object",
                "properties": options,
                "additionalProperties": False,
                "minProperties": 1,
                "maxProperties": 1,
            },
        ]
    }


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


@define
class _Types:
    """The schemas of types for one file; classes become its ``$defs``.

    ``placeholders`` says that ``${env:NAME}`` can stand wherever a string can.
    """

    placeholders: bool
    classes: dict[Any, str] = field(factory=dict)
    definitions: dict[str, Schema] = field(factory=dict)

    def document(self, title: str, properties: Mapping[str, Schema]) -> Schema:
        return {
            "$schema": DIALECT,
            "title": title,
            "type": ["object", "null"],
            "properties": dict(properties),
            "additionalProperties": False,
            "$defs": dict(sorted(self.definitions.items())),
        }

    # --- types -----------------------------------------------------------------------------------------------------

    def of(self, cls: Any) -> Schema:
        """Return the schema of what the converter makes into the type."""
        origin, arguments = get_origin(cls) or cls, get_args(cls)
        if cls is Any:
            return {}
        if origin is Literal:
            return self._string({"enum": list(arguments)}, any(isinstance(option, str) for option in arguments))
        if origin in (Union, types.UnionType):
            return self._union(arguments)
        if attrs.has(origin):
            return self._class(cls) if required_options(cls) else _or_null(self._class(cls))
        simple: Mapping[Any, Schema] = {
            type(None): {"type": "null"},
            bool: {"type": "boolean"},
            int: {"type": "integer"},
            float: {"type": "number"},
            str: {"type": "string"},
        }
        if cls in simple:
            return simple[cls]
        if cls in (Duration, Size):
            return self._string(_DURATION if cls is Duration else _SIZE, True)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1]) if arguments else {}}
        if isinstance(origin, type) and issubclass(origin, Sequence | set | frozenset):
            return {"type": "array", "items": self.of(arguments[0]) if arguments else {}}
        return {}  # a type of a plugin's own, which only the converter knows

    def _string(self, schema: Schema, takes_strings: bool) -> Schema:
        """Return the schema of a value that some strings can stand for, or a placeholder that becomes one."""
        return {"anyOf": [schema, _PLACEHOLDER]} if self.placeholders and takes_strings else schema

    def _union(self, arms: Sequence[Any]) -> Schema:
        # Null is an arm of its own: only outside of a union it stands for a class with its defaults.
        schemas = [self._class(arm) if attrs.has(arm) else self.of(arm) for arm in arms]
        if all(schema.keys() == {"type"} for schema in schemas):
            return {"type": [schema["type"] for schema in schemas]}
        return {"anyOf": schemas}

    # --- classes ---------------------------------------------------------------------------------------------------

    def _class(self, cls: Any) -> Schema:
        if cls not in self.classes:
            self.define(cls, {})
        return {"$ref": f"#/$defs/{self.classes[cls]}"}

    def define(self, cls: Any, instead: Mapping[str, Schema]) -> None:
        """Define a class, with other schemas than those of their types for some options."""
        name, number = cls.__name__, 2
        while name in self.definitions:
            name, number = f"{cls.__name__}{number}", number + 1
        self.classes[cls] = name
        self.definitions[name] = {}  # a class may hold itself
        self.definitions[name] |= self.class_schema(cls, self.properties(cls, instead))

    def class_schema(self, cls: Any, properties: Mapping[str, Schema]) -> Schema:
        schema: Schema = {"description": _summary(cls)} if cls.__doc__ else {}
        schema |= {"type": "object", "properties": dict(properties)}
        if required := required_options(cls):
            schema["required"] = required
        return schema | {"additionalProperties": False}

    def properties(self, cls: Any, instead: Mapping[str, Schema] | None = None) -> dict[str, Schema]:
        """Return the schema of each option of a class."""
        found = {}
        for attribute in option_fields(cls):
            schema = dict((instead or {}).get(attribute.name) or self.of(attribute.type))
            if help_ := attribute.metadata.get("help"):
                schema["description"] = help_
            default = attribute.default
            if not isinstance(default, Factory) and default not in (attrs.NOTHING, None, UNSET):  # type: ignore[arg-type]
                schema |= _default(default)
            found[attribute.name] = schema
        return found

    def store(self, registry: Registry) -> Schema:
        """Return the schema of ``tracking.store``, which has the options of its type."""
        kinds: dict[str, StoreKind[Any]] = {name: given.kind for name, given in sorted(registry.stores.items())}
        names = self._string({"enum": list(kinds)}, True)
        choices = []
        for name, kind in kinds.items():
            choice: Schema = {"properties": {"type": names, **self.properties(kind.options)}}
            if required := required_options(kind.options):
                choice["required"] = required
            condition = {"properties": {"type": {"const": name}}, "required": ["type"]}
            choices.append({"if": condition, "then": {**choice, "additionalProperties": False}})
        schema: Schema = {"type": "object", "properties": {"type": names}, "required": ["type"]}
        return _or_null(schema | ({"allOf": choices} if choices else {}))

    # --- sections of source types ----------------------------------------------------------------------------------

    def section(self, kind: SourceKind[Any], registry: Registry) -> Schema:
        """Return the schema of ``<type>: {sources: …, operations: …}``."""
        parts: Schema = {}
        if kind is ML:
            source = self._ml_source(registry)
        else:
            operations = self._operations(kind)
            parts["operations"] = {**operations, "description": "Operations that all sources of the section share."}
            own = {"operations": {**operations, "description": "The source's own operations."}}
            options = self.properties(kind.options)
            source = self.class_schema(kind.options, {**self.policies(options), **options, **own})
        name = f"{kind.name}.source"
        self.definitions[name] = source
        reference: Schema = {"$ref": f"#/$defs/{name}"}
        nothing_needed = kind is not ML and not required_options(kind.options)
        sources = {"type": "object", "additionalProperties": _or_null(reference) if nothing_needed else reference}
        parts["sources"] = {**_or_null(sources), "description": "The sources by name."}
        return {
            "description": kind.summary,
            "type": ["object", "null"],
            "properties": parts,
            "additionalProperties": False,
        }

    def policies(self, own: Mapping[str, Schema]) -> dict[str, Schema]:
        """Return the schemas of the policies that every source has, but for keys that are the options' own."""
        found = self.properties(PolicyOptions)
        return {name: schema for name, schema in found.items() if name not in own}

    def _operations(self, kind: SourceKind[Any]) -> Schema:
        operation = {} if kind.operation is None else self.of(kind.operation)
        return _or_null({"type": "object", "additionalProperties": operation})

    def _ml_source(self, registry: Registry) -> Schema:
        """Return the schema of a source of models, each of which has the options of its type."""
        kinds = {name: provided.kind for name, provided in sorted(registry.models.items())}
        self.definitions["model"] = self._model(kinds)
        # The source's base_url is that of each model which has none.
        with_address = {
            "allOf": [
                {"$ref": "#/$defs/model"},
                *(
                    {"if": _is_of_type(name), "then": {"required": ["base_url"]}}
                    for name, kind in kinds.items()
                    if "base_url" in required_options(kind.options)
                ),
            ]
        }
        self.definitions["model.addressed"] = with_address
        model = {"$ref": "#/$defs/model"}
        source = {**_or_null(model), "description": "The one model; short for models: {default: …}."}
        models = {"type": "object", "additionalProperties": model}
        properties = self.properties(MlOptions, {"source": source, "models": models})
        properties |= self.policies(properties)
        addressed = {"$ref": "#/$defs/model.addressed"}
        return {
            "description": _summary(MlOptions),
            "type": "object",
            "properties": properties,
            "additionalProperties": False,
            "anyOf": [
                {"required": ["source"], "properties": {"source": {"type": "object"}}},
                {"required": ["models"], "properties": {"models": {"minProperties": 1}}},
            ],
            "if": {"required": ["base_url"], "properties": {"base_url": {"type": "string"}}},
            "else": {
                "properties": {"source": _or_null(addressed), "models": {"additionalProperties": addressed}},
            },
        }

    def _model(self, kinds: Mapping[str, ModelKind[Any]]) -> Schema:
        names = {**self._string({"enum": list(kinds)}, True), "default": "http"}
        choices = []
        for name, kind in kinds.items():
            required = [option for option in required_options(kind.options) if option != "base_url"]
            properties = {**self.properties(kind.options), **self.properties(CommonOptions, {"type": names})}
            properties |= self.policies(properties)
            choice: Schema = {"description": kind.summary, "properties": properties}
            if required:
                choice["required"] = required
            choices.append({"if": _is_of_type(name), "then": {**choice, "additionalProperties": False}})
        return {"type": "object", "properties": {"type": names}, "allOf": choices}


def _is_of_type(name: str) -> Schema:
    """Return the condition that a model is of a type. Without ``type`` it is of the type http."""
    condition: Schema = {"properties": {"type": {"const": name}}}
    return condition if name == "http" else {**condition, "required": ["type"]}


def option_fields(cls: Any) -> list[attrs.Attribute[Any]]:
    """Return the options of a class in the order in which they are written, their types resolved."""
    return [attribute for attribute in attrs.fields(attrs.resolve_types(cls)) if attribute.init]


def required_options(cls: Any) -> list[str]:
    return [attribute.name for attribute in option_fields(cls) if attribute.default is attrs.NOTHING]


def _summary(cls: Any) -> str:
    """Return the first paragraph of a class's docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _default(value: Any) -> Schema:
    """Return the default where it is JSON; the options of a nested class have their own."""
    if attrs.has(type(value)):
        return {}
    plain = {Duration: float, Size: int, tuple: list}.get(type(value))
    return {"default": plain(value) if plain else value}
