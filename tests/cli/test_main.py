"""The command as a whole: help, a misspelt command, defects of ours, interruption, colours and import time."""

from __future__ import annotations

import os
import pty
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator_core import __version__
from orchestrator_core.cli import COMMANDS
from orchestrator_core.cli import check as check_command

from .conftest import Invoke, Write

NORMATIVE = ["serve", "check", "plan", "run", "plugins", "schema", "openapi", "init", "reload", "executions"]
ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_help_lists_every_command(orchestrator: Invoke) -> None:
    output = orchestrator("--help").output

    assert list(COMMANDS) == NORMATIVE
    for name, summary in COMMANDS.items():
        assert f"  {name:<10}  {summary}\n" in output


@pytest.mark.parametrize("name", [*NORMATIVE, "executions list", "executions show"])
def test_the_help_of_a_command_has_an_example_and_the_configuration_folder(name: str, orchestrator: Invoke) -> None:
    output = orchestrator(*name.split(), "--help").output

    assert "  Example:\n    orchestrator " in output
    if name != "executions":
        assert re.search(r"--config DIR +Configuration folder\.  \[default: config\]", output)


@pytest.mark.parametrize("name", [name for name in NORMATIVE if name != "executions"])
def test_the_summary_in_the_list_is_the_first_line_of_the_help(name: str, orchestrator: Invoke) -> None:
    first = orchestrator(name, "--help").output.split("\n\n")[1]

    if name not in ("schema", "plugins", "plan", "run", "openapi", "init"):
        assert " ".join(first.split()) == COMMANDS[name]


def test_the_version(orchestrator: Invoke) -> None:
    assert orchestrator("--version").output == f"orchestrator {__version__}\n"


def test_a_misspelt_command_names_the_one_that_was_meant(orchestrator: Invoke) -> None:
    result = orchestrator("chekc")

    assert result.exit_code == 2
    assert result.output.endswith("\nError: there is no command 'chekc', did you mean 'check'?\n")


def test_a_defect_is_one_line_and_the_way_to_its_traceback(
    orchestrator: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise LookupError("no such thing")

    monkeypatch.setattr(check_command, "check", broken)

    result = orchestrator("check", "--config", "my config")

    assert result.exit_code == 1
    assert result.output == (
        "Error: internal error: LookupError: no such thing\n"
        "  = for the traceback: orchestrator --traceback check --config 'my config'\n"
    )
    assert isinstance(orchestrator("--traceback", "check").exception, LookupError)


def test_a_defect_is_told_without_the_secrets_of_the_configuration(
    orchestrator: Invoke, write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise LookupError(f"no such thing as {os.environ['CANARY']}")

    write({"config/database.yaml": 'store: {sources: {default: {url: "store://${env:CANARY}"}}}'})
    monkeypatch.setenv("CANARY", "canary-4711")
    monkeypatch.setattr(check_command, "check", broken)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)

    assert "internal error: LookupError: no such thing as ***\n" in orchestrator("check").output
    error = orchestrator("--traceback", "check").exception
    assert error is not None
    sys.excepthook(type(error), error, error.__traceback__)
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):\n")
    assert printed.endswith("LookupError: no such thing as ***\n")


def test_an_error_is_told_without_the_secrets_of_the_configuration(
    orchestrator: Invoke, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"config/config.yaml": 'admin: {host: "${env:CANARY}", port: 9}'})
    monkeypatch.setenv("CANARY", "canary-4711.invalid")
    result = orchestrator("executions", "list")
    assert result.exit_code == 1
    assert result.output.startswith("Error: http://***:9 cannot be asked: ")
    assert "canary-4711" not in result.output


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["schema"], ["plugins"], ["--help"], ["check", "--help"], ["--version"]])
def test_output_that_nothing_takes_is_no_defect(arguments: list[str], unbuffered: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator_core", *arguments],
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )

    assert done.stderr == "Error: the output cannot be written: No space left on device\n"
    assert done.returncode == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_of_which_a_part_is_taken_has_failed(unbuffered: str, tmp_path: Path) -> None:
    def as_on_a_full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    with open(tmp_path / "schema.json", "w") as file:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator_core", "schema"],
            env={**ENVIRONMENT, "PYTHONUNBUFFERED": unbuffered},
            stdout=file,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=as_on_a_full_disk,
        )

    assert done.stderr == "Error: the output cannot be written: File too large\n"
    assert done.returncode == 1


def test_who_reads_only_the_beginning_hears_nothing_more() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator_core", "schema"],
            env=ENVIRONMENT,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        os.close(writing)

    assert (done.returncode, done.stderr) == (1, "")


def test_an_interrupt_exits_with_130_and_says_nothing(orchestrator: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    async def interrupted(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(check_command, "check", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        result = orchestrator("check")
    finally:
        signal.signal(signal.SIGINT, before)

    assert result.exit_code == 130
    assert result.output == ""


@pytest.mark.parametrize("module", ["orchestrator_core", "orchestrator_core.workers"])
def test_ctrl_c_is_heeded_while_a_process_is_still_being_imported(module: str, tmp_path: Path) -> None:
    """A worker leaves it to its supervisor: in a terminal it comes to both."""
    interrupting = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nos._exit(7)\n"
    for name in ("click", "structlog"):
        (tmp_path / f"{name}.py").write_text(interrupting)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])

    done = subprocess.run(
        [sys.executable, "-m", module, "--channel", "0"], env={**os.environ, "PYTHONPATH": path}, capture_output=True
    )

    assert (done.returncode, done.stderr) == ({"orchestrator_core": 130}.get(module, 7), b"")


def test_the_module_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator_core", "nothing"], env=ENVIRONMENT, capture_output=True, text=True
    )

    assert done.returncode == 2
    assert done.stderr.startswith("Usage: orchestrator [OPTIONS] COMMAND [ARGS]...\n")


def test_characters_that_the_output_does_not_know_are_replaced(write: Write) -> None:
    write({"config/domains/d.yaml": "endpoints: {e: {response_mapping: {city: \u0141\u00f3d\u017a}}}\n"})
    command = [sys.executable, "-m", "orchestrator_core", "plan", "d.e"]
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, env=environment, capture_output=True, encoding="latin-1")

    assert (done.returncode, done.stderr) == (0, "")
    assert "?\u00f3d?" in done.stdout


def in_a_terminal(*args: str, **environment: str) -> str:
    """Return what a command prints when its output is a terminal."""
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "orchestrator_core", *args]
    with subprocess.Popen(command, env={**ENVIRONMENT, **environment}, stdout=terminal, stderr=terminal):
        os.close(terminal)
        output = b""
        while True:
            try:
                chunk = os.read(controller, 4096)
            except OSError:  # Linux says so when the other end is closed
                break
            if not chunk:
                break
            output += chunk
    os.close(controller)
    return output.decode()


def test_there_are_colours_on_a_terminal_unless_no_color_is_set(write: Write) -> None:
    write({"config/config.yaml": "server: {prot: 1}\n"})

    assert "\x1b[31m\x1b[1mORC201" in in_a_terminal("check", "--offline")
    assert "\x1b" not in in_a_terminal("check", "--offline", NO_COLOR="1")
