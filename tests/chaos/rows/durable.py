"""The service is killed again and again while it answers with each execution on disk."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
from collections import Counter

from orchestrator_core.testing import free_port
from orchestrator_core.testing.service import write_files
from tests.bench.process import started
from tests.chaos.load import Stream, load
from tests.chaos.outcome import Finding, Row, Setting
from tests.chaos.stage import running

RATE = 300
LOADED_SECONDS = 0.4
CONFIG = """\
admin: {{enabled: false}}
logging: {{requests: false}}
tracking:
  mode: durable
  store: {{type: sql, url: "sqlite:///{file}"}}
"""
DOMAIN = """\
endpoints:
  plain:
    path: "/{entity_id}"
    data_sources:
      - {name: echo, type: direct, params: {entity_id: "$request.path_params.entity_id"}}
"""


async def measure(setting: Setting) -> list[Finding]:
    kills = setting.times(200, 3)
    folder = setting.folder / "durable"
    file = folder / "executions.db"
    write_files(folder / "config", {"config.yaml": CONFIG.format(file=file), "domains/shop.yaml": DOMAIN})
    acknowledged: list[str] = []
    statuses = Counter[int]()
    for number in range(kills):
        port = free_port()
        command = [sys.executable, "-m", "orchestrator_core", "serve", "--config", str(folder / "config")]
        command += ["--port", str(port)]
        log = folder / "service.log"
        async with started("service", command, port, setting.server_cores, log) as process:
            stream = Stream("plain", "/orchestrator/shop/plain/{n}", rate=RATE, ids=100, keep_ids=True)
            async with load(port, [stream], setting.load_cores) as driven:
                await asyncio.sleep(LOADED_SECONDS + number % 7 * 0.011)
                os.kill(process.pid, signal.SIGKILL)
                while running(process.pid):  # noqa: ASYNC110  # nobody tells of it
                    await asyncio.sleep(0.005)
            acknowledged += driven["plain"].execution_ids
            statuses.update(driven["plain"].status)
        if (number + 1) % max(1, kills // 10) == 0:
            setting.say(f"{number + 1} of {kills} kills, {len(acknowledged):,} acknowledged")
    connection = sqlite3.connect(file)
    try:
        stored = Counter(row[0] for row in connection.execute("SELECT id FROM orchestrator_executions"))
        sound = connection.execute("PRAGMA integrity_check").fetchone()[0]
    finally:
        connection.close()
    lost = [one for one in acknowledged if not stored[one]]
    twice = [one for one, times in stored.items() if times > 1]
    return [
        Finding(
            "every acknowledged record there, once",
            f"{kills} kills: {len(acknowledged):,} acknowledged, {len(lost)} lost, {len(twice)} twice,"
            f" {len(stored):,} in the store; the file is {'sound' if sound == 'ok' else sound}",
            len(acknowledged) > kills * RATE * LOADED_SECONDS * 0.2 and not lost and not twice and sound == "ok",
        )
    ]


ROW = Row("durable", "SIGKILL in durable mode, 200 times", measure)
