"""What stands in YAML for a source of models, and for a model besides its kind's own options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import field, frozen

from orchestrator_core.bounds import at_least_one, positive
from orchestrator_core.plugin_api import Duration, ModelKind, option

LOAD_SECONDS = 600.0
"""How long a model may take to load where nothing else is said: long for one that loads, short for one that hangs."""

DEFAULT_MODEL = "default"
PREDICT = "predict"
FEATURES = "features"


def _switch(instance: Any, attribute: Any, value: bool | str) -> None:
    if value not in (True, False, "true", "false"):  # what it is instead may be a secret
        raise ValueError("expected true or false, or a variable with one of these words")


@frozen
class BatchOptions:
    """Micro-batching: concurrent requests share one call of the model."""

    max_size: int = option(32, help="Most rows in one call.", validator=at_least_one)
    max_wait: Duration = option(
        Duration(0.002), help="Longest time that a row waits for the call under way before it goes in one of its own."
    )


@frozen
class HealthOptions:
    """Health checks of an open model that can be asked, such as a server's health path."""

    interval: Duration = option(Duration(0.5), help="Pause between two checks; 0 turns them off.")
    timeout: Duration = option(Duration(0.6), help="Longest time that a check may take.", validator=positive)
    failures: int = option(
        2, help="How many checks in a row have to fail before requests are refused.", validator=at_least_one
    )


def _no_longer_than_max_backoff(instance: Any, attribute: Any, value: float) -> None:
    positive(instance, attribute, value)
    if value > instance.max_backoff and value != attribute.default:
        raise ValueError(f"expected at most max_backoff, which is {instance.max_backoff:g} s, got {value:g} s")


@frozen
class RestartOptions:
    """What is done when a model cannot be started, or has ended."""

    max_starts: int = option(
        5, help="How many starts in a row may fail; then the model stays failed.", validator=at_least_one
    )
    backoff: Duration = option(
        Duration(0.5),
        help="Pause before the second start; it doubles with each, jittered.",
        validator=_no_longer_than_max_backoff,
    )
    max_backoff: Duration = option(Duration(30), help="Longest pause.", validator=positive)
    reset_after: Duration = option(
        Duration(10), help="How long a model has to be ready for its starts to be forgotten."
    )


@frozen
class CommonOptions:
    """What every model takes besides its kind's own options."""

    type: str = option("http", help="Model type: http, artifact, docker, ecr or another that a plugin provides.")
    batch: BatchOptions | None = option(None, help="Micro-batching of concurrent requests; off by default.")
    preload: bool = option(True, help="Load at the start; `false` loads on first use.")
    enabled: bool | str = option(
        True,
        help="`false` switches the model off where it is not to be had: it is neither looked at nor loaded, and calls "
        "get 503, or the fallback. As text too, so that a variable can say it: `${env:HAS_GPU:-false}`.",
        validator=_switch,
    )
    warm_up: list[dict[str, Any]] = option(
        factory=list, help="Rows of features that are scored before the model counts as ready."
    )
    load_timeout: Duration | None = option(
        None,
        help="Longest time that a load may take, and that the rows of `warm_up` may; one that takes longer has failed. "
        "Default: 10 minutes, and none where the type has limits of its own, such as those of a pull and of readiness.",
        validator=positive,
    )
    health_check: HealthOptions = option(HealthOptions(), help="Health checks.")
    restart: RestartOptions = option(RestartOptions(), help="Starts after a failure.")
    unload_after: Duration | None = option(
        None,
        help="Unload the model when no request has asked for it for so long; the next one loads it again.",
        validator=positive,
    )

    @property
    def is_enabled(self) -> bool:
        return self.enabled in (True, "true")


@frozen
class MlOptions:
    """One source of models."""

    source: Mapping[str, Any] | None = option(None, help="The one model; short for models: {default: …}.")
    base_url: str | None = option(
        None,
        help="Base URL of the models of type http. Beside a `source` of another type: the fallback, a model of type "
        "http that answers, degraded, while the source's own is not ready. `models.default` has its other options.",
    )
    models: Mapping[str, Mapping[str, Any]] = option(factory=dict, help="The models by name.")


@frozen
class ModelSpec:
    """A model as it is configured: its kind and options, checked. ``plugin`` is what brought its kind."""

    name: str
    kind: ModelKind[Any]
    options: Any
    common: CommonOptions = field(factory=CommonOptions)
    fallback: ModelSpec | None = None
    plugin: str = ""

    @property
    def load_seconds(self) -> float | None:
        """Return how long a load may take, None where it ends by limits of its own."""
        if self.common.load_timeout is not None:
            return self.common.load_timeout
        limits = self.kind.limits_load
        return None if limits is not None and limits(self.options) else LOAD_SECONDS


@frozen
class Entries:
    """The data of a source's models by name, and of its fallback, each with its path below the source."""

    models: Mapping[str, tuple[tuple[str, ...], Mapping[str, Any]]]
    fallback: tuple[tuple[str, ...], Mapping[str, Any]] | None = None


def entries(options: MlOptions) -> Entries:
    found: dict[str, tuple[tuple[str, ...], Mapping[str, Any]]] = {
        name: (("models", name), data) for name, data in options.models.items()
    }
    if options.source is None:
        return Entries(found)
    fallback = None
    if options.base_url is not None and options.source.get("type", "http") != "http":
        beside = found.pop(DEFAULT_MODEL, None)
        fallback = beside or (("base_url",), {})
    found[DEFAULT_MODEL] = (("source",), options.source)
    return Entries(found, fallback)


def operation_of(model: str) -> str:
    return PREDICT if model == DEFAULT_MODEL else model
