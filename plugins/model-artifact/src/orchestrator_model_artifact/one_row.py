"""One row through an ONNX model on the event loop: a coroutine function written for the model when it is loaded.

The general way makes an array, lists and columns for N rows, in a dozen calls; for a quick model they are most of what
a row costs. Here the values are packed into a buffer that the session is bound to, and read from the buffers that it
writes, in one frame. That is safe because nothing is awaited in between and nobody but the event loop calls it.

Whatever is not as it should be (a feature that is missing or does not fit, a model that fails, a prediction that is
not finite) goes the general way, which says what is wrong: there is one place for each message.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from math import inf, isfinite, nan
from operator import itemgetter
from struct import Struct
from time import perf_counter
from typing import Any, TypeAlias

import numpy as np
from attrs import frozen

from orchestrator_core.plugin_api import JSON
from orchestrator_model_artifact.cost import LOOP_LIMIT_SECONDS, Cost
from orchestrator_model_artifact.features import Array, Row, Score
from orchestrator_model_artifact.fields import Fields
from orchestrator_model_artifact.onnx_flavor import OnnxModel

PredictOne: TypeAlias = Callable[[Row], Awaitable[JSON]]

_TYPECODES = {"float32": "f", "float64": "d", "int32": "i", "int64": "q"}
_PROVEN_ROWS = 20

_WATCHED = """\
async def predict_one(row):
    if cost.slowness <= quick:
        started = clock()
        try:
            values = {values}
            pack(buffer, 0, *values)
            if {fit}:
                run(binding, None)
                {cells}
                if {finite}:
                    seconds = clock() - started
                    if seconds > limit or cost.slowness > calm:
                        cost.observe(1, seconds)
                    return {result}
        except Exception:
            pass
    return await carefully(row)
"""
_UNWATCHED = """\
async def predict_one(row):
    try:
        values = {values}
        pack(buffer, 0, *values)
        if {fit}:
            run(binding, None)
            {cells}
            if {finite}:
                return {result}
    except Exception:
        pass
    return await carefully(row)
"""


@frozen
class OneRow:
    """The parts of the function: ``scope`` is what it refers to. One instance is for one event loop."""

    _parts: dict[str, str]
    _scope: dict[str, Any]

    def bind(self, carefully: PredictOne, cost: Cost | None = None) -> PredictOne:
        """Return the function. With ``cost`` it goes the careful way while a row is expected to take too long.

        While the expectation is low, only a call that takes too long is observed: it raises the expectation, and then
        every call is, until it is low again.
        """
        scope = {**self._scope, "carefully": carefully}
        if cost is not None:
            quick = cost.slowness_of(LOOP_LIMIT_SECONDS)
            scope |= {"cost": cost, "quick": quick, "calm": min(1.0, quick / 4), "clock": perf_counter}
        source = (_UNWATCHED if cost is None else _WATCHED).format(**self._parts)
        exec(compile(source, "<one row>", "exec"), scope)  # the source is ours
        # Without itself in its scope it is no cycle: the session goes when the model goes.
        predict_one: PredictOne = scope.pop("predict_one")
        return predict_one


def one_row(model: OnnxModel, fields: Fields, score: Score, sample: Sequence[Row]) -> OneRow | None:
    """Return the function for the model, proven on the sample, or None for a model that only the general way can run.

    That is one with text or sequences, or with outputs whose shape is not the same for each row.
    """
    layout = model.layout
    if layout is None:
        return None
    try:
        arrays = model.bind(fields.heads)(sample[:1])
    except Exception:  # a made-up row need not fit the model
        return None
    widths = [head.width or 1 for head in fields.heads]
    if any(
        array.dtype.name not in _TYPECODES or array.ndim > 2 or array.size != width
        for array, width in zip(arrays, widths, strict=True)
    ):
        return None
    outputs = [array(_TYPECODES[found.dtype.name], found.tobytes()) for found in arrays]
    buffer = bytearray(layout.size)
    try:
        session, binding = _bound(model, fields, buffer, outputs, arrays)
    except Exception:  # what is used of onnxruntime here is not all promised to stay
        return None
    used = fields.cells
    cells = {(head, cell): f"c{head}_{cell}" for head, cell in used}
    floats = [name for (head, _), name in cells.items() if outputs[head].typecode in "fd"]
    (first, *others) = layout.names
    candidate = OneRow(
        {
            "values": "get(row)" if others else f"(row[{first!r}],)",
            "fit": " and ".join(("isfinite(sum(values))", *layout.conditions)),
            "cells": "; ".join(f"{name} = out{head}[{cell}]" for (head, cell), name in cells.items()),
            "finite": f"isfinite({' + '.join(floats)})" if floats else "True",
            "result": fields.expression(cells),
        },
        {
            "get": itemgetter(*layout.names),
            "pack": Struct(layout.format).pack_into,
            "buffer": buffer,
            "run": session.run_with_iobinding,
            "binding": binding,
            "isfinite": isfinite,
            "bisect_left": bisect_left,
            "inf": inf,
            "nan": nan,
            "limit": LOOP_LIMIT_SECONDS,
            **{f"out{head}": output for head, output in enumerate(outputs)},
        },
    )
    return candidate if _is_proven(candidate, outputs, score, sample[:_PROVEN_ROWS]) else None


def _bound(
    model: OnnxModel, fields: Fields, buffer: bytearray, outputs: Sequence[array[Any]], arrays: Sequence[Array]
) -> tuple[Any, Any]:
    """Return the session and its binding to the buffers, both without the checks in Python around each call."""
    from onnxruntime import OrtValue

    assert model.layout is not None
    binding = model.session.io_binding()
    for node in model.layout.inputs:
        values = np.frombuffer(buffer, node.typecode, node.count, node.offset).reshape(node.shape)
        binding.bind_ortvalue_input(node.name, OrtValue.ortvalue_from_numpy(values))
    for head, output, found in zip(fields.heads, outputs, arrays, strict=True):
        values = np.frombuffer(output, output.typecode).reshape(found.shape)
        binding.bind_ortvalue_output(head.name, OrtValue.ortvalue_from_numpy(values))
    # InferenceSession and IOBinding hold what they wrap, and the buffers by way of the arrays.
    return model.session._sess, binding._iobinding


def _is_proven(candidate: OneRow, outputs: Sequence[array[Any]], score: Score, sample: Sequence[Row]) -> bool:
    """Return whether rows of the sample have results, and none another than the general way's."""

    async def nothing(_: Row) -> JSON:
        return None

    predict_one = candidate.bind(nothing)
    same = 0
    for row in sample:
        for output in outputs:
            output[:] = array(output.typecode, [77] * len(output))  # so that what is not written is seen
        quick = _result(predict_one(row))
        if quick is None:
            continue
        try:
            (general,) = score((row,))
        except Exception:  # then there must be no result
            return False
        if repr(quick) != repr(general):
            return False
        same += 1
    return same > 0


def _result(call: Awaitable[JSON]) -> JSON:
    assert isinstance(call, Coroutine)
    try:
        call.send(None)
    except StopIteration as end:
        result: JSON = end.value
        return result
    raise AssertionError("it awaits nothing")
