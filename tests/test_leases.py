"""Leases: who uses a thing together with others, and who is the last."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator_core.leases import hold_lease, is_held, runtime_folder

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
