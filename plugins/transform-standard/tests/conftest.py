"""The fixtures of the testing kit, and a transformer from what stands in YAML."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from orchestrator_transform_standard.plugin import TRANSFORMERS

from orchestrator_core.config.structure import Located, structure
from orchestrator_core.config.yaml import Document
from orchestrator_core.testing.pytest_plugin import serve

__all__ = ["serve"]

KINDS = {kind.name: kind for kind in TRANSFORMERS}


@pytest.fixture(scope="session")
def built() -> Callable[[str, Any], Callable[[Any], Any]]:
    """Build a transformer as the plan does."""

    def build(name: str, data: Any) -> Callable[[Any], Any]:
        options, problems = structure(KINDS[name].options, Located(Document("options", ""), (), data))
        assert problems == []
        return KINDS[name].build(options)

    return build
