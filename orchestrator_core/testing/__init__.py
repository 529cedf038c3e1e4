"""For the tests of plugins: a whole service from a few strings, and what every source and model must stand.

:func:`service` writes configuration files to a temporary folder and serves them; :func:`check_problems` returns what
``orchestrator check`` would say of them. :class:`SourceConformance` and :class:`ModelConformance` are test classes to
subclass. ``pytest_plugins = ["orchestrator_core.testing.pytest_plugin"]`` in a ``conftest.py`` adds fixtures; nothing
else here needs pytest.
"""

from orchestrator_core.testing.leaks import leaves_nothing
from orchestrator_core.testing.models import ModelConformance
from orchestrator_core.testing.opening import open_model, open_source, structured
from orchestrator_core.testing.outcomes import Call
from orchestrator_core.testing.ports import free_port
from orchestrator_core.testing.running import run
from orchestrator_core.testing.service import Answer, RunningService, check_problems, service
from orchestrator_core.testing.sources import SourceConformance

__all__ = [
    "Answer",
    "Call",
    "ModelConformance",
    "RunningService",
    "SourceConformance",
    "check_problems",
    "free_port",
    "leaves_nothing",
    "open_model",
    "open_source",
    "run",
    "service",
    "structured",
]
