"""MLflow URIs against a real tracking store and registry in a database."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from orchestrator_model_artifact import private
from orchestrator_model_artifact.model import ArtifactModel
from orchestrator_model_artifact.plugin import ARTIFACT
from orchestrator_model_artifact.store import Stores, find, is_movable, is_store_uri, stores_of

from orchestrator_core.errors import SourceError, SourceUnavailable
from orchestrator_core.testing import open_model

Run = Callable[[Callable[[], Awaitable[None]]], None]

ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}


@pytest.fixture(autouse=True)
def stores_of_this_test_only() -> Iterator[None]:
    """Have MLflow, which is otherwise asked in a process of its own, forget what it was told in this one."""
    import mlflow

    before = dict(os.environ)
    yield
    mlflow.set_tracking_uri(None)
    mlflow.set_registry_uri(None)
    os.environ.clear()
    os.environ.update(before)


@asynccontextmanager
async def opened(
    store: dict[str, str], path: str, kept: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[ArtifactModel]:
    given, folder = {"path": path, "tracking_uri": store["uri"], "run_in": "thread", **options}, Path(store["root"])
    async with open_model(ARTIFACT, given, folder=folder / "config", name="credit_model", kept=kept) as model:
        assert isinstance(model, ArtifactModel)
        yield model


async def refused(store: dict[str, str], path: str, **options: Any) -> str:
    with pytest.raises((SourceError, SourceUnavailable)) as caught:
        async with opened(store, path, **options):
            pass
    return str(caught.value)


def private_folders() -> list[Path]:
    return list(Path(tempfile.gettempdir()).glob("orchestrator-model-*"))


@pytest.mark.usefixtures("nothing_left_behind")
def test_every_way_to_name_a_version_gives_that_version_and_its_digest(store: dict[str, str], run: Run) -> None:
    import skops.io

    # The model itself, from where MLflow logged it.
    (folder,) = Path(store["root"], "artifacts").glob(f"**/{store['model1']}/artifacts")
    logged = skops.io.load(folder / "model.skops")

    async def score(path: str) -> tuple[Any, str, str]:
        async with opened(store, path, outputs={"score": "probability"}) as model:
            (result,) = await model.predict([ROW])
            return result, model.identity().version, model.identity().digest

    async def test() -> None:
        stores = Stores(store["uri"], None)
        versions = {
            "models:/credit_risk/1": "credit_risk/1",
            "models:/credit_risk@champion": "credit_risk/1",
            "models:/credit_risk/latest": "credit_risk/2",
            f"models:/{store['model2']}": store["model2"],
            f"runs:/{store['run1']}/model": f"{store['run1']}/model",
        }
        assert {uri: find(uri, stores).version for uri in versions} == versions
        number, of_run = [await score(uri) for uri in ("models:/credit_risk@champion", f"runs:/{store['run1']}/model")]
        assert (number[1], of_run[1]) == ("credit_risk/1", f"{store['run1']}/model")
        assert (number[0], number[2]) == (of_run[0], of_run[2])
        digest = number[2].removeprefix("sha256:")
        assert f"expected {digest}" in await refused(store, "models:/credit_risk/2", sha256=digest)
        (probability,) = logged.predict_proba(pd.DataFrame([ROW]))[:, 1]
        assert number[0] == {"score": pytest.approx(float(probability), rel=1e-12)}

    run(test)
    assert private_folders() == []


WITHOUT = [
    ("models:/nothing/1", "has no such model: Model Version (name=nothing, version=1) not found"),
    ("models:/credit_risk/9", "has no such model: Model Version (name=credit_risk, version=9) not found"),
    ("models:/credit_risk@nobody", "has no such model: Registered model alias nobody not found."),
    ("models:/nothing@champion", "has no such model: Registered Model with name=nothing not found"),
    ("models:/empty/latest", "the registered model 'empty' has no version yet"),
    ("models:/nothing/latest", "has no such model: Registered Model with name=nothing not found"),
    ("models:/credit_risk", "names no version: write models:/<name>/<number>"),
    ("models:/credit_risk/Production", "names no version: write models:/<name>/<number>"),
    (f"runs:/{'f' * 32}/model", f"has no such model: Run with id={'f' * 32} not found"),
    ("runs:/abc", "names no model: write runs:/<run id>/<path of the model in the run>"),
]


def test_what_is_not_in_the_store_is_named(store: dict[str, str], run: Run) -> None:
    stores = Stores(store["uri"], None)
    for path, message in WITHOUT:
        with pytest.raises(SourceError) as caught:
            find(path, stores)
        assert path in str(caught.value)
        assert message in str(caught.value)

    async def test() -> None:
        path = f"runs:/{store['run1']}/modle"
        assert (await refused(store, path)).startswith(f"{path}: {store['uri']} has no such model: ")

    run(test)


def test_a_store_that_cannot_be_reached_is_waited_for(store: dict[str, str], run: Run) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

        async def test() -> None:
            for uri in (f"http://127.0.0.1:{port}", f"postgresql://me:secret@127.0.0.1:{port}/mlflow"):
                with pytest.raises(SourceUnavailable) as caught:
                    async with opened(store, "models:/credit_risk/1", tracking_uri=uri):
                        pass
                shown = uri.replace("me:secret@", "")
                assert str(caught.value) == f"the MLflow server {shown} cannot be reached: Connection refused"
                assert caught.value.started is False

        run(test)


def test_a_server_that_answers_no_mlflow_is_waited_for(store: dict[str, str], run: Run) -> None:
    async def test() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            with pytest.raises(SourceUnavailable) as caught:
                await asyncio.to_thread(find, "models:/credit_risk/1", Stores(uri, None))
            assert str(caught.value).startswith(f"models:/credit_risk/1: {uri} did not answer as it should: ")

    run(test)


def test_a_store_that_does_not_exist_is_not_made(store: dict[str, str], run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        message = await refused(store, "models:/credit_risk/1", tracking_uri="http://ada:sec/ret@127.0.0.1:5000")
        assert message == (
            "the MLflow store's address is not a URL: its host or port cannot be read; percent-encode what is special "
            "in a password"
        )
        message = await refused(store, "models:/credit_risk/1", tracking_uri="http://ada:s@cret@127.0.0.1:5000")
        assert message == (
            "the MLflow store's address has more than one @; write %40 for each but the one before the host"
        )
        message = await refused(store, "models:/credit_risk/1", tracking_uri="sqlite:///../nothing/mlflow.db")
        path = Path(store["root"], "nothing", "mlflow.db")
        assert message == f"the MLflow store sqlite:///{path} does not exist: looked for {path}"
        assert not path.parent.exists()

    run(test)


def test_without_a_store_the_option_is_named(store: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)

    async def test() -> None:
        assert (await refused(store, "models:/credit_risk/1", tracking_uri=None)).startswith(
            "a model of a registry or a run needs tracking_uri, such as http://127.0.0.1:5000"
        )
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store["uri"])
        async with opened(store, "models:/credit_risk@champion", tracking_uri=None) as model:
            assert model.identity().version == "credit_risk/1"

    run(test)


def test_an_alias_that_moves_is_a_change(store: dict[str, str], run: Run) -> None:
    from mlflow import MlflowClient

    def move(version: str) -> None:
        MlflowClient(store["uri"], store["uri"]).set_registered_model_alias("credit_risk", "moving", version)

    async def test() -> None:
        move("1")
        async with opened(store, "models:/credit_risk@moving") as model:
            assert model.identity().version == "credit_risk/1"
            assert not await model.changed()
            move("2")
            assert await model.changed()

    run(test)


def test_a_model_that_is_started_again_by_itself_has_the_version_that_it_had(
    store: dict[str, str], caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store["uri"], store["uri"])

    async def version(kept: dict[str, Any]) -> str:
        async with opened(store, "models:/credit_risk@again", kept) as model:
            return model.identity().version

    async def test() -> None:
        client.set_registered_model_alias("credit_risk", "again", "1")
        kept: dict[str, Any] = {}
        assert await version(kept) == "credit_risk/1"
        client.set_registered_model_alias("credit_risk", "again", "2")
        assert json.loads(json.dumps(kept)) == kept  # a worker of another process gets it as JSON
        assert await version(dict(kept)) == "credit_risk/1"
        assert await version({}) == "credit_risk/2"
        kept["found"]["artifacts"] = "models:/credit_risk/17"
        assert await version(kept) == "credit_risk/2"
        assert "the version that it had is gone" in caplog.text

    run(test)


def test_files_that_were_replaced_before_a_start_by_itself_are_told_of(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, run: Run
) -> None:
    kept: dict[str, Any] = {}

    async def load() -> None:
        async with open_model(ARTIFACT, {"path": "../model.onnx"}, folder=tmp_path / "config", kept=kept):
            pass

    async def test() -> None:
        for name, told in (("single", False), ("single", False), ("each", True), ("each", False)):
            shutil.copy(models / f"{name}.onnx", tmp_path / "model.onnx")
            caplog.clear()
            await load()
            assert ("have changed since it was loaded" in caplog.text) is told

    run(test)


def test_stores_of_paths_lie_beside_the_configuration(tmp_path: Path) -> None:
    assert stores_of("sqlite:///../m.db", "../registry", tmp_path / "config") == Stores(
        f"sqlite:///{tmp_path / 'm.db'}", (tmp_path / "registry").as_uri()
    )
    assert stores_of("http://host:5000", None, tmp_path) == Stores("http://host:5000", None)
    assert [is_store_uri(path) for path in ("models:/a/1", "runs:/b/m", "models/a", "../models")] == [
        True,
        True,
        False,
        False,
    ]
    assert [is_movable(uri) for uri in ("models:/a@b", "models:/a/latest", "models:/a/1")] == [True, True, False]


def test_the_service_does_not_import_mlflow(store: dict[str, str]) -> None:
    code = f"""
import asyncio, sys
sys.path[:] = {sys.path!r}
from pathlib import Path
from orchestrator_core.testing import open_model
from orchestrator_model_artifact.plugin import ARTIFACT
async def main():
    options = {{"path": "models:/credit_risk/1", "tracking_uri": {store["uri"]!r}}}
    async with open_model(ARTIFACT, options, folder=Path({store["root"]!r})) as model:
        print("mlflow" in sys.modules, model.identity().version)
asyncio.run(main())
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert printed.stdout == "False credit_risk/1\n", printed.stderr


def test_folders_of_services_that_were_killed_are_removed() -> None:
    code = (
        f"import sys; sys.path[:] = {sys.path!r}\n"
        "import os, signal\n"
        "from orchestrator_model_artifact.private import private_folder\n"
        "with private_folder() as folder:\n"
        "    (folder / 'x').touch()\n"
        "    print(folder, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    left = Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stdout.strip()
    )
    assert (left / "x").exists()
    with private.private_folder() as ours:
        assert not left.exists()
        with private.private_folder():
            assert ours.exists()  # it is in use
        assert oct(ours.stat().st_mode & 0o777) == "0o700"
    assert not ours.exists()
