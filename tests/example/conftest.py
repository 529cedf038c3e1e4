"""The example, built once for all tests, and its servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.example.workspace import make_workspace, servers


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_workspace(tmp_path_factory.getbasetemp() / "workspace")


@pytest.fixture(scope="session")
def environment(workspace: Path) -> Iterator[Mapping[str, str]]:
    """The variables that lead to a partner and a model server that run as long as the tests."""
    with servers(workspace) as variables:
        yield variables
