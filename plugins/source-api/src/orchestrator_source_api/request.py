"""From a step's parameters to what is sent: everything that does not depend on their values is done once, at load."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final, TypeAlias
from urllib.parse import quote_plus

import orjson

from orchestrator_core.plugin_api import (
    JSON,
    CompiledValue,
    ExpressionError,
    InvalidParam,
    MissingReference,
    OperationFacts,
    compile_value,
    did_you_mean,
)
from orchestrator_source_api.options import PARAMS, OperationOptions
from orchestrator_source_api.path import encoded, parse_path, text_of

__all__ = ["Params", "Request"]

Params: TypeAlias = Mapping[str, JSON]
Field: TypeAlias = tuple[str, CompiledValue]
Encode: TypeAlias = Callable[[str, str], str]

_PARAMS_IN_QUERY: Final = frozenset({"GET", "HEAD", "DELETE"})
_NOT_IDEMPOTENT: Final = frozenset({"POST", "PATCH"})
_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_HEADER_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_SHOWN: Final = 60


class Request:
    """What one operation sends. ``query`` are the parameters that the source adds to every query."""

    def __init__(self, name: str, options: OperationOptions, query: Mapping[str, Any]) -> None:
        self.name = name
        self.method = options.method
        by_method = options.method not in _NOT_IDEMPOTENT
        self.idempotent = by_method if options.idempotent is None else options.idempotent
        self._path = parse_path(options.path)
        self._source_query = {name: value for name, value in query.items() if name not in (options.query or {})}
        self._query = _fields(options.query)
        self._headers = _fields(options.headers)
        self._form = None if options.form is None else _fields(options.form)
        self._body = None if options.body is None else compile_value(options.body, PARAMS)
        self._takes_rest = options.query is None and options.body is None and options.form is None
        self.facts = self._facts(tuple(options.result) if isinstance(options.result, dict) else None)

    def check_names(self, names: Sequence[str]) -> None:
        """Raise ``InvalidParam`` when these are not the operation's parameters."""
        required, optional = self.facts.required, self.facts.optional
        for name in names if optional is not None else ():
            if name not in required and name not in (optional or ()):
                hint = did_you_mean(name, (*required, *(optional or ())))
                raise InvalidParam(name, f"there is no parameter '{name}'{f'; {hint}' if hint else ''}")
        for name in required:
            if name not in names:
                raise InvalidParam(name, f"parameter '{name}' is missing")

    def target(self, names: Sequence[str]) -> str | Callable[[Params], str]:
        """Return path and query: as text if they are the same for every call with these parameters."""
        fill = self._path.filler()
        rest = self._rest(names) if self.method in _PARAMS_IN_QUERY else ()
        known: list[str] = []
        for name, value in self._source_query.items():
            if name not in rest:
                known += _pairs(name, name, value, encoded)
        known += [
            pair for field in self._query if field[1].is_constant for pair in _evaluated_pairs(field, {}, encoded)
        ]
        changing = [field for field in self._query if not field[1].is_constant]
        if not changing and not rest:
            query = f"?{'&'.join(known)}" if known else ""
            return (lambda params: fill(params) + query) if self._path.names else fill({}) + query

        def build(params: Params) -> str:
            pairs = list(known)
            for field in changing:
                pairs += _evaluated_pairs(field, params, encoded)
            for name in rest:
                pairs += _pairs(name, name, params[name], encoded)
            return f"{fill(params)}?{'&'.join(pairs)}" if pairs else fill(params)

        return build

    def body(self, names: Sequence[str]) -> bytes | Callable[[Params], bytes] | None:
        """Return the body, or ``None`` without one: as bytes if it is the same for every call."""
        form, body = self._form, self._body
        if form is not None:
            if all(value.is_constant for _, value in form):
                return _form_body(form, {})
            return lambda params: _form_body(form, params)
        if body is not None:
            if body.is_constant:
                return _json_body(body.evaluate({}), "body")
            param = _param_of(body, "body")
            return lambda params: _json_body(_evaluated(body, params), param)
        rest = () if self.method in _PARAMS_IN_QUERY else self._rest(names)
        return (lambda params: _json_body({name: params[name] for name in rest}, rest[0])) if rest else None

    def headers(self, names: Sequence[str]) -> dict[str, str] | Callable[[Params], dict[str, str]]:
        """Return the headers, with the content type of the body: as a dict if they are the same for every call."""
        fixed = {}
        if self.body(names) is not None:
            fixed["content-type"] = _JSON if self._form is None else _FORM
        fixed |= _header_lines([field for field in self._headers if field[1].is_constant], {})
        changing = [field for field in self._headers if not field[1].is_constant]
        return (lambda params: fixed | _header_lines(changing, params)) if changing else fixed

    def sample_headers(self) -> dict[str, str]:
        """Return headers with the names that calls have, for the client to refuse at load what it never sends."""
        return {name: "" for name, _ in self._headers}

    def key(self, params: Params) -> str:
        """Return what was asked for, ``applicant_id='7'``, as a 404 names it."""
        names = self._path.names or sorted(name for name in params if not isinstance(params[name], Mapping | list))
        return ", ".join(f"{name}={_shown(params[name])}" for name in names)

    def _rest(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the parameters that are named nowhere, if the operation sends them."""
        used = {*self._path.names, *self._in_headers()}
        return tuple(name for name in names if name not in used) if self._takes_rest else ()

    def _in_headers(self) -> set[str]:
        found = (reference for _, value in self._headers for reference in value.references)
        return {str(reference.path[0]) for reference in found if reference.path}

    def _facts(self, fields: tuple[str, ...] | None) -> OperationFacts:
        parts = [value for _, value in (*self._headers, *self._query, *(self._form or ()))]
        parts += [] if self._body is None else [self._body]
        required = dict.fromkeys(self._path.names)
        optional: dict[str, None] = {}
        takes_any = self._takes_rest
        for reference in (reference for part in parts for reference in part.references):
            if not reference.path:
                takes_any = True
            else:
                (optional if reference.guarded else required)[str(reference.path[0])] = None
        others = tuple(name for name in optional if name not in required)
        return OperationFacts(
            required=tuple(required),
            optional=None if takes_any else others,
            fields=fields,
            idempotent=self.idempotent,
        )


def _fields(values: Mapping[str, Any] | None) -> list[Field]:
    return [(name, compile_value(value, PARAMS)) for name, value in (values or {}).items()]


def _evaluated(compiled: CompiledValue, params: Params) -> JSON:
    try:
        value: JSON = compiled.evaluate(params)
    except (MissingReference, ExpressionError) as error:
        raise InvalidParam(_param_of(compiled, ""), str(error)) from error
    return value


def _param_of(compiled: CompiledValue, otherwise: str) -> str:
    """Return the parameter that is to blame for a value which cannot be sent: the first that it refers to."""
    return next((str(reference.path[0]) for reference in compiled.references if reference.path), otherwise)


def _header_lines(fields: Sequence[Field], params: Params) -> dict[str, str]:
    headers = {}
    for name, compiled in fields:
        value = _evaluated(compiled, params)
        if value is not None:
            param = _param_of(compiled, name)
            text = text_of(param, value, "a header")
            if not _HEADER_VALUE.fullmatch(text):
                message = f"parameter '{param}' has a line break, a control character or one outside Latin-1"
                raise InvalidParam(param, f"{message}, which cannot stand in a header")
            headers[name.lower()] = text
    return headers


# --- query strings and forms -----------------------------------------------------------------------------------------


def _evaluated_pairs(field: Field, params: Params, encode: Encode) -> Iterator[str]:
    name, compiled = field
    return _pairs(name, _param_of(compiled, name), _evaluated(compiled, params), encode)


def _pairs(name: str, param: str, value: JSON, encode: Encode) -> Iterator[str]:
    """Yield ``name=value``: nothing for null, one for each element of a list."""
    key = encode(name, name)
    for item in value if isinstance(value, list | tuple) else (value,):
        if item is not None:
            yield f"{key}={encode(param, text_of(param, item, 'a query or form'))}"


def _form_body(form: Sequence[Field], params: Params) -> bytes:
    return "&".join(pair for field in form for pair in _evaluated_pairs(field, params, _form_encoded)).encode()


def _form_encoded(param: str, text: str) -> str:
    return encoded(param, text, quote_plus)


# --- JSON ------------------------------------------------------------------------------------------------------------


def _json_body(value: JSON, param: str) -> bytes:
    try:
        body = orjson.dumps(value)
    except TypeError as error:
        raise InvalidParam(param, f"the body cannot be written as JSON: {error}") from error
    # orjson writes NaN and infinity as null without a word.
    if b"null" in body and not _is_finite(value):
        raise InvalidParam(param, "the body has a number that is not finite, which JSON cannot hold")
    return body


def _is_finite(value: JSON) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_finite, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or isfinite(value)


def _shown(value: JSON) -> str:
    text = repr(value) if isinstance(value, str) else orjson.dumps(value).decode()
    return text if len(text) <= _SHOWN else f"{len(text)} characters"
