"""What must not be kept of an execution's values: by the paths that lead to them, and wherever an error names them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import chain, islice
from typing import Any, TypeAlias

import orjson
from attrs import frozen

from orchestrator_core.config.model import REQUEST_PARTS, Configuration
from orchestrator_core.config.secrets import with_texts
from orchestrator_core.config.spellings import MASK, Spellings
from orchestrator_core.errors import Problem, did_you_mean

__all__ = ["ANY", "Elsewhere", "Hiding", "Tree", "check_redacted", "merged", "parse_path", "redacted", "tree_of"]

ANY = "*"
CALL_PARTS = ("params", "result", "error")

Tree: TypeAlias = "dict[str, Tree]"
"""What is redacted below a value, by the next part of each path. An empty one says: the value itself."""

MOST_VALUES = 1000
"""Of so many redacted values an error's message is searched for each; where there are more, it is not kept at all."""
SHORT, LONG, LONGEST = 6, 32, 1000
"""Characters of a value that is looked for as a whole word, by its beginning too, and by its beginning alone."""
BEGINNING = 24
FEW = 50
"""Of so many redacted values a document is searched for each before anybody looks at its values one by one."""


def check_redacted(configuration: Configuration) -> Iterator[Problem]:
    """Yield a problem for each path of ``tracking.redact`` that leads nowhere: what it was meant for would be kept.

    A step, or its parameter, has to be one of some endpoint; what is in a body, a result or an answer is not known.
    """
    located = configuration.app_located
    params = None if configuration.incomplete else _params_by_step(configuration)
    for index, path in enumerate(configuration.app.tracking.redact):
        if located is not None and (found := _nowhere(path, params)):
            code, message, part, hint = found
            yield located.problem(code, message, "tracking", "redact", index, near=part, hint=hint)


_Params: TypeAlias = "dict[str, set[str] | None]"
"""The parameters of steps by the step's name; None where they are not known."""


def _params_by_step(configuration: Configuration) -> _Params:
    params: _Params = {}
    for endpoint in configuration.endpoints:
        for step in endpoint.steps:
            known = params.setdefault(step.config.name, set())
            if known is not None:
                known.update(step.config.params)
        params |= dict.fromkeys(endpoint.unreadable_names)
    return params


def _nowhere(path: str, params: _Params | None) -> tuple[str, str, str, str] | None:
    """Return the code, the message, the part that is to blame and the hint of a path that leads nowhere."""
    root, *rest = path.split(".")
    if root not in ("request", "steps", "answer") or not all(rest):
        hint = "expected such as request.body.ssn, steps.*.params.token or answer.name"
        return "ORC204", f"'{path}' is no path of captured values", "", hint
    if root == "request" and rest and rest[0] not in (ANY, *REQUEST_PARTS):
        return "ORC503", f"there is no part '{rest[0]}' of a request", rest[0], did_you_mean(rest[0], REQUEST_PARTS)
    if root != "steps" or not rest:
        return None
    name, *below = rest
    if below and below[0] not in (ANY, *CALL_PARTS):
        return "ORC204", f"there is no part '{below[0]}' of a call", below[0], did_you_mean(below[0], CALL_PARTS)
    if not params or name == ANY:
        return None
    if name not in params:
        return "ORC502", f"there is no step '{name}'", name, did_you_mean(name, params)
    known = params[name]
    if known is not None and below[:1] == ["params"] and below[1:] and below[1] not in (ANY, *known):
        return "ORC407", f"the step '{name}' has no parameter '{below[1]}'", below[1], did_you_mean(below[1], known)
    return None


def parse_path(path: str) -> list[str]:
    """Return the parts of a path such as ``request.body.ssn`` or ``steps.*.params.token``."""
    parts = path.split(".")
    return [part.lower() for part in parts] if parts[:2] == ["request", "headers"] else parts


def tree_of(paths: Iterable[str]) -> Tree:
    tree: Tree = {}
    for path in paths:
        _add(tree, parse_path(path))
    return tree


def _add(tree: Tree, parts: Sequence[str]) -> None:
    for part in parts[:-1]:
        if part in tree and not tree[part]:
            return  # more than that is redacted already
        tree = tree.setdefault(part, {})
    tree[parts[-1]] = {}


def merged(trees: Sequence[Tree]) -> Tree | None:
    """Return what is redacted by any of them."""
    if not trees:
        return None
    if not all(trees):
        return {}
    keys = dict.fromkeys(key for tree in trees for key in tree)
    return {key: merged([tree[key] for tree in trees if key in tree]) or {} for key in keys}


