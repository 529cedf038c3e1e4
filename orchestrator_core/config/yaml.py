"""YAML 1.2 with nothing surprising in it, and with the place of every key and value.

The stock loader accepts duplicate keys, makes ``no`` false, ``12:30`` 750 and ``010`` 8. This one reads PyYAML's
events and builds the data itself: plain scalars follow the YAML 1.2 core schema, keys are always strings, and what
the configuration does not need (tags, merge keys, aliases that multiply) is a problem with a position.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import yaml
from attrs import evolve, field, frozen

from orchestrator_core.config.spellings import MASK
from orchestrator_core.config.written_out import (
    after_properties,
    defaults_in,
    is_no_secret,
    names_a_secret,
    passwords_written_out,
    secrets_in,
)
from orchestrator_core.errors import Problem

SHORTAGES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Why a file could not be read that may be read a moment later."""

LONGEST_FILE = 16 * 2**20
"""So many bytes a file may have: parsing takes many times its size."""

DataPath = tuple[str | int, ...]

MAX_DEPTH = 64
MAX_ALIASED_NODES = 10_000
LONGEST_INTEGER = 40
"""So many letters an integer may have; what it may be where it stands is looked at there."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_NOT_FINITE = re.compile(r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))\Z")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_LINE_END = re.compile("\r\n|[\r\n\x85\u2028\u2029]")
"""Where YAML has a line end."""
_Parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@frozen
class Mark:
    """Where something starts and ends; lines and columns count from 1."""

    line: int
    column: int
    end_line: int
    end_column: int


@frozen
class Document:
    """One configuration file: its data, and where each key and value of it stands.

    ``name`` is the path relative to the configuration folder, with forward slashes.
    """

    name: str
    text: str = field(repr=False)
    data: Any = field(default=None, repr=False)
    values: dict[DataPath, Mark] = field(factory=dict, repr=False)
    keys: dict[DataPath, Mark] = field(factory=dict, repr=False)
    problems: tuple[Problem, ...] = ()

    def problem(
        self,
        code: str,
        message: str,
        path: DataPath = (),
        *,
        at_key: bool = False,
        hint: str = "",
        offset: int = 0,
        length: int | None = None,
        near: str = "",
    ) -> Problem:
        """Return a problem at the value (or key) at ``path``, or at the nearest enclosing thing that has a place.

        ``offset`` and ``length`` select a part of a scalar that stands on one line; ``near`` a word in its text.
        """
        mark = self._mark(path, at_key=at_key)
        line, column = mark.line, mark.column
        size = mark.end_column - mark.column if mark.end_line == mark.line else 1
        is_part = offset > 0 or length is not None
        if near and not (is_part and mark.end_line == mark.line) and (found := self._find(near, mark)):
            line, column = found
            size = len(near)
        elif is_part:
            line, column = self._inside(mark, offset)
            size = 1 if length is None else length
        source_line = self.shown_line(line)
        return Problem(
            file=self.name,
            line=line,
            column=column,
            code=code,
            message=message,
            path=format_path(path),
            hint=hint,
            source_line=source_line,
            length=max(1, min(size, len(source_line) - column + 1)),
        )

    def line(self, number: int) -> str:
        lines = self.text.splitlines()
        return lines[number - 1] if 0 < number <= len(lines) else ""

    def shown_line(self, number: int) -> str:
        """Return a line with its secrets as asterisks, as many as they have letters: a caret is drawn below it."""
        line = self.line(number)
        for start, end in secrets_in(line):
            line = line[:start] + "*" * (end - start) + line[end:]
        return line

    def shown_text(self) -> str:
        """Return the text with its secrets masked: YAML of the same structure."""
        ends = (end.end() for end in _LINE_END.finditer(self.text))
        starts = [0, *ends, len(self.text)]  # to the parser the end is on the next line
        spans = [(start, end, MASK) for start, end in passwords_written_out(self.text)]
        for path, mark in self.values.items():
            key = next((part for part in reversed(path) if isinstance(part, str)), "")
            if names_a_secret(key) and not isinstance(self._at(path), dict | list):
                start = starts[mark.line - 1] + mark.column - 1
                end = starts[mark.end_line - 1] + mark.end_column - 1
                start += after_properties(self.text[start:end])
                written = self.text[start:end].rstrip()  # of a block the line end is the next thing's
                if is_no_secret(written):
                    spans += [(*span, MASK) for span in defaults_in(self.text, start, start + len(written))]
                else:
                    spans.append((start, start + len(written), f'"{MASK}"'))
        shown, since = [], 0
        for start, end, mask in sorted(spans, key=lambda span: (span[0], -span[1])):
            if start >= since:
                shown += [self.text[since:start], mask]
                since = end
        return "".join([*shown, self.text[since:]])

    def _at(self, path: DataPath) -> Any:
        value = self.data
        for part in path:
            try:
                value = value[part]
            except (LookupError, TypeError):  # another key of the same name, such as one that is merged
                return None
        return value

    def _mark(self, path: DataPath, *, at_key: bool) -> Mark:
        while True:
            first, second = (self.keys, self.values) if at_key else (self.values, self.keys)
            mark = first.get(path) or second.get(path)
            if mark or not path:
                return mark or Mark(1, 1, 1, 1)
            path, at_key = path[:-1], True

    def _inside(self, mark: Mark, offset: int) -> tuple[int, int]:
        """Return the place of a character of a scalar. Exact for scalars on one line; else the scalar's start."""
        if mark.end_line != mark.line:
            return mark.line, mark.column
        quoted = self.line(mark.line)[mark.column - 1 : mark.column] in ("'", '"')
        return mark.line, mark.column + offset + quoted

    def _find(self, word: str, mark: Mark) -> tuple[int, int] | None:
        pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
        for number in range(mark.line, mark.end_line + 1):
            start = mark.column - 1 if number == mark.line else 0
            if match := pattern.search(self.line(number), start):
                return number, match.start() + 1
        return None


