"""The metrics of several workers as one text, over the ends of workers."""

import asyncio
from types import SimpleNamespace
from typing import cast

from aiohttp import web

from orchestrator_core.workers.admin import MergedAdmin
from orchestrator_core.workers.merging import totals_of_metrics, totals_of_tracking
from orchestrator_core.workers.process import Reply, WorkerGone
from orchestrator_core.workers.supervisor import Supervisor

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
    merged = totals_of_metrics().merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert merged == said(7.0, 0.75, 3.0).replace("{{", "{")


def test_what_a_worker_counted_stays_when_it_has_ended() -> None:
    totals = totals_of_metrics()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2, 3}) == said(8.0, 1.0, 0.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0), 3: said(1.0, 0.5, 4.0)}, {2, 3}) == said(9.0, 1.5, 4.0)
    assert totals.merged({3: said(2.0, 0.5, 4.0)}, {3}) == said(10.0, 1.5, 4.0)


def test_one_that_did_not_answer_this_time_counts_as_it_last_did() -> None:
    totals = totals_of_metrics()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    assert totals.merged({2: said(5.0, 0.25, 2.0)}, {1, 2}) == said(8.0, 0.75, 3.0)
    assert totals.merged({1: said(4.0, 0.5, 1.0), 2: said(5.0, 0.25, 2.0)}, {1, 2}) == said(9.0, 0.75, 3.0)


def test_what_a_worker_has_left_is_counted_once_whenever_it_is_asked_for() -> None:
    totals = totals_of_metrics()
    totals.merged({1: said(3.0, 0.5, 1.0), 2: said(4.0, 0.25, 2.0)}, {1, 2})
    totals.left(1, said(6.0, 1.0, 0.0))
    answered_before_it_ended = {1: said(5.0, 0.75, 0.0), 2: said(4.0, 0.25, 2.0)}
    assert totals.merged(answered_before_it_ended, {2}) == said(10.0, 1.25, 2.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2}) == said(11.0, 1.5, 0.0)
    assert totals.merged({2: said(5.0, 0.5, 0.0), 1: said(1.0, 0.5, 0.0)}, {1, 2}) == said(12.0, 2.0, 0.0)
    totals.merged({2: said(5.0, 0.5, 0.0)}, {2})  # the second with that number has died
    totals.left(1, said(2.0, 0.5, 0.0))
    assert totals.merged({2: said(5.0, 0.5, 0.0)}, {2}) == said(12.0, 2.0, 0.0)


def tracked(finished: int, written: int, waiting: int, outage: str = "") -> dict[str, object]:
    dropped = {"queue_full": finished - written - waiting, "store_failed": 0, "refused": 0, "stopped": 0}
    counts = {"finished": finished, "written": written, "waiting": waiting, "dropped": dropped}
    return {"store": "sql", "mode": "buffered", **counts, "outage": outage}


def test_what_became_of_executions_of_a_worker_stays_known_when_it_has_ended() -> None:
    totals = totals_of_tracking()
    assert totals.merged({1: tracked(9, 5, 3, "locked"), 2: tracked(1, 1, 0)}, {1, 2}) == tracked(10, 6, 3, "locked")
    totals.left(2, tracked(4, 2, 0))
    # Of what the first had still waiting when it died nobody knows what became.
    assert totals.merged({3: tracked(2, 1, 1)}, {3}) == tracked(12, 8, 1)
    assert totals.merged({3: tracked(3, 3, 0)}, {3}) == tracked(13, 10, 0)


def test_metrics_that_are_asked_for_at_the_same_time_count_a_worker_that_dies_meanwhile_once() -> None:
    class Fake:
        def __init__(self, pid: int) -> None:
            self.pid = pid
            self.gone = False
            self.held: list[asyncio.Event] = []

        async def ask_while_there(self, method: str, target: str, *, seconds: float) -> Reply:
            if self.gone:
                raise WorkerGone("it has ended")
            if self.held:
                await self.held.pop().wait()
            return Reply(200, "text/plain", b"# TYPE n_total counter\nn_total 10.0\n")

    async def main() -> None:
        first, second = workers = [Fake(1), Fake(2)]
        supervisor = SimpleNamespace(
            left=[], serving=workers, alive={1, 2}, slots=[], reloads=SimpleNamespace(counts={})
        )
        request = SimpleNamespace(method="GET", path_qs="/metrics")
        admin = MergedAdmin(cast(Supervisor, supervisor))

        async def asked() -> str:
            return (await admin._metrics(cast(web.BaseRequest, request))).body.decode()

        assert "n_total 20.0" in await asked()
        held = asyncio.Event()
        second.held.append(held)
        pages = [asyncio.create_task(asked())]
        await asyncio.sleep(0.01)  # in which the first has answered, and the second has not
        first.gone, supervisor.alive = True, {2}
        for _ in range(2):
            pages.append(asyncio.create_task(asked()))
            await asyncio.sleep(0.01)
        held.set()
        await asyncio.gather(*pages)
        assert "n_total 20.0" in await asked()

    asyncio.run(main())
