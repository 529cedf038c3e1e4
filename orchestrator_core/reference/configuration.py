"""The page of what the core itself reads in each file."""

from __future__ import annotations

import re
from typing import Any

from orchestrator_core.config.model import (
    AdminOptions,
    AppConfig,
    DomainFile,
    EndpointConfig,
    LimitOptions,
    LoggingOptions,
    ReloadOptions,
    ServerOptions,
    StepConfig,
    StepTransforms,
    TrackingOptions,
)
from orchestrator_core.models import BatchOptions, CommonOptions, HealthOptions, MlOptions, RestartOptions
from orchestrator_core.policies.options import (
    BreakerOptions,
    CacheOptions,
    ConcurrencyOptions,
    DefaultPolicies,
    PolicyOptions,
    RetryOptions,
    SharedCacheOptions,
)
from orchestrator_core.reference.tables import options_reference, summary

_CLASSES = {
    cls.__name__: cls
    for cls in (
        AppConfig,
        ServerOptions,
        LimitOptions,
        AdminOptions,
        TrackingOptions,
        ReloadOptions,
        LoggingOptions,
        SharedCacheOptions,
        DefaultPolicies,
        PolicyOptions,
        RetryOptions,
        BreakerOptions,
        ConcurrencyOptions,
        CacheOptions,
        MlOptions,
        CommonOptions,
        BatchOptions,
        HealthOptions,
        RestartOptions,
        DomainFile,
        EndpointConfig,
        StepConfig,
        StepTransforms,
    )
}

_PAGE = """\
# Configuration reference

This page is written from the classes that parse the files: `python -m orchestrator_core.reference`.
`orchestrator schema` prints the same as JSON Schema, installed plugins included. [Every page of the
reference](README.md) lists the options of source types, model types and transformers.

An unknown key is an error, and so is a value of another type: numbers are never made from strings, nor strings from
numbers. A *duration* is a number of seconds, or a number with a unit, such as `250ms`, `5s`, `2m` or `1h`. A *size* is
a number of bytes, or `64KiB`, `1MiB`, `2GiB`. In `config.yaml`, `database.yaml` and integrations, `${env:NAME}`,
`${env:NAME:-default}` and `${file:PATH}` can stand in any string.

## `config.yaml`

[[AppConfig]]

Every other key of this file is a source type's section, as in `database.yaml` and `integrations/*.yaml`.

### `server`

[[ServerOptions]]

### `server.limit`

[[LimitOptions]]

[When there is too much](../overload.md) tells what is refused when.

### `admin`

[[AdminOptions]]

### `tracking`

[[TrackingOptions]]

### `reload`

[[ReloadOptions]]

### `logging`

[[LoggingOptions]]

### `cache`

[[SharedCacheOptions]]

### `policies`

[[DefaultPolicies]]

## Sections of source types

`database.yaml` and `integrations/*.yaml` hold sections, one for each source type: `<type>.sources.<source_id>` are its
sources, each with the options and `operations` that its plugin describes, and `<type>.operations` are shared by all of
them. A source's own operation wins. The folder `domains/<domain>/` can hold the same files for one domain; they win
over the global ones.

### Policies of a source

[[PolicyOptions]]

[Policies](../policies.md) tells what each does. They stand beside the options of `<type>.sources.<source_id>`, or of
one model; `retry`, `circuit_breaker`, `concurrency` and `cache` on a step too, where they win. `false` switches one
off.

### `retry`

[[RetryOptions]]

### `circuit_breaker`

[[BreakerOptions]]

### `concurrency`

[[ConcurrencyOptions]]

### `cache` of a source, a step or an endpoint

[[CacheOptions]]

### A source of models: `ml.sources.<source_id>`

[[MlOptions]]

### A model: `source` or `models.<name>`

[[CommonOptions]]

### `batch`

[[BatchOptions]]

### `health_check`

[[HealthOptions]]

### `restart`

[[RestartOptions]]

## `domains/<domain>.yaml`

[[DomainFile]]

### An endpoint: `endpoints.<name>`

[[EndpointConfig]]

### A step: an entry of `data_sources`

[[StepConfig]]

### The long form of a step's `transform`

[[StepTransforms]]
"""


def configuration_page() -> str:
    """Return the Markdown of ``docs/reference/configuration.md``."""
    return re.sub(r"\[\[(\w+)\]\]", lambda found: _section(_CLASSES[found[1]]), _PAGE)


def _section(cls: type[Any]) -> str:
    return f"{summary(cls)}\n\n{options_reference(cls)}"
