"""ECR on this machine, for the example: moto answers AWS's API, and `docker-registry` keeps the images.

`python -m example` starts it where both are installed, and it ends with what started it. The first line that it prints
has the address of each.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from example.serving import HOST

CONFIGURATION = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {blobs}}}}}
http: {{addr: "{address}"}}
"""
START_SECONDS = 20.0
PROBE_SECONDS = 0.05


def main() -> None:
    from moto.server import ThreadedMotoServer

    program = shutil.which("docker-registry")
    if program is None:
        sys.exit("docker-registry is not here")
    aws = ThreadedMotoServer(ip_address=HOST, port=0, verbose=False)
    aws.start()
    host, port = aws.get_host_and_port()
    with tempfile.TemporaryDirectory(prefix="example-registry-") as folder:
        address = f"{HOST}:{_free_port()}"
        settings = Path(folder, "config.yml")
        settings.write_text(CONFIGURATION.format(blobs=Path(folder, "blobs"), address=address))
        with subprocess.Popen([program, "serve", settings], stdout=subprocess.DEVNULL) as registry:
            try:
                _wait_until_it_listens(address, registry)
                print(json.dumps({"api": f"http://{host}:{port}", "registry": address}), flush=True)
                while sys.stdin.buffer.raw.read(4096):  # it closes when the parent wants, and when it is killed
                    pass
            finally:
                registry.terminate()
    aws.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_listens(address: str, registry: subprocess.Popen[bytes]) -> None:
    host, _, port = address.partition(":")
    deadline = time.monotonic() + START_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex((host, int(port))) == 0:
                return
        if registry.poll() is not None or time.monotonic() > deadline:
            sys.exit("docker-registry does not answer")
        time.sleep(PROBE_SECONDS)


if __name__ == "__main__":
    main()
