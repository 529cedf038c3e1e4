"""From measurements to tables and to the targets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

from attrs import frozen

from tests.bench.load import Measured
from tests.bench.process import TICKS_PER_SECOND
from tests.bench.task import SLOW_API_SECONDS, SLOW_MODEL_SECONDS

FLOWS = {
    "noop": "no-op: the path parameter comes back",
    "sqlite": "database (SQLite) to ONNX model",
    "postgresql": "database (PostgreSQL) to ONNX model",
    "http": "database (PostgreSQL) to HTTP model",
    "multi": "database (PostgreSQL) and API at once, to HTTP model",
    "loan": "database (PostgreSQL), Feast on Redis and API at once, to HTTP model",
    "multi_slow": "database and API (10 ms) at once, to HTTP model (20 ms), 32 clients",
    "loan_slow": "database, Feast and API (10 ms) at once, to HTTP model (20 ms), 32 clients",
    "feast": "ten features of one view, read by Feast's SDK and by the feast source, in process",
    "engine": "two instant steps and a dozen mapped fields, beside aiohttp's server answering constant bytes",
}
ALONE = {
    "multi_slow": "database and API (10 ms) at once, to HTTP model (20 ms), one client",
    "loan_slow": "database, Feast and API (10 ms) at once, to HTTP model (20 ms), one client",
}
"""The flows that are measured with one client too, and what that is called."""
FLOOR = "floor"
"""What is measured beside the contestants with one client: the backends asked directly, one after the other."""
FLOOR_SECONDS = SLOW_API_SECONDS + SLOW_MODEL_SECONDS
TITLES = {**FLOWS, **{f"{flow}_alone": title for flow, title in ALONE.items()}}
MIB = 2**20
SATURATED = 0.9
"""The share of its core that a server has to have had for its requests a second to mean something."""


@frozen
class Contestant:
    """The rounds of one contestant in one flow."""

    rounds: tuple[Measured, ...]
    peak_bytes: int

    def of(self, value: Callable[[Measured], float]) -> float:
        return median(value(round_) for round_ in self.rounds)

    @property
    def saturated(self) -> bool:
        return self.of(lambda round_: round_.busy) >= SATURATED

    @property
    def tail(self) -> float:
        """p99 over p50, the median of the rounds."""
        return self.of(lambda round_: round_.p99_seconds / round_.p50_seconds)


Results = Mapping[str, Mapping[str, Contestant]]


def ratio(ours: Contestant, other: Contestant, value: Callable[[Measured], float]) -> float:
    """Return the median of the ratios within each round, which a drift of the machine cancels out of."""
    return median(value(one) / value(two) for one, two in zip(ours.rounds, other.rounds, strict=True))


def throughput(round_: Measured) -> float:
    return round_.requests_per_second


def per_cpu_second(round_: Measured) -> float:
    return round_.requests / max(round_.cpu_seconds, 1 / TICKS_PER_SECOND)


def table(flow: str, contestants: Mapping[str, Contestant]) -> str:
    """Return the flow's table. The last two columns are ours over the contestant."""
    ours = contestants.get("ours")
    heading = (
        f"  {'':<8} {'req/s':>8} {'CPU µs':>7} {'p50 ms':>7} {'p99 ms':>7} {'p99/p50':>8} {'peak MB':>8} {'busy':>6}"
        f" {'load µs':>8} {'backends µs':>12} {'ours/it req/s':>14} {'per CPU s':>10}"
    )
    lines = [TITLES[flow], heading]
    for name, one in contestants.items():
        ratios = ""
        if ours and name != FLOOR:
            ratios = f"{ratio(ours, one, throughput):>14.2f} {ratio(ours, one, per_cpu_second):>10.2f}"
        lines.append(
            f"  {name:<8} {one.of(throughput):>8,.0f} {one.of(lambda r: r.cpu_micros):>7.1f}"
            f" {one.of(lambda r: r.p50_seconds) * 1e3:>7.2f} {one.of(lambda r: r.p99_seconds) * 1e3:>7.2f}"
            f" {one.tail:>8.2f} {one.peak_bytes / MIB:>8.1f} {one.of(lambda r: r.busy):>6.0%}"
            f" {one.of(lambda r: r.load_micros):>8.1f} {one.of(lambda r: r.backends_micros):>12.1f} {ratios}"
        )
    return "\n".join(lines)


@frozen
class Target:
    """A number that was promised. ``measured`` is None when the run did not include what it takes."""

    name: str
    bound: float
    at_least: bool
    unit: str
    measured: float | None

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def line(self) -> str:
        verdict = {True: "reached", False: "NOT REACHED", None: "not measured"}[self.reached]
        sign = "at least" if self.at_least else "at most"
        got = "" if self.measured is None else f"{self.measured:.2f}{self.unit}"
        return f"  {verdict:<12}  {got:>10}  {sign} {self.bound:g}{self.unit}: {self.name}"


