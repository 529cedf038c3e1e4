"""Each file in ``broken/`` is a sentence, a configuration and the whole output of `orchestrator check` for it.

Those in ``broken/online`` are checked with their sources open, all others with ``--offline``.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import Invoke, Write

CASES = sorted(Path(__file__).with_name("broken").rglob("*.txt"))
_HEADING = re.compile(r"^>>> (.+)\n", re.MULTILINE)


def read_case(path: Path) -> tuple[dict[str, str], str]:
    """Return the files of a case by name, and the output that is expected."""
    _, *parts = _HEADING.split(path.read_text(encoding="utf-8"))
    files = dict(zip(parts[::2], parts[1::2], strict=True))
    return files, files.pop("output")


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_each_mistake_gets_the_message_a_person_needs(case: Path, write: Write, orchestrator: Invoke) -> None:
    files, expected = read_case(case)
    write(files)

    options = [] if case.parent.name == "online" else ["--offline"]
    if "plugins_dir" not in files.get("config/config.yaml", ""):
        options += ["--plugins-dir", "plugins"]

    result = orchestrator("check", *options)

    assert result.output == expected
    assert result.exit_code == 1


def test_there_are_at_least_20_of_them() -> None:
    assert len(CASES) >= 20


def test_a_file_that_is_not_utf_8(folder: Path, orchestrator: Invoke) -> None:
    (folder / "config" / "domains").mkdir(parents=True)
    (folder / "config" / "domains" / "shop.yaml").write_bytes(b"description: shop\nendpoints: {}\n# caf\xe9\n")

    result = orchestrator("check", "--offline")

    assert result.output == "config/domains/shop.yaml:3:1: ORC101 not UTF-8: byte 0xe9\n1 problem in 1 file\n"
    assert result.exit_code == 1


def test_a_folder_that_is_not_there(orchestrator: Invoke) -> None:
    result = orchestrator("check", "--config", "elsewhere")

    assert result.output == (
        "ORC100 there is no configuration folder at elsewhere\n"
        "      = make one with: orchestrator init elsewhere\n"
        "1 problem\n"
    )
    assert result.exit_code == 1


def test_a_file_in_place_of_a_folder(folder: Path, orchestrator: Invoke) -> None:
    (folder / "config").mkdir()
    (folder / "config" / "config.yaml").write_text("", encoding="utf-8")

    result = orchestrator("check", "--config", "config/config.yaml")

    assert result.output == (
        "ORC100 config/config.yaml is a file and no configuration folder\n"
        "      = give its folder: --config config\n"
        "1 problem\n"
    )
    assert result.exit_code == 1


def test_a_folder_with_nothing_in_it(folder: Path, orchestrator: Invoke) -> None:
    (folder / "config" / "domains").mkdir(parents=True)
    (folder / "config" / "notes.txt").write_text("to do\n", encoding="utf-8")

    result = orchestrator("check")

    assert result.output == (
        "ORC100 there is no configuration in config\n      = make one with: orchestrator init config\n1 problem\n"
    )
    assert result.exit_code == 1


def test_a_plugins_folder_that_is_not_there(orchestrator: Invoke, write: Write) -> None:
    write({"config/config.yaml": "plugins_dir: ../plugins\n"})

    result = orchestrator("check", "--offline", "--plugins-dir", "plugin")

    assert result.output == "ORC404 there is no plugins folder at plugin\n1 problem\n"
    assert result.exit_code == 1
