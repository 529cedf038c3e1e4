"""A pool that is used up refuses in time, and clients that go away take no connection with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.chaos.pools import POOL_SIZE, measure
from tests.faults.kit import skip_without


def test_no_connection_is_lost_to_a_full_pool_or_to_clients_that_go_away(run: Callable[..., Any]) -> None:
    skip_without("127.0.0.1", 5432, "PostgreSQL")
    found = run(measure(cancelled=200))
    assert found.exhausted == {503: 50}
    assert found.longest_seconds < 5
    assert sum(found.connections.values()) <= POOL_SIZE
    assert found.after == {200: 20 * POOL_SIZE}
    assert found.in_flight == 0