def format_path(path: DataPath) -> str:
    """Return ``endpoints.predict.data_sources[0].type``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def fit_to_read(path: Path) -> Path:
    """Return the path of a file that can be read to its end.

    Raises ``OSError`` for what might never end, such as a pipe: nothing could stop the thread that reads it.
    """
    status = path.stat()
    if not S_ISREG(status.st_mode) and not S_ISDIR(status.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe, a socket or a device, and not a file")
    if S_ISREG(status.st_mode) and status.st_size > LONGEST_FILE:
        raise OSError(errno.EFBIG, f"it has more than {LONGEST_FILE // 2**20} MiB")
    return path


def load_document(path: Path, name: str) -> Document:
    """Read one file. What is wrong with it is in the document's problems; data that could not be read is None.

    Raises ``OSError`` when the system is short of something for the moment, which tells nothing about the file.
    """
    try:
        raw = fit_to_read(path).read_bytes()
    except OSError as error:
        if error.errno in SHORTAGES:
            raise
        return Document(name, "", problems=(Problem(name, code="ORC101", message=f"cannot read: {error.strerror}"),))
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        message = f"not UTF-8: byte 0x{raw[error.start]:02x}"
        return Document(name, "", problems=(Problem(name, line, 1, "ORC101", message),))
    document = parse_document(text, name)
    if text and not text.isspace():
        return document
    hint = "it may be half-written; a file that is to say nothing holds {} or a comment"
    return evolve(document, problems=(Problem(name, code="ORC113", message="the file is empty", hint=hint),))


def parse_document(text: str, name: str) -> Document:
    """Parse the text of one file."""
    document = Document(name, text)
    builder = _Builder(document)
    try:
        builder.read(yaml.parse(text, Loader=_Parser))
    except yaml.MarkedYAMLError as error:
        builder.problems.append(_syntax_problem(document, error))
    except yaml.reader.ReaderError as error:
        code = ord(error.character) if isinstance(error.character, str) else error.character
        builder.problems.append(_unfit_character(document, error.position, code))
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no file can hold
        builder.problems.append(_unfit_character(document, error.start, ord(text[error.start])))
    except _TooMuch:
        pass
    failed = any(problem.code == "ORC102" for problem in builder.problems)
    data = None if failed else builder.root
    return Document(name, text, data, document.values, document.keys, tuple(builder.problems))


def _unfit_character(document: Document, position: int, code: int) -> Problem:
    line = document.text[:position].count("\n") + 1
    message = f"character U+{code:04X} is not allowed in YAML"
    return Problem(document.name, line, 1, "ORC102", message, source_line=document.shown_line(line))


def _syntax_problem(document: Document, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    source_line = document.shown_line(line)
    hint = ""
    if not source_line.strip() and error.context_mark:  # noticed where nothing stands: show where it started
        line, column = error.context_mark.line + 1, error.context_mark.column + 1
        source_line, hint = document.shown_line(line), error.context or ""
    if "\t" in source_line[: len(source_line) - len(source_line.lstrip())]:
        hint = "indent with spaces: YAML does not allow tabs there"
    elif quoting := _quoting_hint(error.problem or "", source_line, column):
        hint = quoting
    elif error.context and error.context_mark and error.context_mark.line + 1 != line:
        hint = f"{error.context}, which starts at line {error.context_mark.line + 1}"
    return Problem(
        file=document.name,
        line=line,
        column=min(column, len(source_line) + 1),
        code="ORC102",
        message=f"not valid YAML: {error.problem or error.context}",
        hint=hint,
        source_line=source_line,
    )


def _quoting_hint(message: str, line: str, column: int) -> str:
    """Return how to write a text that YAML takes for something else."""
    before, here = line[: column - 1], line[column - 1 : column]
    if message == "mapping values are not allowed in this context":
        if ": " in before:
            return "quote a text that has ': ' in it"
        return "the line above lacks ': ' behind its key, or this line is indented too far"
    if message == "found character that cannot start any token":
        return f"quote a text that starts with {here}"
    if here == "{" and before.endswith("$"):
        return "quote a text that has ${…} in it"
    return ""


class _TooMuch(Exception):
    """The document is not worth reading on."""


class _Container:
    """A mapping or list under construction. ``key`` is the mapping's key that waits for its value."""

    def __init__(self, data: dict[str, Any] | list[Any], path: DataPath, start: Any, anchor: str | None) -> None:
        self.data = data
        self.path = path
        self.start = start
        self.anchor = anchor
        self.key: str | None = None
        self.merging = False
        self.merged: list[dict[str, Any]] = []


