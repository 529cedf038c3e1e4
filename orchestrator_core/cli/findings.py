"""Problems for people (source line, caret and hint) and for programs (JSON, SARIF)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

import click
from attrs import evolve

from orchestrator_core import __version__
from orchestrator_core.cli.codes import CODES
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.documents import problem_json
from orchestrator_core.errors import Problem

_FIRST = re.compile(r"(first defined (?:at|in) )(?!line )")
_CARET = re.compile(r"( *\| \s*)(\^+)\Z")
_SOURCE = re.compile(r"( *\d+ \| )(.*)\Z")


def shown(problems: Iterable[Problem], folder: Path, redact: Redactor) -> list[Problem]:
    """Return the problems as they are shown: paths that can be clicked, and no secret in the text."""
    return [
        evolve(
            problem,
            file=(folder / problem.file).as_posix() if problem.file else "",
            message=redact(problem.message),
            hint=redact(_FIRST.sub(lambda first: f"{first[1]}{folder.as_posix()}/", problem.hint)),
        )
        for problem in sorted(problems)
    ]


def render(problem: Problem) -> str:
    """Return what ``str(problem)`` says, in colours."""
    where, code, rest = str(problem).partition(problem.code)
    level = "yellow" if problem.severity == "warning" else "red"
    message, *details = rest.split("\n")
    lines = [click.style(where, bold=True) + click.style(code, fg=level, bold=True) + message]
    for line in details:
        if match := _CARET.match(line):
            line = click.style(match[1], fg="blue") + click.style(match[2], fg=level, bold=True)
        elif match := _SOURCE.match(line):
            line = click.style(match[1], fg="blue") + match[2]
        elif line.startswith("      = "):
            line = click.style(line[:8], fg="blue") + click.style(line[8:], fg="cyan")
        lines.append(line)
    return "\n".join(lines)


def summary(problems: Sequence[Problem]) -> str:
    """Return ``3 problems in 2 files``, with the number of warnings among them."""
    files = len({problem.file for problem in problems if problem.file})
    text = counted(len(problems), "problem")
    if files:
        text += f" in {counted(files, 'file')}"
    warnings = sum(problem.severity == "warning" for problem in problems)
    return f"{text} ({counted(warnings, 'warning')})" if warnings else text


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def refuse(problems: Iterable[Problem], folder: Path, redact: Redactor) -> NoReturn:
    """Show the problems on stderr and end the command with exit status 1."""
    found = shown(problems, folder, redact)
    for problem in found:
        click.echo(render(problem), err=True)
    click.echo(click.style(summary(found), bold=True), err=True)
    raise click.exceptions.Exit(1)


def as_json(problems: Sequence[Problem]) -> dict[str, Any]:
    errors = sum(problem.severity == "error" for problem in problems)
    return {
        "errors": errors,
        "warnings": len(problems) - errors,
        "problems": [problem_json(problem) for problem in problems],
    }


def as_sarif(problems: Sequence[Problem]) -> dict[str, Any]:
    """Return a SARIF 2.1.0 log with one rule per code that was found."""
    codes = sorted({problem.code for problem in problems})
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "orchestrator",
                        "version": __version__,
                        "rules": [{"id": code, "shortDescription": {"text": CODES[code]}} for code in codes],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(problem, codes.index(problem.code)) for problem in problems],
            }
        ],
    }


def _result(problem: Problem, rule: int) -> dict[str, Any]:
    text = f"{problem.message} ({problem.hint})" if problem.hint else problem.message
    result: dict[str, Any] = {
        "ruleId": problem.code,
        "ruleIndex": rule,
        "level": problem.severity,
        "message": {"text": text},
    }
    if problem.file:
        location: dict[str, Any] = {"artifactLocation": {"uri": _uri(problem.file)}}
        if problem.line:
            location["region"] = {
                "startLine": problem.line,
                "startColumn": problem.column,
                "endColumn": problem.column + problem.length,
            }
        result["locations"] = [{"physicalLocation": location}]
    return result


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(file)
