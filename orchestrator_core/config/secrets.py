"""``${env:NAME}`` and ``${file:PATH}`` in configuration values, and the masking of what they stood for."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from attrs import Factory, field, frozen

from orchestrator_core.config.spellings import MASK, SHORTEST_MASKED, Spellings, passwords_in
from orchestrator_core.config.yaml import SHORTAGES, DataPath, Document, fit_to_read
from orchestrator_core.errors import Problem, did_you_mean

CLOSE_VARIABLE = 0.8
"""How alike a variable's name must be to be suggested: every environment has names that are somewhat alike."""

_PLACEHOLDER = re.compile(
    r"\$\$\{"
    r"|\$\{(?P<scheme>[^:{}]*)(?::(?P<rest>[^{}]*))?\}"
    r"|\$ENV\[(?P<env>[^\[\]]*)\]"
    r"|(?P<open>\$(\{|ENV\[))"
)


def without_passwords(text: str) -> str:
    """Return a text with the passwords of the URLs in it masked."""
    for start, end in reversed(list(passwords_in(text))):
        text = text[:start] + MASK + text[end:]
    return text


class Secret(str):
    """A string that came from the environment or a file. It is an ordinary string that does not show itself."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"'{MASK}'"


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return JSON data with every string in it changed, but for keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: with_texts(item, change) for key, item in value.items()}
    return [with_texts(item, change) for item in value] if isinstance(value, list | tuple) else value


@frozen(repr=False)
class Redactor:
    """Replaces every known secret in a text by ``***``, also where it is escaped, percent-encoded or in base64.

    Of a secret that is a URL the password is one too. Values shorter than three characters are left alone. All that
    there is to find out is found out once: see :mod:`orchestrator_core.config.spellings`. What it returns is Unicode:
    half of a surrogate pair, which a source's words can hold, becomes a ``?``, since no page, record or span can.
    """

    values: tuple[str, ...] = ()
    spellings: Spellings = field(
        init=False, eq=False, default=Factory(lambda self: Spellings.of(self.values), takes_self=True)
    )

    @classmethod
    def of(cls, values: Iterable[str]) -> Redactor:
        known = {value for value in values if len(value) >= SHORTEST_MASKED}
        return cls(tuple(sorted(known, key=len, reverse=True)))

    def __call__(self, text: str) -> str:
        masked = self.spellings.mask(text)
        return masked if masked.isascii() else masked.encode("utf-8", "replace").decode()

    def data(self, value: Any) -> Any:
        """Return JSON data with every string in it masked."""
        return with_texts(value, lambda text: MASK if isinstance(text, Secret) else self(text))


@frozen
class Resolved:
    """A document's data with its placeholders replaced, and what was learned on the way."""

    data: Any
    secrets: tuple[str, ...]
    files: Mapping[Path, Secret | None]
    problems: tuple[Problem, ...]


def read_secret(path: Path) -> str:
    """Return what a secret file says, without the end of its last line."""
    return fit_to_read(path).read_text(encoding="utf-8").rstrip("\r\n")


def resolve_secrets(
    document: Document,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    texts: Mapping[Path, str] | None = None,
) -> Resolved:
    """Replace the placeholders in every string value of a document.

    ``texts`` are what secret files said when they were read before; the others are read now.
    """
    resolver = _Resolver(document, folder, os.environ if environment is None else environment, texts or {})
    data = resolver.resolve(document.data, ())
    return Resolved(data, tuple(resolver.secrets), resolver.files, tuple(resolver.problems))


class _Resolver:
    def __init__(
        self, document: Document, folder: Path, environment: Mapping[str, str], texts: Mapping[Path, str]
    ) -> None:
        self.document = document
        self.folder = folder
        self.environment = environment
        self.texts = texts
        self.secrets: list[str] = []
        self.files: dict[Path, Secret | None] = {}
        self.problems: list[Problem] = []

    def resolve(self, value: Any, path: DataPath) -> Any:
        if isinstance(value, str):
            return self.text(value, path) if "$" in value else value
        if isinstance(value, dict):
            return {key: self.resolve(item, (*path, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, (*path, index)) for index, item in enumerate(value)]
        return value

    def text(self, text: str, path: DataPath) -> str:
        replaced = False

        def replace(match: re.Match[str]) -> str:
            nonlocal replaced
            if match.group() == "$${":
                return "${"
            replaced = True
            return self.placeholder(match, path)

        result = _PLACEHOLDER.sub(replace, text)
        return Secret(result) if replaced else result

    def placeholder(self, match: re.Match[str], path: DataPath) -> str:
        name = match["env"]
        if name is not None:
            return self.variable(name, None, match, path)
        if opened := match["open"]:
            end, braces = ("]", "[ or ]") if opened.endswith("[") else ("}", "{ or }")
            message = f"'{opened}' has no '{end}', or another {braces} before it"
            hint = "write ${env:NAME} or ${file:PATH}; $${ stands for ${ itself"
            self.report("ORC302", message, match, path, hint)
            return ""
        scheme, rest = match["scheme"], match["rest"] or ""
        if scheme == "env":
            name, separator, default = rest.partition(":-")
            return self.variable(name, default if separator else None, match, path)
        if scheme == "file":
            return self.file(rest, match, path)
        hint = did_you_mean(scheme, ("env", "file"))
        self.report("ORC302", f"unknown secret source '{scheme}'", match, path, hint)
        return ""

    def nothing(self, match: re.Match[str], path: DataPath) -> str:
        self.report("ORC302", "the placeholder names nothing", match, path, "write ${env:NAME} or ${file:PATH}")
        return ""

    def variable(self, name: str, default: str | None, match: re.Match[str], path: DataPath) -> str:
        if not name:
            return self.nothing(match, path)
        value = self.environment.get(name)
        if value is not None:
            self.secrets.append(value)
            return value
        if default is not None:
            return default
        close = difflib.get_close_matches(name, list(self.environment), n=1, cutoff=CLOSE_VARIABLE)
        hint = f"did you mean '{close[0]}'?" if close else f"set it, or give a default: ${{env:{name}:-value}}"
        self.report("ORC301", f"the environment variable {name} is not set", match, path, hint)
        return ""

    def file(self, name: str, match: re.Match[str], path: DataPath) -> str:
        if not name:
            return self.nothing(match, path)
        if "\0" in name:
            self.report("ORC303", "cannot read the secret file: no path has a NUL in it", match, path)
            return ""
        target = self.folder / name
        try:
            value = self.texts.get(target)
            if value is None:
                value = read_secret(target)
        except (OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno in SHORTAGES:
                raise
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            self.report("ORC303", f"cannot read the secret file {name}: {reason}", match, path)
            self.files[target] = None
            return ""
        self.files[target] = Secret(value)
        if not value:  # as while somebody writes it anew, who empties it first
            self.report("ORC303", f"cannot read the secret file {name}: it is empty", match, path)
        self.secrets.append(value)
        return value

    def report(self, code: str, message: str, match: re.Match[str], path: DataPath, hint: str = "") -> None:
        length = match.end() - match.start()
        problem = self.document.problem(code, message, path, hint=hint, offset=match.start(), length=length)
        self.problems.append(problem)


__all__ = [
    "MASK",
    "Redactor",
    "Resolved",
    "Secret",
    "read_secret",
    "resolve_secrets",
    "with_texts",
    "without_passwords",
]
