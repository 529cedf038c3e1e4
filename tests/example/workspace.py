"""A copy of what a reader of the docs has in front of them: the example, built, the starter and `main.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from example.processes import MODELS, PARTNER, running

ROOT = Path(__file__).parents[2]
NOT_PASSED_ON = ("PORT", "PARTNER_PORT", "MODELS_PORT", "CREDIT_TOKEN", "NO_COLOR", "FORCE_COLOR")
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON},
    "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
}


@cache
def make_workspace(folder: Path) -> Path:
    """Copy the files to the folder, build the example there, and return the folder."""
    built = shutil.ignore_patterns("data", "models", "__pycache__", ".building")
    shutil.copytree(ROOT / "example", folder / "example", ignore=built)
    shutil.copytree(ROOT / "config", folder / "config")
    shutil.copy(ROOT / "main.py", folder)
    build(folder / "example")
    return folder


def build(into: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "example.build", str(into)], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def servers(workspace: Path, *partner_options: str) -> Iterator[Mapping[str, str]]:
    """Run the partner and the model server on free ports; yield the variables that lead to them."""
    ended: list[str] = []
    with running(workspace / "example", {PARTNER: 0, MODELS: 0}, ended.append, partner_options) as environment:
        yield environment
    assert ended == []
