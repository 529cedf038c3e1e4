"""What runs code when it is loaded is not loaded without trust: each payload here would leave a file behind."""

from __future__ import annotations

import importlib
import io
import json
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import yaml
from orchestrator_model_artifact.loading import Request, load
from orchestrator_model_artifact.location import locate
from orchestrator_model_artifact.options import ArtifactOptions

from orchestrator_core.errors import SourceUnavailable

from .opening import loaded, refused

ROW = {"credit_score": 700, "annual_income": 50_000.0, "debt": 12_000.5}
RUNS_CODE = "which runs code when it is loaded"
OR_TRUST = " or set trust: true if you know who made it"


class Payload:
    """What must never run without trust."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "has_run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder that models are put in, beside a configuration folder."""
    (tmp_path / "config").mkdir()
    return tmp_path


def mlflow_folder(folder: Path, flavors: dict[str, Any], files: dict[str, bytes]) -> None:
    model = folder / "model"
    for name, data in files.items():
        (model / name).parent.mkdir(parents=True, exist_ok=True)
        (model / name).write_bytes(data)
    signature = {"inputs": json.dumps([{"name": "debt", "type": "double"}])}
    (model / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors, "signature": signature}))


def test_a_pickle_under_the_name_of_an_onnx_model(folder: Path, marker: Path) -> None:
    (folder / "model.onnx").write_bytes(pickle.dumps(Payload(marker)))
    said = "model.onnx is a pickle and not ONNX: it would run code when it is loaded: look where it comes from"
    assert refused(folder, "model.onnx") == said
    assert refused(folder, "model.onnx", trust=True) == said
    mlflow_folder(folder, {"onnx": {"data": "model.onnx"}}, {"model.onnx": pickle.dumps(Payload(marker))})
    assert refused(folder, "model") == said
    assert not marker.exists()


def test_a_loader_module_of_a_pyfunc(folder: Path, marker: Path) -> None:
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\ndef _load_pyfunc(path): return None\n"
    mlflow_folder(
        folder,
        {"python_function": {"loader_module": "evil_loader", "code": "code"}},
        {"code/evil_loader.py": code.encode()},
    )
    assert refused(folder, "model") == (
        "the model is a pyfunc: MLflow loads it by running its loader_module 'evil_loader', and with that code of the"
        " model's: set trust: true if you know who made it"
    )
    assert not marker.exists()
    refused(folder, "model", trust=True)  # it loads nothing that could predict, and shows that the payload works
    assert marker.exists()


@pytest.mark.parametrize("where", ["sklearn", "python_function"])
def test_code_paths_of_a_model_that_is_itself_harmless(folder: Path, marker: Path, models: Path, where: str) -> None:
    shutil.copytree(models / "logistic", folder / "model")
    written = yaml.safe_load((folder / "model" / "MLmodel").read_text())
    written["flavors"][where]["code"] = "code"
    (folder / "model" / "MLmodel").write_text(yaml.safe_dump(written))
    (folder / "model" / "code").mkdir()
    (folder / "model" / "code" / "skops.py").write_text(f"from pathlib import Path\nPath({str(marker)!r}).touch()\n")
    assert refused(folder, "model") == (
        "the model brings Python code of its own ('code'), which runs when it is loaded:"
        " set trust: true if you know who made it"
    )
    assert not marker.exists()


