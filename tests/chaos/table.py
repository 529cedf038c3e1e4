"""The rows, in the order of the table."""

from __future__ import annotations

from tests.chaos.rows import canary, down, flaps, hangs, pool, reloads, sigterm, soak, workers

ROWS = (down.ROW, hangs.ROW, flaps.ROW, pool.ROW, reloads.ROW, workers.ROW, sigterm.ROW, soak.ROW, canary.ROW)
