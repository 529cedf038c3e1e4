"""The entry point: the model kind ``http``."""

from __future__ import annotations

from orchestrator_core.plugin_api import ModelKind, hookimpl
from orchestrator_model_http.model import open_http
from orchestrator_model_http.options import HttpModelOptions

HTTP = ModelKind(
    name="http",
    summary="A model behind an HTTP endpoint: the features are posted as JSON, the answer is the prediction.",
    options=HttpModelOptions,
    open=open_http,
)


@hookimpl
def orchestrator_model_kinds() -> list[ModelKind[HttpModelOptions]]:
    return [HTTP]
