"""A container's end is noticed at once, whoever brings it about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from docker_kit import Engine, opened

from orchestrator_core.plugin_api import EndedByOthers, SourceUnavailable


@pytest.mark.parametrize(
    ("by_hand", "says"),
    [
        (lambda container: container.kill(), "was ended by signal 9 (SIGKILL), without any output"),
        (lambda container: container.stop(timeout=0), "was ended by signal 9 (SIGKILL), without any output"),
        (lambda container: container.remove(force=True), ""),
        (lambda container: container.restart(timeout=0), ""),
    ],
    ids=["kill", "stop", "remove", "restart"],
)
def test_an_end_is_noticed_within_a_moment_and_the_next_opening_works(
    by_hand: Callable[[Any], None],
    says: str,
    engine: Engine,
    score_image: str,
    tmp_path: Path,
    run: Callable[..., Any],
) -> None:
    async def main() -> None:
        async with opened(score_image, tmp_path) as model:
            noticing = asyncio.create_task(model.ended())
            await asyncio.sleep(0.05)
            assert not noticing.done()
            await asyncio.to_thread(by_hand, engine.only())
            began = time.monotonic()
            how = await asyncio.wait_for(noticing, 2)
            print(f"noticed {1000 * (time.monotonic() - began):.0f} ms after the command was done")
            assert isinstance(how, EndedByOthers)
            assert how.startswith("the container ")
            assert how.endswith(says)
            with pytest.raises(SourceUnavailable):
                await model.check_ready()
        async with opened(score_image, tmp_path) as model:
            await model.predict([{"tenure": 1}])

    run(main())


def test_what_a_container_wrote_is_text_and_no_more_than_a_message_holds(
    engine: Engine, machine: Engine, tmp_path: Path, run: Callable[..., Any]
) -> None:
    script = "printf '\\033[31mred\\033[0m\\a\\n' >&2; yes x | head -c 20000 | tr -d '\\n' >&2; exit 1"
    image = machine.image("colours", command=["sh", "-c", script])

    async def main() -> None:
        with pytest.raises(SourceUnavailable) as caught:
            async with opened(image, tmp_path):
                pass
        first, red, long = str(caught.value).splitlines()
        assert first.endswith("exited with status 1; its last lines:")
        assert (red, long) == ("red", "x" * 500 + "…")

    run(main())
