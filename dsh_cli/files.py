"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsh_cli.errors import DISK_FULL, DshError, reason


@contextmanager
def written(file: str | os.PathLike[str], or_else: str) -> Iterator[Path]:
    """A place beside `file` to write to, which is moved there when the context ends without an error.

    Raises:
        DshError: it cannot be written; `or_else` says what to do where it is not to free space.
    """
    target = Path(os.path.realpath(file))  # through links, as every program writes
    if os.path.lexists(target) and not os.path.isfile(target):
        raise DshError(f"cannot write {os.fspath(file)}: it is there and no file; {or_else}")
    scratch = target.with_name(f".{target.name[:40]}.{os.getpid()}")  # short, for the longest names leave no room
    try:
        with saving(Path(file), or_else):
            yield scratch
            with scratch.open("r+b") as done:
                os.fsync(done.fileno())
            if os.path.lexists(target):
                shutil.copymode(target, scratch)
            os.replace(scratch, target)
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()


@contextmanager
def saving(file: Path, or_else: str) -> Iterator[None]:
    """Say in one line that `file` cannot be written, and what to do.

    Raises:
        DshError: it cannot.
    """
    try:
        yield
    except OSError as error:
        what_to_do = "free space" if error.errno in DISK_FULL else or_else
        raise DshError(f"cannot write {file}: {reason(error)}; {what_to_do}") from error


STALLED = 30.0  # seconds without an answer before a download counts as failed


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let new connections fail after so many seconds without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # neither torchvision nor torch.hub sets one of its own
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
