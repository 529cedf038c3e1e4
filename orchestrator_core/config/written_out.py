"""Secrets that stand in a configuration as they are: found by where they stand, as nobody has said what they are.

That are the passwords of URLs, and the values of keys such as ``password`` and ``Authorization``. Where something of a
file is shown or kept, they are left out of it. Placeholders, expressions and the names of types are no secrets; the
default of a placeholder is one, where its variable or its key is named so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from orchestrator_core.config.spellings import passwords_in

__all__ = [
    "after_properties",
    "defaults_in",
    "is_no_secret",
    "may_name_a_secret",
    "names_a_secret",
    "passwords_written_out",
    "secrets_in",
]

_NAMES = (
    r"passw|passphrase|pwd|secret|token|(?:api|access|private|account)[_-]?key|authorization|bearer|cookie|credential"
)
_NAMES_A_SECRET = re.compile(rf"(?i){_NAMES}")
_NAMES_WHAT_IS_ABOUT_ONE = re.compile(
    r"(?i)(?:[_-](?:url|uri|file|path|type|name|field|header|ttl|timeout|expires?|provider)|tokens)$"
)
_KEY = re.compile(rf"""(?i)(?<![\w.-])(["']?)([\w.-]*(?:{_NAMES})[\w.-]*)\1\s*:\s+""")
_QUOTED = r""""(?:[^"\\]|\\.)*|'(?:[^']|'')*"""
_IN_BLOCK = re.compile(rf"{_QUOTED}|\S(?:(?!\s+#|\s*$).)*")
_IN_FLOW = re.compile(rf"{_QUOTED}|[^\s,}}\]](?:(?!\s+#|\s*$)[^,}}\]])*")
_IN_USER_INFO = re.compile(r"[^/\s@]*:\Z")
_DEFAULT = re.compile(r"\$\{env:([^:{}]*):-([^{}]+)\}")
_PROPERTIES = re.compile(r"(?:[&!]\S*(?:\s+|\Z))*")
_NO_SECRET = re.compile(  # of ``|`` alone the text is on the next lines
    r"""(?sx) ["']? (?: \s*\Z | .*(?:\$\{|\$ENV\[) | \$[A-Za-z_] )
    | (?: [{\[*\#~] | [|>][-+\d]*\s*\Z | (?:string|integer|number|boolean|object|array|any|true|false|null)\Z )"""
)


def may_name_a_secret(key: str) -> bool:
    """Return whether a key's name is that of a secret, or of something about one."""
    return _NAMES_A_SECRET.search(key) is not None


@lru_cache(maxsize=4096)
def names_a_secret(key: str) -> bool:
    """Return whether what stands under a key is a secret by the key's name."""
    return may_name_a_secret(key) and not _NAMES_WHAT_IS_ABOUT_ONE.search(key)


def is_no_secret(value: str) -> bool:
    """Return whether a value as it is written in YAML is a placeholder, an expression, a type, or not a text at all."""
    return _NO_SECRET.match(value) is not None


def after_properties(value: str) -> int:
    """Return where a value begins behind its anchor and its tag, as it is written in YAML."""
    found = _PROPERTIES.match(value)
    return found.end() if found else 0


def defaults_in(text: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, int]]:
    """Yield where the defaults of the placeholders in a text, or in a part of it, begin and end."""
    for found in _DEFAULT.finditer(text, start, len(text) if end is None else end):
        yield found.span(2)


def passwords_written_out(text: str) -> Iterator[tuple[int, int]]:
    """Yield where the passwords of URLs begin and end, of one that is a placeholder its default.

    So is the default of any placeholder whose variable has the name of a secret.
    """
    for start, end in passwords_in(text):
        if "{" not in text[start:end]:
            yield start, end
    for found in _DEFAULT.finditer(text):
        in_url = text[: found.start()].rpartition("://")[2]
        if names_a_secret(found[1]) or ("://" in text[: found.start()] and _IN_USER_INFO.match(in_url)):
            yield found.span(2)


def secrets_in(line: str) -> Iterator[tuple[int, int]]:
    """Yield where the secrets of one line of YAML begin and end, be it valid or not."""
    yield from passwords_written_out(line)
    for key in _KEY.finditer(line):
        if names_a_secret(key[2]):
            in_flow = "{" in line[: key.start()] or "[" in line[: key.start()]
            start = key.end() + after_properties(line[key.end() :])
            value = (_IN_FLOW if in_flow else _IN_BLOCK).match(line, start)
            if value and not is_no_secret(value[0]):
                yield value.start() + (value[0][0] in "\"'"), value.end()
            elif value:
                yield from defaults_in(line, value.start(), value.end())
