"""Object storage on this machine: moto's S3 server, in a process that can be killed and comes back as it was."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_REGION": "us-east-1"}
BUCKET = "bucket"


class Server:
    """It listens on a free port of this machine, and knows what was written to it by a recording of all requests."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._recording = folder / "requests.jsonl"
        self._log = folder / "log.txt"
        self.start()
        self.ask("PUT", BUCKET)

    def start(self) -> None:
        """Start it, and wait until it has again what it had."""
        recording = {"MOTO_ENABLE_RECORDING": "1", "MOTO_RECORDER_FILEPATH": str(self._recording)}
        command = [sys.executable, "-m", "tests.support.object_storage", str(self.port)]
        root = Path(__file__).parents[2]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env={**os.environ, **recording}, cwd=root, stdout=log, stderr=log, start_new_session=True
            )
        began = time.monotonic()
        while True:
            try:
                self.ask("GET", "moto-api/")
                break
            except OSError:
                assert self._process.poll() is None and time.monotonic() - began < 60, self._log.read_text()
                time.sleep(0.05)
        if self._recording.exists():
            lines = self._recording.read_text().splitlines()  # a last one may be cut off
            written = [
                line for line in lines if line.endswith("}") and json.loads(line)["method"] not in ("GET", "HEAD")
            ]
            self._recording.write_text("".join(f"{line}\n" for line in written))
            self.ask("POST", "moto-api/recorder/replay-recording")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def ask(self, method: str, path: str, data: bytes | None = None) -> bytes:
        """Ask for something by plain HTTP."""
        kind = {"Content-Type": "application/octet-stream"}  # without it data are taken for a form
        request = urllib.request.Request(f"{self.endpoint}/{path}", data, kind, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content: bytes = answer.read()
            return content


def serve(port: int) -> None:
    """Serve until killed, one request at a time, for moto looks whether an object is there before it writes it."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = DomainDispatcherApplication(create_backend_app)
    lock = threading.Lock()

    def one_at_a_time(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith("/moto-api/"):  # asks this server itself when it replays
            found: Iterable[bytes] = app(environ, start)
            return found
        with lock:
            return list(app(environ, start))

    run_simple("127.0.0.1", port, one_at_a_time, threaded=True)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