def test_a_skops_file_with_a_type_that_is_not_known_to_be_harmless(
    folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import skops.io

    (folder / "modules").mkdir()
    (folder / "modules" / "evil_types.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(marker)!r}).touch()\n"
        "class Evil:\n"
        "    def __getstate__(self): return {'x': 1}\n"
        "    def __setstate__(self, state): pass\n"
    )
    monkeypatch.syspath_prepend(str(folder / "modules"))
    evil = importlib.import_module("evil_types").Evil()
    (folder / "model.skops").write_bytes(skops.io.dumps(evil))
    mlflow_folder(
        folder,
        {
            "sklearn": {
                "pickled_model": "model.skops",
                "serialization_format": "skops",
                "skops_trusted_types": ["evil_types.Evil"],
            }
        },
        {"model.skops": skops.io.dumps(evil)},
    )
    monkeypatch.delitem(sys.modules, "evil_types")
    marker.unlink()
    for path in ("model.skops", "model"):
        assert refused(folder, path) == (
            "model.skops holds types that skops does not know to be harmless (evil_types.Evil):"
            " name those that you know in trusted_types, or set trust: true if you know who made it"
        )
    assert not marker.exists()
    refused(folder, "model.skops", trust=True)  # it is no model, and shows that the payload works
    assert marker.exists()


def _archive(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize("flavor", ["sklearn", "lightgbm"])
@pytest.mark.parametrize("claimed", ["joblib", "cloudpickle", "pickle", None, "skops"])
def test_a_joblib_file_inside_an_mlflow_folder(folder: Path, marker: Path, flavor: str, claimed: str | None) -> None:
    buffer = io.BytesIO()
    joblib.dump({"model": Payload(marker), "weights": np.zeros(10)}, buffer)
    settings = {
        "pickled_model": "model.joblib",
        "data": "model.joblib",
        "model_class": "lightgbm.sklearn.LGBMClassifier",
    }
    mlflow_folder(folder, {flavor: {**settings, "serialization_format": claimed}}, {"model.joblib": buffer.getvalue()})
    message = refused(folder, "model")
    assert RUNS_CODE in message or message == (
        "model.joblib is a pickle and not a skops file: it would run code when it is loaded: look where it comes from"
    )
    assert not marker.exists()


@pytest.mark.parametrize("compress", [0, ("zlib", 3), ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
@pytest.mark.parametrize("name", ["model.joblib", "model.pkl", "model.bin", "model", "model.skops"])
def test_a_pickle_of_any_name_and_compression(folder: Path, marker: Path, name: str, compress: Any) -> None:
    joblib.dump(Payload(marker), folder / name, compress=compress)
    message = refused(folder, name)
    assert RUNS_CODE in message or "it would run code when it is loaded" in message
    assert not marker.exists()


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("format", ["auto", "pickle", "joblib", "skops", "onnx"])
def test_a_pickle_of_every_protocol_as_every_format(folder: Path, marker: Path, protocol: int, format: str) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(marker), protocol=protocol))
    refused(folder, "model.pkl", format=format)
    assert not marker.exists()


def test_an_array_of_objects_inside_a_skops_file(folder: Path, marker: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(marker)], dtype=object), allow_pickle=True)
    schema = {
        "__class__": "ndarray", "__module__": "numpy", "__loader__": "NdArrayNode", "__id__": 1,
        "type": "numpy", "file": "1.npy", "protocol": 2, "_skops_version": "0.13.0",
    }  # fmt: skip
    (folder / "model.skops").write_bytes(
        _archive({"schema.json": json.dumps(schema).encode(), "1.npy": buffer.getvalue()})
    )
    assert refused(folder, "model.skops").startswith(
        "model.skops cannot be loaded: ValueError: Object arrays cannot be loaded"
    )
    assert not marker.exists()


def test_a_skops_file_that_would_fill_the_memory(folder: Path) -> None:
    bomb = _archive({"schema.json": b"{}", "1.npy": bytes(300 * 2**20)}, zipfile.ZIP_DEFLATED)
    (folder / "model.skops").write_bytes(bomb)
    assert refused(folder, "model.skops") == (
        f"model.skops has {len(bomb)} bytes and claims to hold {300 * 2**20 + 2}:"
        " it is not unpacked without trust: true"
    )


