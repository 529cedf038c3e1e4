"""Requests that are made to break something."""

from __future__ import annotations

from tests.chaos import hostile
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import stage

MOST_BYTES = 20 * 2**20
DOMAIN = """\
endpoints:
  typed:
    path: "/{id}"
    input_schema: {properties: {x: {type: number}}}
    response_mapping:
      x: "$request.x ?? null"
      id: "$request.path_params.id"
      header: "$request.headers['x-test'] ?? null"
      whole: "$request.body ?? null"
"""


async def measure(setting: Setting) -> list[Finding]:
    async with stage(setting, files={"domains/hostile.yaml": DOMAIN}) as service:
        target = "/orchestrator/hostile/typed/7"
        for _ in range(200):
            assert (await service.get(target))[0] == 200
        setting.say(f"{len(hostile.requests(target))} hostile requests, two of them of 1 GB")
        found = await hostile.measure(service.port, service.process.pid, target)
        statuses: dict[int, int] = {}
        for answer in found.answers.values():
            statuses[answer.status] = statuses.get(answer.status, 0) + 1
        shown = ", ".join(f"{times} {status}" for status, times in sorted(statuses.items()))
        return [
            Finding(
                "413, 400, 400 or 422; never invalid JSON, never a silent null",
                f"{shown}; {len(found.wrong)} wrong {found.wrong[:2] or ''}".strip(),
                not found.wrong,
            ),
            Finding(
                "memory up by at most 20 MB",
                f"{found.grown_bytes / 2**20:+.1f} MiB at the most",
                found.grown_bytes <= MOST_BYTES,
            ),
        ]


ROW = Row("hostile", "1 GB body; JSON 100,000 deep; 10,000 headers; NaN, 1e400, lone surrogates, NUL", measure)
