"""The generated code: it reads as a person would write it, whatever steps and parameters are called."""

from __future__ import annotations

import ast
import asyncio
import builtins
import keyword
import linecache
import traceback
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_core.codegen import generate
from orchestrator_core.config.model import RESERVED_ROOTS
from orchestrator_core.engine import execute
from orchestrator_core.errors import SourceError
from orchestrator_core.run import Run
from orchestrator_core.testing import run as run_coroutine
from tests.engine.lab import Lab, planned, ran, request, step

RunFixture = Callable[..., Any]

USED = [
    "request_task", "steps", "run", "started", "error", "branches", "clock", "MISSING", "OK", "SKIPPED", "LOOKUP",
    "Branches", "timeout", "future", "response", "response_exactly", "a", "a_params", "a_condition", "a_wanted",
    "a_ready", "a_task", "a_branch", "a_x_0", "_x", "x_", "_", "__", "call_a", "default_a", "transform_a_0",
    "call_call_a", "step_x", "step_", "None_", "e", "d__e", "async_", "self", "nonlocal_", "lookup", "missing",
    "str", "dict", "list", "Exception", "BaseException", "print", "len", "isinstance", "KeyError", "round", "now",
    "date", "value", "values", "keys", "__import__", "__builtins__", "__name__", "_0", "a__", "e_", "type", "id",
]  # fmt: skip


async def all_at_once(names: list[str]) -> None:
    """Every name as a step beside the others, and as a step that is referred to by the next."""
    lab = Lab()
    steps = [step(name, params={"x": index}, default=None) for index, name in enumerate(names)]
    mapping = {name: f"${name}.x ?? 'none'" for name in names}
    async with planned(lab, *steps, response_mapping=mapping) as ready:
        assert (await ran(ready)).result == {name: index for index, name in enumerate(names)}
    chained: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        before = names[index - 1] if index else None
        params = {"x": f"${before}.x + 1" if before else 0, name: "$request.body.one"}
        chained.append(
            step(name, params=params, condition="$request.body.one == 1", timeout=5, transform=[{"lab_rename": {}}])
        )
    mapping = {name: f"${name}.x ?? 'none'" for name in names}
    for entry in chained:
        entry["params"]["x"] = f"{entry['params']['x']} ?? 'none'" if entry["params"]["x"] else 0
    async with planned(lab, *chained, response_mapping=mapping) as ready:
        got = await ran(ready, request({"one": 1}))
        assert got.result == {name: index for index, name in enumerate(names)}


def test_steps_can_be_called_what_the_code_itself_uses(run: RunFixture) -> None:
    run(all_at_once(USED))


def test_steps_can_be_called_what_python_reserves(run: RunFixture) -> None:
    words = sorted({*keyword.kwlist, *keyword.softkwlist} - {"_"})
    run(all_at_once([word for word in words if word not in ("True", "False", "None")]))


def test_steps_can_be_called_what_python_has_built_in(run: RunFixture) -> None:
    run(all_at_once([name for name in dir(builtins) if name not in keyword.kwlist]))


SHAPES = st.sampled_from(
    [
        "",
        "_",
        "__",
        "call_",
        "default_",
        "each_",
        "transform_",
        "response",
        "step_",
        "a",
        "b",
        "class",
        "request",
        "run",
    ]
)
ENDINGS = st.sampled_from(
    [
        "",
        "_",
        "__",
        "_params",
        "_condition",
        "_wanted",
        "_ready",
        "_task",
        "_branch",
        "_each",
        "_given",
        "_list",
        "_0",
        "_1",
        "_x_0",
        "exactly",
        "1",
    ]
)
NAMES = st.builds(lambda a, b, c: a + b + c, SHAPES, SHAPES, ENDINGS).filter(
    lambda name: name.isidentifier() and name not in (*RESERVED_ROOTS, "true", "false", "null", "in")
)


@given(st.lists(NAMES, min_size=1, max_size=8, unique=True))
@settings(max_examples=60, deadline=None)
def test_no_names_get_in_each_other_s_way(names: list[str]) -> None:
    run_coroutine(all_at_once(names))


