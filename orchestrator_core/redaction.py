"""What must not be kept of an execution's values: by the paths that lead to them, and wherever an error names them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeAlias

from attrs import frozen

from orchestrator_core.config.secrets import MASK, SHORTEST_MASKED, forms_of

__all__ = ["ANY", "Hiding", "Tree", "merged", "parse_path", "redacted", "tree_of"]

ANY = "*"

Tree: TypeAlias = "dict[str, Tree]"
"""What is redacted below a value, by the next part of each path. An empty one says: the value itself."""

MOST_VALUES = 1000
"""Of so many redacted values an error's message is searched for each; where there are more, it is not kept at all."""
SHORT, LONG, LONGEST = 6, 32, 1000
"""Characters of a value that is looked for as a whole word, by its beginning too, and by its beginning alone."""
BEGINNING = 24


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


def redacted(value: Any, tree: Tree | None) -> Any:
    """Return the value without what is redacted. In a list, a part that is no number holds for every item."""
    if tree is None:
        return value
    if not tree:
        return MASK
    if isinstance(value, Mapping):
        kept = dict(value)
        for part, below in tree.items():
            for key in kept if part == ANY else (part,):
                if key in kept:
                    kept[key] = redacted(kept[key], below)
        return kept
    if isinstance(value, list | tuple):
        return [_redacted_item(index, item, tree) for index, item in enumerate(value)]
    return value


def _redacted_item(index: int, item: Any, tree: Tree) -> Any:
    for part, below in tree.items():
        if part in (ANY, str(index)):
            item = redacted(item, below)
        elif not part.isdigit():
            item = redacted(item, {part: below})
    return item


def _removed(value: Any, tree: Tree) -> Iterator[str]:
    """Yield the texts and numbers that :func:`redacted` leaves out."""
    if not tree:
        yield from _leaves(value)
    elif isinstance(value, Mapping):
        for part, below in tree.items():
            for key in value if part == ANY else (part,):
                if key in value:
                    yield from _removed(value[key], below)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            for part, below in tree.items():
                if part in (ANY, str(index)):
                    yield from _removed(item, below)
                elif not part.isdigit():
                    yield from _removed(item, {part: below})


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
        yield str(value)


def _as_numbers(text: str) -> Iterator[str]:
    """Yield how a text is written that a schema makes a number."""
    for number in (int, float):
        with suppress(ValueError, OverflowError):
            yield str(number(text))


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
        if isinstance(value, str):
            return self(value)
        if isinstance(value, Mapping):
            return {key: self.data(item) for key, item in value.items()}
        return [self.data(item) for item in value] if isinstance(value, list | tuple) else value


@frozen
class _Hidden:
    """A value as messages write it: as a whole, or its beginning where it is long."""

    is_word: bool
    whole: tuple[str, ...]
    beginnings: tuple[str, ...]

    @classmethod
    def of(cls, value: str) -> _Hidden:
        whole = _forms(value) if len(value) <= LONGEST else ()
        return cls(len(value) < SHORT, whole, _forms(value[:BEGINNING]) if len(value) > LONG else ())

    def taken_out_of(self, text: str) -> str:
        for form in self.whole:
            if form in text:
                text = re.sub(_word(form), MASK, text) if self.is_word else text.replace(form, MASK)
        for form in self.beginnings:
            if (at := text.find(form)) >= 0:
                text = text[:at] + MASK
        return text


def _forms(text: str) -> tuple[str, ...]:
    return (text,) if len(text) < SHORTEST_MASKED or (text.isascii() and text.isalnum()) else forms_of([text])


def _word(form: str) -> str:
    return rf"(?<![^\W_]){re.escape(form)}(?![^\W_])"
