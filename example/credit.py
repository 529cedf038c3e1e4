"""The credit model as a server of its own: the numbers of the MLflow model, in nothing but Python's standard library.

The example's model server answers with it behind HTTP, and the example's image runs this very file in a container:
`python credit.py credit.json 8080` serves `POST /predict` and `GET /health`.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import exp
from pathlib import Path
from typing import Any

Features = Mapping[str, Any]
Predict = Callable[[Features], dict[str, Any]]


class Unfit(Exception):
    """A feature is missing, or is not what the model takes."""


def number(features: Features, name: str) -> float:
    """Return a feature that has to be a number. Raises :class:`Unfit`."""
    value = features.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unfit(f"feature '{name}': expected a number, got {json.dumps(value)}")
    return value


def credit(path: Path) -> Predict:
    """Return the model that tells how likely a loan is not paid back."""
    model = json.loads(path.read_text())

    def predict(features: Features) -> dict[str, Any]:
        odds = model["intercept"]
        for name, weight in model["weights"].items():
            odds += weight * number(features, name)
        return {"score": 1 / (1 + exp(-odds))}

    return predict


class Server(ThreadingHTTPServer):
    """One model on all addresses: which of them is reached from outside, the container's owner says."""

    daemon_threads = True

    def __init__(self, port: int, predict: Predict) -> None:
        super().__init__(("0.0.0.0", port), Handler)
        self.predict = predict


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one packet
    server: Server

    def do_GET(self) -> None:
        found = self.path == "/health"
        self.answer(200 if found else 404, {"status": "ok"} if found else {"detail": "there is only /health"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/predict":
            return self.answer(404, {"detail": "there is only /predict"})
        try:
            features = json.loads(body)
            self.answer(200, self.server.predict(features if isinstance(features, dict) else {}))
        except ValueError as error:
            self.answer(400, {"detail": f"the body is not JSON: {error}"})
        except Unfit as unfit:
            self.answer(422, {"detail": str(unfit)})

    def answer(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


def main(arguments: Sequence[str]) -> None:
    path, port = arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container ignores it otherwise
    with Server(int(port), credit(Path(path))) as server:
        print(f"serving {path} on {port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
