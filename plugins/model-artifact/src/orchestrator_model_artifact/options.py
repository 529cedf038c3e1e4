"""What stands in YAML for a model of the kind ``artifact``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, TypeAlias

from attrs import frozen

from orchestrator_core.plugin_api import option

Take: TypeAlias = Literal["value", "label", "probability", "probabilities", "list"]

_SHA256 = re.compile(r"(sha256:)?[0-9a-fA-F]{64}\Z")


def _rising(_: Any, __: Any, tiers: Mapping[str, float] | None) -> None:
    if tiers is None:
        return
    if not tiers:
        raise ValueError("tiers: expected at least one, such as {low: 0.2, high: 1.0}")
    for (low, low_bound), (high, high_bound) in pairwise(tiers.items()):
        if high_bound <= low_bound:
            raise ValueError(f"tiers: '{high}' ({high_bound:g}) must reach higher than '{low}' ({low_bound:g})")


@frozen
class Output:
    """One field of the result, in its long form. The short form is the value of ``take`` alone."""

    take: Take | None = option(None, help="What of the prediction: value, label, probability, probabilities or list.")
    label: str | bool | int | float | None = option(
        None, help="With `take: probability`: of which class. Default: the second of two."
    )
    output: str | None = option(None, help="Instead of `take`: an output of the ONNX model by name.")
    index: int | None = option(None, help="With `output`: which of its columns, from 0.")
    tiers: dict[str, float] | None = option(
        None,
        validator=_rising,
        help="Turns the number into a word: each tier reaches up to and including its bound, the last has no bound.",
    )

    def __attrs_post_init__(self) -> None:
        if self.take and self.output:
            raise ValueError("take and output exclude each other")
        if self.index is not None and not self.output:
            raise ValueError("index needs output")
        if self.label is not None and self.take not in (None, "probability"):
            raise ValueError("label needs take: probability")
        if not (self.take or self.output or self.tiers or self.label is not None):
            raise ValueError("expected one of take, output, tiers")
        if self.tiers and self.take in ("label", "probabilities", "list"):
            raise ValueError(f"tiers needs a number: take: {self.take} is none")


def _not_empty(_: Any, __: Any, value: Mapping[str, Any] | list[str] | None) -> None:
    if value is not None and not value:
        raise ValueError("expected at least one")


def _unique(_: Any, __: Any, names: list[str] | None) -> None:
    if names is None:
        return
    if not names:
        raise ValueError("expected at least one")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"'{twice[0]}' is there twice")


def _hex(_: Any, __: Any, value: str | None) -> None:
    if value is not None and not _SHA256.match(value):
        raise ValueError("expected 64 hexadecimal digits")


def _positive(_: Any, __: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"expected more than 0, got {value}")


@frozen
class ArtifactOptions:
    """A model that lies in a file or a folder and is scored inside the service."""

    path: str = option(
        help="The model: an MLflow model folder, or an `.onnx` file. Relative to the configuration folder."
    )
    format: Literal["auto", "mlflow", "onnx"] = option("auto", help="What lies at `path`; `auto` looks.")
    model_root: str | None = option(
        None,
        help="The folder that the model must lie in, symlinks resolved. Default: the configuration folder's parent.",
    )
    trust: bool = option(
        False, help="Allow formats that run code when loaded: pickle, cloudpickle, skops with types it does not know."
    )
    sha256: str | None = option(
        None, validator=_hex, help="Load only this content: the SHA-256 of the file, or of the folder's listing."
    )
    features: list[str] | None = option(
        None, validator=_unique, help="Feature names in the model's order, where the model does not say them itself."
    )
    nulls: Literal["error", "nan"] = option(
        "error", help="A feature that is null: an error that names it, or NaN for a model that knows what that means."
    )
    outputs: dict[str, Take | Output] | None = option(
        None,
        validator=_not_empty,
        help="The result's fields: for each, `value`, `label`, `probability`, `probabilities`, `list` or a mapping.",
    )
    accelerate: Literal["none", "onnx"] = option(
        "none", help="`onnx`: convert the model at load and prove that it predicts the same within `tolerance`."
    )
    tolerance: float = option(
        1e-5, validator=_positive, help="How far accelerated numbers may be off: |a-b| <= tolerance * max(1, |b|)."
    )
    run_in: Literal["auto", "loop", "thread", "process"] = option(
        "auto", help="Where predictions run; `auto` measures the model when it is loaded."
    )
    workers: int | None = option(
        None, validator=_positive, help="How many threads or processes. Default: the usable CPUs, at most 4."
    )
