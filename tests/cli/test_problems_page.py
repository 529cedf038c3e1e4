"""`docs/problems.md` has a section on every code, and shows what is really printed."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator_core.cli.codes import CODES

from .test_broken_configurations import CASES, read_case
from .test_service import WAITS_FOR_A_START

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "problems.md").read_text(encoding="utf-8")
NOT_A_FILE_OF_TEXT = (  # asserted in test_broken_configurations and test_service
    "ORC100 there is no configuration folder at elsewhere\n      = make one with: orchestrator init elsewhere\n",
    "config/domains/shop.yaml:3:1: ORC101 not UTF-8: byte 0xe9\n",
    WAITS_FOR_A_START,
)


def test_every_code_that_is_used_has_its_words() -> None:
    sources = [*(ROOT / "orchestrator_core").rglob("*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
    used = {code for path in sources for code in re.findall(r"\bORC\d{3}\b", path.read_text(encoding="utf-8"))}

    assert used == set(CODES)


def test_the_page_has_a_section_on_every_code() -> None:
    assert re.findall(r"^### (ORC\d{3}): (.+)$", PAGE, re.MULTILINE) == list(CODES.items())


def test_every_section_shows_an_example_of_its_code() -> None:
    for section in re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:]:
        code = section[:6]
        examples = re.findall(r"^```text\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
        assert examples, code
        assert all(re.match(rf"(\S+: )?{code} ", example) for example in examples), code


def test_every_example_is_printed_by_a_test() -> None:
    printed = [read_case(path)[1] for path in CASES] + list(NOT_A_FILE_OF_TEXT)

    for example in re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        assert any(example in output for output in printed), example


def test_every_example_of_the_broken_configurations_is_of_a_known_code() -> None:
    shown = {code for path in CASES for code in re.findall(r"\bORC\d{3}\b", read_case(path)[1])}

    assert set(CODES) - shown == {"ORC100", "ORC101", "ORC209"}
