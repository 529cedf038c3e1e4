"""The entry point: the model kind ``ecr``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orchestrator_model_docker.model import look_at, open_container

from orchestrator_core.plugin_api import Model, ModelFacts, ModelKind, OpenContext, hookimpl
from orchestrator_model_ecr.images import EcrImage
from orchestrator_model_ecr.options import EcrOptions


@asynccontextmanager
async def open_ecr(options: EcrOptions, context: OpenContext) -> AsyncIterator[Model]:
    async with open_container(options, context, EcrImage(options)) as model:
        yield model


async def look_ecr(options: EcrOptions, context: OpenContext) -> ModelFacts | None:
    await look_at(options, context, EcrImage(options))
    return None


ECR = ModelKind(
    name="ecr",
    summary="A model server in a container, made from an image of AWS's registry ECR.",
    options=EcrOptions,
    open=open_ecr,
    look=look_ecr,
    limits_load=lambda options: True,  # pull_timeout and readiness.timeout
)


@hookimpl
def orchestrator_model_kinds() -> list[ModelKind[EcrOptions]]:
    return [ECR]
