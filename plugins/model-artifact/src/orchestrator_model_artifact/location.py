"""Where a model lies and what its content hashes to."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from orchestrator_core.plugin_api import SourceError
from orchestrator_model_artifact.options import ArtifactOptions


@frozen
class Location:
    """A model's path with its symlinks resolved, the folder it must stay in, and the SHA-256 of its content."""

    path: Path
    root: Path
    sha256: str

    def inside(self, name: str) -> Path:
        """Return a file that the model itself names. Raises :class:`SourceError` when it is not there or not ours."""
        path = Path(os.path.normpath(self.path / name))
        if not path.is_relative_to(self.path) or not path.resolve().is_relative_to(self.root):
            raise SourceError(f"{self.path.name}: '{name}' leads outside the model's folder, to {path}")
        if not path.exists():
            raise SourceError(f"{self.path.name}: '{name}' does not exist in the model's folder")
        return path


def locate(options: ArtifactOptions, config_dir: Path) -> Location:
    """Find the model, hold it against ``model_root`` and hash it; compare with ``sha256`` where that is given."""
    root = (config_dir / (options.model_root or "..")).resolve()
    path = (config_dir / options.path).resolve()
    if not path.is_relative_to(root):
        raise SourceError(
            f"path '{options.path}' is {path}, outside model_root {root}: move the model there or set model_root"
        )
    if not path.exists():
        raise SourceError(f"path '{options.path}' does not exist: looked for {path}")
    location = Location(path, root, _sha256(path, root))
    if options.sha256 and options.sha256.lower().removeprefix("sha256:") != location.sha256:
        raise SourceError(f"the model's content has sha256 {location.sha256}, expected {options.sha256.lower()}")
    return location


def _sha256(path: Path, root: Path) -> str:
    """Return the hash of a file, or of what ``sha256sum`` prints for a folder's files in the order of their paths.

    The folder's equals what this prints in it::

        find -L . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum
    """
    if path.is_file():
        return _file_sha256(path)
    names = sorted(_files(path, root), key=os.fsencode)
    listing = "".join(f"{_file_sha256(path / name)}  {name}\n" for name in names)
    return hashlib.sha256(os.fsencode(listing)).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names)
