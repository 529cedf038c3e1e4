"""Estimators from bytes: skops, and pickles of every kind, which run code when they are loaded."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from attrs import frozen

from orchestrator_core.plugin_api import SourceError
from orchestrator_model_artifact.formats import check_content
from orchestrator_model_artifact.location import Location
from orchestrator_model_artifact.packages import needs

Serialization: TypeAlias = Literal["skops", "pickle", "cloudpickle", "joblib"]

_SERIALIZATIONS = ("skops", "cloudpickle", "pickle", "joblib")
_MOST_INFLATION = 100
_FREE_INFLATION = 256 * 2**20


@frozen
class Trust:
    """What may be loaded: everything, or these types of skops besides those it knows."""

    everything: bool = False
    types: tuple[str, ...] = ()


def load_object(name: str, data: bytes, serialization: str, trust: Trust, extra: str) -> Any:
    """Return the object that the bytes hold.

    Raises :class:`SourceError`, before anything of it has run, when that would run code and is not trusted.
    """
    if serialization not in _SERIALIZATIONS:
        raise SourceError(
            f"the model's serialization_format '{serialization}' is not one of {', '.join(_SERIALIZATIONS)}"
        )
    if serialization == "skops":
        check_content(name, "skops", data)
        return _load_skops(name, data, trust, extra)
    if not trust.everything:
        kind = "a joblib file" if serialization == "joblib" else "a pickle"
        raise SourceError(
            f"{name} is {kind}, which runs code when it is loaded: save the model with skops (in MLflow:"
            " serialization_format='skops'), or set trust: true if you know who made it"
        )
    check_content(name, "pickle", data)
    return _load_pickle(name, data, extra)


def _load_skops(name: str, data: bytes, trust: Trust, extra: str) -> Any:
    with needs(extra, f"{name}, a skops file,"):
        import skops.io
    try:
        if not trust.everything:
            _check_inflation(name, data)
        untrusted = skops.io.get_untrusted_types(data=data)
    except SourceError:
        raise
    except Exception as error:  # whatever a damaged or hostile file provokes in the parser: nothing has run yet
        raise SourceError(f"{name} is no skops file: {error}") from error
    unknown = sorted(set(untrusted) - set(trust.types))
    if unknown and not trust.everything:
        raise SourceError(
            f"{name} holds types that skops does not know to be harmless ({', '.join(unknown)}):"
            " name those that you know in trusted_types, or set trust: true if you know who made it"
        )
    with _loading(name, extra):
        return skops.io.loads(data, trusted=untrusted)


def _load_pickle(name: str, data: bytes, extra: str) -> Any:
    with needs(extra, f"{name}, a pickle,"):
        # It reads pickles as pickle does, and its own, whose arrays lie between the parts of one.
        import joblib
    with _loading(name, extra):
        return joblib.load(io.BytesIO(data))


@contextmanager
def _loading(name: str, extra: str) -> Iterator[None]:
    with needs(extra, f"the model in {name}"):
        try:
            yield
        except (ModuleNotFoundError, SourceError):
            raise
        except BaseException as error:  # a pickle can raise anything, mostly what another version lacks
            raise SourceError(
                f"{name} cannot be loaded: {type(error).__name__}: {error}:"
                " it may have been saved with another version of a library"
            ) from error


def _check_inflation(name: str, data: bytes) -> None:
    """Refuse an archive that would fill the memory: 256 MiB are free, beyond that a hundred times its own size."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > max(_FREE_INFLATION, _MOST_INFLATION * len(data)):
        raise SourceError(
            f"{name} has {len(data)} bytes and claims to hold {size}: it is not unpacked without trust: true"
        )


@contextmanager
def own_code(location: Location, code: str | None, trust: Trust) -> Iterator[None]:
    """Make the modules that were logged with the model importable, without leaving byte code in its folder.

    Raises :class:`SourceError` when that is not trusted.
    """
    if code and not trust.everything:
        raise SourceError(
            f"the model brings Python code of its own ('{code}'), which runs when it is loaded:"
            " set trust: true if you know who made it"
        )
    if code:
        sys.path.insert(0, str(location.path / location.inside(code)))
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
