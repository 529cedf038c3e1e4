"""The entry point: the model kind ``artifact``, also called ``local_artifact``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from attrs import evolve

from orchestrator_core.plugin_api import Model, ModelFacts, ModelKind, OpenContext, hookimpl
from orchestrator_model_artifact.model import open_loaded
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.serving import look_at_served, open_served


@asynccontextmanager
async def open_artifact(options: ArtifactOptions, context: OpenContext) -> AsyncIterator[Model]:
    """Load the model, or start its server."""
    opening = open_served(options, context) if options.startup_command else open_loaded(options, context)
    async with opening as model:
        yield model


async def look_at_artifact(options: ArtifactOptions, context: OpenContext) -> ModelFacts | None:
    """Return what is known of the model without starting a server. A file is loaded: nothing else tells its fields."""
    if options.startup_command:
        await look_at_served(options, context)
        return None
    async with open_loaded(evolve(options, workers=1), context, to_serve=False) as model:
        return model.facts()


ARTIFACT = ModelKind(
    name="artifact",
    aliases=("local_artifact",),
    summary="A model from a file, a folder or an MLflow store, scored inside the service or by a server it starts.",
    options=ArtifactOptions,
    open=open_artifact,
    look=look_at_artifact,
    in_process=lambda options: options.startup_command is None,
    limits_load=lambda options: options.startup_command is not None,  # readiness.timeout
)


@hookimpl
def orchestrator_model_kinds() -> list[ModelKind[ArtifactOptions]]:
    return [ARTIFACT]