def redacted(value: Any, tree: Tree | None, left_out: Callable[[Any], object] = lambda value: None) -> Any:
    """Return the value without what is redacted, of which ``left_out`` is told.

    In a list, a part that is no number holds for every item.
    """
    if tree is None:
        return value
    if not tree:
        left_out(value)
        return MASK
    if isinstance(value, Mapping):
        kept = dict(value)
        for part, below in tree.items():
            for key in kept if part == ANY else (part,):
                if key in kept:
                    kept[key] = redacted(kept[key], below, left_out)
        return kept
    if isinstance(value, list | tuple):
        return [_redacted_item(index, item, tree, left_out) for index, item in enumerate(value)]
    return value


def _redacted_item(index: int, item: Any, tree: Tree, left_out: Callable[[Any], object]) -> Any:
    for part, below in tree.items():
        if part in (ANY, str(index)):
            item = redacted(item, below, left_out)
        if not part.isdigit():  # where any is meant, that may be the item or what it has
            item = redacted(item, {part: below}, left_out)
    return item


def _removed(value: Any, tree: Tree) -> Iterator[str]:
    """Return the texts and numbers that :func:`redacted` leaves out."""
    left_out: list[Any] = []
    redacted(value, tree, left_out.append)
    return chain.from_iterable(map(_leaves, left_out))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value.encode("utf-8", "replace").decode()
        if len(value) < BEGINNING:
            yield from _as_numbers(value)
    elif value is not None and not isinstance(value, bool):
        yield from _as_written(value)


def _as_numbers(text: str) -> Iterator[str]:
    """Yield how a text is written that a schema makes a number."""
    for number in (int, float):
        with suppress(ValueError, OverflowError):
            yield from _as_written(number(text))


def _as_written(number: Any) -> Iterator[str]:
    """Yield how Python writes a number, and JSON, where a small one is ``0.0000123`` and not ``1.23e-05``."""
    yield str(number)
    if isinstance(number, float) and math.isfinite(number):
        yield orjson.dumps(number).decode()


class Hiding:
    """Takes what is redacted of a value out of the messages of errors, which may name it.

    ``value`` makes the value when it is needed. What is redacted is found as text, JSON, Python and URLs write it: a
    short one as a word, of a long one the beginning too, as messages can be cut. What was made of a value, such as its
    half or its hash, is not.
    """

    def __init__(self, value: Callable[[], Any], tree: Tree) -> None:
        self._value = value
        self._tree = tree
        self._hidden: list[_Hidden] | None = None

    def __call__(self, text: str) -> str:
        if not text:
            return text
        if self._hidden is None:
            found = dict.fromkeys(islice(filter(None, _removed(self._value(), self._tree)), MOST_VALUES + 1))
            self._hidden = [_Hidden.of(value) for value in sorted(found, key=len, reverse=True)]
        if len(self._hidden) > MOST_VALUES:
            return MASK
        for hidden in self._hidden:
            text = hidden.taken_out_of(text)
        return text

    def data(self, value: Any) -> Any:
        """Return JSON data with every string in it treated so."""
        return with_texts(value, self)


class Elsewhere:
    """Takes what was left out of a request out of other data that has it as it is, such as a parameter.

    Short values stay, as they may be there for any other reason.
    """

    def __init__(self, left_out: Sequence[Any]) -> None:
        self._values = frozenset(text for value in left_out for text in _texts(value) if len(text) >= SHORT)

    def may_be_in(self, text: str) -> bool:
        """Return False where none is in a JSON text, without looking closely."""
        few = len(self._values) <= FEW
        return any(orjson.dumps(value)[1:-1].decode() in text for value in self._values) if few else True

    def data(self, value: Any) -> Any:
        """Return JSON data without them."""
        if isinstance(value, Mapping):
            return {self.data(key): self.data(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        is_one = value is not None and not isinstance(value, bool) and str(value) in self._values
        return MASK if is_one else value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value if value.isascii() else value.encode("utf-8", "replace").decode()
    elif isinstance(value, Mapping):
        yield from chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from chain.from_iterable(map(_texts, value))
    elif value is not None and not isinstance(value, bool):
        yield from _as_written(value)


@frozen
class _Hidden:
    """A value as messages write it: a short one as a word, of a long one the beginning too."""

    word: re.Pattern[str] | None
    whole: Spellings | None
    beginning: Spellings | None

    @classmethod
    def of(cls, value: str) -> _Hidden:
        short = len(value) < SHORT
        return cls(
            re.compile(_word(value)) if short else None,
            Spellings.of([value]) if len(value) <= LONGEST and not (short and value.isalnum()) else None,
            Spellings.of([value[:BEGINNING]]) if len(value) > LONG else None,
        )

    def taken_out_of(self, text: str) -> str:
        if self.word is not None:
            text = self.word.sub(MASK, text)
        if self.whole is not None:
            text = self.whole.mask(text)
        if self.beginning is not None and (masked := self.beginning.mask(text)) != text:
            text = masked[: masked.index(MASK)] + MASK
        return text


def _word(form: str) -> str:
    return rf"(?<![^\W_]){re.escape(form)}(?![^\W_])"
