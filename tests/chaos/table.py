"""The rows, in the order of the table."""

from __future__ import annotations

from tests.chaos.rows import (
    canary,
    contract,
    down,
    durable,
    flaps,
    hangs,
    hostile,
    malformed,
    overload,
    pool,
    reloads,
    sigterm,
    slow,
    soak,
    tracking,
    workers,
)

ROWS = (
    overload.ROW,
    down.ROW,
    hangs.ROW,
    flaps.ROW,
    malformed.ROW,
    pool.ROW,
    reloads.ROW,
    workers.ROW,
    sigterm.ROW,
    tracking.ROW,
    durable.ROW,
    slow.ROW,
    hostile.ROW,
    contract.ROW,
    soak.ROW,
    canary.ROW,
)
