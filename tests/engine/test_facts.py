"""What an open source finds out about one call, at the line where the step makes it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from attrs import frozen

from orchestrator_core.errors import ConfigError
from orchestrator_core.plugin_api import (
    CallInspection,
    Finding,
    Inspection,
    ModelKind,
    OperationFacts,
    SourceKind,
    SourceUnavailable,
    hookimpl,
)
from orchestrator_core.testing import check_problems, service

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from orchestrator_core.plugin_api import JSON, OpenContext

    RunFixture = Callable[[Any], Any]

COLUMNS = ("name", "size")


@frozen
class TableOptions:
    down: bool = False


class Table:
    """A source whose parameter ``columns`` decides what comes back."""

    def __init__(self, options: TableOptions) -> None:
        self.down = options.down

    async def fetch(self, operation: str, params: Mapping[str, JSON]) -> JSON:
        return dict.fromkeys(params["columns"])  # type: ignore[arg-type]

    async def inspect(self) -> Inspection:
        if self.down:
            raise SourceUnavailable("nobody at home")
        facts = {"read": OperationFacts(("columns",), ("limit",), ("name",))}
        return Inspection(facts, (Finding("", "there is no schema 'shp'", ("down",), "false"),))

    def inspect_call(
        self, operation: str, param_names: Sequence[str], constants: Mapping[str, JSON]
    ) -> CallInspection | None:
        columns = constants.get("columns")
        if not isinstance(columns, list):
            return None if "columns" not in param_names else CallInspection()
        findings = tuple(
            Finding(operation, f"there is no column '{column}'", ("columns", index), str(column), "look again")
            for index, column in enumerate(columns)
            if column not in COLUMNS
        )
        facts = OperationFacts(("columns",), (), tuple(map(str, columns)))
        return CallInspection(None if findings else facts, findings)


@asynccontextmanager
async def open_table(options: TableOptions, context: OpenContext) -> AsyncIterator[Table]:
    yield Table(options)


class TablePlugin:
    @hookimpl
    def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
        return [SourceKind("table", "A table.", TableOptions, open_table)]


def told(steps: str, *, response: str = "null", down: bool = False) -> list[tuple[str, int, str, str]]:
    files = {
        "integrations/table.yaml": f"table:\n  sources:\n    default: {{down: {str(down).lower()}}}\n",
        "domains/shop.yaml": f"endpoints:\n  get:\n    data_sources:\n{steps}\n    response_mapping: {response}\n",
    }
    found = check_problems(files, plugins={"table": TablePlugin()})
    return [
        (problem.code, problem.line, problem.message, problem.source_line[problem.column - 1 :][: problem.length])
        for problem in found
        if problem.file == "domains/shop.yaml"
    ]


def test_findings_point_at_the_parameter_of_the_step() -> None:
    step = '      - {name: a, type: table, operation: read, params: {columns: ["name", "siez", "z"]}}'
    assert told(step, response="$a.name") == [
        ("ORC602", 4, "there is no column 'siez'", "siez"),
        ("ORC602", 4, "there is no column 'z'", "z"),
    ]


def test_facts_of_the_call_replace_those_of_the_operation() -> None:
    step = "      - {name: a, type: table, operation: read, params: {columns: [size]}}"
    assert told(step, response="$a.size") == []
    assert told(step, response="$a.name") == [("ORC505", 5, "the step 'a' returns no field 'name'", "$a.name")]
    limited = step.replace("[size]", "[size], limit: 1")
    assert told(limited) == [("ORC407", 4, "table.default read takes no parameter 'limit'", "limit")]


def test_the_operations_facts_hold_where_nothing_is_said_of_the_call() -> None:
    step = "      - {name: a, type: table, operation: read, params: {}}"
    assert told(step) == [("ORC407", 4, "table.default read needs the parameter 'columns'", step.strip(" -"))]


def test_a_plugin_that_fails_to_tell_them_is_a_problem_at_its_source() -> None:
    """Else a reload would be an internal error, and tell of nothing else."""

    class FailingPlugin:
        @hookimpl
        def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
            return [SourceKind("table", "A table.", TableOptions, open_table, facts=lambda _, __: {}["fields"])]

    files = {"integrations/table.yaml": "table:\n  sources:\n    default: {}\n"}
    (problem,) = check_problems(files, plugins={"table": FailingPlugin()})
    assert (problem.code, problem.line, problem.path) == ("ORC601", 3, "table.sources.default")
    assert problem.message == "what table.default takes and returns cannot be told: KeyError: 'fields'"
    assert problem.hint.startswith("a defect of ")


def test_a_plugin_that_fails_to_prepare_an_operation_is_a_problem_at_the_step(run: RunFixture) -> None:
    class FailingSource:
        async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any: ...

        def prepare(self, operation: str, names: Sequence[str]) -> Any:
            raise KeyError(operation)

    @asynccontextmanager
    async def open_failing(options: TableOptions, context: OpenContext) -> AsyncIterator[FailingSource]:
        yield FailingSource()

    class FailingPlugin:
        @hookimpl
        def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
            return [SourceKind("table", "A table.", TableOptions, open_failing)]

    async def main() -> None:
        step = "{name: a, type: table, operation: read, params: {}}"
        files = {
            "integrations/table.yaml": "table:\n  sources:\n    default: {}\n",
            "domains/shop.yaml": f"endpoints:\n  get:\n    data_sources:\n      - {step}\n",
        }
        with pytest.raises(ConfigError) as caught:
            async with service(files, plugins={"table": FailingPlugin()}):
                pass
        (problem,) = caught.value.problems
        assert (problem.code, problem.line) == ("ORC603", 4)
        assert problem.message == "table.default cannot prepare the operation 'read': KeyError: 'read'"
        assert problem.hint.startswith("a defect of ")

    run(main())


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        (lambda _, __: None, "facts returned NoneType, expected a mapping of operations to OperationFacts"),
        (lambda _, __: {"read": ("columns",)}, "facts returned tuple for 'read', expected OperationFacts"),
        (
            lambda _, __: {"read": OperationFacts(required="columns")},  # type: ignore[arg-type]
            "required is the text 'columns', expected names, such as ('columns',)",
        ),
    ],
)
def test_facts_of_another_form_are_a_problem_at_the_source(facts: Any, why: str) -> None:
    class FailingPlugin:
        @hookimpl
        def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
            return [SourceKind("table", "A table.", TableOptions, open_table, facts=facts)]

    files = {"integrations/table.yaml": "table:\n  sources:\n    default: {}\n"}
    (problem,) = check_problems(files, plugins={"table": FailingPlugin()})
    assert (problem.code, problem.line) == ("ORC601", 3)
    assert problem.message == f"what table.default takes and returns cannot be told: TypeError: {why}"
    assert problem.hint.startswith("a defect of ")


def _failing(constants: Mapping[str, JSON]) -> Any:
    raise KeyError("size")


@pytest.mark.parametrize(
    ("looked", "why"),
    [
        (_failing, "KeyError: 'size'"),
        (lambda _: OperationFacts(), "TypeError: inspect_call returned OperationFacts, expected CallInspection"),
        (
            lambda _: CallInspection(facts=()),
            "TypeError: inspect_call returned tuple for 'read', expected OperationFacts",
        ),  # type: ignore[arg-type]
        (
            lambda _: CallInspection(findings=("no",)),
            "TypeError: inspect_call returned str in its findings, expected Finding",
        ),  # type: ignore[arg-type]
    ],
)
def test_a_plugin_that_fails_to_look_at_a_call_is_a_problem_at_the_step(looked: Any, why: str) -> None:
    """Else check, serve and each reload would be an internal error, and tell of nothing else."""

    class FailingTable(Table):
        def inspect_call(self, operation: str, param_names: Sequence[str], constants: Mapping[str, JSON]) -> Any:
            return looked(constants)

        async def inspect(self) -> Inspection:
            return Inspection()

    assert _problem_of_a_step(FailingTable(TableOptions())) == (
        "ORC602",
        4,
        f"table.default cannot tell what this call takes and returns: {why}",
    )


@pytest.mark.parametrize("method", ["prepare", "prepare_many"])
def test_a_source_that_prepares_nothing_to_call_is_a_problem_at_the_step(method: str) -> None:
    class FailingSource:
        async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any: ...

    source = FailingSource()
    setattr(FailingSource, method, lambda self, operation, names: {})
    why = f"TypeError: {method} returned dict, expected a coroutine function"
    message = f"table.default cannot prepare the operation 'read': {why}"
    told = _problem_of_a_step(source, "for_each: [1], " if method == "prepare_many" else "")
    assert told == ("ORC603", 4, message)


def test_a_look_that_tells_something_else_is_a_defect_of_the_plugin_that_brings_the_model() -> None:
    async def look(options: TableOptions, context: OpenContext) -> Any:
        return {"inputs": ["x"]}

    class FailingPlugin:
        @hookimpl
        def orchestrator_model_kinds(self) -> list[ModelKind[Any]]:
            return [ModelKind("table", "A table.", TableOptions, open_table, look=look)]  # type: ignore[arg-type]

    files = {"integrations/models.yaml": "ml:\n  sources:\n    risk: {source: {type: table}}\n"}
    (problem,) = check_problems(files, plugins={"table": FailingPlugin()})
    assert (problem.code, problem.message) == (
        "ORC601",
        "ml.risk cannot be opened: TypeError: look returned dict, expected ModelFacts",
    )
    assert problem.hint.endswith("a defect of the given plugin table")


def _problem_of_a_step(source: Any, more: str = "") -> tuple[str, int, str]:
    @asynccontextmanager
    async def opened(options: TableOptions, context: OpenContext) -> AsyncIterator[Any]:
        yield source

    class FailingPlugin:
        @hookimpl
        def orchestrator_source_kinds(self) -> list[SourceKind[Any]]:
            return [SourceKind("table", "A table.", TableOptions, opened)]

    files = {
        "integrations/table.yaml": "table:\n  sources:\n    default: {}\n",
        "domains/shop.yaml": "endpoints:\n  get:\n    data_sources:\n"
        f"      - {{name: a, type: table, operation: read, {more}params: {{size: 1}}}}\n",
    }
    (problem,) = check_problems(files, plugins={"table": FailingPlugin()})
    assert problem.hint.startswith("a defect of ")
    return problem.code, problem.line, problem.message


def test_an_expression_is_no_constant_and_a_call_may_be_unknown() -> None:
    step = '      - {name: a, type: table, operation: read, params: {columns: "$request.body", other: 1}}'
    assert told(step, response="$a.whatever") == []


def test_a_parameter_that_a_transform_changes_is_no_constant() -> None:
    transform = "transform: {params: {columns: [{select: [x]}]}}"
    step = f"      - {{name: a, type: table, operation: read, params: {{columns: [{{x: 1}}]}}, {transform}}}"
    assert told(step, response="$a.whatever") == []


def test_nothing_is_concluded_from_a_result_whose_transformer_has_a_problem() -> None:
    transform = "[{renam: {name: who}}]"
    step = f"      - {{name: a, type: table, operation: read, params: {{columns: [name]}}, transform: {transform}}}"
    problems = [(code, message) for code, _, message, _ in told(step, response="$a.who")]
    assert problems == [("ORC401", "no installed plugin provides the transformer 'renam'")]


def test_a_source_that_cannot_be_reached_is_not_asked_about_calls() -> None:
    step = "      - {name: a, type: table, operation: read, params: {columns: [siez]}}"
    assert told(step, down=True) == []


def test_calls_of_an_endpoint_that_has_other_problems_are_looked_at_too() -> None:
    step = '      - {name: a, type: table, operation: read, params: {columns: [siez], x: "$nobody.x"}}'
    assert [(code, message) for code, _, message, _ in told(step)] == [
        ("ORC602", "there is no column 'siez'"),
        ("ORC502", "there is no step 'nobody'"),
    ]


def test_a_misspelt_field_is_told_beside_an_expression_that_cannot_be_read() -> None:
    step = "      - {name: a, type: table, operation: read, params: {columns: [name]}}"
    problems = [
        ("ORC505", 5, "the step 'a' returns no field 'nam'", "$a.nam"),
        ("ORC501", 5, "expected an operand after '+'", '"'),
    ]
    assert told(step, response='{x: "$a.nam", y: "$a.name +"}') == problems


def test_nothing_is_concluded_from_a_parameter_that_cannot_be_read() -> None:
    step = '      - {name: a, type: table, operation: read, params: {columns: "$a +", x: "$nobody.x"}}'
    assert [(code, message) for code, _, message, _ in told(step, response='{x: "$a.whatever"}')] == [
        ("ORC501", "expected an operand after '+'"),
        ("ORC502", "there is no step 'nobody'"),
    ]


def test_a_finding_without_an_operation_is_about_the_source() -> None:
    files = {"integrations/table.yaml": "table:\n  sources:\n    default: {down: false}\n"}
    (problem,) = check_problems(files, plugins={"table": TablePlugin()})
    assert str(problem) == (
        "integrations/table.yaml:3:21: ORC602 there is no schema 'shp'\n"
        "    3 |     default: {down: false}\n"
        "      |                     ^^^^^"
    )
