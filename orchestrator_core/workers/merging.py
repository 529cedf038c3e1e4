"""What several workers say, as one answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

Entry = Mapping[str, Any]
Counted = TypeVar("Counted")

# --- sources and models -------------------------------------------------------------------------------------------


def merge_entries(
    said: Mapping[int, Sequence[Entry]], key: Sequence[str], summed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the entries of the first worker, each with ``workers``: what differs, by process id.

    ``key`` are the fields that tell which entries of two workers are the same. The fields in ``summed`` are the sums of
    all workers.
    """
    merged: list[dict[str, Any]] = []
    by_key = {pid: {_key(entry, key): entry for entry in entries} for pid, entries in said.items()}
    for identity in dict.fromkeys(identity for entries in by_key.values() for identity in entries):
        same = {pid: entries[identity] for pid, entries in by_key.items() if identity in entries}
        first, *others = same.values()
        differing = [name for name in first if any(other.get(name) != first[name] for other in others)]
        total = {name: sum(entry.get(name) or 0 for entry in same.values()) for name in summed if name in first}
        workers = [{"pid": pid, **{name: entry.get(name) for name in differing}} for pid, entry in same.items()]
        merged.append({**first, **total, "workers": workers})
    return merged


def _key(entry: Entry, key: Sequence[str]) -> tuple[Any, ...]:
    return tuple(entry[name] for name in key)


# --- executions ---------------------------------------------------------------------------------------------------


def merge_executions(pages: Sequence[Mapping[str, Any]], limit: int) -> dict[str, Any]:
    """Return one page of the pages of all workers, which were asked for ``limit`` executions after the same one.

    All are in one order, that of the ids, so the cursor of a page is the id of its last execution. What several have,
    since their stores are one database by two names, is told once.
    """
    by_id = {execution["id"]: execution for page in pages for execution in page["executions"]}
    merged = [by_id[id_] for id_ in sorted(by_id, reverse=True)[:limit]]
    more = len(by_id) > limit or any(page["cursor"] is not None for page in pages)
    reasons = [page["incomplete"] for page in pages if page.get("incomplete")]
    incomplete = {"incomplete": "; ".join(dict.fromkeys(reasons))} if reasons else {}
    return {"executions": merged, "cursor": merged[-1]["id"] if more else None, **incomplete}


# --- what became of executions ------------------------------------------------------------------------------------


def merge_tracking(stores: Sequence[Entry]) -> Entry:
    """Return the counts of all workers' stores as one, and every outage once."""
    counts = {name: sum(tracking[name] for tracking in stores) for name in ("finished", "written", "waiting")}
    dropped = {reason: sum(tracking["dropped"][reason] for tracking in stores) for reason in stores[0]["dropped"]}
    outages = dict.fromkeys(tracking["outage"] for tracking in stores if tracking["outage"])
    return {**stores[0], **counts, "dropped": dropped, "outage": "; ".join(outages)}


# --- metrics ------------------------------------------------------------------------------------------------------

_SAMPLE = re.compile(r"(?P<series>(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)(?:\{.*\})?)\s+(?P<value>\S+)(?:\s+\S+)?\Z")
_COMMENT = re.compile(r"# (?:HELP|TYPE) (?P<name>\S+)")
_NOT_SUMMED = re.compile(r"_(created|info|time_seconds|timestamp_seconds)\Z")
_OF_ALL = {"orchestrator_endpoints"}
"""What is one thing for all workers, and not one for each."""
_NOT_THEIRS = {"orchestrator_reloads_total"}
"""What the supervisor counts: a worker that came later knows a part of it."""
_SUFFIX = re.compile(r"_(total|created|bucket|sum|count|info)\Z")


