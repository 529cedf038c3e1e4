"""What may be written under ``tracking.store`` with ``type: sql``, and the URLs that are understood."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Any

from attrs import Attribute, field, frozen
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from orchestrator_core.plugin_api import Duration, OptionError, Size, did_you_mean, option

_SEVERAL = re.compile(r"postgresql[^/]*://(?:[^@/]*@)?[^@/]*,")

SHORTEST_SECONDS, LONGEST_SECONDS = 0.001, 2_147_483
"""They count milliseconds in 32 bits: to SQLite a longer time is 0, which to PostgreSQL is no limit."""

DIALECTS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def parse_url(text: str) -> URL:
    """Return SQLAlchemy's URL, or raise ``ValueError`` saying what is wrong with it, without quoting it."""
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        if _SEVERAL.match(text):
            raise ValueError(
                "url names several servers; write postgresql://user@/database?host=one:5432&host=other:5432"
            ) from None
        raise ValueError(
            "url is not a database URL; expected sqlite:///path or postgresql://user@host/database"
        ) from None
    name, _, driver = url.drivername.partition("+")
    if name not in DIALECTS:
        raise ValueError(f"'{name}' is not a supported database; {did_you_mean(name, DIALECTS)}")
    if driver and f"{name}+{driver}" != DIALECTS[name]:
        raise ValueError(f"'{name}+{driver}' is not a supported driver; write {name}://")
    if name == "sqlite" and (url.host or url.username or url.query):
        raise ValueError("write sqlite:///relative/path or sqlite:////absolute/path")
    if name == "sqlite" and url.database in (None, "", ":memory:"):
        raise ValueError("executions are kept in a file: write sqlite:///../executions.db")
    if name == "postgresql" and text.count("@") > 1:  # the end of a password would be in every message
        raise ValueError("url has more than one @; write %40 for each but the one before the host")
    if name == "postgresql" and find_spec("psycopg") is None:
        raise ValueError(
            "postgresql:// needs the driver psycopg, which is not installed;"
            ' pip install "orchestrator-api-tracking-sql[postgresql]"'
        )
    return url.set(drivername=DIALECTS[name])


def _is_url(_: Any, attribute: Attribute[str], value: str) -> None:
    try:
        parse_url(value)
    except ValueError as error:
        raise OptionError(attribute.name, str(error)) from error


def _without_password(value: str) -> str:
    return parse_url(value).render_as_string(hide_password=True)


def _positive(_: Any, attribute: Attribute[float], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be more than 0, not {value:g}")


def _is_timeout(_: Any, attribute: Attribute[float], value: float) -> None:
    if not SHORTEST_SECONDS <= value <= LONGEST_SECONDS:
        raise ValueError(f"{attribute.name} must be from 1 ms to {LONGEST_SECONDS} s, not {value:.15g} s")


@frozen
class SqlOptions:
    """A database for executions. Its tables are made, and brought up to date, when the service starts."""

    url: str = field(
        default="sqlite:///../executions.db",
        validator=_is_url,
        repr=_without_password,
        metadata={
            "help": "`sqlite:///path`, relative to the configuration folder and outside of it, or "
            "`postgresql://user@host/database`.",
        },
    )
    lock_timeout: Duration = option(
        Duration(1), help="How long a statement waits for a lock before it is tried again.", validator=_is_timeout
    )
    connect_timeout: Duration = option(
        Duration(3), help="How long connecting to PostgreSQL may take.", validator=_is_timeout
    )
    statement_timeout: Duration = option(
        Duration(5),
        help="How long a statement may take on PostgreSQL; a server that says nothing for 2 s more is given up.",
        validator=_is_timeout,
    )
    max_size: Size | None = option(
        None, help="Largest size of the SQLite file; a full one takes no more executions.", validator=_positive
    )


__all__ = ["SqlOptions", "parse_url"]
