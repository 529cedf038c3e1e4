"""Twice, then ten times the load that one worker can serve."""

from __future__ import annotations

from collections.abc import Sequence

from tests.chaos import overload
from tests.chaos.outcome import Finding, Row, Setting, milliseconds

LEAST_SHARE = {2.0: 0.9, 10.0: 0.8}
REFUSED_SECONDS = 0.010
MOST_P99 = 2.0
CALM_SECONDS = 5.0
RUNS = 3
"""How often it is measured: a core of a shared machine is half as quick again in one half minute as in the next."""


async def measure(setting: Setting) -> list[Finding]:
    findings = []
    for flow in ("cpu",) if setting.quick else ("cpu", "api"):
        runs = []
        for _ in range(setting.times(RUNS, 1)):
            setting.say(f"the flow '{flow}': its peak, then twice and ten times as much")
            runs.append(await overload.measure(flow, seconds=setting.long(10, 3)))  # type: ignore[arg-type]
        steps = [_middle(steps) for steps in zip(*(found.steps for found in runs), strict=True)]
        compared: Sequence[overload.Step | None] = [None] * len(steps)
        if flow == "cpu" and not setting.quick:
            setting.say("the same with a bare loop, which is what the machine lets anybody do")
            compared = (await overload.measure(flow, seconds=setting.long(10, 3), service=overload.bare)).steps
        for step, bare in zip(steps, compared, strict=True):
            seen, name = step.seen, f"{flow}, {step.times:g} times"
            least = LEAST_SHARE[step.times]
            findings += [
                Finding(
                    f"{name}: at least {least:.0%} of the peak goodput",
                    f"{seen.goodput:,.0f} of {step.peak:,.0f}/s, {step.share:.0%}; by CPU {step.cpu_share:.0%}"
                    + (f"; a bare loop {bare.share:.0%}" if bare else ""),
                    step.share >= least,
                    relative=True,
                ),
                Finding(
                    f"{name}: refusals in under 10 ms",
                    f"{seen.refused:,} refused: p50 {milliseconds(seen.refused_p50)},"
                    f" p99 {milliseconds(seen.refused_p99)}"
                    + (f"; by a bare loop {milliseconds(bare.seen.refused_p99)}" if bare else ""),
                    seen.refused_p99 < REFUSED_SECONDS,
                    relative=True,
                ),
                Finding(
                    f"{name}: p99 of accepted at most doubled",
                    f"{milliseconds(step.peak_p99)} -> {milliseconds(seen.accepted_p99)} ({step.p99_ratio:.2f} times)"
                    + (f"; a bare loop {bare.p99_ratio:.2f} times" if bare else ""),
                    step.p99_ratio <= MOST_P99,
                    relative=True,
                ),
                Finding(
                    f"{name}: nothing but 200 and 503; health answers",
                    f"{seen.accepted:,} 200, {seen.refused:,} 503, {dict(seen.other) or 'no others'}; health failed"
                    f" {seen.beside_failed} times, p99 {milliseconds(seen.beside_p99)}; {seen.unsent:,} not sent",
                    not seen.other and not seen.beside_failed and seen.refused > 0,
                ),
            ]
        findings.append(
            Finding(
                f"{flow}: normal within {CALM_SECONDS:g} s after",
                milliseconds(after := max(found.after_seconds for found in runs)),
                after <= CALM_SECONDS,
                relative=True,
            )
        )
    return findings


def _middle(steps: Sequence[overload.Step]) -> overload.Step:
    """Return the one whose share of the peak is the median."""
    return sorted(steps, key=lambda step: step.share)[len(steps) // 2]


ROW = Row("overload", "2 times, then 10 times the load one worker can serve", measure)
