"""One store per test and database."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the kit: pytest's importlib mode adds no folder

from tracking_kit import Place, postgresql

from orchestrator_core.testing.pytest_plugin import run, serve

__all__ = ["place", "run", "serve"]


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """A database of the test's own, on each engine."""
    if request.param == "sqlite":
        yield Place("sqlite", f"sqlite:///{tmp_path / 'executions.db'}", tmp_path)
        return
    with postgresql() as url:
        yield Place("postgresql", url, tmp_path)
