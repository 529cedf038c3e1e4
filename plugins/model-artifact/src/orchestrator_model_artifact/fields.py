"""From a model's raw predictions to the fields of the result, as plain JSON values."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from math import isfinite
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import orjson
from attrs import frozen

from orchestrator_core.plugin_api import JSON, SourceError, did_you_mean
from orchestrator_model_artifact.features import Array
from orchestrator_model_artifact.options import Output, Take


@frozen
class Head:
    """One array that a model predicts: ``[N]`` (``width`` None) or ``[N, width]``.

    ``name`` is an ONNX output, or the sklearn method. ``classes`` are those of the columns of probabilities, or
    ``None`` where the model does not name them.
    """

    name: str
    kind: Literal["value", "label", "probabilities"]
    width: int | None = None
    classes: tuple[JSON, ...] | None = None


_KINDS = {"label": ("label",), "value": ("value", "label"), "list": ("value", "label", "probabilities")}

TakeColumn: TypeAlias = Callable[[list[Any]], "list[Any]"]


@frozen
class Part:
    """A field of the result: of lists of a head's rows, and as an expression over the ``cells`` of one row."""

    column: TakeColumn
    cells: tuple[int, ...]
    write: Callable[[Sequence[str]], str]


@frozen
class Fields:
    """``names`` are the fields; :meth:`rows` needs the arrays of ``heads``, in that order."""

    names: tuple[str, ...]
    heads: tuple[Head, ...]
    _parts: tuple[tuple[int, Part], ...]

    def rows(self, arrays: Sequence[Array]) -> list[JSON]:
        """Return a result for each row. Raises :class:`SourceError` when a prediction is NaN or infinite."""
        lists = [array.tolist() for array in arrays]
        columns = [part.column(lists[head]) for head, part in self._parts]
        names = self.names
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """Return what of one row the result is made of: places in ``heads``, and in a head's row."""
        return list(dict.fromkeys((head, cell) for head, part in self._parts for cell in part.cells))

    def expression(self, cells: Mapping[tuple[int, int], str]) -> str:
        """Return the Python expression that is one row's result where the ``cells``, by these names, are finite.

        It knows ``bisect_left``, ``inf`` and ``nan``.
        """
        values = [part.write([cells[head, cell] for cell in part.cells]) for head, part in self._parts]
        return f"{{{', '.join(f'{name!r}: {value}' for name, value in zip(self.names, values, strict=True))}}}"


def plan_fields(
    outputs: Mapping[str, Take | Output] | None, heads: Sequence[Head], named: Sequence[str] = ()
) -> Fields:
    """Match the ``outputs`` option with what the model predicts.

    Without the option the fields are those that the model's signature names (``named``), or else what
    :func:`default_outputs` says. Raises :class:`SourceError` for an output that the model does not have.
    """
    if outputs is None:
        outputs = _outputs_by_signature(heads, named) or default_outputs(heads)
    used: list[Head] = []
    parts = []
    for name, output in outputs.items():
        head, part = _take(name, Output(take=output) if isinstance(output, str) else output, heads)
        if head not in used:
            used.append(head)
        parts.append((used.index(head), part))
    return Fields(tuple(outputs), tuple(used), tuple(parts))


def default_outputs(heads: Sequence[Head]) -> dict[str, Take | Output]:
    """Return the fields of a model about which nothing was said.

    A classifier gives ``label``, ``probability`` (of the second of two classes) and ``probabilities``; another model
    ``value``, a number or a list; an ONNX model with several other outputs a field for each.
    """
    found: dict[str, Take | Output] = {}
    for head in heads:
        if head.kind == "label":
            found["label"] = "label"
        elif head.kind == "probabilities":
            found |= {"probability": "probability"} if head.width == 2 else {}
            found["probabilities"] = "probabilities"
    values = [head for head in heads if head.kind == "value"]
    if len(values) == 1:
        return {**found, "value": Output(output=values[0].name)}
    return {**found, **{head.name: Output(output=head.name) for head in values}}


def _outputs_by_signature(heads: Sequence[Head], named: Sequence[str]) -> dict[str, Take | Output]:
    by_name = {head.name for head in heads}
    if named and set(named) <= by_name:
        return {name: Output(output=name) for name in named}
    first = heads[0]
    if len(named) == 1 and (first.width or 1) == 1:
        return {named[0]: Output(output=first.name)}
    if named and len(named) == first.width:
        return {name: Output(output=first.name, index=index) for index, name in enumerate(named)}
    return {}


def _take(name: str, output: Output, heads: Sequence[Head]) -> tuple[Head, Part]:
    head, part = _untiered(name, output, heads)
    if output.tiers is None:
        return head, part
    words, bounds = tuple(output.tiers), tuple(output.tiers.values())[:-1]
    return head, Part(
        lambda values: [words[bisect_left(bounds, value)] for value in part.column(values)],
        part.cells,
        lambda cells: f"{words!r}[bisect_left({bounds!r}, {part.write(cells)})]",
    )