class _Builder:
    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.root: Any = None
        self.stack: list[_Container] = []
        self.anchors: dict[str, Any] = {}
        self.aliased = 0
        self.documents = 0

    def read(self, events: Iterator[Any]) -> None:
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self.scalar(event)
            elif isinstance(event, yaml.MappingStartEvent):
                self.open({}, event)
            elif isinstance(event, yaml.SequenceStartEvent):
                self.open([], event)
            elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
                self.close(event)
            elif isinstance(event, yaml.AliasEvent):
                self.alias(event)
            elif isinstance(event, yaml.DocumentStartEvent):
                self.documents += 1
                if self.documents == 2:
                    self.report("ORC103", "a second document in one file", event, hint="one file holds one document")
                    raise _TooMuch

    def report(self, code: str, message: str, event: Any, hint: str = "") -> None:
        start, end = event.start_mark, event.end_mark
        length = end.column - start.column if end.line == start.line else 1
        self.problems.append(
            Problem(
                file=self.document.name,
                line=start.line + 1,
                column=start.column + 1,
                code=code,
                message=message,
                path=format_path(self.path()),
                hint=hint,
                source_line=self.document.shown_line(start.line + 1),
                length=max(1, length),
            )
        )

    def path(self) -> DataPath:
        """Return the path of the value that comes next."""
        if not self.stack:
            return ()
        top = self.stack[-1]
        if isinstance(top.data, list):
            return (*top.path, len(top.data))
        return (*top.path, top.key) if top.key is not None else top.path

    def braces(self, event: Any) -> str:
        written = self.document.line(event.start_mark.line + 1)[: event.start_mark.column + 1]
        return "quote a text that starts with {{" if written.endswith("{{") else ""

    def expects_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].data, dict) and self.stack[-1].key is None

    def check_tag(self, event: Any) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            self.report("ORC104", f"the tag {tag} is not allowed", event, hint="write the value without a tag")

    def scalar(self, event: Any) -> None:
        self.check_tag(event)
        if self.expects_key():
            self.key(event)
            return
        value = self.resolve(event)
        if event.anchor:
            self.anchors[event.anchor] = value
        self.put(value, event)

    def key(self, event: Any) -> None:
        top = self.stack[-1]
        name = event.value
        if name == "<<" and event.implicit[0]:
            top.merging = True
            self.report("ORC105", "merge keys are not supported", event, hint="repeat the keys: YAML 1.2 has no '<<'")
        elif isinstance(top.data, dict) and name in top.data:
            first = self.document.keys[(*top.path, name)]
            self.report("ORC106", f"duplicate key '{name}'", event, hint=f"first defined at line {first.line}")
        top.key = name
        if isinstance(top.data, dict) and name not in top.data:
            self.document.keys[(*top.path, name)] = _mark(event)

    def resolve(self, event: Any) -> Any:
        text = event.value
        if event.style:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INT.match(text):
            if len(text) <= LONGEST_INTEGER:
                return int(text)
            message = f"an integer of {len(text.lstrip('+-'))} digits is too large for a number"
            self.report("ORC107", message, event, hint="quote it if it is text")
        elif _FLOAT.match(text):
            number = float(text)
            if math.isfinite(number):
                return number
            self.report("ORC107", f"{text} is too large for a number", event, hint="quote it if it is text")
        elif _NOT_FINITE.match(text):
            self.report("ORC107", f"{text} is not a number that JSON can hold", event, hint="quote it if it is text")
        return text

    def put(self, value: Any, event: Any, start: Any = None) -> None:
        path = self.path()
        if not self.stack:
            self.root = value
        else:
            top = self.stack[-1]
            if isinstance(top.data, list):
                top.data.append(value)
            else:
                assert top.key is not None
                if top.merging:  # reported at the key; what it leaves out is no problem of its own
                    items = value if isinstance(value, list) else [value]
                    top.merged += [item for item in items if isinstance(item, dict)]
                    top.merging, top.key = False, None
                    return
                duplicate = top.key in top.data
                top.data.setdefault(top.key, value)
                top.key = None
                if duplicate:
                    return
        self.document.values[path] = _mark(event, start)

    def open(self, data: dict[str, Any] | list[Any], event: Any) -> None:
        self.check_tag(event)
        if self.expects_key():
            self.report("ORC108", "a key must be a plain word", event, hint=self.braces(event))
            raise _TooMuch
        if len(self.stack) >= MAX_DEPTH:
            self.report("ORC109", f"nested deeper than {MAX_DEPTH} levels", event)
            raise _TooMuch
        self.stack.append(_Container(data, self.path(), event, event.anchor))

    def close(self, event: Any) -> None:
        done = self.stack.pop()
        if isinstance(done.data, dict):
            for merged in done.merged:
                done.data.update({key: value for key, value in merged.items() if key not in done.data})
        if done.anchor:
            self.anchors[done.anchor] = done.data
        self.put(done.data, event, done.start)

    def alias(self, event: Any) -> None:
        if self.expects_key():
            self.report("ORC108", "a key must be a plain word", event)
            raise _TooMuch
        if event.anchor not in self.anchors:
            self.report("ORC110", f"the alias *{event.anchor} stands inside its own anchor or before it", event)
            raise _TooMuch
        value = self.anchors[event.anchor]
        self.aliased += _count(value, MAX_ALIASED_NODES)
        if self.aliased > MAX_ALIASED_NODES:
            self.report("ORC111", f"aliases multiply to more than {MAX_ALIASED_NODES:,} values", event)
            raise _TooMuch
        self.put(_copy(value), event)


def _mark(event: Any, start: Any = None) -> Mark:
    begin, end = (start or event).start_mark, event.end_mark
    return Mark(begin.line + 1, begin.column + 1, end.line + 1, end.column + 1)


def _count(value: Any, limit: int) -> int:
    """Return how many values there are in a value, or a number over the limit."""
    pending, count = [value], 0
    while pending and count <= limit:
        item = pending.pop()
        count += 1
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return count


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value