async def each_of_them(names: list[str]) -> None:
    """Every name as a step with ``for_each`` beside the others, and as one over the results of the one before."""
    params = {"x": "$item.n ?? $item", "y": "$index", "z": "$request.body.one ?? 0"}
    steps = [step(name, for_each=[{"n": 1}, 2], params=params, timeout=5) for name in names]
    results = [{"x": 1, "y": 0, "z": 5}, {"x": 2, "y": 1, "z": 5}]
    async with planned(Lab(), *steps, response_mapping={name: f"${name}" for name in names}) as ready:
        assert (await ran(ready, request({"one": 5}))).result == dict.fromkeys(names, results)
    chained = [
        step(name, for_each=f"${names[index - 1]}" if index else [0], params={"x": "$item.x + 1 ?? 1"}, default=None)
        for index, name in enumerate(names)
    ]
    async with planned(Lab(), *chained, response_mapping={name: f"${name}[0].x ?? 0" for name in names}) as ready:
        assert (await ran(ready)).result == {name: index + 1 for index, name in enumerate(names)}


def test_steps_for_each_can_be_called_what_the_code_itself_uses(run: RunFixture) -> None:
    run(each_of_them([*USED, "a_each", "a_list", "a_given", "each_a", "each_", "each_x", "items", "AtOnce", "ForEach"]))


@given(st.lists(NAMES, min_size=1, max_size=6, unique=True))
@settings(max_examples=40, deadline=None)
def test_no_names_of_steps_for_each_get_in_each_other_s_way(names: list[str]) -> None:
    run_coroutine(each_of_them(names))


def test_parameters_can_be_called_anything(run: RunFixture) -> None:
    names = [
        "class",
        "a b",
        "a-b",
        "1",
        "",
        "ü",
        "a\nb",
        "'",
        '"',
        "\\",
        "request",
        "x_0",
        "x.0",
        "日本",
        "a b ",
        "{x}",
        "$x",
    ]

    async def main() -> None:
        params = {name: f"$request.body.n + {index}" for index, name in enumerate(names)}
        async with planned(Lab(), step("x", params=params)) as ready:
            assert (await ran(ready, request({"n": 1}))).result == {name: index + 1 for index, name in enumerate(names)}

    run(main())


INJECTIONS = [
    "line one\nraise SystemExit('injected')",
    "'''\nraise SystemExit\n'''",
    '"""',
    "\\",
    "\r\nraise SystemExit",
    "\u2028raise SystemExit\u2029raise SystemExit",
    "\x0craise SystemExit",
    "\x85raise SystemExit",
    "\x1craise SystemExit",
    "{{ $a }}\n",
]


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_of_the_configuration_becomes_code(run: RunFixture, text: str) -> None:
    async def main() -> None:
        steps = [{**step("a"), "operation": text, "params": {text: text if "{{" not in text else "x"}}]
        async with planned(
            Lab(), *steps, description=text, response_mapping={text: ["$a", {text: "$request.body['" + "x" + "']"}]}
        ) as ready:
            source = ready.generated.source
            got = await ran(ready, request({"x": 1}))
        assert got.error is None, got.error
        assert list(got.result) == [text]
        module = ast.parse(source)
        assert {type(node).__name__ for node in module.body} <= {"FunctionDef", "AsyncFunctionDef"}
        assert not any(isinstance(node, ast.Raise) and "SystemExit" in ast.dump(node) for node in ast.walk(module))

    run(main())


async def source_of(*steps: Any, **endpoint: Any) -> str:
    async with planned(Lab(), *steps, **endpoint) as ready:
        return generate(ready.plan).source


def test_a_chain_is_a_row_of_awaits(run: RunFixture) -> None:
    source = run(
        source_of(
            step("customer", params={"id": "$request.path_params.id"}),
            step("score", params={"income": "$customer.income"}),
            description="Scores a customer.",
            response_mapping={"score": "$score.value"},
        )
    )
    assert source == CHAIN


CHAIN = """\
# d.e: Scores a customer.


def customer_params(request, run):
    return (_request_resolve(request, ('path_params', 'id')),)


def score_params(request, run, customer):
    return (_resolve(customer, 'customer', ('income',)),)


def response_exactly(request, run, score):
    return {'score': _resolve(score, 'score', ('value',))}


async def d__e(request, run):
    steps = run.steps

    # customer: lab.default customer
    steps[0] = started = clock()
    try:
        try:
            customer_id_0 = request.path_params['id']
        except LOOKUP:
            (customer_id_0,) = customer_params(request, run)
        customer = await call_customer(customer_id_0)
    except BaseException as error:
        if ends_task(error):
            raise
        raise run.failed(0, started, error)
    steps[0] = (OK, started, clock(), '')

    # score: lab.default score
    started = clock()
    if started > run.turns.until:
        started = await run.turns.rest()
    steps[1] = started
    try:
        try:
            score_income_0 = customer['income']
        except LOOKUP:
            (score_income_0,) = score_params(request, run, customer)
        score = await call_score(score_income_0)
    except BaseException as error:
        if ends_task(error):
            raise
        raise run.failed(1, started, error)
    steps[1] = (OK, started, clock(), '')

    try:
        response = {'score': score['value']}
    except LOOKUP:
        response = response_exactly(request, run, score)
    return response
"""