def _untiered(name: str, output: Output, heads: Sequence[Head]) -> tuple[Head, Part]:
    if output.output is not None:
        return _by_output(name, output, heads)
    of_probabilities = next((head for head in heads if head.kind == "probabilities"), None)
    take = output.take or ("probability" if of_probabilities or output.label is not None else "value")
    if take in ("probability", "probabilities"):
        if of_probabilities is None:
            raise _no_such(name, take, "the model predicts no probabilities", heads)
        if take == "probabilities":
            return of_probabilities, _every_class(name, of_probabilities)
        return of_probabilities, _item(name, _class_index(name, output, of_probabilities))
    head = next((head for kind in _KINDS[take] for head in heads if head.kind == kind), None)
    if head is None:
        raise _no_such(name, take, f"the model predicts no {take}", heads)
    if take == "list":
        return head, _list(name, head)
    return head, _scalar(name, head, f"outputs.{name}: {take}")


def _by_output(name: str, output: Output, heads: Sequence[Head]) -> tuple[Head, Part]:
    by_name = {head.name: head for head in heads}
    if output.output not in by_name:
        hint = did_you_mean(str(output.output), by_name)
        raise SourceError(f"outputs.{name}: the model has no output '{output.output}'{': ' if hint else ''}{hint}")
    head = by_name[output.output]
    if output.index is not None:
        if not 0 <= output.index < (head.width or 1):
            raise SourceError(
                f"outputs.{name}: '{head.name}' has {head.width or 1} columns, counted from 0: {output.index} is none"
            )
        return head, _scalar(name, head, "") if head.width is None else _item(name, output.index)
    if output.tiers or (head.width or 1) == 1:
        return head, _scalar(name, head, f"outputs.{name}")
    return head, _list(name, head)


def _class_index(name: str, output: Output, head: Head) -> int:
    if output.label is None:
        if head.width in (1, 2):
            return head.width - 1
        raise SourceError(
            f"outputs.{name}: the model has {head.width} classes: say which one with {{take: probability, label: …}}"
        )
    if head.classes is None:
        raise SourceError(
            f"outputs.{name}: the model does not name its classes:"
            f" write {{output: {head.name}, index: …}} with the class's place"
        )
    for index, known in enumerate(head.classes):
        if known == output.label and isinstance(known, bool) == isinstance(output.label, bool):
            return index
    shown = ", ".join(_key(known) for known in head.classes)
    raise SourceError(f"outputs.{name}: the model has no class {output.label!r}: it has {shown}")


def _no_such(name: str, take: str, why: str, heads: Sequence[Head]) -> SourceError:
    has = ", ".join(f"'{head.name}'" for head in heads)
    return SourceError(f"outputs.{name}: {take}: {why}, it has {has}")


def _key(label: JSON) -> str:
    return label if isinstance(label, str) else orjson.dumps(label).decode()


# --- what runs for each prediction: lists of one head's values to lists of one field's -----------------------------


def _scalar(name: str, head: Head, where: str) -> Part:
    if head.width is None:
        return Part(lambda values: _finite(name, values), (0,), itemgetter(0))
    if head.width == 1:
        return _item(name, 0)
    raise SourceError(f"{where}: '{head.name}' has {head.width} numbers a row: use list, or output with index")


def _item(name: str, index: int) -> Part:
    return Part(lambda rows: _finite(name, [row[index] for row in rows]), (index,), itemgetter(0))


def _list(name: str, head: Head) -> Part:
    def take(rows: list[Any]) -> list[Any]:
        return [_finite_list(name, row if isinstance(row, list) else [row]) for row in rows]

    return Part(take, tuple(range(head.width or 1)), lambda cells: f"[{', '.join(cells)}]")


def _every_class(name: str, head: Head) -> Part:
    if head.classes is None:
        return _list(name, head)
    keys = [_key(label) for label in head.classes]

    def take(rows: list[Any]) -> list[Any]:
        return [dict(zip(keys, _finite(name, row), strict=True)) for row in rows]

    def write(cells: Sequence[str]) -> str:
        return f"{{{', '.join(f'{key!r}: {cell}' for key, cell in zip(keys, cells, strict=True))}}}"

    return Part(take, tuple(range(len(keys))), write)


def _finite(name: str, values: list[Any]) -> list[Any]:
    for value in values:
        if value.__class__ is float and not isfinite(value):
            raise _not_finite(name)
    return values


def _finite_list(name: str, values: list[Any]) -> list[Any]:
    for value in values:
        if isinstance(value, list):
            _finite_list(name, value)
    return _finite(name, values)


def _not_finite(name: str) -> SourceError:
    return SourceError(f"the model predicted a number for '{name}' that is not finite")
