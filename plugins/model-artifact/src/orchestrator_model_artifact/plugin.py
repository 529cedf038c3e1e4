"""The entry point: the model kind ``artifact``, also called ``local_artifact``."""

from __future__ import annotations

from orchestrator_core.plugin_api import ModelKind, hookimpl
from orchestrator_model_artifact.model import open_artifact
from orchestrator_model_artifact.options import ArtifactOptions

ARTIFACT = ModelKind(
    name="artifact",
    aliases=("local_artifact",),
    summary="A model file or folder, loaded and scored inside the service: MLflow (sklearn, onnx) and ONNX.",
    options=ArtifactOptions,
    open=open_artifact,
)


@hookimpl
def orchestrator_model_kinds() -> list[ModelKind[ArtifactOptions]]:
    return [ARTIFACT]
