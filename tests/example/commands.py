"""`orchestrator …` in this process: importing Feast, MLflow and scikit-learn anew for each command takes minutes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from unittest.mock import patch

import structlog
from click.testing import CliRunner, Result

from orchestrator_core.cli import main


def import_feast() -> None:
    """Import what the source imports in a thread, before anything else does.

    CPython 3.11 counts the depth of a syntax tree once for all threads: where the feature store and a model are opened
    at the same time, both parsing, it can raise a SystemError. A gc callback, which hypothesis has, makes that likely.
    """
    import_module("orchestrator_source_feast.source")


def run_here(folder: Path, arguments: Sequence[str], environment: Mapping[str, str]) -> Result:
    """Run a command in a folder, with these variables and no others; ``result.stdout`` is what it prints."""
    import_feast()
    with chdir(folder), patch.dict(os.environ, environment, clear=True):
        try:
            return CliRunner().invoke(main, list(arguments), prog_name="orchestrator")
        finally:
            structlog.reset_defaults()


__all__ = ["import_feast", "run_here"]
