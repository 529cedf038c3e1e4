"""The service under fault and load: the table of what is to hold, with what was measured.

    python -m tests.chaos [--rows down,hangs] [--quick] [--seconds N] [--json FILE]

The service has the first core, the load, the sources and the proxies before them the others. It ends with status 1 when
something does not hold. Figures that compare latencies need a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import uvloop
from attrs import evolve, frozen

from tests.bench.process import Unusable, awake, divide_cores
from tests.chaos.outcome import NOT_HELD, POSTGRESQL, Finding, Row, Setting, as_json, table
from tests.chaos.table import ROWS


@frozen
class Options:
    rows: tuple[str, ...]
    quick: bool
    seconds: float | None
    postgresql: str
    json: Path | None


def parse(arguments: Sequence[str]) -> Options:
    known = [row.name for row in ROWS]

    def names(text: str) -> tuple[str, ...]:
        given = tuple(name.strip() for name in text.split(","))
        if unknown := [name for name in given if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(known)}")
        return given

    parser = argparse.ArgumentParser(
        "python -m tests.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=names, default=tuple(known), metavar="NAMES", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="the short form of each row: seconds instead of minutes")
    parser.add_argument("--seconds", type=float, metavar="N", help="how long each phase of a row is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to a file too, after each row")
    parser.add_argument("--postgresql", default=POSTGRESQL, metavar="URL", help="of the server with a database")
    return Options(**vars(parser.parse_args(arguments)))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress() -> Callable[[str], None]:
    """Return what tells how a row goes, and for how long it has."""
    begun = time.monotonic()
    return lambda text: say(f"  {time.monotonic() - begun:5.0f} s  {text}")


async def measure(row: Row, setting: Setting) -> list[Finding]:
    try:
        return await row.measure(setting)
    except Unusable as error:
        return [Finding("the row can be measured", str(error).replace("\n", " "), held=None)]
    except Exception as error:  # whatever it is, the other rows are to be measured
        traceback.print_exc()
        return [Finding("the row can be measured", f"{type(error).__name__}: {error}".replace("\n", " "), held=False)]


async def run(options: Options, folder: Path, results: list[tuple[Row, list[Finding]]]) -> None:
    cores = divide_cores()
    setting = Setting(
        folder=folder,
        server_cores=cores.server,
        load_cores=cores.load,
        quick=options.quick,
        seconds=options.seconds,
        postgresql=options.postgresql,
    )
    os.sched_setaffinity(0, cores.load)  # and so are those that it starts, but for the service
    if not cores.apart:
        say("there is one core alone, which all share: figures that compare latencies mean nothing")
    for row in ROWS:
        if row.name not in options.rows:
            continue
        say(f"{row.name}: {row.fault}")
        with awake() if row.awake else nullcontext(True) as kept:
            if not kept:
                say("/dev/cpu_dma_latency is closed to us: the cores sleep between requests, and latencies tell so")
            findings = await measure(row, evolve(setting, say=progress()))
        for finding in findings:
            say(f"  {finding.verdict:12}  {finding.holds}: {finding.measured}")
        results.append((row, findings))
        if options.json:
            options.json.write_text(json.dumps(as_json(results), indent=2) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    results: list[tuple[Row, list[Finding]]] = []
    interrupted = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends what was started, as Ctrl-C does
    with tempfile.TemporaryDirectory(prefix="orchestrator-chaos-") as folder:
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run(options, Path(folder), results))
        except KeyboardInterrupt:
            interrupted = True
    if results:
        print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}\n")
        print(table(results))
    failed = sum(finding.verdict == NOT_HELD for _, findings in results for finding in findings)
    if interrupted:
        say("\ninterrupted: the rows above are whole, the others were not measured")
        return 130
    if failed:
        say(f"\n{failed} {'does' if failed == 1 else 'do'} not hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
