"""Whatever a source sends that is no answer, the client is told whose it is: APIs, models, feature servers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.chaos.malformed import KINDS, measure

MEGABYTE = 2**20


def test_every_malformed_answer_is_a_502_that_names_the_step(run: Callable[..., Any]) -> None:
    found = run(measure(400))
    assert found.wrong == ()
    assert found.statuses == {502: found.asked}
    assert set(found.kinds) == set(KINDS)
    assert found.grown_bytes < 50 * MEGABYTE
