"""What several workers say, as one answer."""

from __future__ import annotations

import random
from collections.abc import Iterable
from operator import itemgetter
from typing import Any

import pytest

from orchestrator_core.workers.merging import merge_entries, merge_executions, merge_metrics, merge_tracking

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


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_a_label_may_hold_what_ends_a_line_elsewhere(odd: str) -> None:
    text = f'# HELP a_total x\n# TYPE a_total counter\na_total{{source="p{odd}q"}} 1.0\n'
    assert merge_metrics([text, text]) == text.replace("1.0", "2.0")


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


def page_of(kept: list[dict[str, Any]], cursor: str | None, limit: int) -> dict[str, Any]:
    """Return a worker's page: the executions after the cursor, by descending id."""
    rest = sorted((one for one in kept if cursor is None or one["id"] < cursor), key=itemgetter("id"), reverse=True)
    return {"executions": rest[:limit], "cursor": rest[limit - 1]["id"] if len(rest) > limit else None}


def entries(ids: Iterable[int]) -> list[dict[str, Any]]:
    return [{"id": f"{id_:03}"} for id_ in ids]


@pytest.mark.parametrize("seed", range(30))
def test_pages_hold_every_execution_once_whoever_kept_it(seed: int) -> None:
    """Several may have the same, workers come and go, and newer executions come while somebody turns the pages."""
    chance = random.Random(seed)
    everything = chance.sample(range(900), 40)
    kept = {pid: entries(chance.sample(everything, chance.choice([0, 1, 5, 17, 40]))) for pid in (11, 22, 33)}
    wanted = sorted({entry["id"] for of_one in kept.values() for entry in of_one}, reverse=True)
    limit, seen = chance.choice([1, 2, 4, 17, 50]), []
    cursor: str | None = None
    while True:
        page = merge_executions([page_of(of_one, cursor, limit) for of_one in kept.values()], limit)
        assert len(page["executions"]) <= limit
        seen += [entry["id"] for entry in page["executions"]]
        cursor = page["cursor"]
        if cursor is None:
            break
        assert len(page["executions"]) == limit
        kept[chance.choice([11, 22, 33])] += entries([chance.randrange(900, 1000)])
        kept[len(kept)] = chance.choice(list(kept.values()))  # a worker more, with the store of another
    assert seen == wanted


def test_a_page_says_why_it_is_incomplete_when_a_worker_does() -> None:
    one: dict[str, Any] = {"executions": [], "cursor": None}
    gone = {**one, "incomplete": "the store is gone"}
    assert merge_executions([one, gone, gone], 5) == gone
    late = {**one, "incomplete": "the store is late"}
    assert merge_executions([late, gone], 5)["incomplete"] == "the store is late; the store is gone"


def test_what_became_of_executions_is_the_sum_of_all_workers() -> None:
    none = {"queue_full": 0, "store_failed": 0}
    one = {"store": "sql", "finished": 5, "written": 3, "waiting": 2, "dropped": none, "outage": "it is locked"}
    some = {"queue_full": 1, "store_failed": 2}
    other = {"store": "sql", "finished": 7, "written": 4, "waiting": 0, "dropped": some, "outage": ""}
    both = {"store": "sql", "finished": 12, "written": 7, "waiting": 2, "dropped": some, "outage": "it is locked"}
    assert merge_tracking([one, other]) == both
    full = {**one, "outage": "it is full"}
    assert merge_tracking([one, full, one])["outage"] == "it is locked; it is full"
