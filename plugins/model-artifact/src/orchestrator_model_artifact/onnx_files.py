"""Which other files an ONNX model keeps weights in, read from its bytes without the onnx package.

An ONNX file is a protobuf message (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). A tensor whose data lies
elsewhere has entries of ``external_data``, of which ``location`` is the file. onnxruntime would open whatever is named
there, so the names are looked at before it is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator_core.plugin_api import SourceError

# The fields through which a message leads to a tensor: its field number to the fields of what lies there.
_TENSOR: dict[int, Any] = {}
_SPARSE: dict[int, Any] = {1: _TENSOR, 2: _TENSOR}
_GRAPH: dict[int, Any] = {5: _TENSOR, 15: _SPARSE}
_ATTRIBUTE: dict[int, Any] = {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE}
_NODE: dict[int, Any] = {5: _ATTRIBUTE}
_GRAPH[1] = _NODE
_MODEL: dict[int, Any] = {7: _GRAPH, 20: {1: _GRAPH, 2: _GRAPH}, 25: {7: _NODE, 11: _ATTRIBUTE}}
_EXTERNAL_DATA = 13
_KEY, _VALUE = 1, 2
_MOST_DEPTH = 64


def external_files(data: bytes) -> list[str]:
    """Return the names of the files, as the model writes them. Raises :class:`SourceError` when it is no protobuf."""
    if b"location" not in data:  # the key of such an entry: most models have none, and are not walked
        return []
    try:
        return sorted(set(_locations(memoryview(data), _MODEL, 0)))
    except (IndexError, UnicodeDecodeError, RecursionError) as error:
        raise SourceError("the file is not ONNX: its fields do not fit together") from error


def _locations(message: memoryview, fields: Mapping[int, Any], depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise RecursionError
    for number, value in _walk(message):
        if number in fields:
            yield from _locations(value, fields[number], depth + 1)
        elif fields is _TENSOR and number == _EXTERNAL_DATA:
            entry = dict(_walk(value))
            if bytes(entry.get(_KEY, b"")) == b"location":
                yield bytes(entry.get(_VALUE, b"")).decode("utf-8")


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield the number and content of each field that has a length; the others hold numbers only."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(message, at)
        elif kind == 2:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise IndexError
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise IndexError


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError
