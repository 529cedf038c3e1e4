"""What a model's file is: by its name, and by its first bytes, which have to agree."""

from __future__ import annotations

import io
import zipfile
from typing import Literal, TypeAlias

from orchestrator_core.plugin_api import SourceError

FileFormat: TypeAlias = Literal["onnx", "skops", "joblib", "pickle"]

_SUFFIXES: dict[str, FileFormat] = {
    ".onnx": "onnx",
    ".skops": "skops",
    ".joblib": "joblib",
    ".pkl": "pickle",
    ".pickle": "pickle",
}
_PICKLES = ("joblib", "pickle")
_COMPRESSED = (  # what joblib compresses with; no other format here begins like this
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x5d\x00\x00",
    b"\x04\x22\x4d\x18",
    *(b"\x78" + level for level in (b"\x01", b"\x5e", b"\x9c", b"\xda")),
)
_WORDS = {
    "onnx": "ONNX",
    "skops": "a skops file",
    "joblib": "a joblib file",
    "pickle": "a pickle",
    "zip": "a zip archive that is no skops file",
    "h5": "an HDF5 file",
}
_LOADABLE = "an MLflow model folder, an ONNX, skops, joblib or pickle file, or an MLflow URI"


def format_of(name: str, data: bytes) -> FileFormat:
    """Return the format of a file. Raises :class:`SourceError` when it cannot be told, or its content is another."""
    suffix = f".{name.rpartition('.')[2].lower()}" if "." in name else ""
    by_name, by_content = _SUFFIXES.get(suffix), sniffed(data)
    if by_name is None:
        if by_content in ("skops", "pickle", "joblib"):
            return by_content  # type: ignore[return-value]  # one of the three
        found = f", and it is {_WORDS[by_content]}" if by_content else ""
        raise SourceError(
            f"nothing here can load {name}: its name has no suffix that is known{found}: expected {_LOADABLE}"
        )
    check_content(name, by_name, data)
    return by_name


def check_content(name: str, format: FileFormat, data: bytes) -> None:
    """Raise :class:`SourceError` when a file that is to be of a format begins as another does."""
    found = sniffed(data)
    if not data:
        raise SourceError(f"{name} is empty")
    if found is None or found == format or (found in _PICKLES and format in _PICKLES):
        return
    raise SourceError(
        f"{name} is {_WORDS[found]} and not {_WORDS[format]}:"
        f"{' it would run code when it is loaded:' if found in _PICKLES else ''} look where it comes from"
    )


def sniffed(data: bytes) -> str | None:
    """Return what the bytes are, or None. Reads names and first bytes only, and loads nothing."""
    if data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pickle"
    if data.startswith(_COMPRESSED):
        return "joblib"
    if data.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                return "skops" if "schema.json" in archive.namelist() else "zip"
        except (zipfile.BadZipFile, OSError, ValueError):
            return "zip"
    if data.startswith(b"\x89HDF\r\n"):
        return "h5"
    return None
