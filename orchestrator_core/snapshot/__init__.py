"""One generation, open: plans bound to live sources."""

from orchestrator_core.snapshot.binding import bind
from orchestrator_core.snapshot.drafting import Draft, draft
from orchestrator_core.snapshot.generation import Snapshot, look_at_cache, open_snapshot
from orchestrator_core.snapshot.problems import masked
from orchestrator_core.snapshot.ready import ReadyPlan
from orchestrator_core.snapshot.sources import OpenSource

__all__ = ["Draft", "OpenSource", "ReadyPlan", "Snapshot", "bind", "draft", "look_at_cache", "masked", "open_snapshot"]
