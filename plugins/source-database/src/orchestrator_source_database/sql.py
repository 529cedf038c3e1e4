"""What SQL tells by its text alone: its parameters and its words."""

from __future__ import annotations

import re

from sqlalchemy import TextClause, text
from sqlalchemy.engine.default import DefaultDialect

__all__ = ["NO_WORDS", "has_words_of", "param_names", "statement", "words"]

# What is no SQL word: literals, quoted names and comments, in the spellings of the supported databases.
NO_WORDS = re.compile(
    r"""'(?:[^'\\]|''|\\.)*' | "(?:[^"]|"")*" | `[^`]*` | \$(\w*)\$.*?\$\1\$ | --[^\n]* | /\*.*?\*/""",
    re.VERBOSE | re.DOTALL,
)

CAST_PARAM = re.compile(rf"{NO_WORDS.pattern} | (?P<param>(?<![:\w\\]):\w+)(?=::)", NO_WORDS.flags)
"""A parameter with PostgreSQL's ``::`` behind it, in which SQLAlchemy sees none; and what is to be left alone."""


def statement(query: str) -> TextClause:
    """Return the query for SQLAlchemy to compile."""
    return text(CAST_PARAM.sub(lambda found: f"{found[0]} " if found["param"] else found[0], query))


def param_names(query: str) -> tuple[str, ...]:
    """Return the names of the query's ``:name`` parameters, each once, in the order of their first use."""
    return tuple(statement(query).compile(dialect=DefaultDialect(paramstyle="named")).params)


def words(query: str) -> list[str]:
    """Return the query's words as they are written, without those in literals, quoted names and comments."""
    return re.findall(r"[A-Za-z_]\w*", NO_WORDS.sub(" ", query))


def has_words_of(query: str, text: str) -> bool:
    """Return whether all words of a text stand in the query: then it quotes that, and nothing of the data."""
    return set(re.findall(r"\w+", query.lower())).issuperset(re.findall(r"\w+", text.lower()))
