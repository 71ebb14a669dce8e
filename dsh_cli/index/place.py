"""Where an index lies: one place however it is named, how object storage is reached, and the lock of who writes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from dsh_cli.errors import IndexStateError, UsageError, reason
from dsh_cli.files import sync_folder

_ON_DISK = ("file", "file+uring", "file-object-store")  # schemes by which Lance reaches a local folder
_REMOTE = ("s3", "gs", "az", "abfss")  # schemes that people type, of those by which Lance reaches object storage
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#:]")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # variables that name one, the first before
_PATIENCE = 5  # seconds from which a request to object storage that has failed is not sent again; by Lance 180


def local(uri: str) -> str | None:
    """The path of a local index, absolute and without links: the same however it is named. None in object storage.

    Raises:
        UsageError: it is no name of an index.
    """
    if not uri:
        raise UsageError("the index has an empty name")
    scheme, colon, path = uri.partition(":")
    if colon and scheme.lower() in _ON_DISK:
        # as RFC 8089 has it; Lance would drop a host, and what follows ? or #
        found = re.fullmatch(r"(?://(?:localhost)?|(?!//))(/[^?#]*)", path, re.IGNORECASE)
        if found is None:
            raise UsageError(f"{uri}: such a URI is file:///PATH, with %3F and %23 for ? and #; or give the path alone")
        path = os.fsdecode(unquote_to_bytes(found[1]))
    elif "://" in uri or (colon and scheme.lower() in _REMOTE):
        if not _URI.match(uri):  # of which Lance makes a local folder, or says that the index is damaged
            also = "" if path.startswith("/") or "://" in uri else f", or ./{uri} for a folder here"
            raise UsageError(f"{uri}: such a URI is s3://BUCKET/NAME{also}")
        return None
    else:
        path = uri
    try:
        path = os.path.realpath(path)
        path.encode()
    except ValueError as error:
        raise UsageError(f"{uri}: the name of an index is text in UTF-8; choose another name") from error
    return path


def reached(uri: str) -> dict[str, str] | None:
    """What Lance is told of object storage beside what it takes from the environment; None for a local index.

    Raises:
        UsageError: the endpoint in the environment is no address, at which Lance would panic.

    It takes credentials, region and endpoint from there, but an endpoint of http:// only if allowed to, and asks where
    nobody answers for many minutes. AWS_ALLOW_HTTP and OBJECT_STORE_CLIENT_RETRY_TIMEOUT still go before what is here.
    """
    if local(uri) is not None:
        return None
    name = next(filter(os.environ.get, _ENDPOINTS), "")
    endpoint = os.environ.get(name, "")
    if endpoint and uri.lower().startswith("s3") and not _is_address(endpoint):
        raise UsageError(f"{name} {endpoint}: an endpoint is http://HOST:PORT or https://HOST; set it so, or unset it")
    is_plain = endpoint.lower().startswith("http://")  # who names such an endpoint wants it, as of any other program
    return {"client_retry_timeout": str(_PATIENCE)} | ({"allow_http": "true"} if is_plain else {})


def _is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # which is refused where it is none
    except ValueError:
        return False
    is_clean = not re.search(r"[\s%]", endpoint)  # which `urlsplit` takes, and Lance does not
    return is_clean and parts.scheme.lower() in ("http", "https") and bool(parts.hostname)


@contextmanager
def locked(path: str | None, uri: str, waiting: Callable[[], None] | None) -> Iterator[Callable[[], None]]:
    """Be the only one who writes a local index; yields what refuses to go on where that is no longer so.

    In object storage there is no lock, and a commit is refused where another came in between; see `table.py`.

    Its folder is locked, which is one however it is named, and of which a second writer cannot have another. Where
    the system locks no folders (Windows, NFS) a file beside it is.

    Args:
        path: where it lies; None in object storage.
        uri: what messages call it.
        waiting: called when another process has the lock, before waiting for it.

    Raises:
        IndexStateError: it cannot be locked, or what is yielded says that it no longer is.
    """
    if path is None:
        yield lambda: None
        return
    held, there = path, os.path.isdir(path)

    def require() -> None:
        with suppress(OSError):
            if os.path.samestat(status, os.stat(held)):
                return
        raise IndexStateError(
            f"{held} was removed or replaced while index {uri} was written; run the same command again"
        )

    with ExitStack() as stack:
        try:
            if not _lock_folder(path, waiting, stack):
                held = f"{path}.lock"
                _lock_file(held, waiting, stack)
            status = os.stat(held)
        except (OSError, NotImplementedError) as error:
            raise IndexStateError(
                f"cannot write index {uri}: {reason(error)} (its lock {held}); choose another place"
            ) from error
        try:
            yield require
        finally:
            if not there:
                with suppress(OSError):  # there is something in it
                    Path(path).rmdir()


def _lock_folder(path: str, waiting: Callable[[], None] | None, stack: ExitStack) -> bool:
    """Make a folder and lock it; whether the system can. It is free when its process ends, however it ends."""
    try:
        import fcntl
    except ImportError:
        return False
    while True:
        _make(Path(path))
        with suppress(FileNotFoundError), ExitStack() as attempt:  # others may remove it
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            attempt.callback(os.close, folder)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is not None:
                    waiting()
                    waiting = None
                fcntl.flock(folder, fcntl.LOCK_EX)
            except OSError:
                return False
            if os.path.samestat(os.fstat(folder), os.stat(path)):
                stack.push(attempt.pop_all())
                return True


def _make(folder: Path) -> None:
    """Make a folder and those above it, so that they outlast a loss of power."""
    new = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    folder.mkdir(parents=True, exist_ok=True)
    for path in new:
        sync_folder(path.parent)


def _lock_file(path: str, waiting: Callable[[], None] | None, stack: ExitStack) -> None:
    import filelock

    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if waiting is not None:
            waiting()
        lock.acquire()
    stack.callback(lock.release)
