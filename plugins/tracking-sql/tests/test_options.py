"""What may stand in ``tracking.store``, and what is said of what may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from orchestrator_tracking_sql.database import Database
from orchestrator_tracking_sql.options import LONGEST_SECONDS, SHORTEST_SECONDS, SqlOptions
from orchestrator_tracking_sql.plugin import open_sql
from tracking_kit import Place

from orchestrator_core.plugin_api import Duration, StoreContext
from orchestrator_core.testing import check_problems


@pytest.mark.parametrize(
    ("option", "code", "message"),
    [
        ("url: nonsense", "ORC204", "url is not a database URL; expected sqlite:///path or postgresql://user@host/database"),
        ("url: 'oracle://x/y'", "ORC204", "'oracle' is not a supported database; expected one of: postgresql, sqlite"),
        ("url: 'postgresql+asyncpg://x/y'", "ORC204", "'postgresql+asyncpg' is not a supported driver; write postgresql://"),
        (
            "url: 'postgresql://u:p@ss/x@h/d'",
            "ORC204",
            "url has more than one @; write %40 for each but the one before the host",
        ),
        (
            "url: 'postgresql://u@one:5432,other:5432/d'",
            "ORC204",
            "url names several servers; write postgresql://user@/database?host=one:5432&host=other:5432",
        ),
        ("url: 'sqlite://'", "ORC204", "executions are kept in a file: write sqlite:///../executions.db"),
        ("url: 'sqlite://host/x.db'", "ORC204", "write sqlite:///relative/path or sqlite:////absolute/path"),
        ("lock_timeout: 0", "ORC204", "lock_timeout must be from 1 ms to 2147483 s, not 0 s"),
        ("lock_timeout: 0.0004", "ORC204", "lock_timeout must be from 1 ms to 2147483 s, not 0.0004 s"),
        ("statement_timeout: 2147483.5", "ORC204", "statement_timeout must be from 1 ms to 2147483 s, not 2147483.5 s"),
        ("connect_timeout: 1.0e+300", "ORC204", "connect_timeout must be from 1 ms to 2147483 s, not 1e+300 s"),
        ("max_size: 5 apples", "ORC202", "'5 apples' is not a size"),
        ("pool: 3", "ORC201", "unknown key 'pool'"),
    ],
)  # fmt: skip
def test_an_unfit_option_is_a_problem_at_its_line(option: str, code: str, message: str) -> None:
    config = f"tracking:\n  store:\n    type: sql\n    {option}\n"
    (problem,) = check_problems({"config.yaml": config})
    assert (problem.file, problem.line, problem.code) == ("config.yaml", 4, code)
    assert problem.message.startswith(message)


@pytest.mark.parametrize("seconds", [SHORTEST_SECONDS, LONGEST_SECONDS])
def test_the_shortest_and_the_longest_timeouts_are_the_databases(
    run: Callable[..., Any], place: Place, seconds: float
) -> None:
    asked = {
        "sqlite": "PRAGMA busy_timeout",
        "postgresql": "SELECT setting FROM pg_settings WHERE name = 'lock_timeout'",
    }

    async def main() -> int:
        options = SqlOptions(place.url, lock_timeout=Duration(seconds), statement_timeout=Duration(LONGEST_SECONDS))
        database = Database(options, Path, durable=False)
        try:
            found: Any = await database.write(lambda link: link.exec_driver_sql(asked[place.engine]).scalar())
            return int(found)
        finally:
            await database.close()

    assert run(main()) == round(seconds * 1000)


def test_a_check_offline_touches_no_database() -> None:
    config = "tracking:\n  store: {type: sql, url: 'postgresql://nobody@127.0.0.1:9/none'}\n"
    assert check_problems({"config.yaml": config}, offline=True) == []


def test_a_file_in_the_configuration_folder_is_refused(run: Callable[..., Any], tmp_path: Path) -> None:
    """Each write would have the service read its configuration again."""

    async def main() -> None:
        async with open_sql(SqlOptions(url="sqlite:///executions.db"), StoreContext(tmp_path)):
            raise AssertionError("it opens")

    with pytest.raises(ValueError, match=r"executions\.db lies in the configuration folder"):
        run(main())
    (problem,) = check_problems({"config.yaml": "tracking:\n  store: {type: sql, url: 'sqlite:///executions.db'}\n"})
    assert (problem.line, problem.column, problem.code) == (2, 27, "ORC204")
    assert problem.message.startswith("executions.db lies in the configuration folder")
