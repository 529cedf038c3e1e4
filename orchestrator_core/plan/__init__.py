"""An endpoint's configuration to a plan: a checked graph of steps with parsed expressions."""

from orchestrator_core.plan.compile import Compiled, compile_plan
from orchestrator_core.plan.model import ITEM_ROOTS, REQUEST_PARTS, AnswerCache, Plan, PlannedStep
from orchestrator_core.plan.origin import Place, giver
from orchestrator_core.plan.reading import place_of

__all__ = [
    "ITEM_ROOTS",
    "REQUEST_PARTS",
    "AnswerCache",
    "Compiled",
    "Place",
    "Plan",
    "PlannedStep",
    "compile_plan",
    "giver",
    "place_of",
]