def targets(results: Results, feast: Mapping[str, Mapping[str, float]]) -> list[Target]:
    """Return what was promised. ``feast`` has CPU microseconds a call, by online store and way to read."""

    def at_least(bound: float, flow: str, other: str) -> Target:
        ours, it = results.get(flow, {}).get("ours"), results.get(flow, {}).get(other)
        name = f"{FLOWS[flow]}, requests a second over {other}"
        if ours is None or it is None:
            return Target(name, bound, True, "x", None)
        if ours.saturated and it.saturated:
            return Target(name, bound, True, "x", ratio(ours, it, throughput))
        name = f"{FLOWS[flow]}, requests a CPU second over {other} (their core was not theirs alone)"
        return Target(name, bound, True, "x", ratio(ours, it, per_cpu_second))

    def of_ours(flows: Sequence[str], value: Callable[[Contestant], float]) -> float | None:
        found = [value(results[flow]["ours"]) for flow in flows if "ours" in results.get(flow, {})]
        return max(found, default=None)

    def added_milliseconds(flow: str) -> list[Target]:
        """Over the time that the backends are told to take, and over the time that they took, asked directly."""
        found = results.get(flow, {})
        nominal = measured = None
        if "ours" in found and FLOOR in found:
            nominal = (found["ours"].of(lambda r: r.p50_seconds) - FLOOR_SECONDS) * 1e3
            pairs = zip(found["ours"].rounds, found[FLOOR].rounds, strict=True)
            measured = median(ours.p50_seconds - floor.p50_seconds for ours, floor in pairs) * 1e3
        return [
            Target(f"{TITLES[flow]}: added to the p50, over 30 ms", 3.0, False, " ms", nominal),
            Target("  the same over the two backends asked directly", 3.0, False, " ms", measured),
        ]

    def as_many(flow: str) -> Target:
        ours, it = results.get(flow, {}).get("ours"), results.get(flow, {}).get("hand")
        measured = ratio(ours, it, throughput) if ours and it else None
        return Target(f"{TITLES[flow]}: requests a second over hand", 0.97, True, "x", measured)

    def calls_over_sdk(store: str) -> Target:
        micros = feast.get(store)
        measured = micros["SDK"] / micros["this source, prepared call"] if micros else None
        return Target(f"{FLOWS['feast']}, {store}: calls a CPU second over the SDK", 3.0, True, "x", measured)

    engine = results.get("engine", {})
    own_cost = None
    if "ours" in engine and "bare" in engine:
        pairs = zip(engine["ours"].rounds, engine["bare"].rounds, strict=True)
        own_cost = median(ours.cpu_micros - bare.cpu_micros for ours, bare in pairs)
    return [
        at_least(0.85, "noop", "hand"),
        at_least(0.90, "sqlite", "tricks"),
        at_least(0.90, "postgresql", "tricks"),
        at_least(1.5, "http", "hand"),
        at_least(2.5, "http", "fastapi"),
        at_least(2.0, "multi", "hand"),
        at_least(3.0, "multi", "fastapi"),
        at_least(2.0, "loan", "fastapi"),
        *(target for flow in ALONE for target in added_milliseconds(f"{flow}_alone")),
        *(as_many(flow) for flow in ALONE),
        *(calls_over_sdk(store) for store in ("sqlite", "redis")),
        Target("engine, record and headers of a two-step plan, CPU a request", 25.0, False, " µs", own_cost),
        *(
            Target(f"p99 over p50 at saturation, {FLOWS[flow]}", 3.0, False, "x", of_ours([flow], lambda c: c.tail))
            for flow in ("noop", "sqlite", "postgresql", "http")
        ),
        Target(
            "peak memory of the worker, database to ONNX model",
            90.0,
            False,
            " MB",
            of_ours(["sqlite", "postgresql"], lambda c: c.peak_bytes / MIB),
        ),
    ]


def doubts(results: Results) -> list[str]:
    """Return what makes the numbers less than trustworthy."""
    idle = [
        f"{flow}/{name} ({contestant.of(lambda r: r.busy):.0%})"
        for flow, contestants in results.items()
        if flow.removesuffix("_alone") not in ALONE  # those wait for their backends
        for name, contestant in contestants.items()
        if not contestant.saturated
    ]
    why = "The server's core was shared with other processes, or the load did not saturate it"
    return (
        [f"{why}: trust 'per CPU s' more than 'req/s', and the latencies little, for {', '.join(idle)}"] if idle else []
    )


def as_json(
    results: Results, feast: Mapping[str, Mapping[str, float]], machine: Mapping[str, Any], notes: Sequence[str]
) -> dict[str, Any]:
    return {
        "machine": dict(machine),
        "notes": list(notes),
        "flows": {
            flow: {name: _contestant(one) for name, one in contestants.items()} for flow, contestants in results.items()
        },
        "feast_cpu_micros": feast,
        "targets": [
            {
                "name": target.name,
                "bound": target.bound,
                "at_least": target.at_least,
                "measured": target.measured,
                "reached": target.reached,
            }
            for target in targets(results, feast)
        ],
    }


def _contestant(one: Contestant) -> dict[str, Any]:
    return {
        "requests_per_second": one.of(throughput),
        "cpu_micros": one.of(lambda r: r.cpu_micros),
        "p50_ms": one.of(lambda r: r.p50_seconds) * 1e3,
        "p99_ms": one.of(lambda r: r.p99_seconds) * 1e3,
        "p99_over_p50": one.tail,
        "peak_mb": one.peak_bytes / MIB,
        "busy": one.of(lambda r: r.busy),
        "rounds": [
            {
                "requests": r.requests,
                "seconds": r.seconds,
                "cpu_seconds": r.cpu_seconds,
                "p50_ms": r.p50_seconds * 1e3,
                "p99_ms": r.p99_seconds * 1e3,
                "load_micros": r.load_micros,
                "backends_micros": r.backends_micros,
            }
            for r in one.rounds
        ],
    }
