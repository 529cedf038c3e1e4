"""The fixtures of the testing kit, for the core's own tests."""

from orchestrator_core.testing.pytest_plugin import run, run_on_each_loop, serve

__all__ = ["run", "run_on_each_loop", "serve"]