def merge_metrics(texts: Sequence[str]) -> str:
    """Return one text in Prometheus' format: each series is the sum of what the workers say of it.

    Of points in time, quantiles, ``…_info`` and what all workers have in common, such as endpoints, it is the largest,
    since a sum of them means nothing. Families keep their ``HELP`` and ``TYPE`` and stand together, whichever worker
    has which series.
    """
    comments: dict[str, list[str]] = {}
    families: dict[str, dict[str, list[float]]] = {}
    for text in texts:
        for family, line in _lines(text):
            if family in _NOT_THEIRS:
                continue
            if line.startswith("#"):
                known = comments.setdefault(family, [])
                if line not in known and not any(line.split()[1] == other.split()[1] for other in known):
                    known.append(line)
                families.setdefault(family, {})
            elif match := _SAMPLE.match(line):
                families.setdefault(family, {}).setdefault(match["series"], []).append(float(match["value"]))
    lines: list[str] = []
    for family, series_of in families.items():
        lines += comments.get(family, ())
        lines += [f"{series} {_number(_merged(series, values))}" for series, values in series_of.items()]
    return "\n".join(lines) + "\n"


def _merged(series: str, values: Sequence[float]) -> float:
    name, _, labels = series.partition("{")
    common = name in _OF_ALL or _NOT_SUMMED.search(name) or 'quantile="' in labels
    return max(values) if common else sum(values)


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Return each line with the family it belongs to: the one that was announced last, if it fits."""
    family = ""
    for raw in text.split("\n"):  # a label may hold what else ends a line of text
        line = raw.strip()
        if match := _COMMENT.match(line):
            family = match["name"]
            yield family, line
        elif line and not line.startswith("#") and (sample := _SAMPLE.match(line)):
            name = sample["name"]
            if family and (name == family or _SUFFIX.sub("", name) == _SUFFIX.sub("", family)):
                yield family, line
            else:
                yield name, line


def _number(value: float) -> str:
    if value != value:
        return "NaN"
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value, repr(value))


_GROWING = ("counter", "histogram", "summary")


class Totals(Generic[Counted]):
    """What each worker said last, and the sum of what those had counted that are gone.

    To Prometheus a counter that falls has begun anew, and all of its value is an increase: one worker that is replaced
    would look like a burst of everything it ever did. What a worker that dies has counted since it was asked last is
    lost with it; one that is told to end leaves that. ``merge`` makes one of what several say, and ``kept`` makes of
    what one has said that is gone what stays true.
    """

    def __init__(self, merge: Callable[[Sequence[Counted]], Counted], kept: Callable[[Counted], Counted]) -> None:
        self._merge = merge
        self._kept = kept
        self._latest: dict[int, Counted] = {}
        self._gone: list[Counted] = []
        """One, which is the sum, once somebody is gone."""
        self._added: set[int] = set()
        """Whose figures are among those of the gone, of the workers that may have answered all the same."""

    def left(self, pid: int, counted: Counted) -> None:
        """Take what a worker said when it ended."""
        if pid not in self._added:
            self._latest[pid] = counted
            self._add(pid)

    def merged(self, said: Mapping[int, Counted], alive: Collection[int]) -> Counted:
        """Return the sums. ``said`` is by process id; ``alive`` may yet answer the next time."""
        self._latest |= {pid: counted for pid, counted in said.items() if pid not in self._added}
        self._added &= said.keys()
        for pid in [pid for pid in self._latest if pid not in said and pid not in alive]:
            self._add(pid)
        return self._merge([*self._latest.values(), *self._gone])

    def _add(self, pid: int) -> None:
        self._gone = [self._merge([*self._gone, self._kept(self._latest.pop(pid))])]
        self._added.add(pid)


def totals_of_metrics() -> Totals[str]:
    return Totals(merge_metrics, lambda text: "\n".join(_growing(text)))


def totals_of_tracking() -> Totals[Entry]:
    return Totals(merge_tracking, _known_of)


def _known_of(tracking: Entry) -> Entry:
    """Return what is certain of what became of a dead worker's executions: not of those that it had still waiting."""
    return {**tracking, "finished": tracking["finished"] - tracking["waiting"], "waiting": 0, "outage": ""}


def _growing(text: str) -> Iterator[str]:
    """Yield the lines of the families that only grow."""
    grows, announced = False, ""
    for line in text.split("\n"):
        if line.startswith("# HELP "):
            announced = line
            continue
        if line.startswith("# TYPE "):
            grows = line.rpartition(" ")[2] in _GROWING
            if grows:
                yield announced
        if grows:
            yield line
