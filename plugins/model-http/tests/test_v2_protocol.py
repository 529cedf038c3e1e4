"""The protocol ``v2``: tensors, against a stub that says anything, and against MLServer, which others wrote."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchestrator_model_http.v2_protocol import Metadata, Tensor, plan_inputs, read_metadata
from peers import ROWS, Peer, failure, opened, predicting, stub, train

from orchestrator_core.plugin_api import Identity, InvalidParam, ModelFacts, OptionError, SourceError, SourceUnavailable
from orchestrator_core.testing import free_port

Run = Callable[[Awaitable[Any]], Any]
MLSERVER = Path(__file__).parents[3] / ".tox" / "mlserver" / "bin" / "mlserver"
MATRIX = {"name": "credit", "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}], "outputs": []}
COLUMNS = {
    "name": "credit",
    "versions": ["7"],
    "inputs": [
        {"name": "age", "datatype": "INT32", "shape": [-1, 1]},
        {"name": "name", "datatype": "BYTES", "shape": [-1]},
        {"name": "history", "datatype": "FP64", "shape": [-1, 3]},
    ],
    "outputs": [{"name": "score", "datatype": "FP64", "shape": [-1]}],
}
ONE = {"outputs": [{"name": "score", "datatype": "FP64", "shape": [1], "data": [0.5]}]}


def test_one_tensor_has_a_column_for_each_feature(run: Run) -> None:
    async def main() -> None:
        answer = {"outputs": [{"name": "p", "datatype": "FP64", "shape": [2, 2], "data": [0.1, 0.9, 0.8, 0.2]}]}
        async with stub(answer, MATRIX) as server:
            rows = [{"a": 1, "b": 2.5}, {"b": 4, "a": 3}]
            asked = {"base_url": server.url, "protocol": "v2", "model_name": "credit", "features": ["a", "b"]}
            assert await predicting(rows, **asked) == [{"p": [0.1, 0.9]}, {"p": [0.8, 0.2]}]
        assert server.paths == ["/v2/models/credit/infer"]
        assert server.bodies == [
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, 3, 4]}]}
        ]

    run(main())


def test_tensors_are_named_and_typed_as_the_server_says(run: Run) -> None:
    async def main() -> None:
        async with stub(ONE, COLUMNS) as server:
            asked: dict[str, Any] = {"base_url": server.url, "protocol": "v2", "model_name": "credit"}
            asked |= {"model_version": "7", "parameters": {"content_type": "pd"}}
            row = {"age": 41, "name": "Ada", "history": [1, 2, 3]}
            async with opened(**asked) as model:
                assert await model.predict([row]) == [{"score": 0.5}]
                assert model.identity() == Identity("credit_model", "7")
                assert model.facts() == ModelFacts(("age", "name", "history"), ("score",))
        assert server.paths == ["/v2/models/credit/versions/7/infer"]
        assert server.bodies == [
            {
                "inputs": [
                    {"name": "age", "datatype": "INT32", "shape": [1, 1], "data": [41]},
                    {"name": "name", "datatype": "BYTES", "shape": [1, 1], "data": ["Ada"]},
                    {"name": "history", "datatype": "FP64", "shape": [1, 3], "data": [1, 2, 3]},
                ],
                "parameters": {"content_type": "pd"},
                "outputs": [{"name": "score"}],
            }
        ]

    run(main())


def test_without_metadata_the_types_are_those_of_the_values(run: Run) -> None:
    async def main() -> None:
        async with stub(ONE, {"name": "credit", "inputs": None}) as server:
            row = {"n": 1, "x": 1.5, "s": "a", "b": True}
            await predicting([row], base_url=server.url, protocol="v2", model_name="credit")
        assert [(each["name"], each["datatype"]) for each in server.bodies[0]["inputs"]] == [
            ("n", "INT64"),
            ("x", "FP64"),
            ("s", "BYTES"),
            ("b", "BOOL"),
        ]

    run(main())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"age": 1, "name": "A"}, "feature 'history' is missing"),
        (
            {"agee": 1, "age": 1, "name": "A", "history": [1, 2, 3]},
            "the model has no feature 'agee'; did you mean 'age'?",
        ),
        ({"age": 1.5}, "feature 'age': the model's INT32 takes a whole number from -2147483648 to 2147483647, got 1.5"),
        (
            {"age": 2**31},
            f"feature 'age': the model's INT32 takes a whole number from {-(2**31)} to {2**31 - 1}, got {2**31}",
        ),
        (
            {"age": True},
            f"feature 'age': the model's INT32 takes a whole number from {-(2**31)} to {2**31 - 1}, got True",
        ),
        (
            {"age": None},
            f"feature 'age': the model's INT32 takes a whole number from {-(2**31)} to {2**31 - 1}, got null",
        ),
        ({"name": 7}, "feature 'name': the model's BYTES takes a string, got 7"),
        ({"history": [1, 2]}, "feature 'history': expected a list of 3 values, got a list of 2"),
        ({"history": 1}, "feature 'history': expected a list of 3 values, got 1"),
        ({"history": [1, "2", 3]}, "feature 'history': the model's FP64 takes a number, got '2'"),
    ],
)
def test_a_feature_that_the_tensor_cannot_take_is_refused_before_anything_is_sent(
    run: Run, row: dict[str, Any], message: str
) -> None:
    async def main() -> None:
        complete = row if len(row) > 1 else {"age": 1, "name": "A", "history": [1, 2, 3], **row}
        async with stub(ONE, COLUMNS) as server:
            error = await failure([complete], base_url=server.url, protocol="v2", model_name="credit")
        assert isinstance(error, InvalidParam)
        assert (error.param, str(error)) == ("features", message)
        assert server.bodies == []

    run(main())


def typed(datatype: str, *data: Any) -> Any:
    width = len(data[0]) if isinstance(data[0], list) else len(data)
    return {"outputs": [{"name": "p", "datatype": datatype, "shape": [1, width], "data": list(data)}]}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "expected {'outputs': a list of tensors}, got a list of 0"),
        ({"outputs": []}, "expected {'outputs': a list of tensors}, got an object"),
        ({"outputs": [{"name": "p", "shape": [2], "data": [1, 2]}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "shape": [1, 2], "data": [1]}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "shape": [], "data": [1]}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "data": [1]}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "shape": [1], "data": 1}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "shape": [0, 2], "data": []}]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": "p", "shape": [1, "2"], "data": []}]}, "the output 'p' has no value for each of 1 rows"),
        (
            {"outputs": [{"name": "p" * 10**6, "shape": [1], "data": []}]},
            f"the output '{'p' * 100}' has no value for each of 1 rows",
        ),
        ({"outputs": ["p"]}, "the output 'p' has no value for each of 1 rows"),
        ({"outputs": [{"name": None, "shape": [1], "data": [1]}]}, "expected a name for each output, got null"),
        ({"outputs": [{"name": 7, "shape": [1], "data": [1]}]}, "expected a name for each output, got a number"),
        ({"outputs": [{"name": "p", "shape": [1], "data": [1]}] * 2}, "two outputs are named 'p'"),
        (typed("FP32", None), "the output 'p' is FP32, and holds null"),
        (typed("FP64", 0.5, None), "the output 'p' is FP64, and holds null"),
        (typed("FP64", [0.5, None]), "the output 'p' is FP64, and holds null"),
        (typed("FP16", "NaN"), "the output 'p' is FP16, and holds a string"),
        (typed("INT64", 1, [2]), "the output 'p' is INT64, and holds a list of 1"),
        (typed("UINT8", True), "the output 'p' is UINT8, and holds true or false"),
        (typed("BOOL", None), "the output 'p' is BOOL, and holds null"),
    ],
)
def test_tensors_that_are_no_result_for_each_row_are_an_error(run: Run, answer: Any, message: str) -> None:
    """MLServer and KServe write NaN as null, which passed for the model's score."""

    async def main() -> None:
        async with stub(answer, MATRIX) as server:
            asked = {"base_url": server.url, "protocol": "v2", "model_name": "credit", "features": ["a", "b"]}
            error = await failure([{"a": 1, "b": 2}], **asked)
        assert isinstance(error, SourceError)
        assert str(error) == f"POST {server.url}/v2/models/credit/infer: {message}"

    run(main())


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        (typed("INT64", [1]), 1),
        (typed("BOOL", False, 1), [False, 1]),
        (typed("FP32", 1, 0.5), [1, 0.5]),
        (typed("BYTES", "a", None), ["a", None]),
    ],
)
def test_an_output_holds_what_its_datatype_has(run: Run, answer: Any, result: Any) -> None:
    async def main() -> None:
        async with stub(answer, MATRIX) as server:
            asked = {"base_url": server.url, "protocol": "v2", "model_name": "credit", "features": ["a", "b"]}
            assert await predicting([{"a": 1, "b": 2}], **asked) == [{"p": result}]

    run(main())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "the tensor 'x' takes 2 values a row: name them in their order, features: [...]"),
        ({"features": ["a"]}, "the tensor 'x' takes 2 values a row, and features names 1"),
    ],
)
def test_a_tensor_whose_columns_have_no_names_asks_for_features(run: Run, options: Any, message: str) -> None:
    async def main() -> None:
        async with stub(ONE, MATRIX) as server:
            error = await failure([{"a": 1}], base_url=server.url, protocol="v2", model_name="credit", **options)
        assert isinstance(error, OptionError)
        assert (error.option, str(error)) == ("features", message)

    run(main())


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ([], "expected a model's metadata, got a list of 0"),
        ({"inputs": [{"name": "x"}]}, "the metadata names a tensor without name, datatype or shape"),
        (
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, "n"]}]},
            "the metadata names a tensor without name, datatype or shape",
        ),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}] * 2}, "the metadata names two tensors 'x'"),
        (
            {"inputs": [{"name": "x", "datatype": "FP1", "shape": [1]}]},
            "the tensor 'x' has the datatype FP1, not in V2",
        ),
    ],
)
def test_metadata_that_is_none_is_an_error(metadata: Any, message: str) -> None:
    with pytest.raises(SourceError) as caught:
        read_metadata(metadata, "GET /v2/models/credit")
    assert str(caught.value) == f"GET /v2/models/credit: {message}"


