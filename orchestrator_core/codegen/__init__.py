"""A plan to the Python coroutine that a good engineer would have written for it."""

from orchestrator_core.codegen.generated import Coroutine, Generated
from orchestrator_core.codegen.writer import CACHE_KEY, generate

__all__ = ["CACHE_KEY", "Coroutine", "Generated", "generate"]
