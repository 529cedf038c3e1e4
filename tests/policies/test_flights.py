"""One call for all who ask at once, whoever of them goes away."""

from __future__ import annotations

import asyncio
from itertools import permutations

from orchestrator_core.errors import SourceError
from orchestrator_core.policies.flights import Flights
from tests.policies.lab import Backend, RunFixture, future, outcome, turns


def test_concurrent_calls_for_a_key_are_one_and_all_get_its_result(run: RunFixture) -> None:
    async def main() -> None:
        flights, answer = Flights(), future()
        backend = Backend(answer)
        tasks = [asyncio.create_task(flights.join(key, backend)) for key in "aaab"]
        await turns()
        assert (len(backend.calls), len(flights), "a" in flights) == (2, 2, True)
        answer.set_result(1)
        assert await asyncio.gather(*tasks) == [(1, False), (1, True), (1, True), (1, False)]
        assert len(flights) == 0

    run(main())


def test_all_get_its_failure(run: RunFixture) -> None:
    async def main() -> None:
        flights, answer = Flights(), future()
        backend = Backend(answer)
        tasks = [asyncio.create_task(flights.join("a", backend)) for _ in range(3)]
        await turns()
        answer.set_exception(SourceError("down"))
        assert [await outcome(task) for task in tasks] == [("SourceError", "down")] * 3
        assert (len(backend.calls), len(flights)) == (1, 0)

    run(main())


def test_whoever_is_cancelled_the_others_get_the_result(run: RunFixture) -> None:
    """Every order in which up to three of four are cancelled, with and without a turn of the loop in between."""

    async def main() -> None:
        for count in range(1, 5):
            for gone in permutations(range(4), count):
                for pause in (0, 1, 5):
                    flights, answer = Flights(), future()
                    backend = Backend(answer)

                    async def shielded(backend: Backend = backend, answer: asyncio.Future[int] = answer) -> int:
                        backend.calls.append(())
                        return await asyncio.shield(answer)

                    tasks = [asyncio.create_task(flights.join("a", shielded)) for _ in range(4)]
                    await turns()
                    for number in gone:
                        tasks[number].cancel()
                        await turns(pause)
                    await turns()
                    answer.set_result(7)
                    ends = [await outcome(task) for task in tasks]
                    assert [end[0] for end in ends] == [
                        "CancelledError" if number in gone else 7 for number in range(4)
                    ], (gone, pause)
                    leaders = [number for number, end in enumerate(ends) if end == (7, False)]
                    assert len(leaders) == (1 if count < 4 else 0)
                    assert len(backend.calls) <= count + 1
                    assert len(flights) == 0

    run(main())


def test_who_came_last_makes_the_call_that_another_gave_up(run: RunFixture) -> None:
    async def main() -> None:
        flights, answer = Flights(), future()

        async def hanging() -> None:
            await asyncio.sleep(60)

        async def answering() -> object:
            return await answer

        tasks = [asyncio.create_task(flights.join("a", call)) for call in (hanging, hanging, hanging, answering)]
        await turns()
        tasks[0].cancel()
        await turns()
        answer.set_result(1)
        assert [await outcome(task) for task in tasks] == [("CancelledError", ""), (1, True), (1, True), (1, False)]

    run(main())
