"""Packages that only some models need: the distribution's extras."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from orchestrator_core.plugin_api import SourceError

DISTRIBUTION = "orchestrator-api-model-artifact"


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turn a package that is not installed into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise SourceError(
            f"{what} needs the package '{package}', which is not installed:"
            f" pip install '{DISTRIBUTION}[{extra}]', or the package itself if it is the model's own"
        ) from error
