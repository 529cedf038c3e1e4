"""The metrics of several workers as one text, over the ends of workers."""

from orchestrator_core.workers.merging import Totals

TEXT = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{{endpoint="a"}} {requests}
# HELP seconds Time.
# TYPE seconds histogram
seconds_bucket{{le="1"}} {requests}
seconds_bucket{{le="+Inf"}} {requests}
seconds_count {requests}
seconds_sum {seconds}
# HELP running Now.
# TYPE running gauge
running {running}
# HELP build_info Build.
# TYPE build_info gauge
build_info{{version="1"}} 1.0
"""


def said(requests: float, seconds: float, running: float) -> str:
    return TEXT.format(requests=requests, seconds=seconds, running=running)


def test_series_are_summed_and_information_is_not() -> None:
    merged = Totals().merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert merged == said(7.0, 0.75, 3.0).replace("{{", "{")


def test_what_a_worker_counted_stays_when_it_has_ended() -> None:
    totals = Totals()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2, 3}) == said(8.0, 1.0, 0.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0), 3: said(1.0, 0.5, 4.0)}, {2, 3}) == said(9.0, 1.5, 4.0)
    assert totals.merged({3: said(2.0, 0.5, 4.0)}, {3}) == said(10.0, 1.5, 4.0)


def test_one_that_did_not_answer_this_time_counts_as_it_last_did() -> None:
    totals = Totals()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert totals.merged({2: said(5.0, 0.25, 2.0)}, {1, 2}) == said(8.0, 0.75, 3.0)
    assert totals.merged({1: said(4.0, 0.5, 1.0), 2: said(5.0, 0.25, 2.0)}, {1, 2}) == said(9.0, 0.75, 3.0)


def test_what_a_worker_has_left_is_counted_once_whenever_it_is_asked_for() -> None:
    totals = Totals()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    totals.left(1, said(6.0, 1.0, 0.0))
    answered_before_it_ended = {1: said(5.0, 0.75, 0.0), 2: said(4.0, 0.25, 2.0)}
    assert totals.merged(answered_before_it_ended, {2}) == said(10.0, 1.25, 2.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2}) == said(11.0, 1.5, 0.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0), 1: said(1.0, 0.5, 0.0)}, {1, 2}) == said(12.0, 2.0, 0.0)
    totals.merged({2: said(5.0, 0.5, 0.0)}, {2})  # the second with that number has died
    totals.left(1, said(2.0, 0.5, 0.0))
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2}) == said(12.0, 2.0, 0.0)