def test_the_code_is_the_same_for_the_same_configuration(run: RunFixture) -> None:
    steps = [step("a"), step("b"), step("c", params={"x": "$a", "y": "$b"})]
    assert run(source_of(*steps)) == run(source_of(*steps))


def test_tracebacks_show_the_line_of_the_plan(run: RunFixture) -> None:
    async def defect(_: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    async def main() -> None:
        async with planned(Lab({"a": defect}), step("a"), step("b", depends_on=["a"])) as ready:
            got = await ran(ready)
            assert got.error is not None
            shown = "".join(traceback.format_exception(got.error))
            assert "in d__e\n    a = await call_a()" in shown
        assert ready.generated.filename not in linecache.cache  # closed: nobody asks any more

    run(main())


def test_a_reference_to_nothing_never_becomes_null(run: RunFixture) -> None:
    """The plain form and the exact form agree for every shape of what a step returns."""
    shapes: list[Any] = [None, 1, "text", [], [1], {}, {"x": None}, {"x": {}}, {"x": {"y": 0}}, {"x": [{"y": 1}]}, True]

    async def main() -> None:
        texts = ["$a.x", "$a.x.y", "$a['x']", "$a[0]", "$a.x[0].y", "$a[0].x", "$a.x ?? 'none'", "$a.x.y ?? 'none'"]
        for text in texts:
            for shape in shapes:

                async def behaviour(_: Any, shape: Any = shape) -> Any:
                    return shape

                async with planned(Lab({"a": behaviour}), step("a"), response_mapping={"r": text}) as ready:
                    got = await ran(ready)
                expected = look_up(shape, text)
                assert (got.result or {"r": "missing"}) == {"r": expected}, (text, shape, got.error)

    run(main())


def look_up(value: Any, text: str) -> Any:
    """Follow a reference as the rules say: ``missing`` when it finds nothing and nothing catches that."""
    path, _, caught = text.removeprefix("$a").partition(" ?? ")
    for part in path.replace("['", ".").replace("']", "").replace("[", ".").replace("]", "").split(".")[1:]:
        if part.isdigit() and isinstance(value, list) and int(part) < len(value):
            value = value[int(part)]
        elif not part.isdigit() and isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return "none" if caught else "missing"
    return "none" if caught and value is None else value


def test_a_plan_can_run_in_many_tasks_at_once(run_on_each_loop: RunFixture) -> None:
    async def slow(params: Any) -> Any:
        await asyncio.sleep(0)
        if params["x"] % 7 == 0:
            raise SourceError(str(params["x"]))
        return params["x"]

    async def main() -> None:
        steps = [step("a", params={"x": "$request.body.x"}), step("b", params={"x": "$request.body.x"}, default=-1)]
        async with planned(Lab({"a": slow, "b": slow}), *steps, response_mapping=["$a", "$b"]) as ready:

            async def one(number: int) -> Any:
                try:
                    return await execute(ready, request({"x": number}), Run(ready, str(number)))
                except SourceError as error:
                    return str(error)

            got = await asyncio.gather(*(one(number) for number in range(200)))
        assert got == [str(number) if number % 7 == 0 else [number, number] for number in range(200)]

    run_on_each_loop(main())


def test_what_leaves_the_process_is_begun_before_what_is_answered_on_the_spot(run: RunFixture) -> None:
    async def main() -> None:
        here = {"name": "here", "type": "direct", "params": {"x": 1}}
        both = step("both", params={"x": "$here.x + $there.x"})
        async with planned(Lab(), here, step("there", params={"x": 2}), both) as ready:
            got = await ran(ready)
            assert got.result["both"] == {"x": 3}
            assert list(got.steps) == ["here", "there", "both"]
            assert got.steps["there"].start_seconds < got.steps["here"].start_seconds

    run(main())
