"""Micro-batching: concurrent requests share calls of the model, and every caller gets its own row's answer."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from attrs import define, field, frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.errors import InvalidParam, SourceError, SourceUnavailable
from orchestrator_core.models import Batcher, BatchOptions
from orchestrator_core.models.batching import predict_rows
from orchestrator_core.plugin_api import Duration, Identity, ModelFacts, ModelKind, hookimpl, option
from orchestrator_core.testing import check_problems, service
from orchestrator_core.testing import run as run_coroutine
from orchestrator_core.testing.pytest_plugin import Served

RunFixture = Callable[..., Any]
Serve = Callable[..., Served]


@frozen
class CountingOptions:
    """Options of the counting model."""

    factor: int = option(10, help="What each row is multiplied by.")


@define(slots=False)
class Counting:
    """A model that multiplies, notes the size of each call, and refuses rows that say so."""

    factor: int = 10
    calls: list[int] = field(factory=list)
    turns: int = 1

    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        self.calls.append(len(rows))
        for _ in range(self.turns):
            await asyncio.sleep(0)
        if any(row.get("exits") for row in rows) and not (len(rows) > 1 and any(row.get("unfit") for row in rows)):
            sys.exit(4)
        if any(row.get("unfit") for row in rows):
            raise InvalidParam("features", "an unfit row")
        if any(row.get("breaks") for row in rows):
            raise SourceError("the model broke")
        if any(row.get("short") for row in rows):
            return []
        return [{"y": row["x"] * self.factor} for row in rows]

    def facts(self) -> ModelFacts:
        return ModelFacts(inputs=("x",), outputs=("y",))

    def identity(self) -> Identity:
        return Identity("counting", version="3", digest="sha256:ab")


# --- properties ---------------------------------------------------------------------------------------------------


@frozen
class Caller:
    """One caller: when it asks, in turns of the loop, what its row is, and when it is cancelled, if it is."""

    turn: int
    kind: str
    cancel_after: int | None


CALLERS = st.lists(
    st.builds(
        Caller,
        st.integers(0, 6),
        st.sampled_from(["fine", "fine", "fine", "unfit"]),
        st.none() | st.none() | st.integers(0, 4),
    ),
    min_size=1,
    max_size=40,
)


@given(
    CALLERS,
    st.integers(1, 8),
    st.sampled_from([0.0, 0.0005]),
    st.integers(0, 3),
    st.sampled_from(["uvloop", "asyncio"]),
)
@settings(max_examples=60, deadline=None)
def test_every_caller_gets_its_own_row_s_answer(
    callers: list[Caller], max_size: int, max_wait: float, turns: int, loop: Any
) -> None:
    async def main() -> None:
        model = Counting(turns=turns)
        batcher = Batcher(model, BatchOptions(max_size, Duration(max_wait)))

        async def ask(number: int, caller: Caller) -> Any:
            for _ in range(caller.turn):
                await asyncio.sleep(0)
            return await batcher.predict_one({"x": number, caller.kind: True})

        async def cancel(task: asyncio.Task[Any], caller: Caller) -> None:
            for _ in range(caller.turn + (caller.cancel_after or 0)):
                await asyncio.sleep(0)
            task.cancel()

        tasks = [asyncio.create_task(ask(number, caller)) for number, caller in enumerate(callers)]
        cancels = [
            asyncio.create_task(cancel(task, caller))
            for task, caller in zip(tasks, callers, strict=True)
            if caller.cancel_after is not None
        ]
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        await asyncio.gather(*cancels)
        for number, (caller, answer) in enumerate(zip(callers, answers, strict=True)):
            if isinstance(answer, asyncio.CancelledError):
                assert caller.cancel_after is not None
            elif caller.kind == "unfit":
                assert isinstance(answer, InvalidParam), answer
            else:
                assert answer == {"y": number * 10}
        assert all(size <= max_size for size in model.calls)
        await batcher.close()

    run_coroutine(main(), loop=loop)


# --- by example ---------------------------------------------------------------------------------------------------


async def gathered(model: Counting, rows: Iterable[Mapping[str, Any]], **options: Any) -> list[Any]:
    batcher = Batcher(model, BatchOptions(**{"max_wait": Duration(0.01), **options}))
    try:
        return await asyncio.gather(*map(batcher.predict_one, rows), return_exceptions=True)
    finally:
        await batcher.close()


def test_a_full_batch_goes_at_once_and_the_rest_after_the_wait(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        model = Counting()
        answers = await gathered(model, [{"x": n} for n in range(10)], max_size=4)
        assert answers == [{"y": n * 10} for n in range(10)]
        assert model.calls == [4, 4, 2]

    run_on_each_loop(main())


def test_one_unfit_row_is_its_caller_s_alone(run: RunFixture) -> None:
    async def main() -> None:
        model = Counting()
        answers = await gathered(model, [{"x": 1}, {"x": 2, "unfit": True}, {"x": 3}])
        assert [answers[0], str(answers[1]), answers[2]] == [{"y": 10}, "an unfit row", {"y": 30}]
        assert model.calls == [3, 1, 1, 1]

    run(main())


def test_a_model_that_breaks_fails_the_callers_of_that_call_only(run: RunFixture) -> None:
    async def main() -> None:
        model = Counting()
        answers = await gathered(model, [{"x": 1}, {"x": 2, "breaks": True}, {"x": 3}, {"x": 4}], max_size=2)
        assert [str(answer) for answer in answers[:2]] == ["the model broke", "the model broke"]
        assert answers[2:] == [{"y": 30}, {"y": 40}]

    run(main())


def test_a_model_that_calls_sys_exit_fails_its_callers(run: RunFixture) -> None:
    """The call is a task of its own: the event loop would end with it."""

    async def main() -> None:
        for row in ({"x": 1, "exits": True}, {"x": 1, "exits": True, "unfit": True}):
            answers = await gathered(Counting(), [row, {"x": 2}])
            said = "the source is at fault: it calls sys.exit(4), which would end the service"
            assert str(answers[0]) == said

    run(main())


class Panic(BaseException):
    """As a library in Rust raises it."""


def test_a_model_that_panics_fails_its_callers(run: RunFixture) -> None:
    """They were told that the model is being closed."""

    class Panicking:
        async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
            if len(rows) > 1 and rows[1].get("unfit"):
                raise InvalidParam("features", "an unfit row")
            raise Panic("index out of bounds")

    async def main() -> None:
        for row in ({"x": 2}, {"x": 2, "unfit": True}):
            answers = await gathered(Panicking(), [{"x": 1}, row])
            assert [str(answer) for answer in answers] == ["the source is at fault: Panic: index out of bounds"] * 2

    run(main())


def test_a_model_that_returns_too_few_results_fails_them_all(run: RunFixture) -> None:
    async def main() -> None:
        answers = await gathered(Counting(), [{"x": 1}, {"x": 2, "short": True}])
        assert [str(answer) for answer in answers] == ["the model returned 0 results for 2 rows"] * 2

    run(main())


@pytest.mark.parametrize(
    ("results", "message"),
    [
        (None, "the model returned NoneType and no list of results, one for each row"),
        ({"y": 1}, "the model returned dict and no list of results, one for each row"),
        ("a", "the model returned str and no list of results, one for each row"),
        (iter([1]), "the model returned list_iterator and no list of results, one for each row"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_model_returns_in_place_of_a_list_is_named(run: RunFixture, results: Any, message: str) -> None:
    class Odd:
        async def predict(self, rows: Any) -> Any:
            return results

    with pytest.raises(SourceError) as caught:
        run(predict_rows(Odd(), [{"x": 1}]))
    assert str(caught.value) == message


def test_a_batch_whose_callers_are_all_gone_is_not_sent(run: RunFixture) -> None:
    async def main() -> None:
        model = Counting()
        batcher = Batcher(model, BatchOptions(max_wait=Duration(0.005)))
        tasks = [asyncio.create_task(batcher.predict_one({"x": n})) for n in range(3)]
        await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0.02)
        assert model.calls == []
        await batcher.close()

    run(main())


def test_a_lone_row_goes_at_once(run: RunFixture) -> None:
    async def main() -> None:
        (answer,) = await asyncio.wait_for(gathered(Counting(), [{"x": 1}], max_wait=Duration(30)), 5)
        assert answer == {"y": 10}

    run(main())


def test_rows_that_arrive_during_a_call_go_together_when_it_ends(run_on_each_loop: RunFixture) -> None:
    async def main() -> None:
        model = Counting(turns=10)
        batcher = Batcher(model, BatchOptions(max_wait=Duration(30)))
        first = asyncio.create_task(batcher.predict_one({"x": 0}))
        others = []
        for n in range(1, 6):
            await asyncio.sleep(0)
            others.append(asyncio.create_task(batcher.predict_one({"x": n})))
        answers = await asyncio.wait_for(asyncio.gather(first, *others), 5)
        assert answers == [{"y": n * 10} for n in range(6)]
        assert sum(model.calls) == 6
        assert len(model.calls) == 2
        await batcher.close()

    run_on_each_loop(main())


def test_a_row_does_not_wait_longer_than_max_wait_for_a_call_under_way(run: RunFixture) -> None:
    async def main() -> None:
        model, stuck = Counting(), asyncio.Event()
        predict = model.predict

        async def sticks_once(rows: Any) -> Any:
            if not model.calls:
                model.calls.append(0)
                await stuck.wait()
            return await predict(rows)

        model.predict = sticks_once  # type: ignore[method-assign]
        batcher = Batcher(model, BatchOptions(max_wait=Duration(0.01)))
        first = asyncio.create_task(batcher.predict_one({"x": 1}))
        while not model.calls:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0)
        assert await asyncio.wait_for(batcher.predict_one({"x": 2}), 5) == {"y": 20}
        assert not first.done()
        stuck.set()
        assert await first == {"y": 10}
        await batcher.close()

    run(main())


def test_a_call_ends_when_the_last_of_its_callers_is_gone(run: RunFixture) -> None:
    """As when a model hangs and their deadlines pass: nobody waits for it."""

    async def main() -> None:
        model, running, never = Counting(), 0, asyncio.Event()

        async def sticks(rows: Any) -> Any:
            nonlocal running
            model.calls.append(len(rows))
            running += 1
            try:
                await never.wait()
            finally:
                running -= 1

        model.predict = sticks  # type: ignore[method-assign]
        batcher = Batcher(model, BatchOptions(max_wait=Duration(0.001)))
        callers = [asyncio.create_task(batcher.predict_one({"x": n})) for n in range(3)]
        while not model.calls:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0)
        others = asyncio.create_task(batcher.predict_one({"x": 3}))
        while len(model.calls) < 2:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0)
        for left, caller in enumerate(reversed(callers)):
            assert running == 2, left
            caller.cancel()
            await asyncio.wait([caller])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        assert (model.calls, running, others.done()) == ([3, 1], 1, False)
        await batcher.close()
        assert isinstance((await asyncio.gather(others, return_exceptions=True))[0], SourceUnavailable)

    run(main())


def test_those_who_wait_when_the_model_is_closed_are_told(run: RunFixture) -> None:
    async def main() -> None:
        model, never = Counting(), asyncio.Event()

        async def sticks(rows: Any) -> Any:
            model.calls.append(len(rows))
            await never.wait()

        model.predict = sticks  # type: ignore[method-assign]
        batcher = Batcher(model, BatchOptions(max_wait=Duration(30)))
        under_way = asyncio.create_task(batcher.predict_one({"x": 1}))
        while not model.calls:  # noqa: ASYNC110  # nobody tells
            await asyncio.sleep(0)
        waiting = asyncio.create_task(batcher.predict_one({"x": 2}))
        await asyncio.sleep(0)
        await batcher.close()
        errors = await asyncio.gather(under_way, waiting, return_exceptions=True)
        assert [type(error) for error in errors] == [SourceUnavailable] * 2

    run(main())


# --- in a service -------------------------------------------------------------------------------------------------


@define
class Plugin:
    """The plugin of the counting model; ``opened`` has every model that was opened."""

    opened: list[Counting] = field(factory=list)
    open_now: int = 0

    @asynccontextmanager
    async def open(self, options: CountingOptions, context: Any) -> AsyncIterator[Counting]:
        model = Counting(options.factor)
        self.opened.append(model)
        self.open_now += 1
        try:
            yield model
        finally:
            self.open_now -= 1

    @hookimpl
    def orchestrator_model_kinds(self) -> Iterable[ModelKind[Any]]:
        return [ModelKind("counting", "Counts calls.", CountingOptions, self.open, aliases=("counter",))]


FILES = {
    "integrations/ml.yaml": """
        ml:
          sources:
            one:
              source: {type: counting, factor: 100, batch: {max_size: 16, max_wait: 5ms}}
            several:
              models:
                default: {type: counter, factor: 2}
                other: {type: counting, factor: 3}
    """,
    "domains/d.yaml": """
        endpoints:
          batched:
            data_sources:
              - {name: score, type: ml, source_id: one, operation: predict, params: {features: {x: "$request.body.x"}}}
            response_mapping: {y: "$score.y"}
          plain:
            data_sources:
              - {name: two, type: ml, source_id: several, operation: predict, params: {features: {x: $request.body.x}}}
              - {name: three, type: ml, source_id: several, operation: other, params: {features: {x: "$two.y"}}}
            response_mapping: "$three.y"
          list:
            data_sources:
              - {name: score, type: ml, source_id: one, operation: predict, params: {features: "$request.body"}}
    """,
}


def test_concurrent_requests_share_calls_and_get_their_own_answers(run: RunFixture) -> None:
    plugin = Plugin()

    async def main() -> None:
        async with service(FILES, plugins={"counting": plugin}) as shop:
            answers = await asyncio.gather(*(shop.post("/orchestrator/d/batched", {"x": n}) for n in range(64)))
            assert [answer.json for answer in answers] == [{"y": n * 100} for n in range(64)]
            (model,) = [model for model in plugin.opened if model.factor == 100]
            assert sum(model.calls) == 64
            assert len(model.calls) < 32
            assert max(model.calls) <= 16
        assert plugin.open_now == 0

    run(main())


@define
class Failing(Counting):
    """A model whose server is down, which takes so long to show."""

    seconds: float = 0.0

    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        self.calls.append(len(rows))
        await asyncio.sleep(self.seconds)
        raise SourceError("the model server is down", transient=True)


@define
class Always(Plugin):
    """Opens the model that it is given."""

    model: Counting = field(kw_only=True)

    @asynccontextmanager
    async def open(self, options: CountingOptions, context: Any) -> AsyncIterator[Any]:
        yield self.model


def test_a_call_that_fails_for_many_requests_is_one_failure_to_the_breaker(run: RunFixture) -> None:
    failing = Failing(seconds=0.01)

    async def main() -> None:
        ml = FILES["integrations/ml.yaml"].replace("5ms}}", "5ms}, circuit_breaker: {failures: 3, reset: 1h}}")
        async with service({**FILES, "integrations/ml.yaml": ml}, plugins={"counting": Always(model=failing)}) as shop:
            statuses = {502}
            while 503 not in statuses and len(failing.calls) < 20:
                asked = (shop.post("/orchestrator/d/batched", {"x": n}) for n in range(16))
                statuses = {answer.status for answer in await asyncio.gather(*asked)}
            assert statuses == {503}
            assert 3 <= len(failing.calls) < 6
            assert max(failing.calls) > 3

    run(main())


def test_calls_that_fail_for_many_requests_are_tried_again_within_a_fifth_of_the_calls(run: RunFixture) -> None:
    """Rows were counted: each call of 16 earned three further ones, and each row made its own."""

    failing = Failing(seconds=0.001)

    async def main() -> None:
        said = "circuit_breaker: false, retry: {non_idempotent: true, attempts: 2, backoff: 2ms}"
        ml = FILES["integrations/ml.yaml"].replace("max_wait: 5ms}", f"max_wait: 1s}}, {said}")
        async with service({**FILES, "integrations/ml.yaml": ml}, plugins={"counting": Always(model=failing)}) as shop:
            for _ in range(20):
                asked = (shop.post("/orchestrator/d/batched", {"x": n}) for n in range(16))
                assert {answer.status for answer in await asyncio.gather(*asked)} == {502}
            sources = (await shop.admin("GET", "/sources")).json["sources"]
            (policies,) = [source["policies"] for source in sources if source["source_id"] == "one"]
            retry = policies["predict"]["retry"]
            assert retry["calls"] + retry["retries"] == len(failing.calls)
            assert 1 <= retry["retries"] <= retry["calls"] / 5

    run(main())


def test_models_of_one_source_are_operations_by_name(serve: Serve) -> None:
    shop = serve(FILES, plugins={"counting": Plugin()})
    assert shop.post("/orchestrator/d/plain", {"x": 7}).json == 7 * 2 * 3
    (execution,) = shop.executions()
    assert execution["models"] == [{"name": "counting", "version": "3", "digest": "sha256:ab"}] * 2


def test_a_list_of_rows_is_scored_in_one_call(serve: Serve) -> None:
    plugin = Plugin()
    shop = serve(FILES, plugins={"counting": plugin})
    assert shop.post("/orchestrator/d/list", [{"x": 1}, {"x": 2}]).json == [{"y": 100}, {"y": 200}]
    assert shop.post("/orchestrator/d/list", []).json == []
    refused = shop.post("/orchestrator/d/list", [1])
    assert (refused.status, refused.json["detail"]) == (
        422,
        "step 'score': features must be an object, or a list of objects",
    )
    (model,) = [model for model in plugin.opened if model.factor == 100]
    assert model.calls == [2]


def test_the_models_page_shows_identity_inputs_and_outputs(serve: Serve) -> None:
    models = serve(FILES, plugins={"counting": Plugin()}).admin("GET", "/models").json["models"]
    shown = {key: models[0][key] for key in ("source", "model", "type", "state", "identity", "inputs", "outputs")}
    assert shown == {
        "source": "ml.one",
        "model": "default",
        "type": "counting",
        "state": "ready",
        "identity": {"name": "counting", "version": "3", "digest": "sha256:ab"},
        "inputs": {"features": ["x"]},
        "outputs": ["y"],
    }
    assert [(model["id"], model["source"], model["model"]) for model in models] == [
        ("one", "ml.one", "default"),
        ("several", "ml.several", "default"),
        ("several.other", "ml.several", "other"),
    ]


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("{}", "ml.one predict asks for 'x' in features, which nobody fills"),
        ("{x: 1, z: 2}", "ml.one predict knows no 'z' in features"),
        ("{x: 1}, more: 1", "ml.one predict takes no parameter 'more'"),
    ],
)
def test_features_are_held_against_what_the_model_asks_for(features: str, message: str) -> None:
    domain = f"""
        endpoints:
          e:
            data_sources:
              - {{name: s, type: ml, source_id: one, operation: predict, params: {{features: {features}}}}}
    """
    problems = check_problems({**FILES, "domains/d.yaml": domain}, plugins={"counting": Plugin()})
    assert [problem.message for problem in problems] == [message]


# --- for_each -----------------------------------------------------------------------------------------------------

EACH = {
    "integrations/ml.yaml": """
        ml:
          sources:
            one: {source: {type: counting}}
            batched: {source: {type: counting, batch: {max_size: 8}}}
    """,
    "domains/d.yaml": """
        endpoints:
          scores:
            data_sources:
              - name: score
                type: ml
                source_id: one
                operation: predict
                for_each: "$request.body.items"
                params: {features: "$item"}
                default: {y: -1}
          required:
            data_sources:
              - name: score
                type: ml
                source_id: one
                operation: predict
                for_each: "$request.body.items"
                params: {features: "$item"}
          batched:
            data_sources:
              - name: score
                type: ml
                source_id: batched
                operation: predict
                for_each: "$request.body.items"
                params: {features: "$item"}
    """,
}


def calls_of(plugin: Plugin) -> list[int]:
    return [size for model in plugin.opened for size in model.calls]


def rows(*numbers: int, **more: Any) -> dict[str, Any]:
    return {"items": [{"x": number, **more} for number in numbers]}


def test_the_items_of_for_each_are_rows_of_one_call(serve: Serve) -> None:
    plugin = Plugin()
    shop = serve(EACH, plugins={"counting": plugin})
    answer = shop.post("/orchestrator/d/scores", rows(*range(500)))
    assert answer.json == [{"y": number * 10} for number in range(500)]
    assert shop.post("/orchestrator/d/scores", {"items": []}).json == []
    assert calls_of(plugin) == [500]
    first, second = reversed(shop.executions())
    assert [step["items"] for execution in (first, second) for step in execution["steps"]] == [500, 0]
    assert first["models"] == [{"name": "counting", "version": "3", "digest": "sha256:ab"}]
    assert second["models"] == []


def test_which_model_answered_which_step_is_captured(serve: Serve) -> None:
    shop = serve({**FILES, "config.yaml": "tracking: {capture: full}"}, plugins={"counting": Plugin()})
    for endpoint, body, steps in (("plain", {"x": 1}, ["two", "three"]), ("batched", {}, [])):
        answer = shop.post(f"/orchestrator/d/{endpoint}", body)
        execution = shop.admin("GET", f"/executions/{answer.headers['X-Execution-Id']}").json
        assert execution["captured"].get("models", {}) == dict(zip(steps, execution["models"], strict=True))


def test_a_model_that_was_not_called_is_none_of_the_execution_s(serve: Serve) -> None:
    shop = serve(FILES, plugins={"counting": Plugin()})
    assert shop.post("/orchestrator/d/batched", {"y": 1}).status == 422
    (execution,) = shop.executions()
    assert (execution["steps"][0]["attempts"], execution["models"]) == (0, [])


def test_an_unfit_row_fails_its_item_alone(serve: Serve) -> None:
    plugin = Plugin()
    shop = serve(EACH, plugins={"counting": plugin})
    items = [{"x": 1}, {"x": 2, "unfit": True}, {"x": 3}]
    answer = shop.post("/orchestrator/d/scores", {"items": items})
    assert answer.json == [{"y": 10}, {"y": -1}, {"y": 30}]
    assert answer.headers["X-Orchestrator-Degraded"] == "score"
    (step,) = shop.executions()[0]["steps"]
    assert (step["status"], step["error"]) == ("default", "step 'score', item 1: an unfit row")
    assert (step["items"], step["items_failed"]) == (3, 1)
    assert calls_of(plugin) == [3, 1, 1, 1]

    refused = shop.post("/orchestrator/d/required", {"items": [*items, 5]})
    assert refused.status == 422
    assert refused.json["detail"] == "step 'score', item 1: an unfit row"
    assert refused.json["errors"] == [{"pointer": "/body/items/1", "message": "an unfit row"}]


def test_items_can_be_lists_of_rows(serve: Serve) -> None:
    plugin = Plugin()
    shop = serve(EACH, plugins={"counting": plugin})
    items = [[{"x": 1}, {"x": 2}], {"x": 3}, [], [{"x": 4}]]
    answer = shop.post("/orchestrator/d/required", {"items": items})
    assert answer.json == [[{"y": 10}, {"y": 20}], {"y": 30}, [], [{"y": 40}]]
    assert calls_of(plugin) == [4]
    assert shop.post("/orchestrator/d/required", {"items": [[], []]}).json == [[], []]
    assert calls_of(plugin) == [4]


def test_a_model_that_breaks_fails_every_item(serve: Serve) -> None:
    shop = serve(EACH, plugins={"counting": Plugin()})
    answer = shop.post("/orchestrator/d/scores", {"items": [{"x": 1}, {"x": 2, "breaks": True}]})
    assert answer.json == [{"y": -1}, {"y": -1}]
    refused = shop.post("/orchestrator/d/required", {"items": [{"x": 1}, {"x": 2, "breaks": True}]})
    assert (refused.status, refused.json["detail"]) == (502, "step 'score': the model broke")


def test_a_model_with_a_limit_gets_no_larger_batches(serve: Serve) -> None:
    plugin = Plugin()
    shop = serve(EACH, plugins={"counting": plugin})
    answer = shop.post("/orchestrator/d/batched", rows(*range(20)))
    assert answer.json == [{"y": number * 10} for number in range(20)]
    assert calls_of(plugin) == [8, 8, 4]
    items = [*rows(1, 2, 3)["items"], {"x": 4, "unfit": True}]
    assert shop.post("/orchestrator/d/batched", {"items": items}).status == 422
    assert calls_of(plugin) == [8, 8, 4, 4, 1, 1, 1, 1]


def test_the_features_of_an_item_are_checked_at_load() -> None:
    wrong = EACH["domains/d.yaml"].replace('{features: "$item"}', '{features: {z: "$item.x"}}')
    problems = check_problems({**EACH, "domains/d.yaml": wrong}, plugins={"counting": Plugin()})
    assert {f"{problem.code} {problem.message}" for problem in problems} == {
        "ORC412 ml.one predict knows no 'z' in features",
        "ORC412 ml.one predict asks for 'x' in features, which nobody fills",
        "ORC412 ml.batched predict knows no 'z' in features",
        "ORC412 ml.batched predict asks for 'x' in features, which nobody fills",
    }


def test_the_fields_of_an_item_s_result_are_checked_at_load() -> None:
    def messages(mapping: str) -> list[str]:
        domain = EACH["domains/d.yaml"].replace("default: {y: -1}", f"response_mapping: {{a: '{mapping}'}}", 1)
        domain = domain.replace("                response_mapping", "            response_mapping")
        problems = check_problems({**EACH, "domains/d.yaml": domain}, plugins={"counting": Plugin()})
        return [f"{problem.code} {problem.message}; {problem.hint}" for problem in problems]

    assert messages("$score[0].y") == messages("$score") == []
    assert messages("$score[0].why") == ["ORC505 the step 'score' returns no field 'why'; expected one of: y"]
    assert messages("$score.y") == [
        (
            "ORC505 the step 'score' returns a list with a result for each item, and no field 'y'; "  # and where it is
            "$score[0].y is that of the first item"
        )
    ]
