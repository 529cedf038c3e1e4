"""The log: whose words come into it, what is masked, and that nobody waits for it."""

import io
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from orchestrator_core.config.model import LoggingOptions
from orchestrator_core.config.secrets import Redactor
from orchestrator_core.logs import LogMask, configure_logging, logging_what_nobody_caught, request_line
from orchestrator_core.request_lines import FileStream, Lines, text_dropped

CANARY = "canary-5e8d1"
Configure = Callable[..., Any]


@pytest.fixture
def configure(monkeypatch: pytest.MonkeyPatch) -> Iterator[Configure]:
    """Set the log up on a stream of the test's, and everything back at its end."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level

    def configured(stream: Any = None, **options: Any) -> Any:
        stream = stream or io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging(LoggingOptions(**options), LogMask(Redactor.of([CANARY])))
        return stream

    yield configured
    logging.captureWarnings(False)
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def written(stream: io.StringIO) -> list[dict[str, Any]]:
    factory = structlog.get_config()["logger_factory"]
    factory.lines.flush()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_on_one_line_with_its_traceback(configure: Configure) -> None:
    stream = configure(format="json")
    try:
        raise ValueError(f"no\n{CANARY}")
    except ValueError:
        structlog.get_logger("x").exception("defect", step="a")
    (event,) = written(stream)
    assert (event["event"], event["level"], event["step"]) == ("defect", "error", "a")
    assert event["exception"].splitlines()[0] == "Traceback (most recent call last):"
    assert event["exception"].endswith("ValueError: no\n***")


def test_what_libraries_log_is_in_the_same_form_from_warnings_on(configure: Configure) -> None:
    stream = configure(format="json", level="debug")
    library = logging.getLogger("some.library")
    library.info("the token is %s", "of a login")
    library.warning("cannot reach %s with %s", "db", CANARY)
    try:
        raise RuntimeError(CANARY)
    except RuntimeError:
        library.exception("gave up")
    first, second = written(stream)
    assert {**first, "timestamp": ""} == {
        "event": "cannot reach db with ***",
        "level": "warning",
        "logger": "some.library",
        "timestamp": "",
    }
    assert (second["event"], second["level"]) == ("gave up", "error")
    assert second["exception"].endswith("RuntimeError: ***")


def test_a_warning_of_python_is_an_event_too(configure: Configure) -> None:
    stream = configure(format="json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn(f"old {CANARY}", DeprecationWarning, stacklevel=1)
    (event,) = written(stream)
    assert (event["logger"], event["level"]) == ("py.warnings", "warning")
    assert "DeprecationWarning: old ***" in event["event"]


def test_secrets_are_masked_however_deep_they_stand_and_in_what_shows_itself(configure: Configure) -> None:
    class Shows:
        def __repr__(self) -> str:
            return f"<{CANARY}>"

    stream = configure(format="json")
    structlog.get_logger("x").info(
        f"at {CANARY}", deep={"list": [CANARY, 1, None], CANARY: True}, shown=Shows(), several=(CANARY,)
    )
    (event,) = written(stream)
    del event["timestamp"]
    assert event == {
        "event": "at ***",
        "level": "info",
        "deep": {"list": ["***", 1, None], "***": True},
        "shown": "<***>",
        "several": ["***"],
    }


def test_a_number_that_json_cannot_hold_is_a_text(configure: Configure) -> None:
    stream = configure(format="json")
    structlog.get_logger("x").info("scored", score=float("nan"), bounds=[float("-inf"), 1.5])
    (event,) = written(stream)
    assert (event["score"], event["bounds"]) == ("nan", ["-inf", 1.5])
    assert "NaN" not in stream.getvalue()


def test_the_console_has_a_line_for_people_and_masks_the_same(configure: Configure) -> None:
    stream = configure()
    structlog.get_logger("x").info("opened", url=f"http://{CANARY}/")
    logging.getLogger("lib").warning("away: %s", CANARY)
    ours, theirs = stream.getvalue().splitlines()
    assert "[info     ] opened" in ours
    assert "url=http://***/" in ours
    assert "[warning  ] away: ***" in theirs
    assert "[lib]" in theirs


def test_what_nobody_catches_is_an_event_too_and_python_has_it_back_afterwards(configure: Configure) -> None:
    class Ends:
        def __del__(self) -> None:
            raise OSError(f"not closed: {CANARY}")

    def work() -> None:
        raise RuntimeError(CANARY)

    stream = configure(format="json")
    before = threading.excepthook, sys.unraisablehook
    with logging_what_nobody_caught():
        thread = threading.Thread(target=work, name="worker")
        thread.start()
        thread.join()
        Ends()
    assert (threading.excepthook, sys.unraisablehook) == before
    first, second = written(stream)
    assert (first["event"], first["thread"]) == ("defect in a thread", "worker")
    assert first["exception"].endswith("RuntimeError: ***")
    assert (second["event"], second["level"]) == ("defect that nobody is told of", "error")
    assert second["exception"].endswith("OSError: not closed: ***")


def test_the_line_of_a_request(configure: Configure) -> None:
    stream = configure(format="json")
    line = request_line()
    assert line is not None
    line("0a" * 16, "", "GET", "/orchestrator/shop/hello", 200, 0.0012345)
    line("0b" * 16, "ab" * 16, "POST", "/orchestrator/shop/hello", 502, 1.5, degraded=("extra",), error="lost \ud800")
    first, second = written(stream)
    assert first.pop("timestamp") < second.pop("timestamp")
    assert first == {
        "event": "request",
        "execution_id": "0a" * 16,
        "trace_id": "",
        "method": "GET",
        "route": "/orchestrator/shop/hello",
        "status": 200,
        "milliseconds": 1.234,
        "level": "info",
    }
    assert (second["degraded"], second["error"], second["trace_id"]) == (["extra"], "lost \ud800", "ab" * 16)


def test_the_line_of_a_request_for_people(configure: Configure) -> None:
    stream = configure()
    line = request_line()
    assert line is not None
    line("0a" * 16, "", "GET", "/orchestrator/shop/hello", 200, 0.0012345, error="two\nlines")
    structlog.get_config()["logger_factory"].lines.flush()
    stamp, _, rest = stream.getvalue().partition(" ")
    assert stamp.endswith("Z")
    assert rest == (
        "[info     ] request GET /orchestrator/shop/hello 200 in 1.234 ms "
        f'execution_id={"0a" * 16} error="two\\nlines"\n'
    )


@pytest.mark.parametrize(("log_format", "told"), [("json", '"worker":1'), ("console", "worker=1")])
def test_every_line_of_a_worker_says_which_it_is(configure: Configure, log_format: Any, told: str) -> None:
    stream = configure()
    configure_logging(LoggingOptions(format=log_format), LogMask(Redactor.of([CANARY])), worker=1)
    line = request_line()
    assert line is not None
    line("0a" * 16, "", "GET", "/orchestrator/shop/hello", 200, 0.001)
    structlog.get_logger("x").info("event of ours")
    logging.getLogger("some.library").warning("of a library")
    lines = structlog.get_config()["logger_factory"].lines
    lines._dropped += 1
    lines.flush()
    found = stream.getvalue().splitlines()
    assert len(found) == 4
    assert [told in re.sub(r"\x1b\[\d*m|(?<=:) ", "", each) for each in found] == [True] * 4


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_what_a_client_sends_ends_no_line_and_tells_a_terminal_nothing(configure: Configure, log_format: str) -> None:
    stream = configure(format=log_format)
    line = request_line()
    assert line is not None
    line("0a" * 16, "", "GET", "-", 422, 0.001, error="größer\u2028a\x85b\u202ec\x9bd")
    line("0a" * 16, "", "GET", "-", 422, 0.001, error="größer")
    structlog.get_config()["logger_factory"].lines.flush()
    first, second = stream.getvalue().splitlines()
    assert first.isprintable()
    assert r"gr\u00f6\u00dfer\u2028a\u0085b\u202ec\u009bd" in first
    assert "größer" in second


def test_above_info_there_are_no_lines_of_requests(configure: Configure) -> None:
    configure(level="warning")
    assert request_line() is None


def test_where_nobody_set_a_log_up_there_are_no_lines_of_requests() -> None:
    assert request_line() is None


def test_a_log_that_nobody_reads_holds_up_nobody_and_what_was_dropped_is_counted() -> None:
    reading, writing = os.pipe()
    with open(writing, "w") as stream:
        lines = Lines(stream, text_dropped, most=100)
        for number in range(50_000):  # far more than a pipe holds
            lines.add(f"{number:0199d}\n")
        got: list[bytes] = []

        def read() -> None:
            while piece := os.read(reading, 65536):
                got.append(piece)

        reader = threading.Thread(target=read)
        reader.start()
        lines.flush()
        lines.flush()
    reader.join(20)
    os.close(reading)
    whole = b"".join(got).decode().splitlines()
    numbers = [int(line) for line in whole if line.isdigit()]
    dropped = [int(line.rpartition("count=")[2]) for line in whole if not line.isdigit()]
    assert numbers == sorted(set(numbers))
    assert len(numbers) + sum(dropped) == 50_000
    assert dropped


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_events_and_what_libraries_log_hold_up_nobody_either(configure: Configure, log_format: str) -> None:
    reading, writing = os.pipe()
    got: list[bytes] = []

    def tell() -> None:
        for number in range(1000):  # far more than a pipe holds
            structlog.get_logger("x").warning("ours", said=f"{number:0199d}")
            logging.getLogger("a.library").warning("theirs %0199d", number)

    def read() -> None:
        while piece := os.read(reading, 65536):
            got.append(piece)

    with open(writing, "w") as stream:
        configure(stream, format=log_format)
        teller = threading.Thread(target=tell, daemon=True)
        teller.start()
        teller.join(20)
        held_up = teller.is_alive()
        reader = threading.Thread(target=read)
        reader.start()
        teller.join(20)
        structlog.get_config()["logger_factory"].lines.flush()
        structlog.get_config()["logger_factory"].lines.flush()
    reader.join(20)
    os.close(reading)
    assert not held_up
    lines = b"".join(got).decode().splitlines()
    assert [sum(word in line for line in lines) for word in ("ours", "theirs")] == [1000, 1000]


def test_a_full_log_does_not_hold_up_the_end_of_the_process() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    with open(writing, "w") as stream:
        lines = Lines(stream, text_dropped)
        lines.add("a line\n")
        end = threading.Thread(target=lines.flush, daemon=True)
        end.start()
        end.join(20)
        assert not end.is_alive()
        os.close(reading)


def test_a_log_whose_disk_is_full_fails_nobody() -> None:
    with open("/dev/full", "w") as full:
        stream = FileStream(full)
        stream.write("line\n")
        with suppress(OSError):  # what is left of the line is written when the file is closed
            full.close()
