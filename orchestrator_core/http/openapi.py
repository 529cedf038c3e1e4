"""The OpenAPI 3.1 document of a configuration: what ``/openapi.json`` serves and the ``/docs`` page shows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import define, field

from orchestrator_core import __version__
from orchestrator_core.config.model import Configuration
from orchestrator_core.http.request_uses import request_uses
from orchestrator_core.http.routing import ROOT, paths
from orchestrator_core.http.shapes import Embedded, Schema, answer_shape, object_of
from orchestrator_core.plan import Plan

TITLE = "Orchestrator API"
METHODS_WITHOUT_BODY = ("GET", "DELETE")

_PROBLEMS = {
    400: ("MalformedRequest", "The body is not JSON, or the query cannot be read."),
    404: ("NotFound", "There is no such route, or no such entity."),
    405: ("MethodNotAllowed", "The route does not take this method; the header `Allow` has those it takes."),
    408: ("BodyTimeout", "The body did not arrive in time."),
    413: ("TooLarge", "The body is too large."),
    415: ("UnsupportedMediaType", "The body is not `application/json`, or its content coding is not known."),
    422: ("InvalidRequest", "The request does not fit the endpoint's schema, or lacks a value that is needed."),
    500: ("InternalError", "A defect of the service; its log tells more under the execution id."),
    502: ("SourceFailed", "A source failed, or returned what cannot be used."),
    503: ("Unavailable", "A source, or the service, takes no requests now."),
    504: ("DeadlineExceeded", "The endpoint's deadline passed."),
}
_PROBLEM_SCHEMA: Schema = {
    "description": "What went wrong (RFC 9457).",
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string", "description": "What kind of failure it is."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What happened."},
        "instance": {"type": "string", "description": "The path that was asked for."},
        "execution_id": {"type": "string", "description": "The id under which the execution is recorded."},
        "step": {"type": "string", "description": "The step to blame, where one is."},
        "errors": {
            "type": "array",
            "description": "What is wrong with the request.",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string", "description": "JSON Pointer (RFC 6901) into the request's values."},
                    "message": {"type": "string"},
                },
                "required": ["pointer", "message"],
            },
        },
    },
    "required": ["type", "title", "status", "detail", "execution_id"],
}
_HEADERS = {
    "X-Execution-Id": {
        "description": "The id under which the execution is recorded.",
        "required": True,
        "schema": {"type": "string"},
    },
    "Server-Timing": {
        "description": "Milliseconds for each step and for the engine itself.",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Orchestrator-Degraded": {
        "description": "The steps that failed and that the answer did without; absent if there are none.",
        "schema": {"type": "string"},
    },
    "Retry-After": {"description": "Seconds after which another try makes sense.", "schema": {"type": "string"}},
}
_COMMON_HEADERS = ("X-Execution-Id", "Server-Timing")
_NOT_FOR_PARAMETERS = ("accept", "content-type", "authorization")
"""Header names that OpenAPI forbids as parameters."""


def openapi(configuration: Configuration, plans: Mapping[tuple[str, str], Plan]) -> dict[str, Any]:
    """Return the document. It depends on nothing but its arguments, and is the same each time."""
    document = _Document()
    for key in sorted(plans):
        document.endpoint(plans[key])
    domains = sorted(configuration.descriptions)
    document.service(domains)
    tags = [_without_empty(name=name, description=configuration.descriptions[name]) for name in domains]
    schemes = {"authorization": {"type": "apiKey", "in": "header", "name": "Authorization"}}
    components: dict[str, Any] = {
        "schemas": document.schemas(),
        "responses": {name: _problem_response(status, text) for status, (name, text) in _PROBLEMS.items()},
        "headers": _HEADERS,
    }
    if document.authorized:
        components["securitySchemes"] = schemes
    return {
        "openapi": "3.1.0",
        "info": {
            "title": TITLE,
            "version": configuration.generation or __version__,
            "description": "The endpoints of this service, from its configuration. Every answer carries the id of its "
            "execution, and how long each step took.",
        },
        "tags": [*tags, {"name": document.tag, "description": "The service itself."}],
        "paths": document.paths,
        "components": components,
    }


def _problem_response(status: int, description: str) -> dict[str, Any]:
    headers = (*_COMMON_HEADERS, "Retry-After") if status == 503 else _COMMON_HEADERS
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        "description": description,
        "headers": _header_references(headers),
        "content": {"application/problem+json": {"schema": schema}},
    }


def _header_references(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _without_empty(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in ("", [], {}, None, False)}


@define
class _Document:
    """The document under construction."""

    paths: dict[str, Any] = field(factory=dict)
    embedded: list[Embedded] = field(factory=list)
    components: set[str] = field(factory=lambda: {"Problem"})
    operation_ids: set[str] = field(factory=set)
    authorized: bool = False
    tag: str = "service"

    def schemas(self) -> dict[str, Any]:
        wholes = {schema.component: schema.whole() for schema in self.embedded if schema.used}
        return {**wholes, "Problem": _PROBLEM_SCHEMA}

    def embed(self, plan: Plan, schema: Mapping[str, Any], role: str) -> Embedded:
        wanted = re.sub(r"[^A-Za-z0-9._-]", "_", f"{plan.domain}.{plan.name}.{role}")
        embedded = Embedded(schema, _unique(wanted, self.components))
        self.embedded.append(embedded)
        return embedded

    def endpoint(self, plan: Plan) -> None:
        endpoint = _Endpoint(self, plan)
        for path in paths(plan):
            bare = len(path) < len(paths(plan)[0])
            if not bare or endpoint.can_do_without_parameter():
                names = () if bare else plan.path_params
                suffix = f"__without_{plan.path_params[0]}" if bare else ""
                self.paths[path] = {
                    method.lower(): endpoint.operation(method, names, suffix) for method in plan.config.methods
                }

    def service(self, domains: list[str]) -> None:
        """Describe the routes that every service has."""
        self.tag = _unique("service", set(domains))
        text: Schema = {"type": "string"}
        texts: Schema = {"type": "array", "items": text}
        endpoint = _object(endpoint=text, description=text, paths=texts, methods=texts)
        domain = _object(domain=text, description=text, endpoints={"type": "array", "items": endpoint})
        listing = _object(generation=text, domains={"type": "array", "items": domain})
        name = {
            "name": "domain",
            "in": "path",
            "required": True,
            "schema": {"type": "string", **({"enum": domains} if domains else {})},
        }
        self.page(ROOT, "list_domains", "All domains and their endpoints", listing)
        self.page(f"{ROOT}/{{domain}}", "list_endpoints", "The endpoints of a domain", domain, parameters=[name])
        self.page("/health/live", "health_live", "Whether the process runs", _object(status=text))
        ready = _object(status=text, generation=text)
        self.page("/health/ready", "health_ready", "Whether the service takes requests", ready)
        self.paths["/health/ready"]["get"]["responses"]["503"] = {
            "description": "The service is shutting down.",
            "headers": _header_references((*_COMMON_HEADERS, "Retry-After")),
            "content": {"application/json": {"schema": _object(status=text)}},
        }

    def page(self, path: str, operation_id: str, summary: str, schema: Schema, **more: Any) -> None:
        responses: dict[str, Any] = {"200": _answer("The answer.", schema, _COMMON_HEADERS)}
        if more:
            responses["404"] = {"$ref": "#/components/responses/NotFound"}
        operation = {
            "operationId": _unique(operation_id, self.operation_ids),
            "tags": [self.tag],
            "summary": summary,
            **more,
            "responses": responses,
        }
        self.paths[path] = {"get": operation}


def _answer(description: str, schema: Schema, headers: Iterable[str]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": _header_references(headers),
        "content": {"application/json": {"schema": schema}},
    }


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _unique(wanted: str, taken: set[str]) -> str:
    """Return the name, with a number behind it if it is taken, and take it."""
    name, number = wanted, 2
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name


class _Endpoint:
    """The operations of one endpoint."""

    def __init__(self, document: _Document, plan: Plan) -> None:
        config = plan.config
        self.document = document
        self.plan = plan
        self.uses = request_uses(plan)
        self.input = document.embed(plan, config.input_schema, "input") if config.input_schema is not None else None
        self.declared: Mapping[str, Any] = {}
        self.required: list[str] = []
        if self.input and plan.input:
            self.declared = self.input.schema.get("properties") or {}
            self.required = [name for name in self.input.schema.get("required", ()) if name not in plan.input.defaults]
        if config.output_schema is not None:
            output = document.embed(plan, config.output_schema, "output")
            self.answer = output.reference()
        else:
            self.answer = answer_shape(plan, self.input)

    def can_do_without_parameter(self) -> bool:
        """Return whether every use of a path parameter has a fallback."""
        return all(
            reference.guarded for reference in self.plan.request_references if reference.path[:1] == ("path_params",)
        )

    def operation(self, method: str, path_names: tuple[str, ...], suffix: str) -> dict[str, Any]:
        plan = self.plan
        has_body = method not in METHODS_WITHOUT_BODY
        first, _, rest = plan.config.description.strip().partition("\n")
        parameters = [
            *(self.parameter("path", name, required=True) for name in path_names),
            *(self.parameter("query", name, required) for name, required in self.query(path_names, has_body).items()),
            *self.headers(),
        ]
        problems = {str(status): {"$ref": f"#/components/responses/{name}"} for status, (name, _) in _PROBLEMS.items()}
        answer = _answer("The answer.", self.answer, (*_COMMON_HEADERS, "X-Orchestrator-Degraded"))
        return {
            "operationId": _unique(
                f"{plan.domain}__{plan.name}__{method.lower()}{suffix}", self.document.operation_ids
            ),
            "tags": [plan.domain],
            "summary": first or f"{plan.domain} {plan.name}",
            **_without_empty(
                description=rest.strip() and plan.config.description.strip(),
                parameters=parameters,
                requestBody=self.body(path_names) if has_body else None,
                security=self.security(),
            ),
            "responses": {"200": answer, **problems},
        }

    # --- parameters ------------------------------------------------------------------------------------------------

    def parameter(self, where: str, name: str, required: bool) -> dict[str, Any]:
        declared = self.declared.get(name) if where != "header" else None
        schema = self.input.part(declared) if self.input and declared is not None else {"type": "string"}
        description = schema.get("description", "") if isinstance(schema, dict) else ""
        parameter = {"name": name, "in": where, **_without_empty(description=description, required=required)}
        return {**parameter, "schema": schema}

    def query(self, path_names: tuple[str, ...], has_body: bool) -> dict[str, bool]:
        """Return the query parameters of an operation, each with whether it is required."""
        in_query, anywhere = self.uses.names("query_params"), self.uses.names("")
        if has_body:
            found = {name: always or name in self.required for name, always in in_query.items()}
            undeclared = [name for name in anywhere if self.input and name not in self.declared]
            found |= {name: False for name in undeclared if name not in found}
        else:
            names = [name for name in self.declared if self.fits_query(name)]
            found = {name: name in self.required for name in names}
            for name, always in (*in_query.items(), *anywhere.items()):
                found[name] = found.get(name, False) or (always and not self.has_default(name))
        return {name: required for name, required in found.items() if name not in path_names}

    def fits_query(self, name: str) -> bool:
        """Return whether a declared property can be given in the query, and is read there."""
        declared = self.plan.input.properties[name] if self.plan.input else {}
        if declared.get("type") == "object":
            return False
        elsewhere = name in self.uses.names("body")
        return not elsewhere or name in self.uses.names("query_params") or name in self.uses.names("")

    def has_default(self, name: str) -> bool:
        return self.plan.input is not None and name in self.plan.input.defaults

    def headers(self) -> list[dict[str, Any]]:
        seen: dict[str, tuple[str, bool]] = {}
        for name, always in self.uses.names("headers").items():
            first, before = seen.get(name.lower(), (name, False))
            seen[name.lower()] = (first, before or always)
        return [
            self.parameter("header", name, required)
            for key, (name, required) in seen.items()
            if key not in _NOT_FOR_PARAMETERS
        ]

    def security(self) -> list[dict[str, Any]]:
        """Return the ``Authorization`` header, which OpenAPI has no parameter for, as a security requirement."""
        uses = [always for name, always in self.uses.names("headers").items() if name.lower() == "authorization"]
        if not uses:
            return []
        self.document.authorized = True
        return [{"authorization": []}, *([] if any(uses) else [{}])]

    # --- the body --------------------------------------------------------------------------------------------------

    def body(self, path_names: tuple[str, ...]) -> dict[str, Any] | None:
        if self.input is None:
            schema = self.body_as_used(path_names)
            required = any(self.uses.parts["body"].values())
        else:
            schema = self.body_as_declared(path_names)
            required = bool(self.body_required(path_names)) or self.input.schema.get("type", "object") != "object"
        if schema is None:
            return None
        return {**_without_empty(required=required), "content": {"application/json": {"schema": schema}}}

    def body_as_used(self, path_names: tuple[str, ...]) -> Schema | None:
        paths = dict(self.uses.parts["body"])
        for path in self.uses.parts[""]:
            if not path or path[0] not in path_names:
                paths.setdefault(path, False)
        return object_of(paths.items()) if paths else None

    def body_as_declared(self, path_names: tuple[str, ...]) -> Schema | None:
        """Return the input schema without what the path and the query hold."""
        assert self.input is not None
        own = [name for name in self.declared if not self.is_elsewhere(name, path_names)]
        if self.declared and not own:
            return None
        required = self.body_required(path_names)
        if len(own) == len(self.declared) and required == list(self.input.schema.get("required", ())):
            return self.input.reference()
        rest = {key: value for key, value in self.input.schema.items() if key not in ("$id", "$defs", "required")}
        rest["properties"] = {name: self.declared[name] for name in own}
        schema: Schema = self.input.part(rest)
        return schema | ({"required": required} if required else {})

    def body_required(self, path_names: tuple[str, ...]) -> list[str]:
        return [name for name in self.required if not self.is_elsewhere(name, path_names)]

    def is_elsewhere(self, name: str, path_names: tuple[str, ...]) -> bool:
        """Return whether a declared property is only ever taken from the path or the query."""
        in_body = name in self.uses.names("body") or name in self.uses.names("")
        return name in path_names or (name in self.uses.names("query_params") and not in_body)


__all__ = ["openapi"]
