"""The entry point: the model kind ``docker``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator_core.plugin_api import Model, ModelFacts, ModelKind, OpenContext, hookimpl
from orchestrator_model_docker.images import DockerImage
from orchestrator_model_docker.model import look_at, open_container
from orchestrator_model_docker.options import DockerOptions


@asynccontextmanager
async def open_docker(options: DockerOptions, context: OpenContext) -> AsyncIterator[Model]:
    async with open_container(options, context, DockerImage(options)) as model:
        yield model


async def look_docker(options: DockerOptions, context: OpenContext) -> ModelFacts | None:
    await look_at(options, context, DockerImage(options))
    return None


DOCKER = ModelKind(
    name="docker",
    summary="A model server in a Docker container, which is started, watched, shared and stopped.",
    options=DockerOptions,
    open=open_docker,
    look=look_docker,
    limits_load=lambda options: True,  # pull_timeout and readiness.timeout
)


@hookimpl
def orchestrator_model_kinds() -> list[ModelKind[DockerOptions]]:
    return [DOCKER]
