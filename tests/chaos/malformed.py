"""Answers of sources that are no answers: each must become a 502 that names the source."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import orjson
from attrs import frozen

from tests.chaos.overload import serving
from tests.hostile_server import Behaviour, Peer, hostile
from tests.memory import resident_bytes

CONFIG = """
api:
  sources:
    default:
      {{base_url: "{url}", timeout: 3s, max_response_bytes: 256KiB, circuit_breaker: false, retry: false}}
  operations:
    get: {{path: "/reports/1", result: {{score: "$response.body.score"}}}}
ml:
  sources:
    default:
      base_url: "{url}"
      circuit_breaker: false
      models:
        default: {{endpoint: /predict, timeout: 3s, max_response_bytes: 256KiB, health_check: {{interval: 0}}}}
feast:
  sources:
    default: {{server_url: "{url}", entity_key: customer_id, timeout: 3s, circuit_breaker: false, retry: false}}
  operations:
    get: {{features: ["customer:visits"]}}
"""
DOMAIN = """
endpoints:
  api:
    data_sources: [{name: asked, type: api, operation: get}]
    response_mapping: {score: "$asked.score + 1"}
  ml:
    data_sources: [{name: asked, type: ml, operation: predict, params: {features: {a: 1}}}]
    response_mapping: {score: "$asked.score + 1"}
  feast:
    data_sources: [{name: asked, type: feast, operation: get, params: {entity_id: 1}}]
    response_mapping: {score: "$asked.visits + 1"}
"""
FLOWS = ("api", "ml", "feast")
AT_ONCE = 16
Random = random.Random
GOOD = b'{"score": 7, "visits": 3}'


def answer(body: bytes, *headers: bytes, length: int | None = None, status: bytes = b"HTTP/1.1 200 OK") -> bytes:
    lines = b"".join(header + b"\r\n" for header in headers)
    length = len(body) if length is None else length
    return b"%b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, lines, length, body)


JSON = b"Content-Type: application/json"


def _json(body: bytes) -> bytes:
    return answer(body, JSON)


def _bytes(rng: Random) -> bytes:
    return rng.randbytes(rng.randrange(1, 2000))


def _number(rng: Random) -> bytes:
    text = rng.choice(
        [b"1e999", b"-1e400", b"NaN", b"Infinity", b"1" * 400, b"01", b"+1", b".5", b"0x10", b"1e", b"--1"]
    )
    return _json(b'{"score": %b, "visits": %b}' % (text, text))


def _broken_json(rng: Random) -> bytes:
    cut = rng.randrange(len(GOOD))
    return _json(rng.choice([GOOD[:cut], GOOD[:-1] + b",}", GOOD + b"}", GOOD.replace(b'"', b"'")]))


def _text(rng: Random) -> bytes:
    text = rng.choice([b'"\\ud800"', b'"\xff"', b'"\x00"', b'"\\x"', b'"\xed\xa0\x80"', b'"unended'])
    return _json(b'{"score": %b}' % text)


def _deep(rng: Random) -> bytes:
    depth = rng.randrange(201, 20_000)
    return _json(b'{"score": ' + b"[" * depth + b"]" * depth + b"}")


def _unfit(rng: Random) -> bytes:
    """JSON, but nothing that can be used."""
    values: list[Any] = [None, [], {}, 7, "text", True, {"score": None}, {"score": "x"}, {"score": [1]}, {"scores": 1}]
    return _json(orjson.dumps(rng.choice(values)))


def _cut_body(rng: Random) -> bytes:
    return answer(GOOD[: rng.randrange(len(GOOD))], JSON, length=len(GOOD) + rng.randrange(1, 1000))


def _cut_head(rng: Random) -> bytes:
    whole = _json(GOOD)
    return whole[: rng.randrange(1, whole.index(b"\r\n\r\n") + 2)]


def _length(rng: Random) -> bytes:
    lines = rng.choice(
        [
            b"Content-Length: -1",
            b"Content-Length: 99999999999999999999999",
            b"Content-Length: x",
            b"Content-Length: 5\r\nContent-Length: 6",
            b"Content-Length: 1 1",
            b"Content-Length: 100000000",
        ]
    )
    return b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\n" + lines + b"\r\n\r\n" + GOOD


def _chunks(rng: Random) -> bytes:
    bodies = [b"zz\r\nab", b"-5\r\nabcde\r\n0\r\n\r\n", b"5\r\nabcdefg\r\n0\r\n\r\n", b"ffffffffffffffff1\r\nx"]
    body = rng.choice([*bodies, b"5\r\nab"])
    return b"HTTP/1.1 200 OK\r\n" + JSON + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + body


def _compressed(rng: Random) -> bytes:
    name, packed = rng.choice([(b"gzip", gzip.compress(GOOD)), (b"deflate", zlib.compress(GOOD))])
    body = rng.choice([packed[: len(packed) // 2], packed[:-1], rng.randbytes(40), b"\x00" + packed])
    return answer(body, JSON, b"Content-Encoding: " + name)


def _status(rng: Random) -> bytes:
    lines = [b"HTTP/1.1", b"HTTP/9.9 200 OK", b"HTTP/1.1 99 Low", b"HTTP/1.1 1000 High", b"HTTP 200", b"200 OK"]
    return answer(GOOD, JSON, status=rng.choice(lines))


def _refusal(rng: Random) -> bytes:
    status = rng.choice([b"500 Broken", b"502 Bad", b"501 No", b"400 Bad", b"401 No", b"403 No", b"301 Moved"])
    return answer(b"<h1>No</h1>", b"Content-Type: text/html", status=b"HTTP/1.1 " + status)


def _page(rng: Random) -> bytes:
    kind = rng.choice([b"text/html", b"application/octet-stream", b"text/plain; charset=utf-7", b"\xff\xfe", b""])
    return answer(b"<html>" + rng.randbytes(50), b"Content-Type: " + kind)


def _flood(rng: Random) -> bytes:
    many = [b"X-%d: %d" % (number, number) for number in range(rng.choice([5_000, 20_000]))]
    return answer(GOOD, *rng.choice([many, [b"X: " + b"x" * 2**20], [b"X\x00Y: 1"], [b": no name"]]))


def _large(rng: Random) -> bytes:
    return _json(b'{"score": "' + b"x" * 300_000 + b'"}')


def _nothing(rng: Random) -> bytes:
    return b""


KINDS: Mapping[str, Callable[[Random], bytes]] = {
    found.__name__[1:]: found
    for found in (
        *(_bytes, _number, _broken_json, _text, _deep, _unfit, _cut_body, _cut_head, _length, _chunks),
        *(_compressed, _status, _refusal, _page, _flood, _large, _nothing),
    )
}


def malformed(seed: int) -> tuple[Behaviour, Counter[str]]:
    """Return a server's behaviour that answers each request in another wrong way, and counts the ways."""
    rng, sent = Random(seed), Counter[str]()

    async def behave(peer: Peer) -> None:
        await peer.request()
        name = rng.choice(list(KINDS))
        sent[name] += 1
        await peer.send(KINDS[name](rng))

    return behave, sent


