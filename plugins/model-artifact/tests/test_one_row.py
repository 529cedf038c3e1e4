"""One row goes a shorter way, and nobody can tell by the result."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from decimal import Decimal
from pathlib import Path
from threading import get_ident, main_thread
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from orchestrator_model_artifact import one_row
from orchestrator_model_artifact.cost import LOOP_LIMIT_SECONDS, Cost
from orchestrator_model_artifact.model import ArtifactModel
from orchestrator_model_artifact.options import Output
from orchestrator_model_artifact.runners import Measured

from orchestrator_core.plugin_api import InvalidParam, PredictsOne

from .opening import loaded, opened

Run = Callable[[Callable[[], Awaitable[None]]], None]

FEATURES = ["credit_score", "annual_income", "debt"]
ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}
OUTPUTS = {
    "score": "probability",
    "tier": Output(tiers={"low": 0.2, "middle": 0.5, "high": 1.0}),
    "any": Output(tiers={"one": 1.0}),
    "never": Output(tiers={"low": float("-inf"), "high": 1.0}),
    "all": "probabilities",
    "list": "list",
    "label": "label",
    "first": Output(output="probabilities", index=0),
    "quo\"te'{x}": "label",
}
PATHS: list[tuple[str, dict[str, Any]]] = [
    ("matrix.onnx", {"features": FEATURES}),
    ("matrix.onnx", {"features": FEATURES, "nulls": "nan"}),
    ("described.onnx", {"outputs": OUTPUTS}),
    ("mlflow_onnx", {}),
    ("mlflow_onnx", {"outputs": {"label": "label"}}),
    ("flagged", {"outputs": OUTPUTS, "features": None}),
    ("single.onnx", {}),
    ("each.onnx", {}),
    ("each.onnx", {"nulls": "nan"}),
]

limits = [3.4028234663852886e38, 3.4028235e38, 3.40282351e38, 3.4028235677973366e38, 1e39, 2**63, 1e19, 2**53 + 1]
anything: st.SearchStrategy[Any] = (
    st.floats()
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.booleans()
    | st.none()
    | st.text(max_size=3)
    | st.sampled_from([0, 1, 0.0, 1.0, 3.0, 1.5, *limits, *(-limit for limit in limits), Decimal("1.5"), [], {}, [1.0]])
)
fit = st.integers(0, 100_000) | st.floats(-1e6, 1e6)
flag = st.booleans() | st.sampled_from([0, 1, 1.0])
fitting = st.fixed_dictionaries({**dict.fromkeys(FEATURES, fit), "credit_score": st.integers(0, 900), "owner": flag})
rows = fitting | st.builds(
    lambda row, change: {**row, **change},
    fitting,
    st.dictionaries(st.sampled_from([*FEATURES, "owner"]), anything, min_size=1, max_size=2),
)
partial = st.builds(
    lambda row, less: {k: v for k, v in row.items() if k not in less}, rows, st.sets(st.sampled_from(FEATURES))
)


def outcome(call: Awaitable[Any]) -> str:
    """Return how a call that does not wait ends, to the type of each number and the message of the error."""
    assert isinstance(call, Coroutine)
    try:
        call.send(None)
    except StopIteration as end:
        return repr(end.value)
    except Exception as error:
        return repr(error)
    raise AssertionError("the call waits")


async def first(results: Awaitable[Any]) -> Any:
    return (await results)[0]


def same(model: ArtifactModel, row: Mapping[str, Any]) -> None:
    assert outcome(model.predict_one(row)) == outcome(first(model.predict([row])))


@pytest.mark.parametrize(("path", "options"), PATHS)
def test_one_row_gives_what_the_general_way_gives_also_when_that_is_an_error(
    models: Path, run: Run, path: str, options: dict[str, Any]
) -> None:
    async def test() -> None:
        async with opened(models, path, run_in="loop", **options) as model:
            assert isinstance(model, PredictsOne)
            for features in (rows, partial):

                @given(row=features)
                @example(row={**ROW, "credit_score": -(2**63)})
                @example(row={**ROW, "credit_score": -(2**31)})
                @example(row={**ROW, "credit_score": 2**63 - 1})
                @settings(max_examples=150, deadline=None)
                def check(row: dict[str, Any]) -> None:
                    same(model, row)

                check()

    run(test)


@pytest.mark.parametrize(("path", "options"), PATHS)
def test_a_row_that_fits_goes_the_short_way(models: Path, path: str, options: dict[str, Any]) -> None:
    model = loaded(models, path, **options)
    assert model.one_row is not None

    async def carefully(_: Any) -> Any:
        raise AssertionError("the general way")

    row = {**ROW, "owner": True}
    assert outcome(model.one_row.bind(carefully)(row)) == repr(model.score([row])[0])


def test_one_row_of_an_accelerated_model_gives_what_the_general_way_gives(models: Path, run: Run) -> None:
    async def test() -> None:
        async with opened(models, "logistic", accelerate="onnx", run_in="loop") as model:
            assert model.predict_one.__name__ == "predict_one"
            for row in (ROW, {**ROW, "debt": 1e300}, {**ROW, "debt": "1"}, {**ROW, "credit_score": 1.5}, {}):
                same(model, row)

    run(test)


@pytest.mark.parametrize(
    ("path", "options"),
    [("by_name.onnx", {}), ("zipped.onnx", {"features": FEATURES}), ("logistic", {})],
)
def test_a_model_with_text_sequences_or_of_sklearn_goes_the_general_way(
    models: Path, run: Run, path: str, options: dict[str, Any]
) -> None:
    assert loaded(models, path, **options).one_row is None

    async def test() -> None:
        async with opened(models, path, run_in="loop", **options) as model:
            same(model, {**ROW, "region": "south"})
            same(model, {})

    run(test)


@pytest.mark.parametrize("run_in", ["thread", "process"])
def test_one_row_goes_where_it_is_told(models: Path, run: Run, run_in: str) -> None:
    async def test() -> None:
        async with opened(models, "described.onnx", run_in=run_in, workers=1) as model:
            assert await model.predict_one(ROW) == (await model.predict([ROW]))[0]
            with pytest.raises(InvalidParam, match="are missing"):
                await model.predict_one({})

    run(test)


def test_a_model_that_turns_slow_leaves_the_loop_for_single_rows_too_and_comes_back(
    models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = step = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    monkeypatch.setattr(one_row, "perf_counter", clock)

    async def test() -> None:
        nonlocal step
        async with opened(models, "described.onnx") as model:
            assert isinstance(model.runner, Measured)
            cost, score = model.runner.cost, model.runner._score
            in_threads = 0

            def noted(rows: Any) -> Any:
                nonlocal in_threads
                in_threads += get_ident() != main_thread().ident
                return score(rows)

            model.runner._score = noted
            step = 0.01
            for _ in range(20):
                await model.predict_one(ROW)
            assert in_threads > 0
            step = 0.0
            for _ in range(300):
                await model.predict_one(ROW)
            assert cost.expected(1) < LOOP_LIMIT_SECONDS / 4
            in_threads = 0
            for _ in range(100):
                await model.predict_one(ROW)
            assert in_threads == 0

    run(test)


def test_a_pause_now_and_then_keeps_single_rows_on_the_short_way(
    models: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:

    async def never(_: Any) -> Any:
        raise AssertionError("the general way")

    # 100 µs a call where 15 are expected, and every twentieth 5 ms
    steps = itertools.cycle([0.0, 100e-6] * 19 + [0.0, 5e-3])
    monkeypatch.setattr(one_row, "perf_counter", functools.partial(next, itertools.accumulate(steps)))
    cost = Cost(fixed_seconds=14e-6, per_row_seconds=1e-6)
    found = loaded(models, "described.onnx").one_row
    assert found is not None
    predict_one = found.bind(never, cost)
    for _ in range(2000):
        assert outcome(predict_one(ROW)).startswith("{")
