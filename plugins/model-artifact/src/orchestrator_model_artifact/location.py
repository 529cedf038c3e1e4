"""Where a model lies, what its content hashes to, and reading exactly what was hashed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from attrs import evolve, field, frozen

from orchestrator_core.plugin_api import SourceError, SourceUnavailable
from orchestrator_model_artifact.onnx_files import external_files
from orchestrator_model_artifact.options import ArtifactOptions

Signature: TypeAlias = "tuple[tuple[str, int, int, int], ...]"
"""Of each file its name, size, time of change and number: differs for every content, unless somebody sets out to."""


@frozen
class Location:
    """A model's path with its symlinks resolved, the folder it must stay in, and the SHA-256 of its content.

    ``files`` has the SHA-256 of each of its files by its path below ``path``; a file has one, of the name ``""``. A
    file that keeps its weights in others is the folder that they lie in, with the name of the first in ``main``.
    """

    path: Path
    root: Path
    sha256: str
    files: Mapping[str, str] = field(factory=dict, repr=False)
    signature: Signature = field(default=(), repr=False)
    main: str = ""

    @property
    def is_file(self) -> bool:
        return self.main in self.files

    def name_of(self, name: str) -> str:
        """Return what messages call a file."""
        return name.rpartition("/")[2] or self.path.name

    def inside(self, name: str) -> str:
        """Return the name in ``files`` of a file or folder that the model itself names.

        Raises :class:`SourceError` when it is not there or not ours.
        """
        path = Path(os.path.normpath(self.path / name))
        if not path.is_relative_to(self.path) or not path.resolve().is_relative_to(self.root):
            raise SourceError(f"{self.path.name}: '{name}' leads outside the model's folder, to {path}")
        found = path.relative_to(self.path).as_posix()
        if found not in self.files and not any(file.startswith(f"{found}/") for file in self.files):
            raise SourceError(f"{self.path.name}: '{name}' does not exist in the model's folder")
        return found

    def read(self, name: str = "") -> bytes:
        """Return a file's bytes, which are those that were hashed.

        Raises :class:`SourceUnavailable` when others are there now.
        """
        data = _read(self.path / name)
        if hashlib.sha256(data).hexdigest() != self.files[name]:
            raise SourceUnavailable(f"{self.name_of(name)} has changed since the model was looked at")
        return data

    def copied_to(self, folder: Path) -> Location:
        """Copy the files that were hashed into a new folder of ours, and return the copy's location.

        Nobody else writes there, so that what a library reads by path is what was hashed.
        """
        target = folder / self.path.name
        for name in self.files:
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(self.read(name))
        return evolve(self, path=target, root=target)


def locate(options: ArtifactOptions, config_dir: Path) -> Location:
    """Find the model, hold it against ``model_root`` and hash it; compare with ``sha256`` where that is given."""
    root = (config_dir / (options.model_root or "..")).resolve()
    path = (config_dir / str(options.path)).resolve()
    if not path.is_relative_to(root):
        raise SourceError(
            f"path '{options.path}' is {path}, outside model_root {root}: move the model there or set model_root"
        )
    if not path.exists():
        raise SourceError(f"path '{options.path}' does not exist: looked for {path}")
    return located(path, root, options.sha256)


def located(path: Path, root: Path, sha256: str | None) -> Location:
    """Return the location of what lies at a resolved path. Raises :class:`SourceError` for another ``sha256``."""
    main = ""
    names = _names(path, root)
    try:
        if path.suffix.lower() == ".onnx" and names == [""] and (others := external_files(_read(path))):
            main, path = path.name, path.parent
            names = sorted({main, *(_beside(name, path, root) for name in others)}, key=os.fsencode)
        files = {name: _file_sha256(path / name) for name in names}
        location = Location(path, root, folded(files), files, _signature(path, names), main)
    except OSError as error:
        raise SourceError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    expected = sha256.lower().removeprefix("sha256:") if sha256 else location.sha256
    if expected != location.sha256:
        raise SourceError(f"the model's content has sha256 {location.sha256}, expected {expected}")
    return location


def _beside(name: str, folder: Path, root: Path) -> str:
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(folder) or not path.resolve().is_relative_to(root):
        raise SourceError(f"the model keeps weights in '{name}', which is outside its folder {folder}")
    _check_is_file(path)
    return path.relative_to(folder).as_posix()


def folded(files: Mapping[str, str]) -> str:
    """Return the hash of a file, or of what ``sha256sum`` prints for a folder's files in the order of their paths.

    The folder's equals what this prints in it::

        find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum
    """
    if "" in files:
        return files[""]
    listing = "".join(f"{files[name]}  {name}\n" for name in sorted(files, key=os.fsencode))
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def has_changed(location: Location, options: ArtifactOptions, config_dir: Path) -> bool:
    """Return whether other content lies at the path now. Reads the files only when their times or sizes differ."""
    path = (config_dir / str(options.path)).resolve()
    try:
        if location.main:
            same = path == location.path / location.main and _signature_of(location) == location.signature
        else:
            same = path == location.path and _signature(path, _names(path, location.root)) == location.signature
        return not same and located(path, location.root, None).sha256 != location.sha256
    except (OSError, SourceError):
        return True  # it is gone, or half of it is


def _signature_of(location: Location) -> Signature:
    return _signature(location.path, sorted(location.files, key=os.fsencode))


def _names(path: Path, root: Path) -> list[str]:
    if path.is_dir():
        return sorted(_files(path, root), key=os.fsencode)
    _check_is_file(path)
    return [""]


def _signature(path: Path, names: list[str]) -> Signature:
    found = ((name, (path / name).stat()) for name in names)
    return tuple((name, status.st_size, status.st_mtime_ns, status.st_ino) for name, status in found)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error


def _check_is_file(path: Path) -> None:
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        raise SourceError(f"{path} is neither a file nor a folder")


def _files(folder: Path, root: Path) -> Iterator[str]:
    for parent, folders, names in os.walk(folder, followlinks=True):
        for name in (*folders, *names):
            entry = Path(parent, name)
            if entry.is_symlink() and not entry.resolve().is_relative_to(root):
                raise SourceError(
                    f"{entry.relative_to(folder)} in the model's folder is a link to {entry.resolve()},"
                    f" outside model_root {root}"
                )
            if entry.is_symlink() and Path(parent).resolve().is_relative_to(entry.resolve()):
                raise SourceError(
                    f"{entry.relative_to(folder)} in the model's folder is a link to a folder that holds it"
                )
        for name in names:
            _check_is_file(Path(parent, name))
            yield Path(parent, name).relative_to(folder).as_posix()
