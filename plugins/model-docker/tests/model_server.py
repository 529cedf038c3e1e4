"""A model server such as a data scientist writes: it loads a scikit-learn model and answers POST /predict."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import joblib

port, path = sys.argv[1:]
features, model = joblib.load(path)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer({"status": "ok"} if self.path == "/health" else {"error": "no such page"}, self.path != "/health")

    def do_POST(self):
        rows = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        matrix = [[row[name] for name in features] for row in rows]
        probabilities = model.predict_proba(matrix)[:, 1]
        self.answer([{"probability": float(value)} for value in probabilities])

    def answer(self, content, missing=False):
        body = json.dumps(content).encode()
        self.send_response(404 if missing else 200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


print(f"serving {type(model).__name__} on {port}", flush=True)
ThreadingHTTPServer(("0.0.0.0", int(port)), Handler).serve_forever()
