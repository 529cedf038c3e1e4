"""The fixtures of the testing kit, for the core's own tests, and the order of all tests: the quick ones first."""

from pathlib import Path

import pytest

from orchestrator_core.testing.pytest_plugin import run, run_on_each_loop, serve

LAST = ("faults", "service", "example", "bench", "chaos")
"""The folders whose tests take most of the time: they run whole services, processes of their own, and load."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent

    def rank(item: pytest.Item) -> int:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        return 1 + LAST.index(folder) if folder in LAST else 0

    items.sort(key=rank)


__all__ = ["run", "run_on_each_loop", "serve"]
