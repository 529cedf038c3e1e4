"""The entry point: the transformers."""

from __future__ import annotations

from typing import Any

from orchestrator_core.plugin_api import TransformerKind, hookimpl
from orchestrator_transform_standard.categories import CastType, MapField, OneHotField, cast, map_values, one_hot
from orchestrator_transform_standard.compute import compute
from orchestrator_transform_standard.fields import FieldsOptions, FlattenOptions, default, drop, flatten, rename, select
from orchestrator_transform_standard.numbers import BucketField, ScaleField, bucket, round_numbers, scale
from orchestrator_transform_standard.query import JmespathOptions, jmespath_query

TRANSFORMERS: tuple[TransformerKind[Any], ...] = (
    TransformerKind("rename", "Gives fields other names.", dict[str, str], rename),
    TransformerKind("select", "Keeps the named fields, in that order.", tuple[str, ...] | FieldsOptions, select),
    TransformerKind("drop", "Takes the named fields away.", tuple[str, ...] | FieldsOptions, drop),
    TransformerKind("cast", "Converts fields to another type.", dict[str, CastType], cast),
    TransformerKind("default", "Fills fields that are missing or null.", dict[str, Any], default),
    TransformerKind("scale", "Scales numbers.", dict[str, ScaleField], scale),
    TransformerKind("bucket", "Replaces numbers by the range they fall into.", dict[str, BucketField], bucket),
    TransformerKind("one_hot", "Makes a field of zeros and ones for each category.", dict[str, OneHotField], one_hot),
    TransformerKind("map_values", "Replaces values by others.", dict[str, MapField], map_values),
    TransformerKind("flatten", "Moves the fields of nested objects to the top.", FlattenOptions, flatten),
    TransformerKind("compute", "Sets fields to the values of expressions.", dict[str, Any], compute),
    TransformerKind("round", "Rounds numbers.", int | dict[str, int], round_numbers),
    TransformerKind(
        "jmespath", "Replaces the value by what a JMESPath expression finds.", str | JmespathOptions, jmespath_query
    ),
)


@hookimpl
def orchestrator_transformers() -> tuple[TransformerKind[Any], ...]:
    return TRANSFORMERS
