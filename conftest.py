"""For every test of the core and of the plugins: the fast ones first, and under `CI=true` no test skips."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
IN_CI = os.environ.get("CI") == "true"
ROOT = Path(__file__).parent
SLOW = (
    *(ROOT / "tests/faults", ROOT / "tests/service", ROOT / "tests/example"),
    *(ROOT / "plugins/model-docker", ROOT / "plugins/model-ecr"),
    *(ROOT / "tests/bench", ROOT / "tests/chaos"),
)
"""What runs whole services, containers and load takes minutes: it comes last, so that a mistake shows soon."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    return next((rank for rank, folder in enumerate(SLOW, 1) if item.path.is_relative_to(folder)), 0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _refuse_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _refuse_skip((yield))


def _refuse_skip(report: Report) -> Report:
    if IN_CI and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} must run under CI=true. {reason}"
    return report