@pytest.mark.parametrize("data", [b"PK\x03\x04 and no more", b"\x80\x04", b"", b"\x08\x07garbage", b"location" * 9])
@pytest.mark.parametrize("format", ["skops", "onnx", "pickle"])
def test_a_damaged_file_is_refused_in_words(folder: Path, data: bytes, format: str) -> None:
    (folder / "model.bin").write_bytes(data)
    assert refused(folder, "model.bin", format=format, trust=True).startswith("model.bin ") or format == "onnx"


def test_yaml_tags_in_mlmodel(folder: Path, marker: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text(f"flavors: !!python/object/apply:pathlib.Path.touch [{marker}]\n")
    message = refused(folder, "model")
    assert message.startswith(f"{folder / 'model' / 'MLmodel'} cannot be read: could not determine a constructor")
    assert not marker.exists()


@pytest.mark.parametrize(
    "text",
    ["flavors: [", "- a", "flavors: {sklearn: 3}", "flavors: {sklearn: {}}\nsignature: {inputs: '{{'}",
     "flavors: {sklearn: {}}\nsignature: {inputs: '[3]'}", "flavors: {sklearn: {}}\nsignature: 3", "\x00"],
)  # fmt: skip
def test_an_mlmodel_file_that_makes_no_sense(folder: Path, text: str) -> None:
    (folder / "model").mkdir()
    (folder / "model" / "MLmodel").write_text(text)
    assert refused(folder, "model").startswith(f"{folder / 'model' / 'MLmodel'} ")


@pytest.mark.parametrize("class_name", ["os.system", "subprocess.Popen", "xgboost.core.os", "xgboost.sklearn.XGBModel"])
def test_a_class_that_an_xgboost_model_names(folder: Path, class_name: str) -> None:
    mlflow_folder(folder, {"xgboost": {"model_class": class_name, "data": "model.ubj"}}, {"model.ubj": b"{}"})
    assert refused(folder, "model").startswith(f"model_class '{class_name}' is none of XGBoost's: Booster, ")


@pytest.mark.parametrize("path", ["../../secret.pkl", "/etc/passwd", "code/../../../secret.pkl"])
@pytest.mark.parametrize(
    ("flavor", "key"), [("sklearn", "pickled_model"), ("onnx", "data"), ("xgboost", "data"), ("lightgbm", "data")]
)
def test_a_file_that_an_mlflow_model_names_outside_its_folder(folder: Path, path: str, flavor: str, key: str) -> None:
    mlflow_folder(folder, {flavor: {key: path, "serialization_format": "skops"}}, {"x": b""})
    assert f"'{path}' leads outside the model's folder" in refused(folder, "model", trust=True)


# --- ONNX with weights in other files --------------------------------------------------------------------------------


def external(folder: Path, location: str, weights: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 1], np.array([2.0, 3.0], "f").tobytes(), raw=True)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    tensor = model.graph.initializer[0]
    weights.write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    folder.mkdir(exist_ok=True)
    (folder / "model.onnx").write_bytes(onnx.ModelProto.SerializeToString(model))


def test_weights_in_a_file_beside_the_model_are_loaded_and_hashed_with_it(folder: Path) -> None:
    external(folder / "onnx", "weights.bin", (folder / "weights.tmp"))
    (folder / "weights.tmp").rename(folder / "onnx" / "weights.bin")
    model = loaded(folder, "onnx/model.onnx", features=["a", "b"])
    assert model.score([{"a": 1, "b": 10}]) == [{"value": 32.0}]
    pinned = model.identity.digest
    assert loaded(folder, "onnx/model.onnx", features=["a", "b"], sha256=pinned).identity.digest == pinned
    (folder / "onnx" / "weights.bin").write_bytes(np.array([0.0, 0.0], "f").tobytes())
    assert "expected" in refused(folder, "onnx/model.onnx", features=["a", "b"], sha256=pinned)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_weights_outside_the_models_folder_are_not_read(folder: Path, location: str) -> None:
    external(folder / "onnx", location, folder / "secret.bin")
    assert refused(folder, "onnx/model.onnx", features=["a", "b"]) == (
        f"the model keeps weights in '{location}', which is outside its folder {folder / 'onnx'}"
    )
    shutil.copytree(folder / "onnx", folder / "model")
    (folder / "model" / "MLmodel").write_text(yaml.safe_dump({"flavors": {"onnx": {"data": "model.onnx"}}}))
    assert "leads outside the model's folder" in refused(folder, "model", features=["a", "b"])


