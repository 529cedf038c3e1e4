"""The protocol ``mlflow``, against a stub for what a server can do wrong, and against ``mlflow models serve``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from peers import ROWS, Peer, failure, predicting, stub, train

from orchestrator_core.plugin_api import InvalidParam, SourceError
from orchestrator_core.testing import free_port

Run = Callable[[Awaitable[Any]], Any]


def test_rows_are_posted_as_a_split_data_frame(run: Run) -> None:
    async def main() -> None:
        async with stub({"predictions": [0.1, 0.9]}) as server:
            rows = [{"a": 1, "b": "x"}, {"b": "y", "a": 2.5}]
            assert await predicting(rows, base_url=server.url, protocol="mlflow") == [{"value": 0.1}, {"value": 0.9}]
        assert server.paths == ["/invocations"]
        assert server.bodies == [{"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"], [2.5, "y"]]}}]

    run(main())


@pytest.mark.parametrize(
    ("predictions", "outputs", "results"),
    [
        ([1, 2], None, [{"value": 1}, {"value": 2}]),
        ([[0.2, 0.8], [0.7, 0.3]], None, [{"value": [0.2, 0.8]}, {"value": [0.7, 0.3]}]),
        ([[0.2, 0.8], [0.7, 0.3]], {"score": 1}, [{"score": 0.8}, {"score": 0.3}]),
        ([1, 2], {"score": 0}, [{"score": 1}, {"score": 2}]),
        ([1, 2], {"score": "value"}, [{"score": 1}, {"score": 2}]),
        ([{"p": 1}, {"p": 2}], None, [{"p": 1}, {"p": 2}]),
        ([{"p": [1, 4]}, {"p": [2, 5]}], {"score": "p[1]"}, [{"score": 4}, {"score": 5}]),
        ({"p": [1, 2], "q": ["a", "b"]}, None, [{"p": 1, "q": "a"}, {"p": 2, "q": "b"}]),
    ],
)
def test_predictions_become_a_result_for_each_row(
    run: Run, predictions: Any, outputs: Any, results: list[dict[str, Any]]
) -> None:
    async def main() -> None:
        async with stub({"predictions": predictions}) as server:
            got = await predicting([{"a": 1}, {"a": 2}], base_url=server.url, protocol="mlflow", outputs=outputs)
        assert got == results

    run(main())


TWENTY = [f"p{index}" for index in range(20)]


@pytest.mark.parametrize(
    ("answer", "outputs", "message"),
    [
        ([1], None, "expected {'predictions': a list of 1}, got a list of 1"),
        ({"prediction": [1]}, None, "expected {'predictions': a list of 1}, got an object"),
        ({"predictions": [1, 2]}, None, "expected {'predictions': a list of 1}, got a list of 2"),
        ({"predictions": {"p": 1}}, None, "expected {'predictions': a list of 1}, got an object"),
        ({"predictions": [[1, 2]]}, {"s": 2}, "outputs.s: the prediction has 2 columns, and none is number 2"),
        ({"predictions": [1]}, {"s": 1}, "outputs.s: the prediction is one value and has no column 1"),
        (
            {"predictions": [1]},
            {"s": "p"},
            "outputs.s: the prediction has no names, so no 'p'; give a column by number, or 'value'",
        ),
        (
            {"predictions": [{"score": 1}]},
            {"s": "scre"},
            "outputs.s: the prediction has no 'scre'; did you mean 'score'?",
        ),
        (
            {"predictions": [{"p": 1, "q": 2}]},
            {"s": 0},
            "outputs.s: the prediction has several outputs (p, q): give one by name",
        ),
        (
            {"predictions": [{f"p{index}": 1 for index in range(100_000)}]},
            {"s": 0},
            f"outputs.s: the prediction has several outputs ({', '.join(TWENTY)}, and 99980 more): give one by name",
        ),
        (
            {"predictions": [{f"score{index}": 1 for index in range(100_000)}]},
            {"s": "score"},
            "outputs.s: the prediction has no 'score'",
        ),
    ],
)
def test_an_answer_that_is_no_prediction_for_each_row_is_an_error(
    run: Run, answer: Any, outputs: Any, message: str
) -> None:
    async def main() -> None:
        async with stub(answer) as server:
            error = await failure([{"a": 1}], base_url=server.url, protocol="mlflow", outputs=outputs)
        assert isinstance(error, SourceError)
        assert str(error).removeprefix(f"POST {server.url}/invocations: ") == message

    run(main())


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": 1}, "feature 'b' is missing in one of the rows, and there in another"),
        ({"a": 1, "b": 2, "c": 3}, "feature 'c' is there in one of the rows, and missing in another"),
    ],
)
def test_rows_with_other_features_are_refused_before_anything_is_sent(run: Run, second: Any, message: str) -> None:
    async def main() -> None:
        async with stub({"predictions": [1, 2]}) as server:
            error = await failure([{"a": 1, "b": 2}, second], base_url=server.url, protocol="mlflow")
        assert isinstance(error, InvalidParam)
        assert str(error) == message
        assert server.bodies == []

    run(main())


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """``mlflow models serve`` on a logistic regression that was logged to predict probabilities."""
    folder = tmp_path_factory.mktemp("mlflow")
    model, expected = train()
    with warnings.catch_warnings(action="ignore"):  # it warns of its own type hints, and of pickles
        import mlflow.sklearn
        import pandas

        rows = pandas.DataFrame(ROWS)
        signature = mlflow.models.infer_signature(rows, model.predict_proba(rows))
        mlflow.sklearn.save_model(
            model, folder / "model", signature=signature, pyfunc_predict_fn="predict_proba", pip_requirements=[]
        )
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(folder / "model")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--env-manager", "local"]
    # The server is started as `uvicorn`, which is looked for on the path.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with Peer.started(command, port, "/ping", folder, env={**os.environ, "PATH": path}) as peer:
        yield Peer(peer.url, peer.process, expected)


def test_mlflow_models_serve_gives_what_the_model_gives(run: Run, mlflow_server: Peer) -> None:
    async def main() -> None:
        asked = {"base_url": mlflow_server.url, "protocol": "mlflow", "outputs": {"score": 1}}
        results = await predicting(ROWS, ready=True, **asked)
        assert [result["score"] for result in results] == pytest.approx(mlflow_server.expected, abs=1e-12)

    run(main())


def test_what_mlflow_says_of_a_missing_feature_reaches_the_message(run: Run, mlflow_server: Peer) -> None:
    async def main() -> None:
        error = await failure([{"income": 1.0}], base_url=mlflow_server.url, protocol="mlflow")
        assert isinstance(error, SourceError)
        assert str(error).startswith(f"POST {mlflow_server.url}/invocations: the model server answered 400: ")
        assert "credit_score" in str(error)

    run(main())


def test_a_server_is_ready_when_it_answers_its_ping(run: Run) -> None:
    async def main() -> None:
        async with stub({"predictions": [1]}, ready=503) as server:
            error = await failure([{"a": 1}], ready=True, base_url=server.url, protocol="mlflow")
        assert str(error) == f"GET {server.url}/ping: the model server answered 503"

    run(main())
