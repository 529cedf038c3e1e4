"""The fixtures of the testing kit, and the folder of this plugin's own: pytest's importlib mode adds none."""

import sys
from pathlib import Path

from orchestrator_core.testing.pytest_plugin import run

__all__ = ["run"]

sys.path.append(str(Path(__file__).parent))
