"""What became of the executions that were to be stored, counted exactly."""

from __future__ import annotations

from attrs import define


@define
class Counts:
    """``finished`` executions are ``written``, ``dropped`` or still waiting; each is in one of these.

    ``taken`` are those that were put into the queue, whatever became of them then.

    Dropped are those that found the queue full (``queue_full``), that the store did not take within the retry window
    (``store_failed``), that it can never take (``refused``) and those that were left when the service stopped
    (``stopped``).
    """

    taken: int = 0
    written: int = 0
    queue_full: int = 0
    store_failed: int = 0
    refused: int = 0
    stopped: int = 0

    @property
    def finished(self) -> int:
        return self.taken + self.queue_full

    @property
    def dropped(self) -> int:
        return sum(self.reasons.values())

    @property
    def reasons(self) -> dict[str, int]:
        """Return how many were dropped for which reason."""
        return {
            "queue_full": self.queue_full,
            "store_failed": self.store_failed,
            "refused": self.refused,
            "stopped": self.stopped,
        }

    @property
    def waiting(self) -> int:
        return self.finished - self.written - self.dropped
