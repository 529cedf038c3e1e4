"""The fixtures of the testing kit, and the folder of this plugin's own: pytest's importlib mode adds none."""

import sys
from pathlib import Path

from orchestrator_core.testing.pytest_plugin import run, serve

__all__ = ["run", "serve"]

sys.path.append(str(Path(__file__).parent))
