"""The path that an endpoint is served at, and its parameters."""

from __future__ import annotations

import re

from orchestrator_core.config.model import EndpointConfig
from orchestrator_core.config.structure import Located
from orchestrator_core.plan.reading import Reading

PARAMETER = re.compile(r"\{([^{}]*)\}")
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def route_of(reading: Reading, config: EndpointConfig, located: Located) -> tuple[str, tuple[str, ...], bool]:
    """Return the path after the endpoint's own, its parameters, and whether the bare path is served too."""
    if config.path is not None:
        return _explicit(reading, config.path, located)
    names = []
    for reference, _, _ in reading.references:
        if reference.root == "request" and reference.path[:1] == ("path_params",) and len(reference.path) > 1:
            names.append(str(reference.path[1]))
    unique = tuple(dict.fromkeys(names))
    if len(unique) > 1:
        message = f"the endpoint uses {len(unique)} path parameters ({', '.join(unique)}) but has no path"
        hint = f'say how they are arranged: path: "{"".join(f"/{{{name}}}" for name in unique)}"'
        reading.report(located, "ORC411", message, at_key=True, hint=hint)
    return (f"/{{{unique[0]}}}" if unique else ""), unique, True


def _explicit(reading: Reading, path: str, located: Located) -> tuple[str, tuple[str, ...], bool]:
    prefix = f"/orchestrator/{reading.endpoint.domain}/{reading.endpoint.name}"
    rest = path[len(prefix) :] if path == prefix or path.startswith(f"{prefix}/") else path
    rest = "" if rest == "/" else rest
    if rest and not rest.startswith("/"):
        reading.report(located, "ORC411", "a path starts with /", "path", hint=f'did you mean "/{path}"?')
        return "", (), False
    names = []
    for segment in rest.split("/")[1:]:
        match = PARAMETER.fullmatch(segment)
        if match and _IDENTIFIER.match(match[1]):
            names.append(match[1])
        elif not segment or "{" in segment or "}" in segment or segment in (".", ".."):
            message = f"'{segment}' cannot be a part of a path: write a word or one {{parameter}}"
            reading.report(located, "ORC411", message, "path")
    for name in {name for name in names if names.count(name) > 1}:
        reading.report(located, "ORC411", f"the parameter '{name}' stands twice in the path", "path")
    return rest, tuple(names), False


__all__ = ["PARAMETER", "route_of"]
