"""The public listener's own pages: health, the lists of domains and endpoints, and the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

import orjson

from orchestrator_core.http.answers import JSON_TYPE
from orchestrator_core.http.docs import docs_asset
from orchestrator_core.http.openapi import openapi
from orchestrator_core.http.routing import ROOT, listing
from orchestrator_core.snapshot import Snapshot

PageContent: TypeAlias = "tuple[int, bytes, str, Mapping[str, str]]"
"""A page's status, body, content type and further headers."""

_FIXED = frozenset({"/health/live", "/health/ready", ROOT, f"{ROOT}/", "/openapi.json", "/docs"})


class Pages:
    """The pages of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._docs = snapshot.configuration.app.server.docs
        self._domain_names = set(snapshot.configuration.descriptions)
        self._openapi_document: bytes | None = None
        self._waits_for = [model.slot for _, _, model in snapshot.models() if model.slot.holds_up]

    def template(self, path: str) -> str:
        """Return the template of a page of the service's own; an empty string where there is no such page."""
        if path in _FIXED:
            return path
        if path.startswith("/docs/") and self._docs:
            return "/docs/{asset}"
        return f"{ROOT}/{{domain}}" if path.removeprefix(f"{ROOT}/") in self._domain_names else ""

    def find(self, path: str, segments: list[str], *, stopping: bool) -> PageContent | None:
        """Return the page at a path, None where there is none. ``stopping`` says that no more should be sent here."""
        if path == "/health/live":
            return 200, b'{"status":"live"}', JSON_TYPE, {}
        if path == "/health/ready":
            return self._ready(stopping)
        if path in (ROOT, f"{ROOT}/"):
            return 200, orjson.dumps(self._domains()), JSON_TYPE, {}
        if len(segments) == 3 and segments[1] == "orchestrator" and segments[2] in self._domain_names:
            return 200, orjson.dumps(self._domain(segments[2])), JSON_TYPE, {}
        if not self._docs:
            return None
        if path == "/openapi.json":
            return 200, self._openapi(), JSON_TYPE, {}
        if path == "/docs" or path.startswith("/docs/"):
            asset = docs_asset(path)
            if asset is not None:
                return 200, asset.body, asset.content_type, asset.headers
        return None

    def _ready(self, stopping: bool) -> PageContent:
        generation = self._snapshot.generation
        if stopping:
            return 503, b'{"status":"shutting down"}', JSON_TYPE, {"Retry-After": "1"}
        if self._waits_for and (waiting := self._not_yet_ready()):
            document = {"status": "waiting for models", "generation": generation, "models": waiting}
            return 503, orjson.dumps(document), JSON_TYPE, {"Retry-After": "1"}
        return 200, orjson.dumps({"status": "ready", "generation": generation}), JSON_TYPE, {}

    def _not_yet_ready(self) -> dict[str, str]:
        """Return the states of the preloaded models that have never been ready; not one that dies later."""
        self._waits_for = [slot for slot in self._waits_for if slot.holds_up]
        return {slot.label: slot.state for slot in self._waits_for}

    def _domains(self) -> dict[str, Any]:
        return {
            "generation": self._snapshot.generation,
            "domains": [self._domain(name) for name in sorted(self._domain_names)],
        }

    def _domain(self, name: str) -> dict[str, Any]:
        description = self._snapshot.configuration.descriptions.get(name, "")
        return {"domain": name, "description": description, "endpoints": listing(self._snapshot.plans, name)}

    def _openapi(self) -> bytes:
        if self._openapi_document is None:
            plans = {key: ready.plan for key, ready in self._snapshot.plans.items()}
            self._openapi_document = _written(openapi(self._snapshot.configuration, plans))
        return self._openapi_document


def _written(document: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:  # a schema can hold integers of more than 64 bits
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


__all__ = ["PageContent", "Pages"]
