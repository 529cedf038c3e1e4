"""Bring the running environment up to date with this checkout: `python .ci/sync.py [--group NAME]... PROJECT...`

A PROJECT is a folder with a pyproject.toml, with extras if wanted (`.`, `plugins/source-database[sqlite]`); it is
installed editable. A group is one of the root pyproject's dependency groups. Versions come from constraints.txt.
When nothing that decides the result has changed since the last time, nothing is done and no index is asked:
tox's own `deps` would not see a changed dependency of a plugin, and its `package` builds only one project.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"
STAMP = Path(sys.prefix) / "sync.sha256"


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--group", action="append", default=[])
    parser.add_argument("projects", nargs="*", metavar="PROJECT")
    wanted = parser.parse_args(arguments)
    state = digest(wanted.group, wanted.projects)
    if STAMP.exists() and STAMP.read_text() == state:
        return 0
    started = time.monotonic()
    print(f"installing into {Path(sys.prefix).name} (the first time takes a minute or two)", flush=True)
    editable = [part for project in wanted.projects for part in ("--editable", project)]
    groups = [part for name in wanted.group for part in ("--group", name)]
    if editable:
        # Built without isolation: one hatchling serves all projects, and installing them again needs no index.
        pip("install", "hatchling", "editables")
    pip("install", "--no-build-isolation", *groups, *editable)
    STAMP.write_text(state)
    print(f"installed in {time.monotonic() - started:.0f} s", flush=True)
    return 0


def digest(groups: Sequence[str], projects: Sequence[str]) -> str:
    """What decides the result: the request, the pinned versions, and what an installer reads of each pyproject."""
    root = tomllib.loads((ROOT / "pyproject.toml").read_text())
    tables = [root.get("dependency-groups", {}).get(name) for name in groups]
    for project in projects:
        pyproject = tomllib.loads((ROOT / project.partition("[")[0] / "pyproject.toml").read_text())
        tables += [pyproject["build-system"], pyproject["project"], pyproject.get("tool", {}).get("hatch")]
    decides = [str(ROOT), list(groups), list(projects), CONSTRAINTS.read_text(), tables]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def pip(*arguments: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [sys.executable, "-m", "pip", *arguments, *quiet]
    done = subprocess.run([*command, "--disable-pip-version-check", "--constraint", CONSTRAINTS], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)  # pip has said why


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
