"""Models opened and loaded as the service would, beside a folder `config`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from orchestrator_model_artifact.loading import LoadedModel, Request, load
from orchestrator_model_artifact.location import locate
from orchestrator_model_artifact.model import ArtifactModel
from orchestrator_model_artifact.options import ArtifactOptions
from orchestrator_model_artifact.plugin import ARTIFACT

from orchestrator_core.errors import SourceError
from orchestrator_core.http_client import HttpClient
from orchestrator_core.plugin_api import OpenContext

__all__ = ["loaded", "opened", "refused"]


@asynccontextmanager
async def opened(models: Path, path: str, **options: Any) -> AsyncIterator[ArtifactModel]:
    (models / "config").mkdir(exist_ok=True)
    async with HttpClient() as http:
        context = OpenContext(name="credit_model", config_dir=models / "config", http=http)
        async with ARTIFACT.open(ArtifactOptions(path=f"../{path}", **options), context) as model:
            assert isinstance(model, ArtifactModel)
            yield model


def loaded(models: Path, path: str, **options: Any) -> LoadedModel:
    (models / "config").mkdir(exist_ok=True)
    given = ArtifactOptions(path=f"../{path}", **options)
    return load(Request("credit_model", given, locate(given, models / "config")))


def refused(models: Path, path: str, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        loaded(models, path, **options)
    return str(caught.value)
