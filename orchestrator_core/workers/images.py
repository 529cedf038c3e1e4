"""Copies of a configuration folder, so that all workers, and those that come after them, read the same files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from attrs import define, field

from orchestrator_core.config.load import Image, load_configuration
from orchestrator_core.config.model import Configuration
from orchestrator_core.config.states import read_steadily
from orchestrator_core.config.yaml import SHORTAGES, fit_to_read

READ = (".yaml",)
NAMED = (".yml", ".json")
"""Endings of files whose names alone matter: they are told to be no configuration."""


@define(eq=False)
class Taken:
    """A configuration folder as it was taken: the copy and what was read from it. ``users`` are starting workers.

    ``contents`` is what the copy consists of: a file's bytes, where a link leads, or None for a folder.
    """

    image: Image
    configuration: Configuration
    contents: dict[Path, bytes | Path | None] = field(repr=False)
    users: int = 0

    @property
    def identity(self) -> tuple[str, str]:
        """Return what two copies have in common that are worth no reload."""
        return self.configuration.generation, self.configuration.secrets

    def is_like(self, served: Taken) -> bool:
        """Return whether there is nothing to reload, where ``served`` is what serves; nor a problem to tell of."""
        return self.identity == served.identity and not self.configuration.errors

    def order(self) -> dict[str, Any]:
        """Return what a worker needs to read it, as JSON; see :func:`ordered`.

        What is gone of the copy is written again: whoever cleans up ``/tmp`` takes files that nobody has read for days.
        """
        for path, content in self.contents.items():
            if not (path.is_symlink() or path.exists()):
                _write(path, content)
        secrets = {str(path): str(text) for path, text in self.image.secrets.items()}
        return {"files": str(self.image.files), "secrets": secrets}

    def discard(self) -> None:
        shutil.rmtree(self.image.files, ignore_errors=True)


def ordered(order: dict[str, Any]) -> Image:
    """Return the image that :meth:`Taken.order` made the order of."""
    return Image(Path(order["files"]), {Path(path): text for path, text in order["secrets"].items()})


def take(folder: Path, copy: Path) -> Taken:
    """Copy the configuration of a folder, and read it with its secret files. Nothing is raised for what is wrong.

    Raises ``OSError`` when the system is short of something for the moment, such as file descriptors.
    """
    return read_steadily(folder, lambda: _take(folder, copy))


def _take(folder: Path, copy: Path) -> Taken:
    shutil.rmtree(copy, ignore_errors=True)
    if folder.is_dir():
        _copy(folder, copy, ("config.yaml", "database.yaml"))
        _copy(folder / "integrations", copy / "integrations")
        _copy(folder / "domains", copy / "domains")
        for scoped in _folders(copy / "domains"):
            _copy(folder / "domains" / scoped.name, scoped, ("database.yaml",))
            _copy(folder / "domains" / scoped.name / "integrations", scoped / "integrations")
    configuration = load_configuration(folder, image=Image(copy))
    secrets = {path: str(text) for path, text in configuration.secret_files.items() if text is not None}
    return Taken(Image(copy, secrets), configuration, {path: _read(path) for path in sorted(copy.rglob("*"))})


def _read(path: Path) -> bytes | Path | None:
    if path.is_symlink():
        return path.readlink()
    return None if path.is_dir() else path.read_bytes()


def _write(path: Path, content: bytes | Path | None) -> None:
    if content is None:
        path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Path):
        path.symlink_to(content)
    else:
        path.write_bytes(content)


def _folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []


def _copy(folder: Path, to: Path, only: tuple[str, ...] = ()) -> None:
    """Copy the files of a folder, and the names of its folders."""
    if not folder.exists() and not folder.is_symlink():
        return
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        if error.errno in SHORTAGES or to.exists():
            raise
        to.symlink_to(folder.absolute())  # whoever reads it is told why it cannot be read
        return
    to.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if path.is_dir() and not only:
            (to / path.name).mkdir(exist_ok=True)
        elif path.suffix in NAMED and not only:
            (to / path.name).touch()
        elif path.suffix in READ and (not only or path.name in only):
            _copy_file(path, to / path.name)


def _copy_file(path: Path, to: Path) -> None:
    try:
        text = fit_to_read(path).read_bytes()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        if path.exists() or path.is_symlink():  # else it was taken away since it was listed
            to.symlink_to(path.absolute())  # whoever reads it is told why it cannot be read
    else:
        to.write_bytes(text)
