"""The source type ``ml``: models by name, each loaded, watched and restarted by itself, and batches of requests."""

from orchestrator_core.models.batching import Batcher, predict_rows
from orchestrator_core.models.life import WarmUpFailed
from orchestrator_core.models.options import (
    PREDICT,
    BatchOptions,
    CommonOptions,
    Entries,
    HealthOptions,
    MlOptions,
    ModelSpec,
    RestartOptions,
    entries,
    operation_of,
)
from orchestrator_core.models.slot import ModelState, Slot
from orchestrator_core.models.source import ML, MlPlugin, MlSource, Opening, Trouble, open_models
from orchestrator_core.models.supervision import Supervisor

__all__ = [
    "ML",
    "PREDICT",
    "BatchOptions",
    "Batcher",
    "CommonOptions",
    "Entries",
    "HealthOptions",
    "MlOptions",
    "MlPlugin",
    "MlSource",
    "ModelSpec",
    "ModelState",
    "Opening",
    "RestartOptions",
    "Slot",
    "Supervisor",
    "Trouble",
    "WarmUpFailed",
    "entries",
    "open_models",
    "operation_of",
    "predict_rows",
]
