"""The page about testing plugins: its blocks, put side by side, are a plugin with tests that pass."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/testing-plugins.md").read_text("utf-8")


def test_the_tests_on_the_page_pass(tmp_path: Path) -> None:
    files = dict(re.findall(r"^```python file=(\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
    assert sorted(files) == [
        "greeting.py",
        "mask.py",
        "table.py",
        "test_doubling_conformance.py",
        "test_greeting_conformance.py",
        "test_greeting_service.py",
        "test_mask.py",
        "test_table.py",
    ]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["orchestrator_core.testing.pytest_plugin"]\n')
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d\d passed in", done.stdout, re.MULTILINE), done.stdout
