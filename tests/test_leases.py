"""Leases: who uses a thing together with others, and who is the last."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.leases import hold_lease, if_unheld, is_held, lease_domain, runtime_folder

HOLD = """
import asyncio, sys
from orchestrator_core.leases import hold_lease

async def main():
    async with hold_lease("model"):
        print("held", flush=True)
        await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


def test_the_only_holder_is_the_last(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with hold_lease("model") as lease, lease.exclusive():
            assert lease.last()
            assert is_held("model")
        assert not is_held("model")

    run(main())


def test_of_two_holders_the_one_that_stays_is_the_last(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with hold_lease("model") as first:
            async with hold_lease("model") as second, second.exclusive():
                assert (first.last(), second.last()) == (False, False)
            async with first.exclusive():
                assert first.last()

    run(main())


def holder() -> "subprocess.Popen[bytes]":
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_a_killed_process_holds_nothing(run: Callable[..., Any]) -> None:
    async def main() -> None:
        process = holder()
        try:
            assert is_held("model")
            async with hold_lease("model") as lease:
                assert not lease.last()
                process.kill()
                process.wait()
                assert lease.last()
        finally:
            process.kill()
            process.communicate()

    run(main())


def test_one_at_a_time_is_exclusive(run: Callable[..., Any]) -> None:
    async def main() -> None:
        inside: list[int] = []

        async def decide(number: int) -> None:
            async with hold_lease("model") as lease, lease.exclusive():
                inside.append(number)
                await asyncio.sleep(0.01)
                assert inside[-1] == number

        await asyncio.gather(*(decide(number) for number in range(10)))
        assert sorted(inside) == list(range(10))

    run(main())


def test_what_is_noted_outlives_the_holders(folder: Path, run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with hold_lease("model") as lease:
            assert lease.state() == {}
            lease.note({"starts": 3})
        async with hold_lease("model") as lease:
            assert lease.state() == {"starts": 3}
            (folder / "model.json").write_text("[")
            assert lease.state() == {}

    run(main())


def test_a_key_is_no_path(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=r"'\.\./x' cannot name a lease"):
            async with hold_lease("../x"):
                pass

    run(main())


def test_the_folder_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(link))
    with pytest.raises(PermissionError, match="set ORCHESTRATOR_RUNTIME_DIR to another"):
        runtime_folder()


def test_what_nobody_holds_can_be_taken_away_while_everybody_else_waits(run: Callable[..., Any]) -> None:
    async def main() -> None:
        with if_unheld("model") as nobody:
            assert nobody is not None
            nobody.note({"taken": True})
            holding = asyncio.create_task(anext(aiter(held())))
            await asyncio.sleep(0.1)
            assert not holding.done()
        await asyncio.wait_for(holding, 5)

    async def held() -> Any:
        async with hold_lease("model") as lease:
            assert lease.state() == {"taken": True}
            yield lease

    run(main())


def test_what_somebody_holds_or_is_about_to_hold_is_left_alone(run: Callable[..., Any]) -> None:
    async def main() -> None:
        async with hold_lease("model") as lease:
            with if_unheld("model") as nobody:
                assert nobody is None
            lease.release()
            async with lease.exclusive():
                with if_unheld("model") as nobody:
                    assert nobody is None
        with if_unheld("model") as nobody:
            assert nobody is not None

    run(main())


def test_asking_who_holds_a_lease_makes_nobody_lose_it(run: Callable[..., Any]) -> None:
    """Asking locks the holders out for a moment; no new holder minds, nor one that asks whether it is the last."""
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            is_held("model")

    async def main() -> None:
        for _ in range(200):
            async with hold_lease("model") as first, hold_lease("model") as second:
                assert (first.last(), second.last()) == (False, False)
                second.release()
                while not first.last():  # noqa: ASYNC110 - somebody asks just now
                    await asyncio.sleep(0)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        run(main())
    finally:
        over.set()
        asking.join()


def test_the_domain_is_that_of_the_folder_on_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = lease_domain()
    assert here == lease_domain()
    monkeypatch.setenv("ORCHESTRATOR_RUNTIME_DIR", str(tmp_path / "elsewhere"))
    assert lease_domain() != here
