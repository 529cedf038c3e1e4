"""`python -m example` as tests start it, and how they speak to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator_core.testing import free_port
from tests.example.workspace import ENVIRONMENT

READY = "stop       Ctrl-C"
"""The last of what it says once it can be asked."""


@contextmanager
def started(folder: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `python -m example` of the workspace, not of the repository; without a Docker engine, unless one is named."""
    where = {
        **ENVIRONMENT,
        "PYTHONPATH": os.pathsep.join([str(folder), ENVIRONMENT["PYTHONPATH"]]),
        "DOCKER_HOST": f"unix://{folder}/no-docker.sock",
        **environment,
    }
    if not where["DOCKER_HOST"]:
        del where["DOCKER_HOST"]
    process = subprocess.Popen(
        [sys.executable, "-m", "example", *arguments], cwd=folder, env=where, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def get(url: str) -> Any:
    from urllib.request import urlopen

    with urlopen(url, timeout=10) as answer:
        return json.load(answer)


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Return what it says up to the line with a word."""
    assert process.stderr
    read = ""
    for line in process.stderr:
        read += line
        if word in line:
            return read
    raise AssertionError(read)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def ports_of_its_own() -> dict[str, str]:
    names = ("--port", "--admin-port", "--partner-port", "--models-port")
    return {name: str(free_port()) for name in names}


def words(ports: dict[str, str]) -> list[str]:
    return [word for pair in ports.items() for word in pair]
