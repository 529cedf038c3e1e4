"""A thousand reloads under load, half of them broken or half-written."""

from __future__ import annotations

import asyncio
import json
import random

from tests.chaos.load import Stream
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import Stage, stage

WARM_UP = 50
MOST_GROWTH = 0.05
SERVED_SECONDS = 10.0
BREAKS = (
    "an unknown key",
    "a step that is not there",
    "no YAML",
    "a source that is not there",
    "half-written",
    "empty",
)


def domain(number: int) -> str:
    """Return a domain file whose endpoint answers with its number from three places, of which one takes a moment.

    It is JSON, which is YAML too: what is left of it when it is cut anywhere is broken.
    """
    echo = {"what": "echo", "number": number}
    document = {
        "endpoints": {
            "number": {
                "data_sources": [
                    {"name": "one", "type": "inside", "params": echo},
                    {"name": "pause", "type": "inside", "params": {"what": "nap", "seconds": 0.005}},
                    {"name": "two", "type": "inside", "params": echo, "depends_on": ["pause"]},
                    {"name": "three", "type": "direct", "params": {"number": number}},
                ],
                "response_mapping": {
                    "a": number,
                    "b": "$one.number",
                    "c": "$two.number",
                    "d": "$three.number",
                    "pause": "$pause",
                },
            }
        }
    }
    return json.dumps(document)


def broken(text: str, how: str, chance: random.Random) -> str:
    match how:
        case "an unknown key":
            return text.replace('"response_mapping"', '"response_maping"')
        case "a step that is not there":
            return text.replace("$one.number", "$eno.number")
        case "no YAML":
            return text.replace(": {", ": [", 2)
        case "a source that is not there":
            return text.replace('"type": "inside"', '"type": "inside", "source_id": "other"', 1)
        case "half-written":
            return text[: chance.randrange(1, len(text) - 1)]
        case _:
            return ""


async def measure(setting: Setting) -> list[Finding]:
    reloads = setting.times(1000, 60)
    warm_up = min(WARM_UP, reloads // 4)
    chance = random.Random(5)
    files = {"domains/numbers.yaml": domain(0)}
    async with stage(setting, files=files) as service:
        file = service.folder / "config" / "domains" / "numbers.yaml"
        streams = [
            Stream("number", "/orchestrator/numbers/number", rate=200, keep_bodies=True),
            Stream("plain", service.path("plain/{n}"), rate=200, ids=100),
            Stream("customer", service.path("customer/{n}"), rate=100, ids=100),
        ]
        wrong: list[str] = []
        counts = {"good": 0, "refused": 0}
        resident = descriptors = 0
        good = 0
        async with service.load(*streams) as driven:
            for number in range(1, reloads + 1):
                how = BREAKS[chance.randrange(len(BREAKS))] if number % 2 else ""
                text = domain(number)
                file.write_text(broken(text, how, chance) if how else text)
                status, told = await service.admin("/reload", "POST")
                if status != (422 if how else 200):
                    wrong.append(f"reload {number} ({how or 'good'}): {status} {told['problems'][:1]}")
                if not how:
                    good = number
                counts["refused" if how else "good"] += 1
                serving = (await service.get("/orchestrator/numbers/number"))[1]
                if serving.get("a") != good:
                    wrong.append(f"after reload {number} ({how or 'good'}): {serving}, not {good}")
                if number == warm_up:
                    await asyncio.sleep(0.5)
                    resident, descriptors = service.resident_bytes(), service.descriptors()
                if number % max(1, reloads // 10) == 0:
                    setting.say(f"{number} of {reloads} reloads, {service.resident_bytes() / 2**20:.1f} MiB")
            await asyncio.sleep(1.0)
            resident_after, descriptors_after = service.resident_bytes(), service.descriptors()
        mixed = [body for body in driven["number"].bodies if not _is_of_one_generation(body)]
        growth = resident_after / resident - 1
        statuses = {name: met.shown() for name, met in driven.items()}
        return [
            Finding(
                "no failed request",
                ", ".join(f"{name}: {shown}" for name, shown in statuses.items()),
                all(set(met.status) == {200} for met in driven.values()),
            ),
            Finding(
                "the old one keeps serving, good ones are swapped in",
                f"{counts['good']} swapped, {counts['refused']} refused; {len(wrong)} wrong {wrong[:2] or ''}".strip(),
                not wrong,
            ),
            Finding(
                "each request sees one generation",
                f"{len(driven['number'].bodies):,} different answers, {len(mixed)} mixed {mixed[:2] or ''}".strip(),
                not mixed and len(driven["number"].bodies) > counts["good"] / 4,
            ),
            Finding(
                "memory up by at most 5 %",
                f"{resident / 2**20:.1f} -> {resident_after / 2**20:.1f} MiB ({growth:+.1%}) from reload {warm_up} on,"
                f" descriptors {descriptors} -> {descriptors_after}",
                growth <= MOST_GROWTH,
                relative=setting.quick,
            ),
            *await save_in_pieces(setting),
        ]


async def save_in_pieces(setting: Setting) -> list[Finding]:
    """Save files piece by piece, as editors and copies do, while the folder is watched and requests keep coming.

    Each file is block YAML, of which a piece can be valid too: a part of the endpoints. They are not to be served.
    """
    times = setting.times(30, 3)
    setting.say(f"{times} files saved in pieces, while the folder is watched")
    files = {"domains/numbers.yaml": block(0)}
    async with stage(setting, files=files, watch=True) as service:
        file = service.folder / "config" / "domains" / "numbers.yaml"
        streams = [Stream(f"e{place}", f"/orchestrator/numbers/e{place}", rate=50) for place in (0, ENDPOINTS - 1)]
        swapped = 0
        async with service.load(*streams) as driven:
            await asyncio.sleep(0.5)
            for number in range(1, times + 1):
                text = block(number)
                with file.open("w") as written:  # what an editor does
                    for start in range(0, len(text), PIECE):
                        written.write(text[start : start + PIECE])
                        written.flush()
                        await asyncio.sleep(PIECE_SECONDS)
                swapped += await _serves(service, number)
        return [
            Finding(
                "a watched file that is saved in pieces for a second is served whole, and no request fails",
                f"{swapped} of {times} served; " + ", ".join(f"{one.name}: {one.shown()}" for one in driven.values()),
                swapped == times and all(set(one.status) == {200} for one in driven.values()),
            )
        ]


ENDPOINTS = 40
PIECE = 50
PIECE_SECONDS = 0.02


def block(number: int) -> str:
    return "endpoints:\n" + "".join(
        f"  e{place}:\n    response_mapping:\n      number: {number}\n" for place in range(ENDPOINTS)
    )


async def _serves(service: Stage, number: int) -> bool:
    try:
        async with asyncio.timeout(SERVED_SECONDS):
            while (await service.get(f"/orchestrator/numbers/e{ENDPOINTS - 1}"))[1] != {"number": number}:  # noqa: ASYNC110  # asked, not told
                await asyncio.sleep(0.02)
    except TimeoutError:
        return False
    return True


def _is_of_one_generation(body: str) -> bool:
    answer = json.loads(body.removeprefix("200 ")) if body.startswith("200 ") else {}
    return answer.keys() == {"a", "b", "c", "d", "pause"} and len({answer[name] for name in "abcd"}) == 1


ROW = Row("reloads", "1,000 reloads under load, half of them broken or half-written", measure)
