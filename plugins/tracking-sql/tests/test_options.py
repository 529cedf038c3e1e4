"""What may stand in ``tracking.store``, and what is said of what may not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from orchestrator_tracking_sql.options import SqlOptions
from orchestrator_tracking_sql.plugin import open_sql

from orchestrator_core.plugin_api import StoreContext
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
        ("lock_timeout: 0", "ORC204", "lock_timeout must be more than 0, not 0"),
        ("max_size: 5 apples", "ORC202", "'5 apples' is not a size"),
        ("pool: 3", "ORC201", "unknown key 'pool'"),
    ],
)  # fmt: skip
def test_an_unfit_option_is_a_problem_at_its_line(option: str, code: str, message: str) -> None:
    config = f"tracking:\n  store:\n    type: sql\n    {option}\n"
    (problem,) = check_problems({"config.yaml": config})
    assert (problem.file, problem.line, problem.code) == ("config.yaml", 4, code)
    assert problem.message.startswith(message)


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
