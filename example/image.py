"""The image of the credit model's server: the host's Python, `credit.py` and the model's numbers, without a pull."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from example.places import CREDIT_WEIGHTS, FOLDER

PORT = 8080
SERVER, MODEL = Path("/model/credit.py"), Path("/model/credit.json")
LEFT_OUT = {
    *("site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo"),
    *("ensurepip", "lib2to3", "pydoc_data", "venv"),
}
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class CannotMake(Exception):
    """This machine has nothing that the image can be made from."""


def architecture() -> str:
    """Return the architecture of the image, as a Docker engine names it. Raises :class:`CannotMake`."""
    if sys.platform != "linux":
        raise CannotMake("its image is made from this machine's Python, which does not run on Linux")
    return ARCHITECTURES.get(platform.machine(), platform.machine())


def command() -> list[str]:
    return [str(_python()), "-I", str(SERVER), str(MODEL), str(PORT)]


def content_hash(data: Path) -> str:
    """Return what decides the image: the server, the model's numbers, and which Python."""
    decides = hashlib.sha256(f"{sys.version} {_python()}".encode())
    for path in (FOLDER / "image.py", FOLDER / "credit.py", data / CREDIT_WEIGHTS):
        decides.update(path.read_bytes())
    return decides.hexdigest()


def root_file_system(data: Path) -> bytes:
    """Return the image's files as a tar file. Everything of Python's lies where it does here."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", dereference=True) as tar:
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(temporary)
        for path in sorted({*_library(), _python(), *_shared_libraries()}):
            tar.add(path, recursive=False, filter=_for_everybody)
        tar.add(FOLDER / "credit.py", SERVER, filter=_for_everybody)
        tar.add(data / CREDIT_WEIGHTS, MODEL, filter=_for_everybody)
    return buffer.getvalue()


def _python() -> Path:
    """Return the interpreter itself, not the link to it of a virtual environment."""
    return Path(sys.executable).resolve()


def _library() -> Iterator[Path]:
    for folder, below, names in os.walk(sysconfig.get_path("stdlib")):
        below[:] = [name for name in below if name not in LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder, name) for name in names if not name.endswith((".a", ".pyc")))


def _shared_libraries() -> Iterator[Path]:
    """What the interpreter and the library's extensions are linked with, as the loader finds it."""
    extensions = [path for path in _library() if ".so" in path.suffixes]
    done = subprocess.run(["ldd", _python(), *extensions], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        word = next((word for word in line.split() if word.startswith("/")), "")
        if word and not line.endswith(":") and Path(word).is_file():
            yield Path(word)


def _for_everybody(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry
