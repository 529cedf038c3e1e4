"""The conformance classes: the built-in source stands them, and each kind of broken plugin is told what is wrong."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve, frozen

from orchestrator_core.direct import DIRECT
from orchestrator_core.errors import EntityNotFound, InvalidParam
from orchestrator_core.plugin_api import (
    Identity,
    Inspection,
    ModelFacts,
    ModelKind,
    OperationFacts,
    SourceKind,
    option,
)
from orchestrator_core.testing import Call, ModelConformance, SourceConformance


class TestDirect(SourceConformance):
    kind = DIRECT
    calls = (
        Call("", {"x": 1, "y": [None, {"z": 0.5}]}, {"x": 1, "y": [None, {"z": 0.5}]}),
        Call("", {}, {}),
        Call("anything", {"text": "ü"}, {"text": "ü"}),
    )


@frozen
class Options:
    """Options of the broken plugins."""

    size: int = option(1, help="A size.")


@frozen
class Undocumented:
    size: int = option(1, help="A size.")
    colour: str = "red"
    nested: Options = option(factory=Options, help="More.")


@frozen
class NeverEqual:
    """Options that a reload would always see as changed."""

    key: Any = option(factory=object, help="A key.")


class Fetching:
    """A source that works; the broken ones differ from it in one thing."""

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        if operation != "get":
            raise InvalidParam("operation", f"no operation {operation}")
        if list(params) != ["id"]:
            raise InvalidParam("id", f"get takes id, not {', '.join(params)}")
        await asyncio.sleep(0)
        return {"id": params["id"]}


class ChangesParams(Fetching):
    async def fetch(self, operation: str, params: Any) -> Any:
        params["seen"] = True
        return {"id": params["id"]}


class SharesState(Fetching):
    """Keeps the params of the latest call in the source."""

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        self.params = params
        await asyncio.sleep(0)
        return dict(self.params)


class HoldsLockWhenCancelled(Fetching):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        await asyncio.wait_for(self.lock.acquire(), 0.1)
        result = await super().fetch(operation, params)
        self.lock.release()
        return result


class ReturnsNaN(Fetching):
    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        return {"rows": [{"score": float("nan")}]}


class ReturnsSet(Fetching):
    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        return {"tags": {1}}


class IgnoresParams(Fetching):
    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        return {"id": params.get("id", 1)}


class PreparesOtherwise(Fetching):
    def prepare(self, operation: str, param_names: Sequence[str]) -> Any:
        async def call(*values: Any) -> Any:
            return {"id": str(values[0])}

        return call


class MixesItemsUp(Fetching):
    def prepare_many(self, operation: str, param_names: Sequence[str]) -> Any:
        async def many(items: Sequence[Sequence[Any]]) -> Sequence[Any]:
            return [{"id": number} for number in sorted(item[0] for item in items)]

        return many


class InspectsOtherwise(Fetching):
    async def inspect(self) -> Inspection:
        return Inspection(facts={"get": OperationFacts(required=("key",), optional=(), fields=("id",))})


class CountsAsIdentity(Fetching):
    calls = 0

    async def fetch(self, operation: str, params: Mapping[str, Any]) -> Any:
        self.calls += 1
        return {"id": params["id"]}

    def identity(self) -> Identity:
        return Identity("source", version=str(self.calls))


def kind_of(source: type[Any], options: type[Any] = Options, fields: tuple[str, ...] = ("id",)) -> SourceKind[Any]:
    @asynccontextmanager
    async def opened(_: Any, __: Any) -> Any:
        yield source()

    facts = {"get": OperationFacts(required=("id",), optional=(), fields=fields)}
    return SourceKind("broken", "Broken.", options, opened, operation=Options, facts=lambda _, __: facts)


class WorkingCase(SourceConformance):
    kind = kind_of(Fetching)
    operations = {"get": {}}  # noqa: RUF012  # read only, as the subclasses in the documentation write it
    calls = (Call("get", {"id": 1}, {"id": 1}), Call("get", {"id": 2}, {"id": 2}))


class TestWorking(WorkingCase):
    pass


@asynccontextmanager
async def leaking(_: Any, __: Any) -> Any:
    tasks.append(asyncio.create_task(asyncio.Event().wait(), name="forgotten"))
    descriptors.append(os.open(os.devnull, os.O_RDONLY))
    yield Fetching()


descriptors: list[int] = []
tasks: list[asyncio.Task[Any]] = []


@pytest.mark.parametrize(
    ("kind", "test", "message"),
    [
        (
            kind_of(Fetching, Undocumented),
            WorkingCase.test_every_option_says_what_it_is_for,
            "these options have no help: Undocumented.colour",
        ),
        (
            kind_of(ChangesParams),
            WorkingCase.test_calls_do_not_change_their_params,
            "get(id=1) changed its params to {'id': 1, 'seen': True}",
        ),
        (
            kind_of(SharesState),
            WorkingCase.test_concurrent_calls_give_what_calls_one_by_one_give,
            "get(id=1) gave the result {'id': 1}; among 100 concurrent calls it gave the result {'id': 2}",
        ),
        (
            kind_of(ReturnsNaN),
            WorkingCase.test_results_are_plain_json,
            "get(id=1): /rows/0/score is nan, which JSON cannot hold: raise, or give null",
        ),
        (
            kind_of(ReturnsSet),
            WorkingCase.test_results_are_plain_json,
            "get(id=1): /tags is a set, not plain JSON: {1}",
        ),
        (
            kind_of(IgnoresParams),
            WorkingCase.test_an_operation_that_is_not_there_is_refused_by_name,
            "an unknown operation gave the result {'id': 1}; it must raise, naming it",
        ),
        (
            kind_of(IgnoresParams),
            WorkingCase.test_a_parameter_that_is_not_taken_or_that_is_missing_is_refused_by_name,
            (
                "get with {'id': 1, 'no_such_param': 1} gave the result {'id': 1}; "
                "expected an InvalidParam that names 'no_such_param'"
            ),
        ),
        (
            kind_of(PreparesOtherwise),
            WorkingCase.test_a_prepared_call_means_the_same_as_fetch,
            "get(id=1) gave the result {'id': 1}; prepared with the parameters ['id'] it gave the result {'id': '1'}",
        ),
        (
            kind_of(MixesItemsUp),
            WorkingCase.test_a_call_for_many_items_gives_what_calls_one_by_one_give,
            "get(id=2) gave the result {'id': 2}; among 4 items at once it gave the result {'id': 1}",
        ),
        (
            kind_of(InspectsOtherwise),
            WorkingCase.test_what_it_says_before_it_opens_agrees_with_what_it_finds_out,
            (
                "get: `facts` says "
                "OperationFacts(required=('id',), optional=(), fields=('id',), many=False, inputs={}, degrades=False, "
                "idempotent=None, in_process=False) "
                "and `inspect` OperationFacts(required=('key',), optional=(), fields=('id',), many=False, inputs={}, "
                "degrades=False, idempotent=None, in_process=False)"
            ),
        ),
        (
            kind_of(Fetching, fields=("id", "name")),
            WorkingCase.test_what_it_knows_of_its_operations_is_true_of_the_calls,
            "the facts promise the fields ['id', 'name'], but get(id=1) gave {'id': 1}",
        ),
        (
            kind_of(CountsAsIdentity),
            WorkingCase.test_its_identity_does_not_change_with_calls,
            (
                "the identity was Identity(name='source', version='0', digest='') and is "
                "Identity(name='source', version='2', digest='')"
            ),
        ),
    ],
)
def test_a_broken_source_is_told_what_is_wrong(kind: SourceKind[Any], test: Any, message: str, tmp_path: Path) -> None:
    case = WorkingCase()
    case.kind = kind
    with pytest.raises(AssertionError) as caught:
        test(case, *((tmp_path,) if test is not WorkingCase.test_every_option_says_what_it_is_for else ()))
    assert str(caught.value) == message


def test_options_that_are_never_equal_are_told_that_a_reload_cannot_keep_the_source() -> None:
    case = WorkingCase()
    case.kind = kind_of(Fetching, NeverEqual)
    with pytest.raises(AssertionError, match=r"the same options read twice are not equal: NeverEqual\(key="):
        case.test_the_same_options_are_equal_so_that_a_reload_keeps_the_source()


def test_a_source_that_forgets_a_task_and_a_descriptor_is_told_both(tmp_path: Path) -> None:
    case = WorkingCase()
    case.kind = SourceKind("leaking", "Leaks.", Options, leaking, operation=Options)
    case.leaves_within_seconds = 0.05  # type: ignore[misc]  # this case alone need not be patient
    try:
        with pytest.raises(AssertionError) as caught:
            case.test_opening_and_closing_leaves_no_task_thread_or_file_descriptor(tmp_path)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    told = str(caught.value)
    assert told.startswith("opening and closing leaking twice leaves behind: task forgotten #")
    assert told.count("task forgotten") == 2
    assert told.count(f"({os.devnull})") == 2


def test_a_source_that_keeps_its_lock_when_cancelled_is_found(tmp_path: Path) -> None:
    case = WorkingCase()
    case.kind = kind_of(HoldsLockWhenCancelled)
    with pytest.raises((AssertionError, TimeoutError)):
        case.test_a_cancelled_call_leaves_the_source_usable(tmp_path)


def test_a_wrong_expectation_shows_both_results(tmp_path: Path) -> None:
    case = WorkingCase()
    case.calls = [Call("get", {"id": 1}, {"id": 1.0})]
    with pytest.raises(AssertionError) as caught:
        case.test_each_call_gives_what_is_expected(tmp_path)
    assert str(caught.value) == "get(id=1): expected {'id': 1.0}, got {'id': 1}"
    case.calls = [Call("get", {"id": 1}, error=EntityNotFound, message="there is none")]
    with pytest.raises(AssertionError) as caught:
        case.test_each_call_gives_what_is_expected(tmp_path)
    assert str(caught.value) == "get(id=1): expected EntityNotFound: there is none, got the result {'id': 1}"


# --- models -------------------------------------------------------------------------------------------------------


class Doubling:
    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        if any("x" not in row for row in rows):
            raise InvalidParam("features", "the feature 'x' is missing")
        return [{"y": row["x"] * 2} for row in rows]

    def facts(self) -> ModelFacts:
        return ModelFacts(inputs=("x",), outputs=("y",))


class Sorts(Doubling):
    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        return sorted(await super().predict(rows), key=lambda result: float(result["y"]))


class FillsIn(Doubling):
    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        return [{"y": row.get("x", 0) * 2} for row in rows]


class PromisesMore(Doubling):
    def facts(self) -> ModelFacts:
        return ModelFacts(inputs=("x",), outputs=("y", "z"))


class DropsEmpty(Doubling):
    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
        return await super().predict(rows) or [None]


class Elsewhere(Doubling):
    """A model with all that one outside the process can have."""

    async def ended(self) -> str:
        await asyncio.Event().wait()
        return "never"

    async def logs(self, lines: int) -> str:
        return "ready\n"

    async def changed(self) -> bool:
        return False


class HasEnded(Elsewhere):
    async def ended(self) -> str:
        return "at once"


class CannotBeLeft(Elsewhere):
    async def ended(self) -> str:
        until = asyncio.get_running_loop().time() + 5.3
        while (left := until - asyncio.get_running_loop().time()) > 0:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(left)
        return ""


class TellsAll(Elsewhere):
    async def logs(self, lines: int) -> str:
        return "a\nb\n"


class IsNeverSure(Elsewhere):
    async def changed(self) -> bool:
        return True


def model_kind(model: type[Any], look: Any = None) -> ModelKind[Any]:
    @asynccontextmanager
    async def opened(_: Any, __: Any) -> Any:
        yield model()

    return ModelKind("doubling", "Doubles.", Options, opened, look=look)


class DoublingCase(ModelConformance):
    kind = model_kind(Doubling)
    rows = ({"x": 3}, {"x": 1})
    results = ({"y": 6}, {"y": 2})


class TestDoubling(DoublingCase):
    pass


async def sees_inputs(_: Any, __: Any) -> ModelFacts:
    return ModelFacts(inputs=("x",))


async def sees_others(_: Any, __: Any) -> ModelFacts:
    return ModelFacts(inputs=("z",))


class TestElsewhere(DoublingCase):
    kind = model_kind(Elsewhere, sees_inputs)


@frozen
class TakesTheCores:
    preload: bool = option(True, help="Something else than what the core takes it for.")
    other: bool = option(True, help="Its own.")


def test_an_option_that_the_core_takes_is_found() -> None:
    case = DoublingCase()
    case.kind = evolve(model_kind(Doubling), options=TakesTheCores)
    with pytest.raises(AssertionError) as caught:
        case.test_no_option_has_a_name_that_the_core_takes_for_every_model()
    assert str(caught.value) == "these options would never reach the model: preload"


def test_a_look_that_tells_something_else_is_found(tmp_path: Path) -> None:
    case = DoublingCase()
    case.kind = model_kind(Elsewhere, sees_others)
    with pytest.raises(AssertionError) as caught:
        case.test_looking_at_it_tells_what_opening_it_tells(tmp_path)
    assert str(caught.value) == "look tells the inputs ('z',), and the open model ('x',)"


@pytest.mark.parametrize(
    ("model", "test", "message"),
    [
        (
            Sorts,
            DoublingCase.test_rows_come_back_as_results_in_their_order,
            "the rows: expected [{'y': 6}, {'y': 2}], got [{'y': 2}, {'y': 6}]",
        ),
        (
            FillsIn,
            DoublingCase.test_every_input_it_names_is_needed,
            "a row without 'x' gave the result [{'y': 0}]; expected an InvalidParam that names it",
        ),
        (
            PromisesMore,
            DoublingCase.test_it_returns_the_fields_it_names,
            "facts() names the outputs ['y', 'z'], but a result has ['y']",
        ),
        (DropsEmpty, DoublingCase.test_no_rows_give_no_results, "no rows gave [None]"),
        (
            HasEnded,
            DoublingCase.test_it_has_not_ended_while_it_is_open_and_whoever_asks_may_give_up,
            "ended() returns while the model is open and answers",
        ),
        (
            CannotBeLeft,
            DoublingCase.test_it_has_not_ended_while_it_is_open_and_whoever_asks_may_give_up,
            "ended() cannot be cancelled",
        ),
        (
            TellsAll,
            DoublingCase.test_its_output_is_text_of_no_more_lines_than_asked_for,
            "logs(1) returns 2 lines",
        ),
        (
            IsNeverSure,
            DoublingCase.test_nothing_has_changed_right_after_it_was_opened,
            "changed() says that it has, right after it was opened",
        ),
    ],
)
def test_a_broken_model_is_told_what_is_wrong(model: type[Any], test: Any, message: str, tmp_path: Path) -> None:
    case = DoublingCase()
    case.kind = model_kind(model)
    with pytest.raises(AssertionError) as caught:
        test(case, tmp_path)
    assert str(caught.value) == message