def test_a_server_that_is_not_there_may_be_there_later(run: Run) -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{free_port()}"
        error = await failure([{"a": 1}], base_url=url, protocol="v2", model_name="credit")
        assert isinstance(error, SourceUnavailable)
        assert str(error).startswith(f"GET {url}/v2/models/credit: ")

    run(main())


@given(
    st.integers(1, 5).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=width, max_size=width), min_size=1
        )
    )
)
def test_a_matrix_holds_each_rows_values_in_the_order_of_the_features(table: list[list[float]]) -> None:
    names = [f"f{index}" for index in range(len(table[0]))]
    encode = plan_inputs(Metadata((Tensor("x", "FP64", len(names)),)), names)
    (tensor,) = encode([dict(reversed(list(zip(names, values, strict=True)))) for values in table])
    assert tensor["shape"] == [len(table), len(names)]
    assert tensor["data"] == [value for values in table for value in values]


@pytest.fixture(scope="module")
def mlserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """MLServer with its own sklearn runtime, in an environment of its own."""
    if not MLSERVER.exists():
        pytest.skip("MLServer is not installed: make peers")
    import joblib

    folder = tmp_path_factory.mktemp("mlserver")
    model, expected = train()
    joblib.dump(model, folder / "model.joblib")
    described = {
        "name": "credit",
        "implementation": "mlserver_sklearn.SKLearnModel",
        "parameters": {"uri": "./model.joblib", "version": "v3"},
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [
            {"name": "predict", "datatype": "INT64", "shape": [-1, 1]},
            {"name": "predict_proba", "datatype": "FP64", "shape": [-1, 2]},
        ],
    }
    port = free_port()
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (folder / "model-settings.json").write_text(json.dumps(described))
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False, "parallel_workers": 0}))
    env = {**os.environ, "PATH": os.pathsep.join([str(MLSERVER.parent), os.environ.get("PATH", "")])}
    with Peer.started([str(MLSERVER), "start", "."], port, "/v2/models/credit/ready", folder, env=env) as peer:
        yield Peer(peer.url, peer.process, expected)


def test_mlserver_gives_what_the_model_gives(run: Run, mlserver: Peer) -> None:
    async def main() -> None:
        asked: dict[str, Any] = {"base_url": mlserver.url, "protocol": "v2", "model_name": "credit"}
        asked["features"] = ["credit_score", "income"]
        outputs = {"score": "predict_proba[1]", "label": "predict"}
        results = await predicting(ROWS, ready=True, **asked, outputs=outputs)
        assert [result["score"] for result in results] == pytest.approx(mlserver.expected, abs=1e-12)
        assert [result["label"] for result in results] == [int(score > 0.5) for score in mlserver.expected]
        named = await predicting(ROWS, **asked)
        assert [sorted(result) for result in named] == [["predict", "predict_proba"]] * 2

    run(main())


def test_mlserver_says_that_it_has_no_such_model(run: Run, mlserver: Peer) -> None:
    async def main() -> None:
        error = await failure([{"a": 1}], base_url=mlserver.url, protocol="v2", model_name="credits")
        assert isinstance(error, SourceError)
        said = "the model server answered 404: Model credits not found"
        assert str(error) == f"GET {mlserver.url}/v2/models/credits: {said}"

    run(main())
