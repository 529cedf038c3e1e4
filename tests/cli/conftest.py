"""Commands run in an empty folder, with the core's own plugins and those of ``plugins/`` and no others."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from textwrap import dedent

import pytest
import structlog
from click.testing import CliRunner, Result

from orchestrator_core import plugins
from orchestrator_core.cli import main

Invoke = Callable[..., Result]
Write = Callable[[Mapping[str, str]], None]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that is the current one, with the test's plugin in ``plugins/``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda **_: ())
    (tmp_path / "plugins").mkdir()
    shutil.copy(Path(__file__).with_name("store_plugin.py"), tmp_path / "plugins" / "store.py")
    threshold = gc.get_threshold()
    yield tmp_path
    structlog.reset_defaults()
    gc.unfreeze()  # `serve` takes the process for its own
    gc.set_threshold(*threshold)


@pytest.fixture
def write(folder: Path) -> Write:
    def write(files: Mapping[str, str]) -> None:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text).lstrip("\n"), encoding="utf-8")

    return write


@pytest.fixture
def orchestrator() -> Invoke:
    """Run the command in this process; ``result.output`` has stdout and stderr as they came."""

    def invoke(*args: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(main, list(args), input=stdin, prog_name="orchestrator")

    return invoke
