"""Execution records: the latest in memory, all of them in a store where there is one, and the observers of each."""

from orchestrator_core.tracking.counts import Counts
from orchestrator_core.tracking.log import MAX_PAGE, ExecutionLog, Found, Unrecorded, tracking_json
from orchestrator_core.tracking.writer import Writer, writing

__all__ = ["MAX_PAGE", "Counts", "ExecutionLog", "Found", "Unrecorded", "Writer", "tracking_json", "writing"]
