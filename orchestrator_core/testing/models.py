"""What every model must stand, as a test class that a plugin's tests subclass.

The tests are ordinary methods whose names start with ``test_``; pytest's ``tmp_path`` is the only fixture they ask
for. A subclass sets class attributes, or sets them on ``self`` in an autouse fixture where they need something that
is made first, such as a database.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import attrs

from orchestrator_core.models import CommonOptions
from orchestrator_core.plugin_api import (
    Changes,
    Describes,
    Ends,
    Identified,
    InvalidParam,
    KeepsLogs,
    Model,
    ModelKind,
    PredictsOne,
    ReadyCheck,
)
from orchestrator_core.testing.leaks import leaves_nothing
from orchestrator_core.testing.opening import look_at_model, open_model
from orchestrator_core.testing.outcomes import (
    CONCURRENT_CALLS,
    LOOP_STEPS_BEFORE_CANCEL,
    called,
    cancel_after,
    check,
    check_documented,
    check_equal_when_read_twice,
    check_json,
    outcome,
    same,
)
from orchestrator_core.testing.running import run


class ModelConformance:
    """What every model must stand. Subclass it and give rows with what the model makes of them::

        class TestCreditModel(ModelConformance):
            kind = ARTIFACT
            options = {"path": "models/credit_risk"}
            rows = [{"income": 50_000.0, "age": 40}, {"income": 20_000.0, "age": 21}]
            results = [{"probability": 0.12}, {"probability": 0.57}]
            tolerance = 1e-9

    ``options`` is what stands in YAML, without ``type`` and ``batch``. Without ``results`` any will do, as long as they
    are the same each time, within ``tolerance`` (relative and absolute). At least two rows, with different results, are
    needed to see that answers keep their order. ``folder`` is the configuration folder; by default an empty one.
    """

    kind: ModelKind[Any]
    options: Mapping[str, Any] = {}
    rows: Sequence[Mapping[str, Any]] = ()
    results: Sequence[Any] | None = None
    tolerance: float = 0.0
    models: Sequence[ModelKind[Any]] = ()
    folder: Path | None = None
    leaves_within_seconds: ClassVar[float] = 5.0

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[Model]:
        """Open the model; ``folder`` is its configuration folder."""
        at = self.folder or folder
        async with open_model(self.kind, self.options, folder=at, models=self.models) as model:
            yield model

    def check_same(self, expected: Any, got: Any, when: str) -> None:
        check(same(expected, got, self.tolerance), f"{when}: expected {expected!r}, got {got!r}")

    # --- options and life cycle --------------------------------------------------------------------------------------

    def test_every_option_says_what_it_is_for(self) -> None:
        check_documented(self.kind.options)

    def test_no_option_has_a_name_that_the_core_takes_for_every_model(self) -> None:
        taken = {option.name for option in attrs.fields(CommonOptions)}
        own = {option.name for option in attrs.fields(self.kind.options)}
        check(not own & taken, f"these options would never reach the model: {', '.join(sorted(own & taken))}")

    def test_the_same_options_are_equal_so_that_a_reload_keeps_the_model(self) -> None:
        check_equal_when_read_twice(self.kind.options, self.options)

    def test_opening_and_closing_leaves_no_task_thread_or_file_descriptor(self, tmp_path: Path) -> None:
        async def open_predict_close() -> None:
            async with self.opened(tmp_path) as model:
                await model.predict(self.rows)

        async def main() -> None:
            await open_predict_close()  # what is made once in a process and kept is made here
            what, patience = f"opening and closing {self.kind.name} twice", self.leaves_within_seconds
            async with leaves_nothing(what, within_seconds=patience):
                await open_predict_close()
                await open_predict_close()

        run(main())

    def test_a_second_one_works_beside_the_first_as_a_reload_needs(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as first:
                async with self.opened(tmp_path) as second:
                    self.check_same(await first.predict(self.rows), await second.predict(self.rows), "the second model")
                await first.predict(self.rows)

        run(main())

    def test_an_open_model_says_that_it_is_ready(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                if isinstance(model, ReadyCheck):
                    await model.check_ready()

        run(main())

    def test_it_has_not_ended_while_it_is_open_and_whoever_asks_may_give_up(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                if not isinstance(model, Ends):
                    return
                for _ in range(2):
                    asked = [asyncio.create_task(model.ended()) for _ in range(2)]
                    await asyncio.sleep(0)
                    await model.predict(self.rows)
                    await asyncio.sleep(0)
                    check(not any(task.done() for task in asked), "ended() returns while the model is open and answers")
                    for task in asked:
                        task.cancel()
                    _, left = await asyncio.wait(asked, timeout=5)
                    check(not left, "ended() cannot be cancelled")
                await model.predict(self.rows)

        run(main())

    def test_its_output_is_text_of_no_more_lines_than_asked_for(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                if not isinstance(model, KeepsLogs):
                    return
                await model.predict(self.rows)
                for lines in (1, 50):
                    text = await model.logs(lines)
                    check(isinstance(text, str), f"logs({lines}) returns {type(text).__name__}, not a string")
                    check(len(text.splitlines()) <= lines, f"logs({lines}) returns {len(text.splitlines())} lines")

        run(main())

    def test_nothing_has_changed_right_after_it_was_opened(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                if isinstance(model, Changes):
                    check(await model.changed() is False, "changed() says that it has, right after it was opened")

        run(main())

    def test_looking_at_it_tells_what_opening_it_tells(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                opened = model.facts() if isinstance(model, Describes) else None
            if self.kind.look is None:
                return
            at = self.folder or tmp_path
            seen = await look_at_model(self.kind, self.options, folder=at, models=self.models)
            for what in ("inputs", "outputs"):
                before, after = getattr(seen, what, None), getattr(opened, what, None)
                check(before is None or before == after, f"look tells the {what} {before}, and the open model {after}")

        run(main())

    def test_its_identity_is_there_and_stays_the_same(self, tmp_path: Path) -> None:
        async def main() -> None:
            identities = []
            for _ in range(2):
                async with self.opened(tmp_path) as model:
                    if not isinstance(model, Identified):
                        return
                    identities.append(model.identity())
                    await model.predict(self.rows)
                    identities.append(model.identity())
            check(len(set(identities)) == 1, f"the identity changes: {identities}")
            check(identities[0].name, "the identity has no name")

        run(main())

    # --- predictions -------------------------------------------------------------------------------------------------

    def test_rows_come_back_as_results_in_their_order(self, tmp_path: Path) -> None:
        async def main() -> None:
            check(len(self.rows) >= 2, "set `rows`: two at least, with different results")
            async with self.opened(tmp_path) as model:
                results = list(await model.predict(self.rows))
                check(len(results) == len(self.rows), f"{len(self.rows)} rows gave {len(results)} results")
                check(any(not same(results[0], other) for other in results[1:]), "all rows give the same result")
                if self.results is not None:
                    self.check_same(list(self.results), results, "the rows")
                turned = list(await model.predict(list(reversed(self.rows))))
                self.check_same(results, turned[::-1], "the rows in reverse")

        run(main())

    def test_a_row_gives_the_same_alone_and_among_others(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                together = await model.predict(self.rows)
                many = await model.predict([*self.rows] * 20)
                self.check_same([*together] * 20, list(many), f"{len(many)} rows in one call")
                for row, expected in zip(self.rows, together, strict=True):
                    self.check_same([expected], list(await model.predict([row])), f"the row {row} alone")
                    if isinstance(model, PredictsOne):
                        self.check_same(expected, await model.predict_one(row), f"predict_one of the row {row}")

        run(main())

    def test_no_rows_give_no_results(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                results = await model.predict([])
                check(len(results) == 0, f"no rows gave {results!r}")

        run(main())

    def test_concurrent_predictions_give_what_predictions_one_by_one_give(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                alone = [list(await model.predict([row])) for row in self.rows]
                rounds = -(-CONCURRENT_CALLS // max(1, len(alone)))
                together = await asyncio.gather(*(model.predict([row]) for row in [*self.rows] * rounds))
                for expected, got in zip(alone * rounds, together, strict=True):
                    self.check_same(expected, list(got), f"among {len(together)} concurrent predictions")

        run(main())

    def test_results_are_plain_json(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                for row, result in zip(self.rows, await model.predict(self.rows), strict=True):
                    check_json(result, f"the result of {row}")

        run(main())

    def test_predictions_do_not_change_their_rows(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                rows = copy.deepcopy(list(self.rows))
                await model.predict(rows)
                check(rows == list(self.rows), f"predict changed its rows to {rows!r}")

        run(main())

    def test_a_cancelled_prediction_leaves_the_model_usable(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                expected = await model.predict(self.rows)
                for steps in LOOP_STEPS_BEFORE_CANCEL:
                    await cancel_after(steps, "predict", model.predict, self.rows)
                got = await asyncio.wait_for(called(model.predict, self.rows), 10)
                self.check_same(expected, got, "after predictions that were cancelled")

        run(main())

    # --- what it says of itself --------------------------------------------------------------------------------------

    def test_every_input_it_names_is_needed(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                facts = model.facts() if isinstance(model, Describes) else None
                for name in (facts.inputs or ()) if facts else ():
                    check(name in self.rows[0], f"facts() names the input '{name}', which `rows` does not have")
                    row = {key: value for key, value in self.rows[0].items() if key != name}
                    ways = [await outcome(model.predict, [row])]
                    if isinstance(model, PredictsOne):
                        ways.append(await outcome(model.predict_one, row))
                    for got in ways:
                        named = got.error is InvalidParam and name in got.message
                        check(named, f"a row without '{name}' gave {got}; expected an InvalidParam that names it")

        run(main())

    def test_it_returns_the_fields_it_names(self, tmp_path: Path) -> None:
        async def main() -> None:
            async with self.opened(tmp_path) as model:
                facts = model.facts() if isinstance(model, Describes) else None
                if facts is None or facts.outputs is None:
                    return
                for result in await model.predict(self.rows):
                    fields = list(result) if isinstance(result, Mapping) else result
                    check(
                        isinstance(result, Mapping) and set(result) == set(facts.outputs),
                        f"facts() names the outputs {list(facts.outputs)}, but a result has {fields!r}",
                    )

        run(main())
