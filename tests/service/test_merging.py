"""What several workers say, as one answer."""

from __future__ import annotations

import random
from typing import Any

import pytest

from orchestrator_core.workers.merging import cursors_of, merge_entries, merge_executions, merge_metrics

ONE = """# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{route="/a/{id}",status="200"} 3.0
# HELP seconds How long.
# TYPE seconds histogram
seconds_bucket{le="0.1"} 1.0
seconds_bucket{le="+Inf"} 2.0
seconds_count 2.0
seconds_sum 0.5
# HELP open_sources Now.
# TYPE open_sources gauge
open_sources 2.0
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.7e+09
# TYPE build_info gauge
build_info{version="1"} 1.0
# TYPE orchestrator_endpoints gauge
orchestrator_endpoints 3.0
# TYPE wait summary
wait{quantile="0.5"} 0.25
wait_count 4.0
untyped_thing 1 1700000000
"""
OTHER = """# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{route="/a/{id}",status="200"} 4.0
http_requests_total{route="/a } {",status="500"} 1.0
# HELP seconds How long.
# TYPE seconds histogram
seconds_bucket{le="0.1"} 0.0
seconds_bucket{le="+Inf"} 1.0
seconds_count 1.0
seconds_sum NaN
# HELP open_sources Now.
# TYPE open_sources gauge
open_sources +Inf
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1.6e+09
# TYPE build_info gauge
build_info{version="1"} 1.0
# TYPE orchestrator_endpoints gauge
orchestrator_endpoints 3.0
# TYPE wait summary
wait{quantile="0.5"} 0.5
wait_count 1.0
"""
BOTH = """# HELP http_requests_total Requests.
# TYPE http_requests_total counter
http_requests_total{route="/a/{id}",status="200"} 7.0
http_requests_total{route="/a } {",status="500"} 1.0
# HELP seconds How long.
# TYPE seconds histogram
seconds_bucket{le="0.1"} 1.0
seconds_bucket{le="+Inf"} 3.0
seconds_count 3.0
seconds_sum NaN
# HELP open_sources Now.
# TYPE open_sources gauge
open_sources +Inf
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1700000000.0
# TYPE build_info gauge
build_info{version="1"} 1.0
# TYPE orchestrator_endpoints gauge
orchestrator_endpoints 3.0
# TYPE wait summary
wait{quantile="0.5"} 0.5
wait_count 5.0
untyped_thing 1.0
"""


def test_metrics_are_summed_by_series_and_families_stay_together() -> None:
    assert merge_metrics([ONE, OTHER]) == BOTH
    assert merge_metrics([merge_metrics([ONE])]) == merge_metrics([ONE])


def test_entries_are_the_first_worker_s_with_what_differs() -> None:
    said = {
        7: [{"id": "a", "state": "ready", "requests": 3, "type": "http"}, {"id": "b", "state": "ready", "requests": 0}],
        9: [{"id": "a", "state": "failed", "requests": 4, "type": "http"}, {"id": "c", "state": "ready"}],
    }
    assert merge_entries(said, ("id",), ("requests",)) == [
        {
            "id": "a",
            "state": "ready",
            "requests": 7,
            "type": "http",
            "workers": [{"pid": 7, "state": "ready", "requests": 3}, {"pid": 9, "state": "failed", "requests": 4}],
        },
        {"id": "b", "state": "ready", "requests": 0, "workers": [{"pid": 7}]},
        {"id": "c", "state": "ready", "workers": [{"pid": 9}]},
    ]


def page_of(ring: list[dict[str, Any]], cursor: str, limit: int) -> dict[str, Any]:
    """Return a worker's page, as its ring makes it: from the latest end to the first."""
    rest = ring[::-1]
    if cursor:
        rest = rest[[entry["id"] for entry in rest].index(cursor) + 1 :]
    page = rest[:limit]
    return {"executions": page, "cursor": page[-1]["id"] if len(rest) > limit else None}


@pytest.mark.parametrize("seed", range(30))
def test_pages_hold_every_execution_once_whatever_the_workers_kept(seed: int) -> None:
    """Executions end in another order than they start in, and new ones come while somebody turns the pages."""
    chance = random.Random(seed)
    sizes = {pid: chance.choice([0, 1, 2, 5, 17]) for pid in (11, 22, 33)}
    rings = {
        pid: [{"id": f"{pid}x{number}", "started_at": f"{number + chance.randrange(3):04}"} for number in range(size)]
        for pid, size in sizes.items()
    }
    wanted = sorted(entry["id"] for ring in rings.values() for entry in ring)
    limit, seen = chance.choice([1, 2, 4, 50]), []
    cursor: str | None = ""
    while cursor is not None:
        before = cursors_of(cursor) if cursor else dict.fromkeys(rings, "")
        said = {pid: page_of(rings[pid], last, limit) for pid, last in before.items() if last != "-"}
        page = merge_executions(said, before, limit)
        assert 1 <= len(page["executions"]) <= limit or not wanted
        seen += [entry["id"] for entry in page["executions"]]
        cursor = page["cursor"]
        for pid, last in (cursors_of(cursor) if cursor else {}).items():
            if last not in ("", "-"):
                rings[pid].append({"id": f"{pid}new{len(rings[pid])}", "started_at": "9999"})
    assert sorted(seen) == wanted or any("new" in one for one in seen)
    assert sorted(one for one in seen if "new" not in one) == wanted


def test_a_worker_that_is_gone_is_left_out_of_the_next_page() -> None:
    said = {22: {"executions": [{"id": "b", "started_at": "1"}], "cursor": None}}
    page = merge_executions(said, {11: "a", 22: ""}, 5)
    assert page == {"executions": [{"id": "b", "started_at": "1"}], "cursor": None}


def test_what_several_workers_have_is_told_once_over_all_pages() -> None:
    """As they do when the stores of two configurations are one database."""
    ring = [{"id": f"x{number}", "started_at": f"{number:04}"} for number in range(7)]
    own = [{"id": "own", "started_at": "0003"}]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        before = cursors_of(cursor) if cursor else {11: "", 22: "", 33: ""}
        rings = {11: ring, 22: ring, 33: own}
        page = merge_executions(
            {pid: page_of(rings[pid], last, 3) for pid, last in before.items() if last != "-"}, before, 3
        )
        seen += [entry["id"] for entry in page["executions"]]
        cursor = page["cursor"]
    assert seen == ["x6", "x5", "x4", "x3", "own", "x2", "x1", "x0"]


def test_a_page_says_why_it_is_incomplete_when_a_worker_does() -> None:
    one: dict[str, Any] = {"executions": [], "cursor": None}
    gone = {**one, "incomplete": "the store is gone"}
    before = {11: "", 22: "", 33: ""}
    assert merge_executions({11: one, 22: gone, 33: gone}, before, 5) == gone
    late = {**one, "incomplete": "the store is late"}
    assert merge_executions({11: late, 22: gone}, before, 5)["incomplete"] == "the store is late; the store is gone"


@pytest.mark.parametrize("cursor", ["x", "1.a,b", ",", "x.y"])
def test_a_cursor_of_another_making_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        cursors_of(cursor)
