"""What SQL tells by its text alone: its parameters and its words."""

from __future__ import annotations

import re

from sqlalchemy import text
from sqlalchemy.engine.default import DefaultDialect

__all__ = ["NO_WORDS", "param_names", "words"]

# What is no SQL word: literals, quoted names and comments, in the spellings of the supported databases.
NO_WORDS = re.compile(
    r"""'(?:[^'\\]|''|\\.)*' | "(?:[^"]|"")*" | `[^`]*` | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)


def param_names(query: str) -> tuple[str, ...]:
    """Return the names of the query's ``:name`` parameters, each once, in the order of their first use."""
    return tuple(text(query).compile(dialect=DefaultDialect(paramstyle="named")).params)


def words(query: str) -> list[str]:
    """Return the query's words as they are written, without those in literals, quoted names and comments."""
    return re.findall(r"[A-Za-z_]\w*", NO_WORDS.sub(" ", query))
