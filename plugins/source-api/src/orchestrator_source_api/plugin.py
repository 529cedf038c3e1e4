"""The ``api`` source kind: what the core finds under ``orchestrator.plugins``."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator_core.plugin_api import OperationFacts, SourceKind, hookimpl
from orchestrator_source_api.options import ApiOptions, OperationOptions
from orchestrator_source_api.request import Request
from orchestrator_source_api.source import open_api

__all__ = ["API", "orchestrator_source_kinds"]


def api_facts(options: ApiOptions, operations: Mapping[str, OperationOptions]) -> dict[str, OperationFacts]:
    """Return what each operation takes, and the fields that its ``result`` names."""
    return {name: Request(name, operation, options.query).facts for name, operation in operations.items()}


API = SourceKind(
    name="api",
    summary="Operations of a partner API over HTTP, with JSON answers.",
    options=ApiOptions,
    operation=OperationOptions,
    open=open_api,
    facts=api_facts,
)


@hookimpl
def orchestrator_source_kinds() -> list[SourceKind[ApiOptions]]:
    return [API]