@frozen
class Found:
    """How the answers to so many malformed ones were; ``wrong`` are those that are no 502 naming the source."""

    asked: int
    statuses: Mapping[int, int]
    wrong: tuple[str, ...]
    kinds: Mapping[str, int]
    grown_bytes: int


async def measure(count: int = 10_000, seed: int = 1, flows: tuple[str, ...] = FLOWS) -> Found:
    """Ask a service so many times, over each flow in turn."""
    behave, sent = malformed(seed)
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    async with hostile(behave) as peer:
        files = {
            "config/config.yaml": "admin: {enabled: false}",
            "config/integrations/sources.yaml": CONFIG.format(url=peer.url),
            "config/domains/fuzz.yaml": DOMAIN,
        }
        async with serving(files) as process, aiohttp.ClientSession(f"http://127.0.0.1:{process.port}") as client:
            await _ask(client, flows, max(100, count // 10), statuses, wrong)
            before = resident_bytes(process.pid)
            await _ask(client, flows, count, statuses, wrong)
            grown = resident_bytes(process.pid) - before
    return Found(sum(statuses.values()), dict(statuses), tuple(wrong), dict(sent), grown)


async def _ask(
    client: aiohttp.ClientSession, flows: tuple[str, ...], count: int, statuses: Counter[int], wrong: list[str]
) -> None:
    numbers = iter(range(count))

    async def ask() -> None:
        for number in numbers:
            flow = flows[number % len(flows)]
            async with client.get(f"/orchestrator/fuzz/{flow}") as got:
                statuses[got.status] += 1
                problem = await got.json()
                if got.status != 502 or "asked" not in problem["detail"] or problem["step"] != "asked":
                    wrong.append(f"{flow}: {got.status}: {problem}")

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    import sys

    import uvloop

    found = uvloop.run(measure(int(sys.argv[1])))
    print(found.asked, dict(found.statuses), dict(found.kinds), f"{found.grown_bytes / 2**20:.1f} MiB")
    for line, times in Counter(line[:400] for line in found.wrong).most_common(30):
        print(times, line)
