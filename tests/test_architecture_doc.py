"""The page about the architecture: what it names exists, no module is missing, its layers are those checked."""

from __future__ import annotations

import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import orchestrator_core

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMES = sorted(set(re.findall(r"`(orchestrator_core(?:\.\w+)+)`", PAGE)))
TABLED = re.findall(
    r"`(orchestrator_core(?:\.\w+)+)`", "\n".join(re.findall(r"^\| (`orch[^|]*)\|", PAGE, re.MULTILINE))
)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_page_names_exists(name: str) -> None:
    assert find(name) is not None


def find(dotted: str) -> object:
    """Return the module, class, function or method of a dotted name."""
    parts = dotted.split(".")
    found: object = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part)
    return found


def test_every_module_of_the_core_has_its_one_reason_in_a_table() -> None:
    modules = [module.name for module in pkgutil.walk_packages(orchestrator_core.__path__, "orchestrator_core.")]
    assert [name for name in modules if name not in TABLED] == []
    assert sorted(TABLED) == sorted(modules)


def test_the_layers_are_those_that_import_linter_checks() -> None:
    (shown,) = re.findall(r"^```text\n(__main__.*?)```$", PAGE, re.MULTILINE | re.DOTALL)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    present = {path.stem for path in (ROOT / "orchestrator_core").iterdir()}
    checked = [[name for name in re.findall(r"\w+", layer) if name in present] for layer in layers]
    assert [line.split(" | ") for line in shown.splitlines()] == [names for names in checked if names]