def test_weights_that_are_a_link_out_of_model_root_are_not_read(folder: Path, tmp_path_factory: Any) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret.bin"
    external(folder / "onnx", "weights.bin", elsewhere)
    (folder / "onnx" / "weights.bin").symlink_to(elsewhere)
    assert "which is outside its folder" in refused(folder, "onnx/model.onnx", features=["a", "b"])


# --- what is trusted is what is loaded -------------------------------------------------------------------------------


def test_a_trusted_pickle_has_to_have_the_sha256_before_anything_of_it_runs(folder: Path, marker: Path) -> None:
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(marker)))
    assert "the model's content has sha256" in refused(folder, "model.pkl", trust=True, sha256="0" * 64)
    assert not marker.exists()
    refused(folder, "model.pkl", trust=True)  # a path is no model, and shows that the payload works
    assert marker.exists()


def test_a_file_that_is_swapped_after_it_was_hashed_is_not_loaded(folder: Path, marker: Path, models: Path) -> None:
    shutil.copy(models / "pickled" / "model.pkl", folder / "model.pkl")
    given = ArtifactOptions(path="../model.pkl", trust=True)
    location = locate(given, folder / "config")
    (folder / "model.pkl").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(SourceUnavailable) as caught:
        load(Request("m", given, location))
    assert str(caught.value) == "model.pkl has changed since the model was looked at"
    assert not marker.exists()


def test_types_of_skops_can_be_trusted_by_name(folder: Path, models: Path) -> None:
    shutil.copy(models / "forest" / "model.skops", folder / "model.skops")
    assert "(sklearn.tree._tree.Tree)" in refused(folder, "model.skops")
    assert "(sklearn.tree._tree.Tree)" in refused(folder, "model.skops", trusted_types=["os.system"])
    model = loaded(folder, "model.skops", trusted_types=["sklearn.tree._tree.Tree"])
    assert model.score([ROW]) == loaded(models, "forest", trust=True).score([ROW])


@pytest.mark.parametrize("name", ["model.pkl", "model.joblib", "model.skops", "model"])
def test_a_bare_file_predicts_what_its_mlflow_folder_predicts(folder: Path, models: Path, name: str) -> None:
    import sklearn.utils
    import skops.io

    with (models / "pickled" / "model.pkl").open("rb") as file:
        model = pickle.load(file)
    assert isinstance(model, sklearn.base.BaseEstimator)
    data = {"model.skops": lambda: skops.io.dumps(model), "model.joblib": lambda: _joblib(model)}
    (folder / name).write_bytes(data.get(name, lambda: pickle.dumps(model))())
    expected = loaded(models, "logistic").score([ROW])
    bare = loaded(folder, name, trust=name != "model.skops")
    assert bare.score([ROW]) == expected
    assert (bare.facts.inputs, bare.identity.version) == (("credit_score", "annual_income", "debt"), "")


def _joblib(model: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(model, buffer, compress=3)
    return buffer.getvalue()


def test_what_is_no_file_and_no_folder_is_refused(folder: Path) -> None:
    os.mkfifo(folder / "model.onnx")
    assert refused(folder, "model.onnx") == f"{folder / 'model.onnx'} is neither a file nor a folder"
    mlflow_folder(folder, {"sklearn": {}}, {"model.pkl": b""})
    os.mkfifo(folder / "model" / "pipe")
    assert refused(folder, "model") == f"{folder / 'model' / 'pipe'} is neither a file nor a folder"
