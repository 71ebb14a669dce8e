"""Files that are there whole or not at all, and are read only where they are files; sockets that give up."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsh_cli.errors import DISK_FULL, DshError, UsageError, reason

# of file systems that cannot sync a folder, and of folders that may be written to but not listed
_NOT_SYNCED = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)

UNLINK = "remove the link"  # where a link is in the place of what is to be written
STALLED = 30.0  # seconds without an answer before a download counts as failed


@contextmanager
def written(file: str | os.PathLike[str], or_else: str, folder: Path | None = None) -> Iterator[Path]:
    """A place beside `file` to write to, which is moved there when the context ends without an error.

    What was written is synced, then moved, then its folder synced, so that a loss of power leaves the one or the other.
    The place has a name that cannot be foretold, and no other process has made it.

    Args:
        file: where links lead is where it is written, as every program does, but for what is in `folder`.
        or_else: what to do where it cannot be written and space is not what is missing.
        folder: one of ours, such as a run, in which nothing is reached through a link; `file` is below it.

    Raises:
        DshError: it cannot be written.
    """
    target = Path(os.path.realpath(file)) if folder is None else Path(file)
    if folder is not None:
        require_no_links(target, folder, UNLINK)
    if os.path.lexists(target) and not os.path.isfile(target):
        raise DshError(f"cannot write {os.fspath(file)}: it is there and no file; {or_else}")
    scratch = None
    try:
        with saving(Path(file), or_else):
            scratch = _scratch(target)
            yield scratch
            with scratch.open("r+b") as done:
                os.fsync(done.fileno())
            if os.path.lexists(target):
                shutil.copymode(target, scratch)
            os.replace(scratch, target)
            sync_folder(target.parent)
    finally:
        if scratch is not None:
            with contextlib.suppress(OSError):
                scratch.unlink()


def expanded(path: str, named: str) -> Path:
    """A path with the folder of a user in place of `~` or `~user` at its beginning.

    Args:
        path: as it was given.
        named: what gave it, for messages.

    Raises:
        UsageError: this machine does not know such a user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{named} {path}: this machine knows no home folder {Path(path).parts[0]}; write the path out"
        ) from error


def open_regular(path: str | os.PathLike[str], follow: bool = True) -> int:
    """A descriptor to read a regular file by, without waiting for whoever may write to a pipe in its place.

    It is looked at before, for a device can do something when it is opened, and once it is open, for something else
    may have been put there in between.

    Args:
        path: of the file.
        follow: whether a link in its place is followed; else it is no regular file.

    Raises:
        OSError: it cannot be opened, or is none; `reason` says so.
        ValueError: there is a NUL in the name.
    """
    _require_regular(os.stat(path, follow_symlinks=follow), path)
    # not every system has all of them
    flags = ("O_BINARY", "O_CLOEXEC", "O_NOCTTY", "O_NONBLOCK", *(() if follow else ("O_NOFOLLOW",)))
    descriptor = os.open(path, sum((getattr(os, flag, 0) for flag in flags), os.O_RDONLY))
    try:
        _require_regular(os.fstat(descriptor), path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(status: os.stat_result, path: str | os.PathLike[str]) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))


def require_no_links(
    path: Path, folder: Path, or_else: str = "put what it leads to in its place, if you trust it"
) -> None:
    """Refuse a path below a folder of ours that a link in it would lead elsewhere.

    Args:
        path: to be read, or written.
        folder: of ours.
        or_else: what to do instead.

    Raises:
        DshError: it would.
    """
    below = path.relative_to(folder)
    for part in (*reversed(below.parents), below):
        if part.parts and os.path.islink(folder / part):  # noqa: PTH114  # pathlib's is troubled by permissions
            raise DshError(f"{folder / part} is a link, and nothing in {folder} is reached through one; {or_else}")


def _scratch(target: Path) -> Path:
    """A new empty file beside a place, with the modes that new files have."""
    # short, for the longest names leave no room
    scratch = target.with_name(f".{target.name[:40]}.{secrets.token_hex(4)}")
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
    os.close(os.open(scratch, flags, 0o666))
    return scratch


def sweep(target: Path) -> None:
    """Take away what writers of a place left that were killed: for one that keeps all others from it."""
    for left in target.parent.glob(f".{glob.escape(target.name[:40])}.????????"):
        left.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a loss of power, where the system can.

    Raises:
        OSError: it could, and failed.
    """
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_SYNCED:
            raise


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


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    """Let new connections fail after so many seconds without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)  # neither torchvision nor torch.hub sets one of its own
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
