"""What is answered is what the OpenAPI document that is served says."""

from __future__ import annotations

import threading

from tests.chaos.contract import measure, served


def test_no_answer_breaks_the_document() -> None:
    with served() as url:
        found = measure(240, url)
    assert found.failures == ()
    assert set(found.statuses) >= {200, 400, 404, 422}
    assert all(status < 500 for status in found.statuses)
    assert found.cases > 150
    assert threading.active_count() < 20
