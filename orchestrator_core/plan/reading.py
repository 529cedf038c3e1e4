"""An endpoint as it is read: its expressions parsed, and what they refer to and what is wrong noted."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from attrs import define, field

from orchestrator_core.config.model import Endpoint
from orchestrator_core.config.structure import Located
from orchestrator_core.config.yaml import DataPath
from orchestrator_core.errors import Problem, did_you_mean
from orchestrator_core.expressions import (
    ExpressionSyntaxError,
    Node,
    Reference,
    parse_value,
    references,
)
from orchestrator_core.plan.model import ITEM_ROOTS

_REFERENCE = re.compile(r"\$([A-Za-z_]\w*)")


@define
class Reading:
    """One endpoint, with its references, each with where it stands, and its problems. Checks add to both."""

    endpoint: Endpoint
    problems: list[Problem] = field(factory=list)
    references: list[tuple[Reference, Located, DataPath]] = field(factory=list)

    @property
    def broken(self) -> bool:
        """Return whether something is wrong, and not merely worth a warning."""
        return any(problem.severity == "error" for problem in self.problems)

    def report(self, located: Located, code: str, message: str, *sub: str | int, **place: Any) -> None:
        self.problems.append(located.problem(code, message, *sub, **place))

    def parse(self, value: Any, located: Located, path: DataPath, read: Callable[[Any], Node] = parse_value) -> Node:
        """Parse a value and note its references. Every string of it that is no expression is a problem.

        In the node that is returned something unknown stands for such a string, so that the rest can be checked.
        """
        failed: set[DataPath] = set()
        while True:
            try:
                node = read(value)
            except ExpressionSyntaxError as error:
                where = (*path, *error.path)
                hint = error.hint or _placeholder_hint(value, error.path)
                self.report(
                    located, "ORC501", error.message, *where, hint=hint, offset=error.offset, length=error.length
                )
                failed.add(error.path)
                value = _replace(value, error.path)
            else:
                found = [reference for reference in references(node) if reference.where not in failed]
                self.references += [(reference, located, (*path, *reference.where)) for reference in found]
                self.warn_of_text(value, located, path)
                return node

    def warn_of_text(self, value: Any, located: Located, path: DataPath) -> None:
        """Warn of a text that was probably meant to be an expression, such as ``len($customer.orders)``."""
        if isinstance(value, dict):
            for key, item in value.items():
                self.warn_of_text(item, located, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                self.warn_of_text(item, located, (*path, index))
        elif isinstance(value, str) and path[:1] != ("condition",) and not value.startswith("$") and "{{" not in value:
            names = {step.config.name for step in self.endpoint.steps} | {"request", "execution"}
            names |= set(ITEM_ROOTS) if path[:1] == ("params",) and runs_for_each(located) else set()
            if (match := _REFERENCE.search(value)) and match[1] in names:
                message = f"this is text, in which {match[0]} stands for itself"
                hint = "an expression starts with $; inside a text it is written {{ $… }}"
                problem = located.problem(
                    "ORC508", message, *path, hint=hint, offset=match.start(), length=match.end() - match.start()
                )
                self.problems.append(problem.as_warning())

    def known_step(self, name: str, located: Located, *sub: str | int) -> None:
        names = {step.config.name for step in self.endpoint.steps} | self.endpoint.unreadable_names
        if name not in names:
            self.report(located, "ORC502", f"there is no step '{name}'", *sub, hint=did_you_mean(name, names))


def runs_for_each(located: Located) -> bool:
    return isinstance(located.data, dict) and located.data.get("for_each") is not None


def place_of(reference: Reference) -> dict[str, Any]:
    """Return what :meth:`Located.problem` needs to point at the reference."""
    return {"offset": reference.offset, "length": len(reference.text), "near": reference.text}


def at(value: Any, path: DataPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _replace(value: Any, path: DataPath) -> Any:
    """Return the value with what nothing is known of at the path."""
    if not path:
        return "$request"
    head, rest = path[0], path[1:]
    if isinstance(value, dict):
        return {key: _replace(item, rest) if key == head else item for key, item in value.items()}
    return [_replace(item, rest) if index == head else item for index, item in enumerate(value)]


def _placeholder_hint(value: Any, path: DataPath) -> str:
    value = at(value, path)
    if isinstance(value, str) and value.startswith(("${", "$ENV[")):
        return "secrets are read in config.yaml, database.yaml and integrations, not in a domain file"
    return ""


__all__ = ["Reading", "at", "place_of", "runs_for_each"]
