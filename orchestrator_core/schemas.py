"""JSON Schema for requests and answers: compiled once, with path and query strings made what the schema declares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from attrs import field, frozen

from orchestrator_core.config.yaml import DataPath

MAX_ERRORS = 100
MOST_VALUES = 1000
"""Of an instance with more, the first error is told alone: jsonschema-rs makes all before it gives one, up to 0.1 ms
for each, and nobody else is answered meanwhile."""
FOREIGN_REFERENCE = "references to other documents are not followed"
_INTEGER = re.compile(r"[-+]?[0-9]{1,20}\Z")
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
"""The integers that orjson reads and writes."""
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?\Z")
_BOOLEANS = {"true": True, "false": False}


class SchemaError(ValueError):
    """A schema that is none; ``path`` leads to what is wrong in it."""

    def __init__(self, message: str, path: Iterable[str | int]) -> None:
        super().__init__(message)
        self.path: DataPath = tuple(path)


@frozen
class RequestSchema:
    """A compiled schema. ``properties`` are the declared top-level ones, with local references followed."""

    schema: Mapping[str, Any]
    properties: Mapping[str, Mapping[str, Any]]
    closed: bool
    validator: Any = field(repr=False, eq=False)

    @property
    def defaults(self) -> Mapping[str, Any]:
        return {name: declared["default"] for name, declared in self.properties.items() if "default" in declared}

    def errors(self, instance: Any) -> list[dict[str, str]]:
        """Return ``{"pointer", "message"}`` for what does not fit in the instance, up to ``MAX_ERRORS``.

        Of an instance of more than ``MOST_VALUES`` it is the first that does not.
        """
        if self.validator.is_valid(instance):
            return []
        found: list[dict[str, str]] = []
        for error in self._first(instance) if _is_large(instance) else self._all(instance):
            path = list(error.instance_path)
            name = getattr(error.kind, "property", None)
            if isinstance(name, str):
                path.append(name)
            told = {"pointer": pointer(path), "message": _message(error)}
            if told not in found:  # several branches of a schema may ask for the same
                found.append(told)
        return found

    def _all(self, instance: Any) -> Iterable[Any]:
        return islice(self.validator.iter_errors(instance), MAX_ERRORS)

    def _first(self, instance: Any) -> Iterable[Any]:
        import jsonschema_rs

        try:
            self.validator.validate(instance)
        except jsonschema_rs.ValidationError as error:
            return [error]
        return []


def _is_large(instance: Any) -> bool:
    count, left = 0, [instance]
    while left:
        value = left.pop()
        values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        count += len(values)
        if count > MOST_VALUES:
            return True
        left.extend(values)
    return False


def pointer(path: Iterable[str | int]) -> str:
    """Return the JSON Pointer (RFC 6901) of a path."""
    return "".join(f"/{str(part).replace('~', '~0').replace('/', '~1')}" for part in path)


def _message(error: Any) -> str:
    text = str(error.message)
    name = getattr(error.kind, "property", None)
    if isinstance(name, str):
        return "is required"
    if error.kind.name == "falseSchema":
        return "must have no properties" if error.schema_path[-1:] == ["additionalProperties"] else "is not allowed"
    return text if len(text) <= 200 else f"{text[:197]}..."


def compile_schema(schema: Mapping[str, Any]) -> RequestSchema:
    """Compile a JSON Schema 2020-12. Raises :class:`SchemaError`; nothing is ever fetched from elsewhere."""
    import jsonschema_rs

    try:
        validator = jsonschema_rs.Draft202012Validator(dict(schema), validate_formats=True, retriever=_refuse)
    except jsonschema_rs.ValidationError as error:
        raise SchemaError(_first_line(error.message), error.instance_path) from error
    except ValueError as error:
        raise SchemaError(_first_line(str(error)), ()) from error
    declared = {name: _follow(schema, value) for name, value in (schema.get("properties") or {}).items()}
    closed = schema.get("additionalProperties") is False
    return RequestSchema(schema, declared, closed, validator)


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "invalid"


def _refuse(uri: str) -> Any:
    raise ValueError(f"{FOREIGN_REFERENCE}: {uri}")


def _follow(schema: Mapping[str, Any], value: Any) -> Mapping[str, Any]:
    """Return the schema that a chain of local references, ``#/$defs/x``, leads to."""
    for _ in range(16):
        reference = value.get("$ref") if isinstance(value, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            break
        value = schema
        for part in reference[2:].split("/"):
            value = value.get(part.replace("~1", "/").replace("~0", "~"), {}) if isinstance(value, Mapping) else {}
    return value if isinstance(value, Mapping) else {}


def coerce(text: str, declared: Mapping[str, Any]) -> Any:
    """Return what a path or query string means as the declared type; the string itself where it means nothing."""
    types = declared.get("type")
    for name in types if isinstance(types, list) else [types]:
        if name == "integer" and _INTEGER.match(text):
            whole = int(text)
            return whole if _SMALLEST <= whole <= _LARGEST else text  # an answer could not hold it
        if name == "number" and _NUMBER.match(text):
            number = int(text) if _INTEGER.match(text) else float(text)
            if not _SMALLEST <= number <= _LARGEST:
                number = float(text)
            return number if math.isfinite(number) else text  # 1e400, which fits no number
        if name == "boolean" and text in _BOOLEANS:
            return _BOOLEANS[text]
        if name == "null" and text in ("", "null"):
            return None
    return text


def coerce_all(texts: list[str], declared: Mapping[str, Any]) -> Any:
    """Return the value of a query parameter, which may be given several times: a list where one is declared."""
    types = declared.get("type")
    if types == "array" or (isinstance(types, list) and "array" in types):
        items = declared.get("items")
        return [coerce(text, items if isinstance(items, Mapping) else {}) for text in texts]
    return coerce(texts[-1], declared)
